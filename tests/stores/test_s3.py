"""S3 as a store, on SeaweedFS: the contract, and what only S3 does."""

import hashlib
import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from backupd.errors import ConfigError, ObjectExists, StoreDenied, StoreError, StoreUnavailable
from backupd.redact import Secret
from backupd.stores import Lock, S3Keys, Store, open_store
from tests.parts.proxy import MakeProxy
from tests.parts.s3 import Login, S3Server
from tests.stores.contract import (
    PARTS,
    QUICK,
    SMALL,
    WHOLE,
    assert_nothing_left,
    commit_at_once,
    denied,
    found,
    names,
    send,
    send_part,
)
from tests.stores.network import NetworkContract, Proxied

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Bucket:
    """A prefix of one test in a bucket."""

    server: S3Server
    name: str
    prefix: str
    endpoint: str
    keys: S3Keys

    def open(self, prefix: str = "", **options: Any) -> Store:
        url = f"s3://{self.name}/{self.prefix}/{prefix}"
        given: dict[str, Any] = {"endpoint_url": self.endpoint, "keys": self.keys, "patience": QUICK} | options
        return open_store(url, **given)

    def put(self, names: Iterable[str]) -> None:
        client = self.server.client()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: client.put_object(Bucket=self.name, Key=f"{self.prefix}/{name}", Body=b"1"), names))
        client.close()


def keys_of(login: Login) -> S3Keys:
    return S3Keys(login.access_key, Secret(login.secret_key))


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> str:
    return s3_server.new_bucket()


@pytest.fixture(scope="module")
def locking_bucket(s3_server: S3Server) -> str:
    return s3_server.new_bucket(object_lock=True)


@pytest.fixture
def place(s3_server: S3Server, bucket: str) -> Bucket:
    keys = keys_of(Login(s3_server.access_key, s3_server.secret_key))
    return Bucket(s3_server, bucket, f"test-{next(_numbers)}", s3_server.endpoint, keys)


@pytest.fixture
def proxied(place: Bucket, make_proxy: MakeProxy) -> Proxied:
    proxy = make_proxy("127.0.0.1", place.server.port)
    return Proxied(replace(place, endpoint=proxy.url), place.open(), proxy)


class TestS3Store(NetworkContract):
    """SeaweedFS keeps the contract, except where it looks whether a name is taken some time before it takes it."""

    def test_of_two_uploads_of_one_name_exactly_one_wins(self, store: Store) -> None:
        """AWS promises it. Of two completions at once SeaweedFS grants both, so here only what is stored is sure to be one's.

        No two runs share a name, and what makes a backup is the manifest, which is a `create`: SeaweedFS grants one of those.
        """
        winners = commit_at_once(store, "x", PARTS[:2])
        assert store.read("x") in [PARTS[winner] for winner in winners]
        assert store.sweep("") == []


def test_a_server_without_sha256_checksums_gets_content_md5(place: Bucket) -> None:
    store = place.open(checksum="when_required")
    upload = store.begin("x")
    send(upload)
    upload.commit(len(PARTS), len(WHOLE))
    store.create("y", SMALL)
    assert store.read("x") == WHOLE
    assert store.read("y") == SMALL


def test_the_server_refuses_a_part_that_is_not_what_its_digest_says(place: Bucket) -> None:
    store = place.open()
    upload = store.begin("x")
    with pytest.raises(StoreUnavailable, match="BadDigest"):
        upload.part(1, PARTS[0], hashlib.sha256(PARTS[1]).digest())
    upload.abort()
    assert_nothing_left(store)


# ------------------------------------------------------------------------------------------------------ lost answers


def test_a_completion_whose_answer_was_lost_is_a_success(proxied: Proxied) -> None:
    upload = proxied.open().begin("x")
    send(upload)
    proxied.proxy.lose_answer_next(1, method="POST")
    upload.commit(len(PARTS), len(WHOLE))
    assert proxied.direct.read("x") == WHOLE
    upload.abort()
    assert names(proxied.direct) == ["x"]


def test_a_completion_that_met_trouble_does_not_claim_what_others_wrote(proxied: Proxied) -> None:
    upload = proxied.open().begin("x")
    send(upload)
    proxied.direct.create("x", SMALL)
    proxied.proxy.fail_next(1, 503, method="POST")
    with pytest.raises(ObjectExists):
        upload.commit(len(PARTS), len(WHOLE))
    assert proxied.direct.read("x") == SMALL
    assert proxied.direct.sweep("") == []


def test_the_server_itself_refuses_to_complete_over_an_object(proxied: Proxied, place: Bucket) -> None:
    """The look before the completion is for other servers: the condition alone must hold, as between two hosts."""
    upload = proxied.open().begin("x")
    send(upload)
    proxied.proxy.stall_next(1, method="POST", path="uploadId")
    with ThreadPoolExecutor(1) as pool:
        commit = pool.submit(upload.commit, len(PARTS), len(WHOLE))
        proxied.proxy.wait_until_stalled()
        proxied.direct.create("x", SMALL)
        proxied.proxy.release()
        with pytest.raises(ObjectExists):
            commit.result()
    assert proxied.direct.read("x") == SMALL


def test_a_completion_that_fails_for_good_leaves_nothing(proxied: Proxied) -> None:
    upload = proxied.open().begin("x")
    send(upload)
    proxied.proxy.fail_next(QUICK.tries, 500, method="POST")
    with pytest.raises(StoreUnavailable):
        upload.commit(len(PARTS), len(WHOLE))
    assert_nothing_left(proxied.direct)


def test_a_beginning_whose_answer_was_lost_is_found_by_the_sweep(proxied: Proxied) -> None:
    proxied.proxy.lose_answer_next(1, method="POST")
    upload = proxied.open().begin("x")
    send(upload)
    upload.commit(len(PARTS), len(WHOLE))
    assert proxied.direct.sweep("") == ["x"]
    assert proxied.direct.read("x") == WHOLE


def test_each_request_is_tried_as_often_as_asked_and_no_more(proxied: Proxied) -> None:
    proxied.proxy.fail_next(100, 503)
    with pytest.raises(StoreUnavailable):
        proxied.open().read("x")
    assert proxied.proxy.count("GET") == QUICK.tries


# ------------------------------------------------------------------------------------------------------- object lock


@pytest.mark.parametrize("mode", ["compliance", "governance"])
def test_what_is_written_with_a_lock_cannot_be_deleted(place: Bucket, locking_bucket: str, mode: Any) -> None:
    locked = replace(place, name=locking_bucket)
    store = locked.open(lock=Lock(mode, days=2))
    store.create("m", SMALL)
    upload = store.begin("x")
    send(upload)
    upload.commit(len(PARTS), len(WHOLE))
    client = place.server.client()
    for name in ("m", "x"):
        until = found(store, name).locked_until
        assert until is not None
        assert timedelta(days=1, hours=23) < until - datetime.now(UTC) <= timedelta(days=2)
        head = client.head_object(Bucket=locking_bucket, Key=f"{place.prefix}/{name}")
        assert head["ObjectLockMode"] == mode.upper()
        with pytest.raises(ClientError, match="AccessDenied"):
            client.delete_object(Bucket=locking_bucket, Key=f"{place.prefix}/{name}", VersionId=head["VersionId"])
    client.close()
    assert store.read("x") == WHOLE
    with pytest.raises(ObjectExists):
        store.create("m", b"another version would hide the first")


def test_a_lock_on_a_bucket_without_object_lock_is_refused(place: Bucket) -> None:
    store = place.open(lock=Lock("compliance", days=1))
    with pytest.raises(StoreError, match="with a lock") as caught:
        store.create("x", SMALL)
    assert caught.value.hint is not None
    assert "Object Lock" in caught.value.hint
    assert names(place.open()) == []


# ------------------------------------------------------------------------------------------------------------ refusals


def test_an_identity_that_may_only_read_is_denied(place: Bucket) -> None:
    place.open().create("there", SMALL)
    denied(replace(place, keys=keys_of(place.server.reader)).open())


def test_wrong_keys_are_told(place: Bucket) -> None:
    for wrong in (S3Keys("nobody", Secret("x" * 40)), S3Keys(place.keys.access_key_id, Secret("wrong" * 8))):
        store = replace(place, keys=wrong).open()
        with pytest.raises(StoreDenied) as caught:
            store.read("x")
        assert caught.value.hint is not None
        assert "key" in caught.value.hint
        assert "wrong" not in caught.value.message


def test_a_missing_bucket_is_told(place: Bucket) -> None:
    store = replace(place, name="no-such-bucket").open()
    for use in (lambda: store.read("x"), lambda: store.create("x", SMALL), lambda: store.begin("x"), lambda: [*store.list()]):
        with pytest.raises(StoreError, match="no bucket") as caught:
            use()
        assert caught.value.hint is not None
        assert "bucket" in caught.value.hint


def test_no_credentials_at_all_are_told(place: Bucket) -> None:
    store = open_store(f"s3://{place.name}", endpoint_url=place.endpoint, patience=QUICK)
    with pytest.raises(StoreDenied, match="no credentials") as caught:
        store.read("x")
    assert caught.value.hint is not None


def test_a_profile_that_does_not_exist_is_a_configuration_error(place: Bucket) -> None:
    with pytest.raises(ConfigError, match="nobody"):
        open_store(f"s3://{place.name}", endpoint_url=place.endpoint, profile="nobody")


def test_the_url_holds_bucket_and_prefix_alone(place: Bucket) -> None:
    assert place.open().url == f"s3://{place.name}/{place.prefix}"
    assert open_store(f"s3://{place.name}/", endpoint_url=place.endpoint, keys=place.keys).url == f"s3://{place.name}"


def test_markers_that_consoles_make_are_no_objects(place: Bucket) -> None:
    place.put(["", "folder/", "folder/x"])
    assert names(place.open()) == ["folder/x"]


def test_many_dead_uploads_are_all_swept(place: Bucket) -> None:
    store = place.open()
    for number in range(25):
        send_part(store.begin(f"dead/{number:02d}"), 1, SMALL)
    assert store.sweep("dead") == [f"dead/{number:02d}" for number in range(25)]
    assert store.sweep("dead") == []
