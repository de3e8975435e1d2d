"""A key is retired when no row names it, and into an archive only; it is in one of the two places at every moment."""

from __future__ import annotations

import dataclasses

import pytest

from backupd.audit.records import Phase
from backupd.columns import Cell
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.custody.file import PrivateFile
from backupd.errors import BackupdError, ConfigError, Refused, SecretUnavailable
from backupd.redact import Secret
from backupd.rotation import Pace, Report, SecretColumn
from backupd.rotation.retire import retire
from backupd.rotation.rotate import Stage, rotate
from backupd.stores import open_store
from tests.e2e.rig import Pairs, rigged
from tests.installation import keep
from tests.rotation.clinic import FIRST, Clinic, seed

NEW = "2027-1"


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return Pairs.generate()


@pytest.fixture
def rotated(sealed: Clinic) -> Clinic:
    """Every row is under the new key, and the keyring has the old one still; the archive is a copy of what it was."""
    keep(sealed.directory / "archive.json", sealed.keyring_file.read_bytes())
    rotate(sealed.column(), sealed.writer, NEW, Stage.ALL, sealed.trail, Pace())
    return sealed


def turn(
    clinic: Clinic,
    pairs: Pairs,
    key_id: str = FIRST,
    *,
    archive: str | None = "archive.json",
    apply: bool = True,
    also: tuple[SecretColumn, ...] = (),
) -> Report:
    """Against an empty store."""
    (clinic.directory / "store").mkdir(exist_ok=True)
    store = open_store(f"file://{clinic.directory}/store")
    column = clinic.column(archive=archive)
    with rigged(store, pairs, clinic.directory) as rig:
        return retire(column, key_id, [column, *also], {"clinic": clinic.reader}, rig.catalog, clinic.trail, apply=apply)


def archived(clinic: Clinic) -> Keyring:
    return Keyring.parse(Secret((clinic.directory / "archive.json").read_bytes()))


def test_a_key_that_nothing_names_moves_to_the_archive(rotated: Clinic, pairs: Pairs) -> None:
    key = rotated.keyring.key(FIRST)
    report = turn(rotated, pairs)
    assert report.applied
    assert report.figures == {"backups_naming_it": 0, "backups_not_read": 0}
    assert set(rotated.keyring.keys) == {NEW}
    assert rotated.keyring.retired == (FIRST,)
    assert archived(rotated).key(FIRST) == key
    assert rotated.records()[-1].phase is Phase.DONE


def test_retired_twice_is_retired_once(rotated: Clinic, pairs: Pairs) -> None:
    turn(rotated, pairs)
    before = rotated.keyring_file.read_bytes()
    turn(rotated, pairs)
    assert rotated.keyring_file.read_bytes() == before


def test_several_keys_come_together_in_the_archive(rotated: Clinic, pairs: Pairs) -> None:
    turn(rotated, pairs)
    rotate(rotated.column(), rotated.writer, "2028-1", Stage.ALL, rotated.trail, Pace())
    key, created = rotated.keyring.key(NEW), rotated.keyring.created[NEW]
    turn(rotated, pairs, NEW)
    assert set(archived(rotated).keys) == {FIRST, NEW}
    assert (archived(rotated).key(NEW), archived(rotated).created[NEW]) == (key, created)
    assert rotated.keyring.together(archived(rotated)).retired == ()


def test_without_apply_nothing_is_changed(rotated: Clinic, pairs: Pairs) -> None:
    before = rotated.keyring_file.read_bytes(), (rotated.directory / "archive.json").read_bytes()
    assert not turn(rotated, pairs, apply=False).applied
    assert (rotated.keyring_file.read_bytes(), (rotated.directory / "archive.json").read_bytes()) == before


def test_the_current_key_is_not_retired(rotated: Clinic, pairs: Pairs) -> None:
    with pytest.raises(Refused, match="current key"):
        turn(rotated, pairs, NEW)
    assert rotated.records()[-1].phase is Phase.REFUSED


def test_a_key_that_a_row_names_is_not_retired(rotated: Clinic, pairs: Pairs) -> None:
    old = Keyring(FIRST, {FIRST: rotated.keyring.key(FIRST)})
    value = AesGcm(old).encrypt(rotated.cell(1), Secret(seed(1)))
    rotated.database.execute("UPDATE users SET totp_sealed = %s WHERE id = 1", (value,))
    with pytest.raises(Refused, match=r"1 row of users\.totp_sealed name") as caught:
        turn(rotated, pairs)
    assert caught.value.exit_code == 4


def test_a_key_that_a_row_of_another_column_names_is_not_retired(rotated: Clinic, pairs: Pairs) -> None:
    """Two columns may share a keyring; a key leaves it for both."""
    rotated.database.execute("ALTER TABLE users ADD recovery bytea")
    old = Keyring(FIRST, {FIRST: rotated.keyring.key(FIRST)})
    value = AesGcm(old).encrypt(Cell("users", "recovery", "1"), Secret(seed(1)))
    rotated.database.execute("UPDATE users SET recovery = %s WHERE id = 1", (value,))
    with pytest.raises(Refused, match=r"users\.recovery"):
        turn(rotated, pairs, also=(rotated.column(column="recovery"),))


def test_without_an_archive_no_key_is_retired(rotated: Clinic, pairs: Pairs) -> None:
    before = rotated.keyring_file.read_bytes()
    with pytest.raises(Refused, match="never destroyed") as caught:
        turn(rotated, pairs, archive=None)
    assert "copy of the keyring" in str(caught.value.hint)
    assert rotated.keyring_file.read_bytes() == before


def test_an_archive_that_is_not_there_is_told_how_to_begin(rotated: Clinic, pairs: Pairs) -> None:
    (rotated.directory / "archive.json").unlink()
    with pytest.raises(SecretUnavailable) as caught:
        turn(rotated, pairs)
    assert "copy of the keyring" in str(caught.value.hint)


def test_the_keyring_is_no_archive(rotated: Clinic, pairs: Pairs) -> None:
    with pytest.raises(ConfigError, match="is its keyring"):
        turn(rotated, pairs, archive="keyring.json")


def test_a_key_of_nobody_s_is_an_error(rotated: Clinic, pairs: Pairs) -> None:
    with pytest.raises(ConfigError, match="no key '2020-1'"):
        turn(rotated, pairs, "2020-1")


def test_an_archive_with_another_key_of_that_id_is_not_written_over(rotated: Clinic, pairs: Pairs) -> None:
    keep(rotated.directory / "archive.json", Keyring.generate(FIRST).render().reveal())
    before = rotated.keyring_file.read_bytes()
    with pytest.raises(BackupdError, match="one key in the keyring and another in the archive"):
        turn(rotated, pairs)
    assert rotated.keyring_file.read_bytes() == before


def test_killed_between_the_two_writes_the_key_is_in_both_and_the_next_run_ends_it(
    rotated: Clinic, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn(rotated, pairs)
    rotate(rotated.column(), rotated.writer, "2028-1", Stage.ALL, rotated.trail, Pace())
    real = PrivateFile.replace

    def dying(self: PrivateFile, new: Secret, seen: Secret) -> None:
        if self.path.endswith("keyring.json"):
            raise KeyboardInterrupt
        real(self, new, seen)

    with monkeypatch.context() as patched:
        patched.setattr(PrivateFile, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            turn(rotated, pairs, NEW)
    assert NEW in rotated.keyring.keys
    assert NEW in archived(rotated).keys
    turn(rotated, pairs, NEW)
    assert NEW not in rotated.keyring.keys
    assert NEW in archived(rotated).keys


def test_a_column_that_is_gone_keeps_the_key(rotated: Clinic, pairs: Pairs) -> None:
    missing = dataclasses.replace(rotated.column(), column="gone")
    with pytest.raises(ConfigError, match="no column"):
        turn(rotated, pairs, also=(missing,))


def test_the_id_of_a_retired_key_is_not_given_away_again(rotated: Clinic, pairs: Pairs) -> None:
    turn(rotated, pairs)
    with pytest.raises(ConfigError, match="was retired"):
        rotate(rotated.column(), rotated.writer, FIRST, Stage.ADD, rotated.trail, Pace())
