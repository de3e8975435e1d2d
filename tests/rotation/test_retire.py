"""A key is retired when no row names it, and into an archive only; it is in one of the two places at every moment."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from backupd.audit.records import Phase
from backupd.columns import Cell
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.custody import Custodian
from backupd.custody.file import PrivateFile
from backupd.errors import BackupdError, Busy, ConfigError, Refused, SecretUnavailable, Tampered
from backupd.postgres import column_rows
from backupd.redact import Secret
from backupd.rotation import Pace, Report, SecretColumn
from backupd.rotation.retire import retire
from backupd.rotation.rotate import Stage, rotate
from backupd.stores import open_store
from tests.e2e.rig import Pairs, rigged
from tests.installation import keep
from tests.rotation.clinic import FIRST, Beset, Clinic, interrupted, seed
from tests.rotation.meanwhile import beside, seen

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
    column: SecretColumn | None = None,
) -> Report:
    """Against an empty store."""
    (clinic.directory / "store").mkdir(exist_ok=True)
    store = open_store(f"file://{clinic.directory}/store")
    column = column or clinic.column(archive=archive)
    dsns = {"clinic": clinic.reader, "the same": clinic.writer}
    with rigged(store, pairs, clinic.directory) as rig:
        return retire(column, key_id, [column, *also], dsns, rig.catalog, clinic.trail, apply=apply)


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


def test_the_archive_gets_the_current_key_too_and_would_encrypt_with_it(rotated: Clinic, pairs: Pairs) -> None:
    turn(rotated, pairs)
    assert archived(rotated).current == rotated.keyring.current == NEW


def test_several_keys_come_together_in_the_archive(rotated: Clinic, pairs: Pairs) -> None:
    turn(rotated, pairs)
    rotate(rotated.column(), rotated.writer, "2028-1", Stage.ALL, rotated.trail, Pace())
    key, created = rotated.keyring.key(NEW), rotated.keyring.created[NEW]
    turn(rotated, pairs, NEW)
    assert set(archived(rotated).keys) == {FIRST, NEW, "2028-1"}
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


def test_killed_between_the_two_writes_the_key_is_in_both_and_the_next_run_ends_it(rotated: Clinic, pairs: Pairs) -> None:
    turn(rotated, pairs)
    rotate(rotated.column(), rotated.writer, "2028-1", Stage.ALL, rotated.trail, Pace())
    dying = Beset(rotated.custodian("keyring.json"), before=interrupted)
    with pytest.raises(KeyboardInterrupt):
        turn(rotated, pairs, NEW, column=dataclasses.replace(rotated.column(archive="archive.json"), keys=dying))
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


def test_a_link_to_the_keyring_is_no_archive(rotated: Clinic, pairs: Pairs) -> None:
    before = rotated.keyring_file.read_bytes()
    (rotated.directory / "link.json").symlink_to(rotated.keyring_file)
    (rotated.directory / "beside").symlink_to(rotated.directory, target_is_directory=True)
    for archive in ("link.json", "beside/keyring.json", "beside/link.json"):
        with pytest.raises(ConfigError, match="is its keyring"):
            turn(rotated, pairs, archive=archive)
        with pytest.raises(ConfigError, match="is its keyring"):
            rotate(rotated.column(archive=archive), rotated.writer, "2028-1", Stage.ADD, rotated.trail, Pace())
    assert rotated.keyring_file.read_bytes() == before


@dataclasses.dataclass(frozen=True, slots=True)
class OtherName:
    """A custodian that cannot be told from its name to be the one of `path`: a second address of one server, say."""

    path: Path

    @property
    def locator(self) -> str:
        return "vault:https://other.example/secret/data/archive#keyring"

    def fetch(self) -> Secret:
        return PrivateFile(str(self.path)).fetch()


def test_an_archive_that_is_the_keyring_by_another_name_gives_the_key_back(rotated: Clinic, pairs: Pairs) -> None:
    before = rotated.keyring
    archive: Custodian = OtherName(rotated.keyring_file)
    with pytest.raises(Tampered, match="they are one place"):
        turn(rotated, pairs, column=dataclasses.replace(rotated.column(), archive=archive))
    assert rotated.keyring == before


def test_an_archive_that_cannot_be_read_afterwards_gives_the_key_back(rotated: Clinic, pairs: Pairs) -> None:
    before = rotated.keyring
    archive = rotated.directory / "archive.json"
    keys = Beset(rotated.custodian("keyring.json"), after=lambda: archive.unlink(missing_ok=True))
    with pytest.raises(SecretUnavailable):
        turn(rotated, pairs, column=dataclasses.replace(rotated.column(archive="archive.json"), keys=keys))
    assert rotated.keyring == before


@pytest.fixture
def recovery(rotated: Clinic) -> SecretColumn:
    """A second column with the same keyring, and no archive."""
    rotated.database.execute("ALTER TABLE users ADD recovery bytea")
    return rotated.column(column="recovery")


def test_every_column_with_the_keyring_needs_an_archive(rotated: Clinic, pairs: Pairs, recovery: SecretColumn) -> None:
    before = rotated.keyring
    for apply in (False, True):
        with pytest.raises(Refused, match=r"users\.recovery of clinic has the same keyring, and no archive") as caught:
            turn(rotated, pairs, also=(recovery,), apply=apply)
        assert "archive" in str(caught.value.hint)
    assert rotated.keyring == before


def test_the_key_comes_to_the_archive_of_every_column_with_the_keyring(
    rotated: Clinic, pairs: Pairs, recovery: SecretColumn
) -> None:
    other = keep(rotated.directory / "other.json", Keyring.generate("2020-1").render().reveal())
    key = rotated.keyring.key(FIRST)
    turn(rotated, pairs, also=(dataclasses.replace(recovery, archive=PrivateFile(str(other))),))
    assert archived(rotated).key(FIRST) == Keyring.parse(Secret(other.read_bytes())).key(FIRST) == key
    other.unlink()
    keep(other, Keyring.generate("2020-1").render().reveal())
    turn(rotated, pairs, also=(dataclasses.replace(recovery, archive=PrivateFile(str(other))),))
    assert Keyring.parse(Secret(other.read_bytes())).key(FIRST) == key


def test_one_column_of_two_sources_is_one(rotated: Clinic, pairs: Pairs) -> None:
    also = dataclasses.replace(rotated.column(archive="archive.json"), source="the same")
    assert turn(rotated, pairs, also=(also,)).applied


def test_a_write_under_the_key_that_is_not_committed_keeps_it(rotated: Clinic, pairs: Pairs) -> None:
    old = Keyring(FIRST, {FIRST: rotated.keyring.key(FIRST)})
    value = AesGcm(old).encrypt(rotated.cell(1), Secret(seed(1)))
    with psycopg.connect(rotated.database.dsn) as connection:
        connection.execute("UPDATE users SET totp_sealed = %s WHERE id = 1", (value,))
        with pytest.raises(Busy, match=r"1 transaction that wrote to public\.users did not end"):
            turn(rotated, pairs)
    with pytest.raises(Refused, match="1 row of"):
        turn(rotated, pairs)
    assert FIRST in rotated.keyring.keys


def test_a_write_that_ends_in_time_is_waited_for(rotated: Clinic, pairs: Pairs) -> None:
    """Into a partition; it is rolled back when it was seen once."""
    rotated.database.execute(
        "CREATE TABLE parts (LIKE users, PRIMARY KEY (id)) PARTITION BY RANGE (id);CREATE TABLE part PARTITION OF parts DEFAULT"
    )
    rotated.database.execute(f"GRANT SELECT ON parts TO {dict(rotated.reader.parameters)['user']}")
    also = dataclasses.replace(rotated.column(archive="archive.json"), table="parts")
    looked = (
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE state = 'idle' AND query ~ 'virtualtransaction FROM .*pg_locks')"
    )
    with psycopg.connect(rotated.database.dsn) as connection, rotated.database.connect() as observer:
        connection.execute("INSERT INTO part (id, name) VALUES (1, 'somebody')")

        def end() -> None:
            try:
                seen(observer, looked)
            finally:
                connection.rollback()

        with beside(end):
            assert turn(rotated, pairs, also=(also,)).applied


def test_nothing_is_retired_while_another_run_is_at_work(rotated: Clinic, pairs: Pairs, recovery: SecretColumn) -> None:
    """On any column with the keyring: it may have fetched the keyring already."""
    with closing(column_rows.connect(rotated.writer)) as connection:
        table = column_rows.find(connection, "users", "id")
        with column_rows.exclusive(connection, table, "recovery"), pytest.raises(Busy, match="another run"):
            turn(rotated, pairs, also=(dataclasses.replace(recovery, archive=rotated.custodian("archive.json")),))
    assert FIRST in rotated.keyring.keys
