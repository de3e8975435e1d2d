"""Secrets in Vault, on a real OpenBao: what is given, what is refused and why, and how a token is kept alive."""

import http.server
import json
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backupd.custody import SecretRef, Servers, keeper, open_custodian, vault_rights
from backupd.custody.vault import Place as VaultPlace
from backupd.custody.vault import VaultSecret
from backupd.custody.vault_login import AppRole, Kubernetes, Login, Token
from backupd.custody.vault_session import DENIED_S, VaultSession, checked_address
from backupd.errors import ConfigError, CustodyError, Denied, SecretUnavailable
from backupd.redact import Secret
from tests.custody.contract import CustodianContract, KeeperContract, Place
from tests.custody.kept import InHand
from tests.parts.key_vault import make_certificate
from tests.parts.openbao import OpenBao, running_openbao
from tests.parts.ports import claim_port, release_port


def session(bao: OpenBao, login: Login | None = None, **more: Any) -> VaultSession:
    more = {"ca_file": bao.ca_file, "pause": lambda _: None} | more
    return VaultSession(bao.address, login or Token(InHand(bao.root_token)), **more)


def opened(bao: OpenBao, name: str, field: str | None = None, *, as_: VaultSession | None = None, **more: Any) -> VaultSecret:
    found = open_custodian(SecretRef("vault", name, field, **more), {}, Servers(vault=as_ or session(bao)))
    assert isinstance(found, VaultSecret)
    return found


@pytest.fixture(scope="module")
def mount(openbao: OpenBao) -> str:
    return openbao.new_mount()


@pytest.fixture
def path(openbao: OpenBao, mount: str) -> str:
    """A fresh path that nothing was written to, as a reference names it."""
    return f"{mount}/{openbao.new_name('secret')}"


def write(bao: OpenBao, path: str, **data: Any) -> None:
    bao.ask("POST", path.replace("/", "/data/", 1), {"data": data})


def keep(bao: OpenBao, path: str, data: bytes) -> None:
    """As `value`, and the members of a text that is an object by their own names, as one does in KV."""
    members = {}
    try:
        parsed = json.loads(data)
        members = parsed if isinstance(parsed, dict) else {}
    except ValueError:
        pass
    write(bao, path, **{"value": data.decode()} | members)


def lose(bao: OpenBao, path: str) -> None:
    bao.ask("DELETE", path.replace("/", "/metadata/", 1))


@pytest.fixture
def place(openbao: OpenBao, path: str) -> Place:
    vault = session(openbao)
    return Place(
        keep=lambda data: keep(openbao, path, data),
        lose=lambda: lose(openbao, path),
        open=lambda field: opened(openbao, path, field, as_=vault),
    )


class TestVault(CustodianContract):
    """A member of a KV secret keeps the contract."""


class TestWritingVault(KeeperContract):
    """And that of places that are written."""


# ------------------------------------------------------------------------------------------------------------------ faults


def test_a_version_is_given_as_it_was(openbao: OpenBao, path: str) -> None:
    write(openbao, path, value="first")
    write(openbao, path, value="second")
    assert opened(openbao, path, version="1").fetch().text() == "first"
    assert opened(openbao, path).fetch().text() == "second"
    assert "?version=1#value" in opened(openbao, path, version="1").locator


def test_each_thing_that_is_missing_has_its_own_words(openbao: OpenBao, path: str) -> None:
    with pytest.raises(SecretUnavailable, match="does not exist, or was never written"):
        opened(openbao, path).fetch()
    for each in ("one", "two", "three"):
        write(openbao, path, value=each)
    mount, _, name = path.partition("/")
    openbao.ask("POST", f"{mount}/delete/{name}", {"versions": [1, 3]})
    openbao.ask("POST", f"{mount}/destroy/{name}", {"versions": [2]})
    for version, words in {"1": "version 1 was deleted", "2": "version 2 was destroyed", "9": "has no version 9"}.items():
        with pytest.raises(SecretUnavailable, match=words) as caught:
            opened(openbao, path, version=version).fetch()
        assert caught.value.hint
    with pytest.raises(SecretUnavailable, match="version 3 was deleted"):
        opened(openbao, path).fetch()


def test_a_mount_that_is_not_there_or_of_another_kind_is_told(openbao: OpenBao) -> None:
    with pytest.raises(SecretUnavailable, match="nothing is mounted there"):
        opened(openbao, "nowhere/clinic").fetch()
    transit = openbao.new_mount("transit")
    with pytest.raises(SecretUnavailable, match="nothing is mounted there"):
        opened(openbao, f"{transit}/clinic").fetch()
    first = openbao.new_name("kv1")
    openbao.ask("POST", f"sys/mounts/{first}", {"type": "kv"})
    openbao.ask("POST", f"{first}/data/clinic", {"value": "a"})
    with pytest.raises(SecretUnavailable, match="not a secret of KV version 2"):
        opened(openbao, f"{first}/clinic").fetch()


def test_a_policy_that_does_not_allow_it_denies_it(openbao: OpenBao, path: str) -> None:
    write(openbao, path, value="secret")
    role = openbao.new_approle(openbao.new_policy({"other/*": ["read"]}))
    denied = session(openbao, AppRole(role.role_id, InHand(role.secret_id), role.mount))
    with pytest.raises(SecretUnavailable, match=f"denies it to the AppRole {role.role_id}"):
        opened(openbao, path, as_=denied).fetch()


def test_a_token_that_is_expired_revoked_or_wrong_is_told(openbao: OpenBao, path: str) -> None:
    for token in ("s.no-token-of-this-server", openbao.new_token("default")):
        if not token.startswith("s.no"):
            openbao.ask("POST", "auth/token/revoke", {"token": token})
        with pytest.raises(SecretUnavailable, match="does not know the token in file:/run/backupd/token") as caught:
            opened(openbao, path, as_=session(openbao, Token(InHand(token)))).fetch()
        assert token not in str(caught.value)


@pytest.mark.parametrize("text", ["", " \n", "two\nlines", "pässword", "a\0b"])
def test_a_text_that_is_no_token_is_not_sent(openbao: OpenBao, path: str, text: str) -> None:
    with pytest.raises(SecretUnavailable, match="is not what Vault gives out"):
        opened(openbao, path, as_=session(openbao, Token(InHand(text)))).fetch()


def test_a_login_that_is_refused_is_told(openbao: OpenBao, path: str) -> None:
    role = openbao.new_approle("default")
    for login in (AppRole(role.role_id, InHand("wrong"), role.mount), AppRole("wrong", InHand("wrong"), "nowhere")):
        with pytest.raises(SecretUnavailable, match="does not log in the AppRole") as caught:
            opened(openbao, path, as_=session(openbao, login)).fetch()
        assert role.secret_id not in str(caught.value)


def test_a_login_that_is_refused_is_not_tried_again_at_once(openbao: OpenBao, path: str) -> None:
    """One run asks for many secrets, and five refused logins lock an AppRole out for a quarter of an hour."""
    clock = Clock()
    role = openbao.new_approle("default")
    secret_id = InHand("wrong")
    vault = session(openbao, AppRole(role.role_id, secret_id, role.mount), clock=clock)
    for _ in range(10):
        with pytest.raises(SecretUnavailable, match="does not log in the AppRole"):
            opened(openbao, path, as_=vault).fetch()
    secret_id.text = role.secret_id
    clock.now += DENIED_S
    assert vault.standing().policies == {"default"}


def test_a_namespace_is_one_place_however_it_is_written_and_an_unknown_one_is_told(openbao: OpenBao) -> None:
    team = openbao.new_name("team")
    openbao.ask("POST", f"sys/namespaces/{team}", {})
    mount = openbao.new_mount(namespace=team)
    openbao.ask("POST", f"{mount}/data/clinic", {"data": {"value": "secret"}}, namespace=team)
    inside = opened(openbao, f"{mount}/clinic", as_=session(openbao, namespace=f"{team}/"))
    outside = opened(openbao, f"{team}/{mount}//clinic")
    assert inside.fetch() == outside.fetch()
    assert inside.locator == outside.locator
    with pytest.raises(SecretUnavailable, match="has no namespace 'nowhere'"):
        opened(openbao, f"{mount}/clinic", as_=session(openbao, namespace="nowhere")).fetch()
    role = openbao.new_approle("default")
    elsewhere = session(openbao, AppRole(role.role_id, InHand(role.secret_id), role.mount), namespace="nowhere")
    with pytest.raises(SecretUnavailable, match="has no namespace 'nowhere'"):
        opened(openbao, f"{mount}/clinic", as_=elsewhere).fetch()


def test_a_server_that_is_sealed_or_down_is_told() -> None:
    with running_openbao() as bao:
        vault = session(bao)
        write(bao, "secret/clinic", value="secret")
        assert opened(bao, "secret/clinic", as_=vault).fetch().text() == "secret"
        bao.ask("PUT", "sys/seal", {})
        with pytest.raises(SecretUnavailable, match="is sealed") as caught:
            opened(bao, "secret/clinic", as_=vault).fetch()
        assert caught.value.hint == "unseal it"
        assert not isinstance(caught.value, Denied)
        with pytest.raises(SecretUnavailable, match="is sealed"):
            opened(bao, "secret/clinic", as_=session(bao)).fetch()
    with pytest.raises(SecretUnavailable, match="cannot be reached"):
        opened(bao, "secret/clinic", as_=vault).fetch()
    vault.close()


def test_tls_is_verified_against_the_configured_authority(tmp_path: Path) -> None:
    with running_openbao(tls=True) as bao:
        write(bao, "secret/clinic", value="secret")
        assert opened(bao, "secret/clinic").fetch().text() == "secret"
        for ca_file, words in ((None, "its certificate does not verify"), (tmp_path / "none.pem", "there is no .*none.pem")):
            with pytest.raises(SecretUnavailable, match=words):
                opened(bao, "secret/clinic", as_=session(bao, ca_file=ca_file)).fetch()


# ----------------------------------------------------------------------------------------------- a server that is none


@contextmanager
def answering(answers: list[tuple[int, bytes, dict[str, str]]]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers in turn, the last one for ever; its address, and what it was asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append(f"{self.command} {self.path} {self.headers.get('X-Vault-Token', '')}")
            status, body, headers = answers[min(len(asked), len(answers)) - 1]
            if status == 0:
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


Answer = tuple[int, bytes, dict[str, str]]
TOKEN_IS_GOOD: Answer = (200, b'{"data": {"ttl": 3600, "renewable": false}}', {})


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, b"<html>welcome</html>", {}), "gave an answer that is none"),
        ((200, b"[1]", {}), "gave an answer that is none"),
        ((200, b"{", {}), "gave an answer that is none"),
        ((200, b"[" * 100_000, {}), "gave an answer that is none"),
        ((200, b" " * (5 << 20), {}), "gave an answer that is none"),
        ((403, b"<html>no</html>", {}), "gave an answer that is none"),
        ((200, b'{"data": 1}', {}), "not a secret of KV version 2"),
        ((200, b'{"data": {"data": [], "metadata": {}}}', {}), "not a secret of KV version 2"),
        ((502, b"<html>gateway</html>", {}), "not able to answer now .HTTP 502."),
        ((500, b'{"errors": ["internal"]}', {}), "not able to answer now"),
        ((429, b'{"errors": ["limit"]}', {}), "not able to answer now"),
        ((473, b"{}", {}), "not able to answer now"),
        ((501, b'{"errors": []}', {}), "is not initialised"),
        ((307, b"", {"Location": "http://127.0.0.1:1/"}), "redirects to another"),
        ((418, b'{"errors": ["short and stout\\u001b[31m"]}', {}), r"refuses .HTTP 418: short and stout"),
        ((0, b"", {}), "cannot be reached|no whole answer"),
        ((200, b'{"data"', {"Content-Length": "400"}), "no whole answer|answer that is none"),
    ],
)
def test_an_answer_that_is_none_is_no_secret(answer: tuple[int, bytes, dict[str, str]], words: str) -> None:
    with answering([TOKEN_IS_GOOD, answer]) as (address, _):
        vault = VaultSession(address, Token(InHand("hvs.token")), pause=lambda _: None)
        with pytest.raises(SecretUnavailable, match=words) as caught:
            VaultSecret(vault, VaultPlace("secret", "clinic")).fetch()
    assert not isinstance(caught.value, Denied)
    assert caught.value.hint
    assert "\x1b" not in caught.value.message


def test_a_server_that_is_busy_for_a_moment_is_asked_again() -> None:
    found: Answer = (200, b'{"data": {"data": {"value": "secret"}, "metadata": {"version": 1}}}', {})
    with answering([TOKEN_IS_GOOD, (500, b"", {}), (503, b'{"errors": ["x"]}', {}), found]) as (address, asked):
        waited: list[float] = []
        vault = VaultSession(address, Token(InHand("hvs.token")), pause=waited.append)
        with pytest.raises(SecretUnavailable, match="HTTP 503"):
            VaultSecret(vault, VaultPlace("secret", "clinic")).fetch()
        assert VaultSecret(vault, VaultPlace("secret", "clinic")).fetch().text() == "secret"
    assert waited == [0.2]
    assert len(asked) == 4


def test_a_token_is_not_sent_to_where_a_server_leads() -> None:
    with answering([(200, b"{}", {})]) as (elsewhere, asked):
        with answering([(302, b"", {"Location": elsewhere})]) as (address, _):
            vault = VaultSession(address, Token(InHand("hvs.token")), pause=lambda _: None)
            with pytest.raises(SecretUnavailable, match="redirects to another"):
                VaultSecret(vault, VaultPlace("secret", "clinic")).fetch()
        assert asked == []


def test_no_variable_of_the_environment_leads_a_token_elsewhere(
    openbao: OpenBao, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(openbao, path, value="secret")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "VAULT_ADDR"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("VAULT_TOKEN", "hvs.another")
    assert opened(openbao, path).fetch().text() == "secret"


# ----------------------------------------------------------------------------------------------------- the life of a token


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def lookups(bao: OpenBao, vault: VaultSession) -> str:
    """The accessor of the session's token."""
    return str(vault.ask("GET", "auth/token/lookup-self").data["accessor"])


def approle(bao: OpenBao, **more: Any) -> tuple[AppRole, InHand]:
    role = bao.new_approle("default", **more)
    secret_id = InHand(role.secret_id)
    return AppRole(role.role_id, secret_id, role.mount), secret_id


def test_a_token_is_kept_while_it_is_young_and_renewed_when_a_third_of_its_life_is_left(openbao: OpenBao) -> None:
    clock = Clock()
    login, secret_id = approle(openbao, token_ttl="1h")
    vault = session(openbao, login, clock=clock)
    first = lookups(openbao, vault)
    secret_id.text = "worthless"  # whatever happens from now on is no new login
    clock.now += 2300
    assert lookups(openbao, vault) == first
    clock.now += 200  # 1100 s are left of 3600
    assert lookups(openbao, vault) == first
    clock.now += 1500  # it would have ended by now, had it not been renewed
    assert lookups(openbao, vault) == first


def test_a_token_that_ended_or_cannot_be_renewed_is_followed_by_a_new_login(openbao: OpenBao) -> None:
    clock = Clock()
    login, _ = approle(openbao, token_ttl="1h")
    vault = session(openbao, login, clock=clock)
    first = lookups(openbao, vault)
    clock.now += 3700
    second = lookups(openbao, vault)
    assert second != first
    openbao.ask("POST", "auth/token/revoke-accessor", {"accessor": second})
    assert lookups(openbao, vault) not in (first, second)


def test_a_batch_token_which_nothing_renews_is_replaced_in_time(openbao: OpenBao, path: str) -> None:
    clock = Clock()
    login, secret_id = approle(openbao, token_ttl="1h", token_type="batch")
    vault = session(openbao, login, clock=clock)
    assert vault.standing().policies == {"default"}
    secret_id.text = "worthless"
    clock.now += 3000  # no new one is to be had, but this one still lives
    assert vault.standing().policies == {"default"}
    clock.now += 700
    with pytest.raises(SecretUnavailable, match="does not log in"):
        vault.standing()


def test_a_token_in_a_file_that_was_replaced_is_read_anew(openbao: OpenBao) -> None:
    kept = InHand(openbao.new_token("default"))
    vault = session(openbao, Token(kept))
    first = lookups(openbao, vault)
    openbao.ask("POST", "auth/token/revoke-accessor", {"accessor": first})
    kept.text = openbao.new_token("default") + "\n"
    assert lookups(openbao, vault) != first


def test_closing_ends_a_token_of_our_own_and_leaves_another_s_alone(openbao: OpenBao) -> None:
    login, _ = approle(openbao)
    vault = session(openbao, login)
    accessor = lookups(openbao, vault)
    vault.close()
    with pytest.raises(Exception, match="invalid accessor"):
        openbao.ask("POST", "auth/token/lookup-accessor", {"accessor": accessor})
    token = openbao.new_token("default")
    vault = session(openbao, Token(InHand(token)))
    accessor = lookups(openbao, vault)
    vault.close()
    assert openbao.ask("POST", "auth/token/lookup-accessor", {"accessor": accessor})["data"]["accessor"] == accessor


def test_a_service_account_logs_in_when_kubernetes_knows_it(openbao: OpenBao, path: str, tmp_path: Path) -> None:
    """Kubernetes' judgement (TokenReview) comes from a stand-in; the auth method is the server's own."""
    write(openbao, path, value="secret")
    policy = openbao.new_policy({path.replace("/", "/data/", 1): ["read"]})
    account = {"username": "system:serviceaccount:clinic:backupd", "uid": "u-1", "groups": []}
    review = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "status": {"authenticated": True, "user": account},
    }
    jwt_file = tmp_path / "token"
    claims = {
        "iss": "kubernetes/serviceaccount",
        "kubernetes.io/serviceaccount/namespace": "clinic",
        "kubernetes.io/serviceaccount/service-account.name": "backupd",
        "kubernetes.io/serviceaccount/service-account.uid": "u-1",
        "sub": account["username"],
    }
    parts = [json.dumps({"alg": "RS256", "typ": "JWT"}), json.dumps(claims), "signature"]
    jwt_file.write_text(".".join(b64encode(each.encode()).decode().rstrip("=") for each in parts) + "\n")
    with answering([(201, json.dumps(review).encode(), {"Content-Type": "application/json"})]) as (cluster, _):
        mount = openbao.new_name("kubernetes")
        openbao.ask("POST", f"sys/auth/{mount}", {"type": "kubernetes"})
        config = {"kubernetes_host": cluster, "disable_local_ca_jwt": True, "token_reviewer_jwt": jwt_file.read_text().strip()}
        config["kubernetes_ca_cert"] = make_certificate(tmp_path, "cluster")[0].read_text()
        openbao.ask("POST", f"auth/{mount}/config", config)
        role = {
            "bound_service_account_names": ["backupd"],
            "bound_service_account_namespaces": ["clinic"],
            "policies": [policy],
        }
        openbao.ask("POST", f"auth/{mount}/role/backups", role)
        vault = session(openbao, Kubernetes("backups", str(jwt_file), mount))
        assert opened(openbao, path, as_=vault).fetch().text() == "secret"
        other = session(openbao, Kubernetes("other", str(jwt_file), mount))
        with pytest.raises(SecretUnavailable, match="does not log in the Kubernetes role other"):
            opened(openbao, path, as_=other).fetch()
    with pytest.raises(SecretUnavailable, match="cannot be read: No such file"):
        opened(openbao, path, as_=session(openbao, Kubernetes("backups", str(tmp_path / "none"), mount))).fetch()


# ------------------------------------------------------------------------------------------------------------------ Transit


@pytest.fixture
def wrapped(openbao: OpenBao, path: str) -> Callable[[str], str]:
    """Writes a value that a fresh Transit key wrapped, and gives that key as a reference names it."""

    def write_wrapped(value: str) -> str:
        mount = openbao.new_mount("transit", prefix="team/")
        openbao.ask("POST", f"{mount}/keys/clinic", {})
        plaintext = b64encode(value.encode()).decode()
        answer = openbao.ask("POST", f"{mount}/encrypt/clinic", {"plaintext": plaintext})
        write(openbao, path, value=answer["data"]["ciphertext"])
        return f"{mount}/clinic"

    return write_wrapped


def test_a_wrapped_value_is_unwrapped_by_its_key(openbao: OpenBao, path: str, wrapped: Callable[[str], str]) -> None:
    key = wrapped("secret €\n")
    secret = opened(openbao, path, unwrap=key)
    assert secret.fetch().reveal() == "secret €\n".encode()
    assert secret.wrapped_by == f"vault:{openbao.address}/v1/{key.replace('/clinic', '/keys/clinic')}"
    assert opened(openbao, path).fetch().text().startswith("vault:v1:")


def test_a_value_that_cannot_be_unwrapped_says_why(openbao: OpenBao, path: str, wrapped: Callable[[str], str]) -> None:
    key = wrapped("secret")
    mount = key.removesuffix("/clinic")
    openbao.ask("POST", f"{mount}/keys/other", {})
    for unwrap, words in (
        (f"{mount}/other", "cannot be unwrapped"),
        (f"{mount}/none", "cannot be unwrapped"),
        ("no/key", "nothing"),
    ):
        with pytest.raises(SecretUnavailable, match=words):
            opened(openbao, path, unwrap=unwrap).fetch()
    reads = openbao.new_token("default", openbao.new_policy({path.replace("/", "/data/", 1): ["read"]}))
    with pytest.raises(SecretUnavailable, match=r"cannot be unwrapped .* denies it"):
        opened(openbao, path, unwrap=key, as_=session(openbao, Token(InHand(reads)))).fetch()
    write(openbao, path, value="plain")
    with pytest.raises(SecretUnavailable, match="is not wrapped by a Transit key"):
        opened(openbao, path, unwrap=key).fetch()
    assert "empty when unwrapped" in str(blank(openbao, path, wrapped))


def blank(openbao: OpenBao, path: str, wrapped: Callable[[str], str]) -> SecretUnavailable:
    key = wrapped(" \n")
    with pytest.raises(SecretUnavailable) as caught:
        opened(openbao, path, unwrap=key).fetch()
    return caught.value


# ------------------------------------------------------------------------------------------------------- rights and writing


@pytest.mark.parametrize(
    ("able", "words"),
    [
        ([], []),
        (["read"], ["read"]),
        (["list"], []),
        (["update"], ["write"]),
        (["patch"], ["write"]),
        (["create", "read"], ["read", "write"]),
        (["delete"], []),
        (["deny"], []),
    ],
)
def test_the_server_tells_whether_an_identity_may_read_or_write(
    openbao: OpenBao, path: str, able: list[str], words: list[str]
) -> None:
    data = path.replace("/", "/data/", 1)
    rules = {data: able} if able else {}
    token = openbao.new_token("default", openbao.new_policy(rules | {"unrelated/*": ["read"]}))
    found = opened(openbao, path, as_=session(openbao, Token(InHand(token)))).rights()
    assert found.give == tuple(f"{each} {data}" for each in words)
    assert found.hazards == ()


@pytest.mark.parametrize(("door", "able"), [("destroy", "update"), ("metadata", "delete")])
def test_the_right_to_destroy_a_secret_is_told(openbao: OpenBao, path: str, door: str, able: str) -> None:
    token = openbao.new_token("default", openbao.new_policy({path.replace("/", f"/{door}/", 1): [able]}))
    vault = session(openbao, Token(InHand(token)))
    for unwrap in (None, "transit/clinic"):
        rights = opened(openbao, path, as_=vault, unwrap=unwrap).rights()
        [hazard] = rights.hazards
        assert "may destroy" in hazard.text
        assert rights.give == ()


def test_a_wildcard_of_a_policy_and_the_root_token_are_seen(openbao: OpenBao, path: str) -> None:
    token = openbao.new_token("default", openbao.new_policy({f"{path.partition('/')[0]}/data/*": ["read"]}))
    assert opened(openbao, path, as_=session(openbao, Token(InHand(token)))).rights().give
    assert opened(openbao, path).rights().give


def test_a_right_in_a_namespace_is_seen_from_outside_of_it(openbao: OpenBao) -> None:
    team = openbao.new_name("team")
    openbao.ask("POST", f"sys/namespaces/{team}", {})
    mount = openbao.new_mount(namespace=team)
    openbao.ask("POST", f"{mount}/data/clinic", {"data": {"value": "secret"}}, namespace=team)
    token = openbao.new_token("default", openbao.new_policy({f"{team}/{mount}/data/clinic": ["read"]}))
    for name, namespace in ((f"{team}/{mount}//clinic", ""), (f"{mount}/clinic", team)):
        secret = opened(openbao, name, as_=session(openbao, Token(InHand(token)), namespace=namespace))
        assert secret.fetch().text() == "secret"
        assert secret.rights().give


def test_of_a_wrapped_value_the_right_to_unwrap_counts(openbao: OpenBao, path: str) -> None:
    data = path.replace("/", "/data/", 1)
    for rules, expected in (
        ({data: ["read"]}, False),
        ({"transit/decrypt/clinic": ["update"]}, True),
        ({"transit/export/encryption-key/*": ["read"]}, True),
        ({"transit/backup/clinic": ["read"]}, True),
        ({"transit/export/encryption-key/clinic/1": ["read"]}, True),
        ({"transit/export/encryption-key/clinic/latest": ["read"]}, True),
        ({"transit/export/signing-key/clinic": ["read"]}, True),
        ({"transit/byok-export/+/clinic": ["read"]}, True),
        ({"transit/byok-export/*": ["read"]}, True),
        ({"transit/restore/clinic": ["update"]}, True),
        ({"transit/restore": ["update"]}, True),
        ({data: ["update"]}, True),
        ({"transit/keys/clinic": ["read"]}, False),
        ({data: ["read"], "transit/encrypt/clinic": ["update"]}, False),
    ):
        token = openbao.new_token("default", openbao.new_policy(rules))
        secret = opened(openbao, path, unwrap="transit/clinic", as_=session(openbao, Token(InHand(token))))
        assert bool(secret.rights().give) == expected


def test_a_token_of_a_namespace_above_tells_its_rights_below(openbao: OpenBao) -> None:
    """Its policies are those of its own namespace, and so is the right to ask."""
    above, below = openbao.new_name("above"), openbao.new_name("below")
    openbao.ask("POST", f"sys/namespaces/{above}", {})
    openbao.ask("POST", f"sys/namespaces/{below}", {}, namespace=above)
    namespace = f"{above}/{below}"
    mount = openbao.new_mount(namespace=namespace)
    openbao.ask("POST", f"{mount}/data/clinic", {"data": {"value": "secret"}}, namespace=namespace)
    for path, words in (("+/+/data/*", "read"), ("sys/policies/acl/own", "change the policy own")):
        policy = f'path "{path}" {{ capabilities = ["read", "update"] }}'
        openbao.ask("POST", "sys/policies/acl/own", {"policy": policy}, namespace=above)
        made = openbao.ask("POST", "auth/token/create", {"policies": ["own"], "no_parent": True}, namespace=above)
        vault = session(openbao, Token(InHand(made["auth"]["client_token"])), namespace=namespace)
        secret = opened(openbao, f"{mount}/clinic", as_=vault)
        found = (*secret.rights().give, *vault_rights.over_identities(vault, None, opens=False).give)
        assert any(words in each for each in found)


def test_a_transit_key_that_can_be_taken_out_is_told_to_who_may_know(openbao: OpenBao, path: str) -> None:
    mount = openbao.new_mount("transit")
    openbao.ask("POST", f"{mount}/keys/plain", {})
    openbao.ask("POST", f"{mount}/keys/loose", {"exportable": True, "allow_plaintext_backup": True})
    reader = openbao.new_token("default", openbao.new_policy({f"{mount}/keys/*": ["read"]}))
    for name, expected in (("plain", 0), ("loose", 1)):
        secret = opened(openbao, path, unwrap=f"{mount}/{name}", as_=session(openbao, Token(InHand(reader))))
        hazards = secret.rights().hazards
        assert len(hazards) == expected
        assert all("exportable, allow_plaintext_backup" in each.text and each.hint for each in hazards)
        nobody = session(openbao, Token(InHand(openbao.new_token("default"))))
        assert secret.rights().give == ()
        assert opened(openbao, path, unwrap=f"{mount}/{name}", as_=nobody).rights().hazards == ()


def test_a_server_that_does_not_tell_rights_is_not_taken_for_a_no(openbao: OpenBao, path: str) -> None:
    mute = openbao.new_token("default", openbao.new_policy({"sys/capabilities-self": ["deny"]}))
    with pytest.raises(Denied, match=r"what the token in .* may do"):
        opened(openbao, path, as_=session(openbao, Token(InHand(mute)))).rights()


def test_who_may_not_write_leaves_what_is_there(openbao: OpenBao, path: str) -> None:
    write(openbao, path, value="old")
    reader = openbao.new_token("default", openbao.new_policy({path.replace("/", "/data/", 1): ["read"]}))
    secret = opened(openbao, path, as_=session(openbao, Token(InHand(reader))))
    with pytest.raises(CustodyError, match="takes no new value") as caught:
        secret.replace(Secret("newer value"), secret.fetch())
    assert "update" in str(caught.value.hint)
    assert opened(openbao, path).fetch().text() == "old"


def test_a_version_and_a_wrapped_value_are_not_written(openbao: OpenBao, path: str) -> None:
    write(openbao, path, value="old")
    for secret in (opened(openbao, path, version="1"), opened(openbao, path, unwrap="transit/clinic")):
        with pytest.raises(ConfigError, match="cannot write to"):
            secret.replace(Secret("newer value"), Secret("old"))
        with pytest.raises(ConfigError, match="cannot write to"):
            keeper(secret)


# ---------------------------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("https://Vault.Example", "https://vault.example:443"),
        ("https://vault.example:8200/", "https://vault.example:8200"),
        ("https://gate.example/vault/", "https://gate.example:443/vault"),
        ("http://127.0.0.1:8200", "http://127.0.0.1:8200"),
        ("http://[::1]:8200", "http://[::1]:8200"),
        ("http://localhost", "http://localhost:80"),
    ],
)
def test_an_address_has_one_spelling(address: str, url: str) -> None:
    assert checked_address(address) == url


@pytest.mark.parametrize(
    "address",
    ["", "vault:8200", "ftp://vault", "https://", "https://a:b@vault", "https://vault?x=1", "http://vault", "https://v:x"],
)
def test_an_address_that_is_none_or_without_tls_is_refused(address: str) -> None:
    with pytest.raises(ConfigError):
        VaultSession(address, Token(InHand("x")))


@pytest.mark.parametrize("name", ["", "secret", "/clinic", "secret/", "a/../b", "a//b//c", "a/b\0", "//b", "a///b"])
def test_a_path_that_is_none_is_refused(openbao: OpenBao, name: str) -> None:
    with pytest.raises(ConfigError, match="not a path in Vault"):
        opened(openbao, name)


@pytest.mark.parametrize("version", ["0", "-1", "one", "1.5", "²"])
def test_a_version_that_is_none_is_refused(openbao: OpenBao, version: str) -> None:
    with pytest.raises(ConfigError, match="not the version"):
        opened(openbao, "secret/clinic", version=version)


def test_odd_characters_of_a_path_arrive_and_do_not_confuse_locators(openbao: OpenBao, mount: str) -> None:
    odd = f"{mount}/a b?version=1#c%2fd"
    write(openbao, odd.replace("?", "%3F").replace("#", "%23").replace("%2f", "%252f"), value="odd")
    assert opened(openbao, odd).fetch().text() == "odd"
    assert opened(openbao, odd).locator.endswith("/data/a%20b%3Fversion%3D1%23c%252fd#value")


def test_without_its_client_it_is_said_what_to_install(openbao: OpenBao, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("hvac", "hvac.adapters", "requests"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="need the package hvac"):
        opened(openbao, path).fetch()


def test_without_a_server_it_is_said_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="which server keeps secret/clinic is not said") as caught:
        open_custodian(SecretRef("vault", "secret/clinic"), {})
    assert "[vault]" in str(caught.value.hint)


def test_a_server_that_is_down_is_tried_three_times_and_then_told() -> None:
    port = claim_port()
    try:
        waited: list[float] = []
        vault = VaultSession(f"http://127.0.0.1:{port}", Token(InHand("hvs.x")), pause=waited.append)
        with pytest.raises(SecretUnavailable, match="cannot be reached"):
            VaultSecret(vault, VaultPlace("secret", "clinic")).fetch()
        assert waited == [0.2, 0.8]
    finally:
        release_port(port)
