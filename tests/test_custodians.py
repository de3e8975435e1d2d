"""Which identity asks for which secret: decided by what it is for, on sessions that nobody has to answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from backupd.config import load
from backupd.config.models import Config, SecretRef, references
from backupd.custodians import Custodians
from backupd.custody import Custodian
from backupd.custody.key_vault import KeyVaultSecret
from backupd.custody.vault import VaultSecret
from backupd.errors import ConfigError

TEXT = """
[store]
url = "s3://clinic/prod"
access_key_id = "AK"
secret_access_key = { vault = "secret/store" }
[encryption]
recipients = ["a.asc", "b.asc"]
signing_key = { vault = "secret/signing" }
[audit]
url = "postgresql://audit@db/audit"
password = { azure = "https://clinic.vault.azure.net/secrets/audit" }
[vault]
address = "https://vault.example:8200"
approle = { role_id = "backups", secret_id = { file = "backups.id" } }
[azure_key_vault]
client_id = "backups"
[drill]
secret_key = { vault = "secret/operations" }
[sources.clinic]
dsn = "postgresql://backup_ro@db/clinic"
password = { vault = "secret/password" }
columns_dsn = "postgresql://writer@db/clinic"
columns_password = { vault = "secret/writer" }
[[sources.clinic.totp]]
table = "users"
id_column = "id"
column = "totp_secret"
cipher = "aes-256-gcm"
keys = { vault = "secret/totp", field = "keyring" }
archive = { azure = "https://clinic.vault.azure.net/secrets/archive" }
canary = { id = 1, secret = { vault = "secret/canary" } }
"""
DRILL = """
[drill.vault]
kubernetes = { role = "drills" }
[drill.azure_key_vault]
client_id = "drills"
"""
THAT_OPEN = {"operations", "writer", "totp", "archive", "canary"}


def configured(directory: Path, text: str) -> Config:
    path = directory / "backupd.toml"
    path.write_text(text)
    return load(path)


def who(custodian: Custodian) -> str:
    """The identity that a custodian asks as."""
    if isinstance(custodian, KeyVaultSecret):
        return custodian.vaults.identity.rpartition(" ")[2]
    assert isinstance(custodian, VaultSecret)
    return custodian.session.identity.rpartition(" ")[2]


def named(ref: SecretRef) -> str:
    return ref.name.rpartition("/")[2]


@pytest.mark.parametrize(("drill", "opens_as"), [(DRILL, "drills"), ("", "backups")])
def test_what_a_secret_is_for_decides_who_asks_for_it(tmp_path: Path, drill: str, opens_as: str) -> None:
    config = configured(tmp_path, TEXT + drill)
    custodians = Custodians(config, {})
    asked = {named(ref): who(custodians.of(ref)) for ref in references(config) if ref.kind in ("vault", "azure")}
    assert asked == {name: opens_as if name in THAT_OPEN else "backups" for name in asked}
    assert set(asked) == THAT_OPEN | {"store", "signing", "audit", "password"}
    everything = {who(custodians.for_backups(ref)) for ref in references(config) if ref.kind in ("vault", "azure")}
    assert everything == {"backups"}
    custodians.close()
    custodians.close()


def test_one_session_serves_every_secret_of_an_identity(tmp_path: Path) -> None:
    """So that one login serves them all, and a secret id that is good once is used once."""
    config = configured(tmp_path, TEXT + DRILL)
    custodians = Custodians(config, {})
    sessions = {id(found.session) for ref in references(config) if isinstance(found := custodians.of(ref), VaultSecret)}
    assert len(sessions) == 2


def test_an_address_without_tls_is_refused_when_the_first_secret_is_wanted(tmp_path: Path) -> None:
    config = configured(tmp_path, TEXT.replace("https://vault", "http://vault"))
    key = config.encryption.signing_key
    assert key is not None
    with pytest.raises(ConfigError, match="without TLS"):
        Custodians(config, {}).of(key)
