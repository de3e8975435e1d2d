"""A keyring and its archive in a real Vault: keys join, are promoted and retired there, as versions that nobody overwrites."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing

import pytest

from backupd.columns.keyring import Keyring
from backupd.custody import Custodian, SecretRef, Servers, open_custodian
from backupd.custody.vault_login import Token
from backupd.custody.vault_session import VaultSession
from backupd.errors import CustodyError, SecretChanged
from backupd.redact import Secret
from backupd.rotation import Pace, SecretColumn, keyrings
from backupd.rotation.retire import retire
from backupd.rotation.rotate import Stage, rotate
from tests.custody.kept import InHand
from tests.e2e.rig import Pairs, file_store, rigged
from tests.parts.openbao import OpenBao
from tests.rotation.clinic import FIRST, USERS, Clinic

NEW = "2027-1"


@dataclasses.dataclass(frozen=True, slots=True)
class Vault:
    """Where the keyring and the archive are, and the session of who rotates."""

    bao: OpenBao
    mount: str
    session: VaultSession

    def custodian(self, name: str, session: VaultSession | None = None) -> Custodian:
        ref = SecretRef("vault", f"{self.mount}/{name}", "keyring")
        return open_custodian(ref, {}, Servers(vault=session or self.session))

    def write(self, name: str, keyring: Keyring) -> None:
        """As an administrator puts it there."""
        self.bao.ask("POST", f"{self.mount}/data/{name}", {"data": {"keyring": keyring.render().text(), "owner": "clinic"}})

    def versions(self, name: str) -> int:
        return len(self.bao.ask("GET", f"{self.mount}/metadata/{name}")["data"]["versions"])


@pytest.fixture
def vault(openbao: OpenBao, sealed: Clinic) -> Iterator[Vault]:
    """The clinic's keyring, and the archive as its copy."""
    with closing(VaultSession(openbao.address, Token(InHand(openbao.root_token)))) as session:
        made = Vault(openbao, openbao.new_mount(), session)
        made.write("keyring", sealed.keyring)
        made.write("archive", sealed.keyring)
        yield made


def column_of(clinic: Clinic, vault: Vault) -> SecretColumn:
    return dataclasses.replace(clinic.column(), keys=vault.custodian("keyring"), archive=vault.custodian("archive"))


def test_a_rotation_from_its_first_stage_to_the_archive(sealed: Clinic, vault: Vault) -> None:
    column = column_of(sealed, vault)
    report = rotate(column, sealed.writer, NEW, Stage.ALL, sealed.trail, Pace())
    assert report.figures["rows_rewritten"] == USERS
    assert vault.versions("keyring") == 3
    with rigged(file_store(sealed.directory), Pairs.generate(), sealed.directory) as rig:
        retire(column, FIRST, [column], {"clinic": sealed.reader}, rig.catalog, sealed.trail, apply=True)
    kept = keyrings.fetched(column.keys).keyring
    assert (set(kept.keys), kept.retired) == ({NEW}, (FIRST,))
    assert column.archive is not None
    assert FIRST in keyrings.fetched(column.archive).keyring.keys
    data = sealed_data(vault, "keyring")
    assert data["owner"] == "clinic"


def sealed_data(vault: Vault, name: str) -> dict[str, str]:
    """What Vault has there, beside the keyring."""
    data = vault.bao.ask("GET", f"{vault.mount}/data/{name}")["data"]["data"]
    return {member: value for member, value in data.items() if member != "keyring"}


def test_two_who_change_the_keyring_at_once_do_not_lose_a_key(sealed: Clinic, vault: Vault) -> None:
    custodian = vault.custodian("keyring")
    seen = keyrings.fetched(custodian)
    vault.write("keyring", seen.keyring.joined(Keyring.generate("another")))
    with pytest.raises(SecretChanged):
        seen.replace(seen.keyring.joined(Keyring.generate(NEW)), "")
    assert set(keyrings.fetched(custodian).keyring.keys) == {FIRST, "another"}


def test_an_identity_that_may_only_read_changes_nothing(sealed: Clinic, vault: Vault) -> None:
    policy = vault.bao.new_policy({f"{vault.mount}/data/*": ["read"]})
    token = vault.bao.new_token(policy)
    with closing(VaultSession(vault.bao.address, Token(InHand(token)))) as session:
        column = dataclasses.replace(sealed.column(), keys=vault.custodian("keyring", session))
        with pytest.raises(CustodyError):
            rotate(column, sealed.writer, NEW, Stage.ADD, sealed.trail, Pace())
    assert vault.versions("keyring") == 1
    assert Keyring.parse(Secret(sealed.keyring_file.read_bytes())).current == FIRST
