"""One keyring for several columns: a new key is new for all of them, and kept for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from backupd.columns import Cell
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.errors import BackupdError, Refused
from backupd.redact import Secret
from backupd.rotation import Pace, Report, SecretColumn, Sharing
from backupd.rotation.rotate import Stage, plan, rotate
from tests.installation import keep
from tests.rotation.clinic import FIRST, Clinic, seed

NEW = "2027-1"


@pytest.fixture
def shared(sealed: Clinic) -> Iterator[Clinic]:
    """Beside the users there are staff, whose second factors are under the same keyring."""
    sealed.database.execute("CREATE TABLE staff (id int PRIMARY KEY, totp_sealed bytea)")
    sealed.database.execute(f"GRANT SELECT, UPDATE ON staff TO {sealed.role}")
    for number in range(1, 4):
        value = AesGcm(sealed.keyring).encrypt(Cell("staff", "totp_sealed", str(number)), Secret(seed(number)))
        sealed.database.execute("INSERT INTO staff VALUES (%s, %s)", (number, value))
    for name in ("archive.json", "staff.json"):
        keep(sealed.directory / name, sealed.keyring_file.read_bytes())
    yield sealed
    sealed.database.execute("DROP TABLE staff")


def users(clinic: Clinic) -> SecretColumn:
    return clinic.column(archive="archive.json")


def staff(clinic: Clinic, archive: str | None = "staff.json") -> SecretColumn:
    return replace(clinic.column(archive=archive), table="staff", source="wards")


def turn(clinic: Clinic, column: SecretColumn, other: SecretColumn, stage: Stage, key_id: str = NEW) -> Report:
    sharing = Sharing([(other, clinic.writer)])
    return rotate(column, clinic.writer, key_id, stage, clinic.trail, Pace(), sharing=sharing)


def kept(clinic: Clinic, name: str) -> Keyring:
    return Keyring.parse(Secret((clinic.directory / name).read_bytes()))


def test_a_new_key_is_in_every_archive(shared: Clinic) -> None:
    turn(shared, users(shared), staff(shared), Stage.ADD)
    for name in ("archive.json", "staff.json"):
        assert kept(shared, name).key(NEW) == shared.keyring.key(NEW)


def test_a_column_without_an_archive_hinders_nobody(shared: Clinic) -> None:
    turn(shared, users(shared), staff(shared, None), Stage.ALL)
    assert shared.key_ids() == {NEW}


def test_an_id_that_rows_of_another_column_name_is_not_given_to_a_second_key(shared: Clinic) -> None:
    older = shared.keyring
    turn(shared, staff(shared, None), users(shared), Stage.ALL)
    for name in ("keyring.json", "archive.json"):
        keep(shared.directory / name, older.render().reveal())
    sharing = Sharing([(staff(shared, None), shared.writer)])
    with pytest.raises(Refused, match=r"rows of staff\.totp_sealed name a key '2027-1' that the keyring has not"):
        plan(users(shared), shared.writer, NEW, shared.trail, sharing)
    for stage in (Stage.ADD, Stage.ALL):
        with pytest.raises(Refused, match="rows of staff"):
            turn(shared, users(shared), staff(shared, None), stage)
    assert shared.keyring == older


def test_an_id_that_the_archive_of_another_column_has_is_not_given_to_a_second_key(shared: Clinic) -> None:
    older = shared.keyring
    turn(shared, staff(shared), users(shared), Stage.ADD)
    for name in ("keyring.json", "archive.json"):
        keep(shared.directory / name, older.render().reveal())
    with pytest.raises(Refused, match="the archive has one"):
        turn(shared, users(shared), staff(shared), Stage.ADD)
    assert shared.keyring == older


def test_a_column_that_is_still_to_be_added_names_no_key(shared: Clinic) -> None:
    shared.database.execute("ALTER TABLE staff DROP COLUMN totp_sealed")
    turn(shared, users(shared), staff(shared), Stage.ALL)
    assert shared.key_ids() == {NEW}


def test_an_id_that_a_backup_names_is_not_given_to_a_second_key(sealed: Clinic) -> None:
    """The host was put back to what it was before the key was made: keyring, archive, rows and trail know nothing of it."""
    asked: list[str] = []

    def backups(key_id: str) -> list[str]:
        asked.append(key_id)
        return ["20261130T101010Z-000001", "20261130T101010Z-000002"] if key_id == NEW else []

    sharing = Sharing(backups=backups)
    for stage in (Stage.ADD, Stage.ALL):
        with pytest.raises(Refused, match="the newest 20261130T101010Z-000002"):
            rotate(sealed.column(), sealed.writer, NEW, stage, sealed.trail, Pace(), sharing=sharing)
    with pytest.raises(BackupdError, match="backups name one"):
        plan(sealed.column(), sealed.writer, NEW, sealed.trail, sharing)
    assert sealed.keyring.current == FIRST
    rotate(sealed.column(), sealed.writer, "2027-2", Stage.ALL, sealed.trail, Pace(), sharing=sharing)
    assert asked == [NEW] * 3 + ["2027-2"]
    assert sealed.key_ids() == {"2027-2"}
