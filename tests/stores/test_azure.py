"""Azure Blob Storage as a store, on Azurite: the contract, and what only Azure does."""

import base64
import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote

import pytest
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobClient, ContainerClient, ContainerSasPermissions, generate_container_sas

from backupd.errors import ConfigError, ObjectExists, StoreDenied, StoreError, StoreUnavailable
from backupd.redact import Secret
from backupd.stores import AzureLogin, Lock, Store, open_store
from tests.parts.azure import AzureServer
from tests.parts.proxy import MakeProxy
from tests.stores.contract import (
    PARTS,
    QUICK,
    SMALL,
    WHOLE,
    assert_nothing_left,
    denied,
    names,
    send,
    send_part,
    take,
)
from tests.stores.network import NetworkContract, Proxied
from tests.stores.recorder import Answer, Recorder

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Container:
    """A prefix of one test in a container."""

    server: AzureServer
    name: str
    prefix: str
    endpoint: str

    def open(self, prefix: str = "", **options: Any) -> Store:
        login = AzureLogin(connection_string=Secret(self.server.connection_string_for(self.endpoint)))
        given: dict[str, Any] = {"login": login, "patience": QUICK} | options
        return open_store(self.url(prefix), **given)

    def url(self, prefix: str = "") -> str:
        return f"azure://{self.name}/{self.prefix}/{prefix}"

    def client(self) -> ContainerClient:
        return ContainerClient.from_connection_string(self.server.connection_string, self.name)

    def blob(self, name: str) -> BlobClient:
        return self.client().get_blob_client(f"{self.prefix}/{name}")

    def put(self, names: Iterable[str]) -> None:
        """By bare HTTP: the SDK takes most of the time that 2,500 blobs need."""
        token = self.sas_token("cw")
        headers = {"x-ms-blob-type": "BlockBlob", "x-ms-version": "2021-08-06"}
        with closing(HTTPConnection("127.0.0.1", self.server.port, timeout=60)) as connection:
            for name in names:
                target = quote(f"/{self.server.account}/{self.name}/{self.prefix}/{name}")
                connection.request("PUT", f"{target}?{token}", b"1", headers)
                answer = connection.getresponse()
                said = answer.read()
                assert answer.status == 201, said

    def sas_token(self, permission: str, start: timedelta = timedelta(hours=-1), end: timedelta = timedelta(hours=1)) -> str:
        now = datetime.now(UTC)
        return generate_container_sas(
            self.server.account,
            self.name,
            account_key=self.server.key,
            permission=ContainerSasPermissions.from_string(permission),
            start=now + start,
            expiry=now + end,
        )

    def sas(self, permission: str, start: timedelta = timedelta(hours=-1), end: timedelta = timedelta(hours=1)) -> AzureLogin:
        return AzureLogin(sas_token=Secret(self.sas_token(permission, start, end)))


@pytest.fixture(scope="module")
def container(azure_server: AzureServer) -> str:
    return azure_server.new_container()


@pytest.fixture
def place(azure_server: AzureServer, container: str) -> Container:
    return Container(azure_server, container, f"test-{next(_numbers)}", azure_server.blob_endpoint)


@pytest.fixture
def proxied(place: Container, make_proxy: MakeProxy) -> Proxied:
    proxy = make_proxy("127.0.0.1", place.server.port)
    return Proxied(replace(place, endpoint=f"{proxy.url}/{place.server.account}"), place.open(), proxy)


class TestAzureStore(NetworkContract):
    """Azurite keeps the contract."""


# --------------------------------------------------------------------------------------------------------- ways to log in


def test_an_account_key_and_a_sas_token_log_in_too(place: Container) -> None:
    logins = {"key": AzureLogin(account_key=Secret(place.server.key)), "sas": place.sas("racwdl")}
    for way, login in logins.items():
        store = place.open(way, login=login, endpoint_url=place.endpoint)
        upload = store.begin("x")
        send(upload, PARTS[:1])
        upload.commit(1, len(PARTS[0]))
        assert store.read("x") == PARTS[0]
        store.create("y", SMALL)
        assert place.server.key not in repr(login)


def test_an_identity_that_may_only_read_is_denied(place: Container) -> None:
    place.open().create("there", SMALL)
    denied(place.open(login=place.sas("rl"), endpoint_url=place.endpoint))


def test_wrong_credentials_are_told(place: Container) -> None:
    wrong = base64.b64encode(b"wrong" * 10).decode()
    ended = place.sas("racwdl", timedelta(days=-2), timedelta(days=-1))
    for login in (AzureLogin(account_key=Secret(wrong)), ended):
        store = place.open(login=login, endpoint_url=place.endpoint)
        with pytest.raises(StoreDenied) as caught:
            store.read("x")
        assert caught.value.hint is not None
        assert "clock" in caught.value.hint
        assert wrong not in caught.value.message


@pytest.mark.parametrize(
    ("login", "endpoint", "said"),
    [
        (AzureLogin(), "http://127.0.0.1:1/account", "exactly one"),
        (AzureLogin(sas_token=Secret("a=b"), account_key=Secret("YQ==")), "http://127.0.0.1:1/account", "exactly one"),
        (AzureLogin(account_key=Secret("YQ==")), None, "no storage account"),
        (AzureLogin(connection_string=Secret("AccountKey=wrongsecret")), None, "cannot use"),
        (AzureLogin(connection_string=Secret("AccountKey=wrongsecret")), "http://127.0.0.1:1/account", "own endpoint"),
        (None, None, "no storage account"),
    ],
)
def test_a_login_that_cannot_be_one_is_a_configuration_error(login: AzureLogin | None, endpoint: str | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        open_store("azure://container", login=login, endpoint_url=endpoint)
    assert caught.value.hint
    assert "wrongsecret" not in caught.value.message + caught.value.hint


def test_the_machines_own_identity_is_used_without_a_login_and_never_without_tls() -> None:
    assert open_store("azure://container/a", endpoint_url="https://account.invalid").url == "azure://container/a"
    with pytest.raises(ConfigError, match="without TLS") as caught:
        open_store("azure://container/a", endpoint_url="http://127.0.0.1:1/account")
    assert caught.value.hint is not None
    assert "https" in caught.value.hint


def test_a_missing_container_is_told(place: Container) -> None:
    store = replace(place, name="no-such-container").open()
    for use in (
        lambda: store.read("x"),
        lambda: store.create("x", SMALL),
        lambda: send(store.begin("x")),
        lambda: [*store.list()],
    ):
        with pytest.raises(StoreError, match="no container") as caught:
            use()
        assert caught.value.hint is not None
        assert "container" in caught.value.hint


# ------------------------------------------------------------------------------------------------------- lost answers


def test_a_completion_whose_answer_was_lost_is_a_success(proxied: Proxied) -> None:
    upload = proxied.open().begin("x")
    send(upload)
    proxied.proxy.lose_answer_next(1, method="PUT", path="comp=blocklist")
    upload.commit(len(PARTS), len(WHOLE))
    assert proxied.direct.read("x") == WHOLE
    upload.abort()
    assert names(proxied.direct) == ["x"]


def test_a_completion_that_met_trouble_does_not_claim_what_others_wrote(proxied: Proxied) -> None:
    upload = proxied.open().begin("x")
    send(upload)
    proxied.proxy.stall_next(1, method="PUT", path="comp=blocklist")
    with ThreadPoolExecutor(1) as pool:
        commit = pool.submit(upload.commit, len(PARTS), len(WHOLE))
        proxied.proxy.wait_until_stalled()
        # It stalls after the look at the waiting blocks, so the service's own condition is what decides.
        take(proxied.direct, "x")
        proxied.proxy.release()
        with pytest.raises(ObjectExists):
            commit.result()
    assert proxied.direct.read("x") == SMALL
    assert proxied.direct.sweep("") == []


def test_a_completion_that_fails_for_good_leaves_nothing(proxied: Proxied) -> None:
    upload = proxied.open().begin("x")
    send(upload)
    proxied.proxy.fail_next(QUICK.tries, 500, method="PUT")
    with pytest.raises(StoreUnavailable):
        upload.commit(len(PARTS), len(WHOLE))
    assert_nothing_left(proxied.direct)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "GET"])
def test_a_sweep_whose_answers_are_lost_still_leaves_nothing(proxied: Proxied, method: str) -> None:
    send_part(proxied.direct.begin("x"), 1, SMALL)
    proxied.proxy.lose_answer_next(2, method=method)
    assert proxied.open().sweep("") == ["x"]
    assert_nothing_left(proxied.direct)


def test_each_request_is_tried_as_often_as_asked_and_no_more(proxied: Proxied) -> None:
    proxied.proxy.fail_next(100, 503)
    with pytest.raises(StoreUnavailable):
        proxied.open().read("x")
    assert proxied.proxy.count("GET") == QUICK.tries


# ------------------------------------------------------------------------------------------------ dropping blocks safely


def test_blocks_are_not_dropped_without_the_right_to_delete(place: Container) -> None:
    """Dropping them makes an empty blob for a moment: without that right it would stay for ever."""
    store = place.open(login=place.sas("racwl"), endpoint_url=place.endpoint)
    upload = store.begin("x")
    send_part(upload, 1, SMALL)
    upload.abort()
    assert store.sweep("") == []
    assert names(place.open()) == []
    with pytest.raises(HttpResponseError, match="BlobNotFound"):
        place.blob("x").get_blob_properties()
    assert place.open().sweep("") == ["x"]


def test_the_sweep_never_deletes_an_object_that_has_waiting_blocks_too(place: Container) -> None:
    store = place.open()
    losing = store.begin("x")
    store.create("x", SMALL)
    send_part(losing, 1, SMALL)
    assert store.sweep("") == []
    losing.abort()
    assert store.read("x") == SMALL


def test_what_a_sweep_that_died_left_is_neither_listed_nor_kept(place: Container) -> None:
    """A run that was killed between making the empty blob and deleting it."""
    place.blob("x").upload_blob(b"", metadata={"backupddiscarded": "yes", "backupdupload": "0123456789abcdef"})
    store = place.open()
    assert names(store) == []
    assert store.sweep("") == ["x"]
    assert_nothing_left(store)


# ------------------------------------------------------------------------------------------------------- immutability


@pytest.mark.parametrize(("mode", "sent"), [("compliance", "Locked"), ("governance", "Unlocked")])
def test_a_lock_is_asked_for_with_every_write(mode: Any, sent: str) -> None:
    """Azurite knows no immutability, so this looks at the requests alone."""
    with Recorder({"PUT": Answer(201)}) as recorder:
        store = open_store(
            "azure://container",
            endpoint_url=f"{recorder.url}/account",
            login=AzureLogin(account_key=Secret(base64.b64encode(b"key").decode())),
            lock=Lock(mode, days=35),
            patience=QUICK,
        )
        with pytest.raises(StoreError):  # the recorder answers nothing that makes sense after a write
            store.create("m", SMALL)
        upload = store.begin("x")
        with pytest.raises(StoreError):
            upload.commit(0, 0)
    writes = [request for request in recorder.requests if request.method == "PUT"]
    assert {request.target.split("?")[0] for request in writes} == {"/account/container/m", "/account/container/x"}
    for request in writes:
        until = datetime.strptime(request.headers["x-ms-immutability-policy-until-date"], "%a, %d %b %Y %H:%M:%S %Z")
        left = until.replace(tzinfo=UTC) - datetime.now(UTC)
        assert timedelta(days=34, hours=23) < left <= timedelta(days=35)
        assert request.headers["x-ms-immutability-policy-mode"] == sent
        assert request.headers["if-none-match"] == "*"
    assert not [request for request in recorder.requests if request.method == "DELETE"]
