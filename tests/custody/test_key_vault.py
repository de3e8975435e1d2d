"""Secrets in Azure Key Vault: the real SDK, and a server that speaks the documented API to it."""

import json
import os
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from backupd.custody import Custodian, Guarded, SecretRef, Servers, keeper, open_custodian
from backupd.custody.key_vault import KeyVaults, Login
from backupd.errors import ConfigError, SecretUnavailable
from tests.custody.contract import PLANTED, Place, TextPlaceContract
from tests.custody.kept import InHand
from tests.parts.key_vault import VAULT, Credential, KeyVaultServer, make_certificate
from tests.parts.ports import claim_port, release_port

Name = Callable[[], str]


@pytest.fixture(scope="module")
def fresh() -> Name:
    """Names that no other test has."""
    numbers = iter(range(10_000))
    return lambda: f"secret-{next(numbers)}"


def vaults(server: KeyVaultServer, identity: str = "reader", **more: Any) -> KeyVaults:
    options: dict[str, Any] = {"transport": server.transport, "retries": 0}
    return KeyVaults(credential=Credential(identity), **(options | more))


def opened(server: KeyVaultServer, name: str, *, as_: KeyVaults | None = None, **more: Any) -> Custodian:
    return open_custodian(SecretRef("azure", f"{VAULT}/secrets/{name}", **more), {}, Servers(key_vaults=as_ or vaults(server)))


def keep(server: KeyVaultServer, name: str, data: bytes) -> None:
    server.keep(name, data.decode())


def lose(server: KeyVaultServer, name: str) -> None:
    server.secrets.pop(name, None)


@pytest.fixture
def place(key_vault: KeyVaultServer, fresh: Name) -> Place:
    name = fresh()
    return Place(
        keep=lambda data: keep(key_vault, name, data),
        lose=lambda: lose(key_vault, name),
        open=lambda field: opened(key_vault, name, field=field),
    )


class TestKeyVault(TextPlaceContract):
    """A secret of a key vault keeps the contract."""


def test_the_newest_version_is_given_or_the_one_that_is_named(key_vault: KeyVaultServer, fresh: Name) -> None:
    name = fresh()
    first, second = key_vault.keep(name, "first"), key_vault.keep(name, "second")
    assert opened(key_vault, name).fetch().text() == "second"
    assert opened(key_vault, name, version=first).fetch().text() == "first"
    assert opened(key_vault, f"{name}/{second}").fetch().text() == "second"
    assert opened(key_vault, name, version=first).locator == f"azure:{VAULT}/secrets/{name}/{first}"
    assert opened(key_vault, name.upper()).locator == f"azure:{VAULT}/secrets/{name}"


def test_what_is_deleted_disabled_missing_or_of_no_such_version_is_told(key_vault: KeyVaultServer, fresh: Name) -> None:
    deleted, disabled, missing = fresh(), fresh(), fresh()
    key_vault.keep(deleted, "value")
    key_vault.deleted.add(deleted)
    key_vault.keep(disabled, "value")
    key_vault.secrets[disabled][0].enabled = False
    for name, words in ((deleted, "was deleted"), (disabled, "is disabled"), (missing, "does not exist")):
        with pytest.raises(SecretUnavailable, match=f"{name} {words}") as caught:
            opened(key_vault, name).fetch()
        assert caught.value.hint
    key_vault.keep(missing, "value")
    with pytest.raises(SecretUnavailable, match="does not exist"):
        opened(key_vault, missing, version="0" * 32).fetch()


def test_who_may_not_is_denied_and_who_is_nobody_cannot_log_in(key_vault: KeyVaultServer, fresh: Name) -> None:
    name = fresh()
    key_vault.keep(name, "value")
    with pytest.raises(SecretUnavailable, match="denies it to this workload's identity"):
        opened(key_vault, name, as_=vaults(key_vault, "nobody")).fetch()
    with pytest.raises(SecretUnavailable, match="does not take its token"):
        opened(key_vault, name, as_=vaults(key_vault, "stranger")).fetch()


def test_without_an_identity_it_is_said_that_there_is_none(key_vault: KeyVaultServer, fresh: Name) -> None:
    class NoIdentity:
        def get_token(self, *_: str, **__: Any) -> Any:
            from azure.identity import CredentialUnavailableError

            raise CredentialUnavailableError("no managed identity endpoint")

    name = fresh()
    key_vault.keep(name, "value")
    none = KeyVaults(credential=NoIdentity(), transport=key_vault.transport, retries=0)
    with pytest.raises(SecretUnavailable, match="cannot log in"):
        opened(key_vault, name, as_=none).fetch()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (429, b'{"error": {"code": "Throttled", "message": "slow down"}}', "takes no more requests now"),
        (500, b"", "not able to answer now .HTTP 500."),
        (503, b"<html>", "not able to answer now .HTTP 503."),
        (200, b"<html>welcome</html>", "an answer that is none"),
        (200, b"{}", "an answer that is none"),
        (200, b'{"value": 5, "id": "x"}', "an answer that is none"),
        (200, b"[]", "an answer that is none"),
        (0, b"", "did not answer in time, or not whole|cannot be reached"),
    ],
)
def test_a_vault_that_is_not_well_is_told(key_vault: KeyVaultServer, fresh: Name, status: int, body: bytes, words: str) -> None:
    name = fresh()
    key_vault.keep(name, "value")
    key_vault.fail(status, body)
    with pytest.raises(SecretUnavailable, match=words) as caught:
        opened(key_vault, name).fetch()
    assert caught.value.hint
    assert not key_vault.faults


def test_a_vault_that_is_busy_for_a_moment_is_asked_again(key_vault: KeyVaultServer, fresh: Name) -> None:
    name = fresh()
    key_vault.keep(name, "value")
    key_vault.fail(429, Retry_After="0")
    key_vault.fail(500)
    assert opened(key_vault, name, as_=vaults(key_vault, retries=3)).fetch().text() == "value"


def test_a_vault_that_cannot_be_reached_or_trusted_is_told(key_vault: KeyVaultServer, fresh: Name, tmp_path: Path) -> None:
    name, port = fresh(), claim_port()
    try:
        down = vaults(key_vault, transport=lambda: key_vault.transport(port=port))
        with pytest.raises(SecretUnavailable, match="cannot be reached"):
            opened(key_vault, name, as_=down).fetch()
    finally:
        release_port(port)
    other, _ = make_certificate(tmp_path, "other")
    stranger = vaults(key_vault, transport=lambda: key_vault.transport(ca_file=other))
    with pytest.raises(SecretUnavailable, match="its certificate does not verify"):
        opened(key_vault, name, as_=stranger).fetch()


# --------------------------------------------------------------------------------------------------------- wrapped secrets


def encrypted(server: KeyVaultServer, key: str, plaintext: bytes, **header: str) -> str:
    """A compact JWE, made after RFC 7516, 5.1."""
    words = json.dumps({"alg": "RSA-OAEP-256", "enc": "A256GCM", "kid": key} | header).encode()
    content_key, nonce = os.urandom(32), os.urandom(12)
    head = base64url(words)
    sealed = AESGCM(content_key).encrypt(nonce, plaintext, head)
    parts = (head, *map(base64url, (server.wrap(key, content_key), nonce, sealed[:-16], sealed[-16:])))
    return b".".join(parts).decode()


def base64url(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


def test_a_small_secret_is_what_wrap_key_gave(key_vault: KeyVaultServer, fresh: Name) -> None:
    key, name = key_vault.new_key("small"), fresh()
    wrapped = key_vault.wrap(key, PLANTED.encode())
    for spelling in (b64encode(wrapped), urlsafe_b64encode(wrapped), base64url(wrapped) + b"\n"):
        key_vault.keep(name, spelling.decode())
        secret = opened(key_vault, name, unwrap=key)
        assert secret.fetch().text() == PLANTED
        assert isinstance(secret, Guarded)
        assert secret.wrapped_by == f"azure:{key}"
        assert PLANTED not in repr(secret)


def test_a_large_secret_is_a_json_web_encryption(key_vault: KeyVaultServer, fresh: Name) -> None:
    key, name = key_vault.new_key("large"), fresh()
    key_vault.keep(name, encrypted(key_vault, key, b"line\n" * 2000))
    assert opened(key_vault, name, unwrap=key).fetch().reveal() == b"line\n" * 2000
    key_vault.keep(name, json.dumps({"keyring": encrypted(key_vault, key, b"inside")}))
    assert opened(key_vault, name, unwrap=key, field="keyring").fetch().text() == "inside"


@pytest.mark.parametrize("place_of_change", range(5))
def test_a_changed_encryption_is_refused(key_vault: KeyVaultServer, fresh: Name, place_of_change: int) -> None:
    key, name = key_vault.new_key("changed"), fresh()
    parts = encrypted(key_vault, key, b"secret " * 5).split(".")
    part = parts[place_of_change]
    middle = len(part) // 2
    parts[place_of_change] = part[:middle] + ("A" if part[middle] != "A" else "B") + part[middle + 1 :]
    key_vault.keep(name, ".".join(parts))
    with pytest.raises(SecretUnavailable, match=r"was changed|not wrapped as it should be|refuses it as wrong"):
        opened(key_vault, name, unwrap=key).fetch()


@pytest.mark.parametrize("header", [{"alg": "RSA1_5"}, {"enc": "A128CBC-HS256"}, {"alg": "none"}, {"alg": "dir"}])
def test_another_algorithm_is_refused(key_vault: KeyVaultServer, fresh: Name, header: dict[str, str]) -> None:
    key, name = key_vault.new_key("algorithm"), fresh()
    key_vault.keep(name, encrypted(key_vault, key, b"secret", **header))
    with pytest.raises(SecretUnavailable, match="not wrapped as it should be"):
        opened(key_vault, name, unwrap=key).fetch()


@pytest.mark.parametrize("kept", ["plain text!", "a.b.c.d.e", "....", "\N{SNOWMAN}", "e30.e30.e30.e30.e30"])
def test_a_text_that_is_not_wrapped_is_refused(key_vault: KeyVaultServer, fresh: Name, kept: str) -> None:
    key, name = key_vault.new_key("plain"), fresh()
    key_vault.keep(name, kept)
    with pytest.raises(SecretUnavailable, match=r"not wrapped as it should be|refuses it as wrong"):
        opened(key_vault, name, unwrap=key).fetch()


def test_a_key_that_is_wrong_missing_or_denied_is_told(key_vault: KeyVaultServer, fresh: Name) -> None:
    key, other, name = key_vault.new_key("right"), key_vault.new_key("wrong"), fresh()
    key_vault.keep(name, b64encode(key_vault.wrap(key, b"secret")).decode())
    key_vault.grant("secrets-only", "secrets/get")
    key_vault.grant("unwraps-only", "secrets/get", "keys/unwrapKey")
    assert opened(key_vault, name, unwrap=key, as_=vaults(key_vault, "unwraps-only")).fetch().text() == "secret"
    for unwrap, identity, words in (
        (other, "reader", "refuses it as wrong"),
        (f"{VAULT}/keys/none/{'0' * 32}", "reader", "does not exist"),
        (key, "secrets-only", "denies it to"),
    ):
        with pytest.raises(SecretUnavailable, match=f"cannot be unwrapped with .*{words}"):
            opened(key_vault, name, unwrap=unwrap, as_=vaults(key_vault, identity)).fetch()


# -------------------------------------------------------------------------------------------------------------------- rights


def test_the_vault_shows_whether_an_identity_may_read(key_vault: KeyVaultServer, fresh: Name) -> None:
    name, key = fresh(), key_vault.new_key("rights")
    key_vault.keep(name, "value")
    key_vault.grant("secrets-only", "secrets/get")
    for identity, plain, wrapped in (("reader", True, True), ("nobody", False, False), ("secrets-only", True, False)):
        as_ = vaults(key_vault, identity)
        secret, sealed = opened(key_vault, name, as_=as_), opened(key_vault, name, unwrap=key, as_=as_)
        assert isinstance(secret, Guarded)
        assert isinstance(sealed, Guarded)
        assert (bool(secret.rights().give), bool(sealed.rights().give)) == (plain, wrapped)
    stranger = opened(key_vault, name, as_=vaults(key_vault, "stranger"))
    assert isinstance(stranger, Guarded)
    with pytest.raises(SecretUnavailable):
        stranger.rights()


def test_a_key_vault_is_not_written(key_vault: KeyVaultServer, fresh: Name) -> None:
    with pytest.raises(ConfigError, match="cannot write to"):
        keeper(opened(key_vault, fresh()))


# ---------------------------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize(
    "url",
    [
        "",
        "clinic",
        "http://clinic.vault.azure.net/secrets/a",
        "https:///secrets/a",
        "https://u:p@clinic.vault.azure.net/secrets/a",
        "https://clinic.vault.azure.net/keys/a",
        "https://clinic.vault.azure.net/secrets",
        "https://clinic.vault.azure.net/secrets/a/b/c",
        "https://clinic.vault.azure.net/secrets/a?x=1",
        "https://clinic.vault.azure.net/secrets/../a",
        "https://[/secrets/a",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="not the address of"):
        open_custodian(SecretRef("azure", url), {})


def test_two_versions_and_a_secret_as_key_are_refused() -> None:
    with pytest.raises(ConfigError, match="two versions"):
        open_custodian(SecretRef("azure", f"{VAULT}/secrets/a/1", version="2"), {})
    with pytest.raises(ConfigError, match="one of a key vault's keys"):
        open_custodian(SecretRef("azure", f"{VAULT}/secrets/a", unwrap=f"{VAULT}/secrets/b"), {})


def test_a_registered_application_logs_in_with_its_secret_and_others_with_what_the_platform_gives() -> None:
    """Entra itself is not there to ask: this shows which credential of azure-identity is used, and that none is asked early."""
    from azure.identity import ClientSecretCredential, DefaultAzureCredential

    application = Login("app", "tenant", InHand("client secret"))
    assert isinstance(application.credential(), ClientSecretCredential)
    workload = Login("11111111-2222-3333-4444-555555555555").credential()
    assert isinstance(workload, DefaultAzureCredential)
    names = {type(each).__name__ for each in workload.credentials}
    assert "ManagedIdentityCredential" in names
    assert not names & {
        "AzureCliCredential",
        "EnvironmentCredential",
        "SharedTokenCacheCredential",
        "AzurePowerShellCredential",
    }
    assert "client secret" not in repr(application)


def test_a_kind_without_versions_says_so() -> None:
    for more in ({"version": "1"}, {"unwrap": "a/b"}):
        with pytest.raises(ConfigError, match="has no version and nothing to unwrap"):
            open_custodian(SecretRef("file", "/etc/backupd/key", **more), {})


def test_secrets_of_key_vaults_show_in_no_error(key_vault: KeyVaultServer, fresh: Name) -> None:
    key, name = key_vault.new_key("quiet"), fresh()
    wrapped = encrypted(key_vault, key, PLANTED.encode())
    key_vault.keep(name, wrapped[:-3] + "AAA")
    with pytest.raises(SecretUnavailable) as caught:
        opened(key_vault, name, unwrap=key).fetch()
    assert wrapped[:40] not in f"{caught.value} {caught.value.__context__!r}"
