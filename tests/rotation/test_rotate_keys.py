"""What a rotation does when keyring, archive or rows are not what they were: no row goes under a key that is lost."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace

import pytest

from backupd.columns import KeysUnusable
from backupd.columns.aes_gcm import AesGcm, key_id
from backupd.columns.keyring import Keyring
from backupd.errors import BackupdError, ConfigError, Interrupted, Refused, SecretChanged, SecretUnavailable, Tampered
from backupd.postgres import column_rows
from backupd.redact import Secret
from backupd.rotation import Moved, Pace, Report, RowsLeft
from backupd.rotation.rotate import Stage, plan, rotate
from tests.installation import keep
from tests.rotation.clinic import FIRST, USERS, Beset, Clinic, interrupted, seed
from tests.rotation.meanwhile import beside, seen, waiting

NEW = "2027-1"
EVERYONE = {number: seed(number) for number in range(1, USERS + 1)}


@pytest.fixture
def archiving(sealed: Clinic) -> Clinic:
    """A clinic whose archive is a copy of its keyring."""
    keep(sealed.directory / "archive.json", sealed.keyring_file.read_bytes())
    return sealed


PACE = Pace(batch=4, stall_s=0.0)
LOOKING = replace(PACE, look_s=0.0)  # at the keys before each row


def turn(
    clinic: Clinic,
    stage: Stage,
    new: str = NEW,
    *,
    archive: str | None = None,
    moved: Moved = lambda _: None,
    pace: Pace = PACE,
) -> Report:
    return rotate(clinic.column(archive=archive), clinic.writer, new, stage, clinic.trail, pace, moved)


def archived(clinic: Clinic) -> Keyring:
    return Keyring.parse(Secret((clinic.directory / "archive.json").read_bytes()))


def put(clinic: Clinic, keyring: Keyring) -> None:
    """Somebody replaces the keyring by hand."""
    keep(clinic.keyring_file, keyring.render().reveal())


def stored(clinic: Clinic) -> dict[int, bytes]:
    return dict(clinic.database.execute("SELECT id, totp_sealed FROM users"))


def broken_off(clinic: Clinic, archive: str | None = None) -> None:
    """A rotation to NEW that was killed after two batches."""
    done: list[int] = []

    def kill(rows: int) -> None:
        done.append(rows)
        if len(done) == 2:
            raise Interrupted("interrupted")

    with pytest.raises(Interrupted):
        turn(clinic, Stage.ALL, archive=archive, moved=kill)


def once(action: object) -> Moved:
    """Called after the first batch alone."""
    calls: list[int] = []

    def moved(rows: int) -> None:
        calls.append(rows)
        if len(calls) == 1:
            assert callable(action)
            action()

    return moved


def test_a_new_key_is_in_the_archive_before_a_row_is_under_it(archiving: Clinic) -> None:
    turn(archiving, Stage.ADD, archive="archive.json")
    assert archived(archiving).key(NEW) == archiving.keyring.key(NEW)
    assert archived(archiving).current == FIRST
    assert archived(archiving).created[NEW] == archiving.keyring.created[NEW]


def test_an_archive_that_is_brought_back_encrypts_with_the_key_that_the_keyring_did(archiving: Clinic) -> None:
    """Not with one that was retired, perhaps because it was stolen."""
    turn(archiving, Stage.ALL, archive="archive.json")
    assert archived(archiving).current == NEW
    put(archiving, archiving.keyring.joined(Keyring.generate("2028-1")).promoted("2028-1"))
    turn(archiving, Stage.ROWS, "2028-1", archive="archive.json")
    assert archived(archiving).current == "2028-1"


def test_a_key_that_was_added_by_hand_is_archived_by_the_next_stage(archiving: Clinic) -> None:
    put(archiving, archiving.keyring.joined(Keyring.generate(NEW)))
    turn(archiving, Stage.PROMOTE, archive="archive.json")
    assert archived(archiving).key(NEW) == archiving.keyring.key(NEW)


def test_an_add_that_was_killed_before_the_archive_was_written_is_run_again(archiving: Clinic) -> None:
    dying = Beset(archiving.custodian("archive.json"), before=interrupted)
    with pytest.raises(KeyboardInterrupt):
        rotate(replace(archiving.column(), archive=dying), archiving.writer, NEW, Stage.ADD, archiving.trail, PACE)
    turn(archiving, Stage.ADD, archive="archive.json")
    assert archived(archiving).key(NEW) == archiving.keyring.key(NEW)


def test_an_archive_that_is_not_there_keeps_the_keyring_as_it_is(sealed: Clinic) -> None:
    before = sealed.keyring_file.read_bytes()
    with pytest.raises(SecretUnavailable) as caught:
        turn(sealed, Stage.ADD, archive="archive.json")
    assert "copy of the keyring" in str(caught.value.hint)
    assert sealed.keyring_file.read_bytes() == before


def test_an_id_that_rows_name_is_not_given_to_a_second_key(sealed: Clinic) -> None:
    """The rotation was killed, and somebody put back the keyring from before it."""
    older = sealed.keyring
    broken_off(sealed)
    newer, rows = sealed.keyring, stored(sealed)
    put(sealed, older)
    for stage in (Stage.ADD, Stage.ALL):
        with pytest.raises(Refused, match=r"rows of users\.totp_sealed name a key '2027-1' that the keyring has not"):
            turn(sealed, stage)
    assert (sealed.keyring, stored(sealed)) == (older, rows)
    put(sealed, newer)
    turn(sealed, Stage.ALL)
    assert sealed.opened() == EVERYONE


def test_an_id_that_the_archive_has_is_not_given_to_a_second_key_and_a_new_id_reads_the_rows(archiving: Clinic) -> None:
    older = archiving.keyring
    broken_off(archiving, "archive.json")
    put(archiving, older)
    with pytest.raises(Refused, match="the archive has one"):
        turn(archiving, Stage.ALL, archive="archive.json")
    assert turn(archiving, Stage.ALL, "2027-2", archive="archive.json").figures["rows_rewritten"] == USERS
    assert archiving.opened() == EVERYONE


@pytest.mark.parametrize("stage", list(Stage))
def test_an_archive_of_another_keyring_is_noticed_before_anything_is_changed(sealed: Clinic, stage: Stage) -> None:
    """Both begin with a key of the same id."""
    keep(sealed.directory / "archive.json", Keyring.generate(FIRST).render().reveal())
    before = sealed.keyring
    with pytest.raises(KeysUnusable, match="one key in the keyring and another in the archive") as caught:
        turn(sealed, stage, archive="archive.json")
    assert "two keyrings have two archives" in str(caught.value.hint)
    assert sealed.keyring == before


def test_two_keyrings_with_one_id_are_noticed_before_a_row_is_written(sealed: Clinic) -> None:
    """Two hosts, each with a copy of the keyring, add a key of one id; one has begun to rewrite the rows."""
    elsewhere = sealed.keyring.joined(Keyring.generate(NEW))
    broken_off(sealed)
    rows = stored(sealed)
    put(sealed, elsewhere)
    for stage in (Stage.PROMOTE, Stage.ALL):
        with pytest.raises(Tampered, match="the keyring's key of that id opens none"):
            turn(sealed, stage)
    assert (sealed.keyring, stored(sealed)) == (elsewhere, rows)


def test_a_value_under_the_new_key_that_does_not_open_is_not_called_done(sealed: Clinic) -> None:
    turn(sealed, Stage.ALL)
    lost = AesGcm(Keyring.generate(NEW)).encrypt(sealed.cell(7), Secret(seed(7)))
    sealed.database.execute("UPDATE users SET totp_sealed = %s WHERE id = 7", (lost,))
    with pytest.raises(RowsLeft) as caught:
        turn(sealed, Stage.ROWS)
    assert caught.value.report.left == {"7": "a value in users.totp_sealed is not what '2027-1' encrypted there"}


def test_a_keyring_that_loses_the_key_meanwhile_ends_the_run_and_gets_it_back(sealed: Clinic) -> None:
    older = sealed.keyring
    with pytest.raises(SecretChanged, match="'2027-1' is not in it any more") as caught:
        turn(sealed, Stage.ALL, moved=once(lambda: put(sealed, older)), pace=LOOKING)
    assert "put back as a key that only reads" in str(caught.value.hint)
    assert sealed.keyring.current == FIRST
    assert sealed.key_ids() == {FIRST, NEW}
    assert sealed.opened() == EVERYONE
    turn(sealed, Stage.ALL)
    assert sealed.key_ids() == {NEW}


@pytest.mark.parametrize("left", [None, b"{", b""])
def test_a_keyring_that_cannot_be_read_meanwhile_ends_the_run_and_its_key_is_named(sealed: Clinic, left: bytes | None) -> None:
    """It is no row's fault, and rows hang on its key by then."""

    def spoil() -> None:
        sealed.keyring_file.unlink() if left is None else keep(sealed.keyring_file, left)

    turn(sealed, Stage.ADD)
    turn(sealed, Stage.PROMOTE)
    newer = sealed.keyring
    with pytest.raises(SecretChanged, match="while rows were rewritten") as caught:
        turn(sealed, Stage.ROWS, moved=once(spoil), pace=LOOKING)
    assert "rows are under the key '2027-1' by now" in str(caught.value.hint)
    assert list(sealed.trail.records())[-1].details["rows_left"] == 0
    put(sealed, newer)
    turn(sealed, Stage.ROWS)
    assert sealed.opened() == EVERYONE


def test_a_plan_says_what_the_next_stage_would_refuse(archiving: Clinic) -> None:
    put(archiving, archiving.keyring.joined(Keyring.generate("2025-1")).without("2025-1"))
    with pytest.raises(ConfigError, match="the key '2025-1' was retired"):
        plan(archiving.column(), archiving.writer, "2025-1", archiving.trail)
    keep(archiving.directory / "archive.json", archived(archiving).joined(Keyring.generate("2024-1")).render().reveal())
    with pytest.raises(Refused, match="the archive has one"):
        plan(archiving.column(archive="archive.json"), archiving.writer, "2024-1", archiving.trail)
    with pytest.raises(ConfigError, match="is its keyring"):
        plan(archiving.column(archive="keyring.json"), archiving.writer, NEW, archiving.trail)


def test_no_key_is_made_current_for_a_column_that_may_not_be_written_though_it_is_empty(sealed: Clinic) -> None:
    turn(sealed, Stage.ADD)
    sealed.database.execute("UPDATE users SET totp_sealed = NULL")
    with pytest.raises(BackupdError, match="permission denied"):
        rotate(sealed.column(), sealed.reader, NEW, Stage.PROMOTE, sealed.trail, Pace())
    assert sealed.keyring.current == FIRST


def test_a_keyring_that_is_replaced_within_the_last_pass_is_noticed_at_its_end(archiving: Clinic) -> None:
    older = archiving.keyring
    with pytest.raises(SecretChanged) as caught:
        turn(archiving, Stage.ALL, archive="archive.json", moved=once(lambda: put(archiving, older)))
    assert "the archive has it" in str(caught.value.hint)
    assert archiving.keyring == older
    assert archiving.key_ids() == {NEW}
    turn(archiving, Stage.ALL, "2027-2", archive="archive.json")
    assert archiving.opened() == EVERYONE


def test_another_key_of_the_same_id_ends_the_run(sealed: Clinic) -> None:
    other = sealed.keyring.extended(NEW)
    with pytest.raises(SecretChanged, match="is another key now") as caught:
        turn(sealed, Stage.ALL, moved=once(lambda: put(sealed, other)), pace=LOOKING)
    assert "put back the keyring of before" in str(caught.value.hint)
    assert sealed.keyring == other
    assert len([value for value in stored(sealed).values() if key_id(value) == NEW]) == 4


def test_an_archive_that_loses_the_key_meanwhile_ends_the_run(archiving: Clinic) -> None:
    before = archived(archiving)
    replaced = once(lambda: keep(archiving.directory / "archive.json", before.render().reveal()))
    with pytest.raises(SecretChanged, match="the archive was replaced"):
        turn(archiving, Stage.ALL, archive="archive.json", moved=replaced)
    turn(archiving, Stage.ROWS, archive="archive.json")
    assert archived(archiving).key(NEW) == archiving.keyring.key(NEW)


def test_a_key_that_is_current_no_more_is_not_written_with(sealed: Clinic) -> None:
    with pytest.raises(SecretChanged, match="somebody made it '2028-1'"):
        turn(sealed, Stage.ALL, moved=once(lambda: put(sealed, sealed.keyring.extended("2028-1"))), pace=LOOKING)
    assert len([value for value in stored(sealed).values() if key_id(value) == NEW]) == 4


def test_a_run_that_waited_for_its_turn_works_with_the_keyring_of_then(sealed: Clinic) -> None:
    """While it waited another one brought the rows under a further key, and retired the one that it was started for."""
    turn(sealed, Stage.ADD)
    turn(sealed, Stage.PROMOTE)
    with closing(column_rows.connect(sealed.writer)) as another, sealed.database.connect() as observer, ExitStack() as held:
        held.enter_context(column_rows.exclusive(another, column_rows.find(another, "users", "id"), "totp_sealed"))

        def go_further() -> None:
            seen(observer, waiting("advisory", "true"))
            put(sealed, sealed.keyring.joined(Keyring.generate("2028-1")).promoted("2028-1").without(NEW))
            sealed.enrol(sealed=True)
            held.close()

        with beside(go_further), pytest.raises(ConfigError, match="not the keyring's current key"):
            turn(sealed, Stage.ROWS)
    assert sealed.key_ids() == {"2028-1"}
    assert sealed.opened() == EVERYONE


@pytest.mark.parametrize("stage", [Stage.ADD, Stage.PROMOTE])
def test_the_keyring_is_not_changed_while_another_run_is_at_work(sealed: Clinic, stage: Stage) -> None:
    put(sealed, sealed.keyring.joined(Keyring.generate("2026-2")))
    before = sealed.keyring
    wanted = "2026-2" if stage is Stage.PROMOTE else NEW
    with closing(column_rows.connect(sealed.writer)) as connection:
        table = column_rows.find(connection, "users", "id")
        with column_rows.exclusive(connection, table, "totp_sealed"), pytest.raises(Refused, match="another run"):
            turn(sealed, stage, wanted)
    assert sealed.keyring == before


@pytest.mark.parametrize(
    ("made", "stage", "said", "hint"),
    [
        ("ALTER TABLE users ENABLE ROW LEVEL SECURITY", Stage.ALL, "row-level security", "BYPASSRLS"),
        ("CREATE RULE never AS ON UPDATE TO users DO INSTEAD NOTHING", Stage.ADD, "could not write to", "rules"),
    ],
    ids=["a policy that hides rows", "a rule"],
)
def test_what_is_in_the_way_of_the_rows_leaves_the_keyring_as_it_is(
    sealed: Clinic, made: str, stage: Stage, said: str, hint: str
) -> None:
    before = sealed.keyring
    sealed.database.execute(made)
    with pytest.raises(BackupdError, match=said) as caught:
        turn(sealed, stage)
    assert hint in str(caught.value.hint)
    assert sealed.keyring == before


def test_a_role_that_may_not_write_leaves_the_keyring_as_it_is(sealed: Clinic) -> None:
    before = sealed.keyring
    with pytest.raises(BackupdError, match="permission denied"):
        rotate(sealed.column(), sealed.reader, NEW, Stage.ADD, sealed.trail, Pace())
    assert sealed.keyring == before


def test_rows_that_an_old_backup_brought_back_are_read_with_the_archive(archiving: Clinic) -> None:
    """They name a key that the keyring has no more: it was retired after the backup."""
    rows = stored(archiving)
    turn(archiving, Stage.ALL, archive="archive.json")
    put(archiving, archiving.keyring.without(FIRST))
    for number, value in rows.items():
        archiving.database.execute("UPDATE users SET totp_sealed = %s WHERE id = %s", (value, number))
    assert plan(archiving.column(archive="archive.json"), archiving.writer, NEW, archiving.trail).stage == "rows"
    assert turn(archiving, Stage.ROWS, archive="archive.json").figures["rows_rewritten"] == USERS
    assert archiving.opened() == EVERYONE
    assert archiving.keyring.retired == (FIRST,)
