"""Rotation of a column's key: stage by stage, as often as one likes, and against everything that comes in between."""

from __future__ import annotations

import base64
import dataclasses
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime

import psycopg
import pytest

from backupd.audit.records import Operation, Phase
from backupd.columns import Cell
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.custody import SecretRef, open_custodian
from backupd.errors import (
    BackupdError,
    Busy,
    ConfigError,
    Interrupted,
    SecretUnavailable,
    SourceDenied,
    SourceError,
    SourceFull,
    SourceUnreachable,
)
from backupd.postgres import column_rows
from backupd.postgres.session import translated
from backupd.redact import Secret
from backupd.rotation import Pace, Report, RowsLeft
from backupd.rotation.rotate import Stage, plan, rotate
from tests.rotation.clinic import FIRST, USERS, Clinic, seed
from tests.rotation.meanwhile import in_the_midst

NEW = "2027-1"
PACE = Pace(batch=4, stall_s=0.0)
EVERYONE = {number: seed(number) for number in range(1, USERS + 1)}


def turn(clinic: Clinic, stage: Stage, key_id: str = NEW) -> Report:
    return rotate(clinic.column(), clinic.writer, key_id, stage, clinic.trail, PACE)


@pytest.fixture
def due(sealed: Clinic) -> Clinic:
    """A clinic whose new key is current, and whose rows are all under the old one."""
    turn(sealed, Stage.ADD)
    turn(sealed, Stage.PROMOTE)
    return sealed


def test_a_rotation_goes_through_its_stages_and_changes_no_secret(sealed: Clinic) -> None:
    def next_stage() -> str:
        return plan(sealed.column(), sealed.writer, NEW, sealed.trail).stage

    assert next_stage() == "add"
    assert "promote" in turn(sealed, Stage.ADD).next
    assert sealed.keyring.current == FIRST
    assert sealed.keyring.created[NEW] == datetime.now(UTC).date()
    assert next_stage() == "promote"
    assert "rows" in turn(sealed, Stage.PROMOTE).next
    assert sealed.keyring.current == NEW
    assert sealed.key_ids() == {FIRST}
    assert next_stage() == "rows"
    report = turn(sealed, Stage.ROWS)
    assert report.figures == {"rows_rewritten": USERS, "overtaken": 0}
    assert "retire" in report.next
    assert next_stage() == "done"
    assert sealed.key_ids() == {NEW}
    assert sealed.opened() == EVERYONE


def test_all_stages_in_a_row(sealed: Clinic) -> None:
    turn(sealed, Stage.ALL)
    assert sealed.key_ids() == {NEW}
    assert sealed.opened() == EVERYONE


def test_a_plan_changes_nothing(sealed: Clinic) -> None:
    before = (sealed.keyring_file.read_bytes(), sealed.key_ids())
    report = plan(sealed.column(), sealed.writer, NEW, sealed.trail)
    assert (report.applied, report.figures) == (False, {"rows_under_other_keys": USERS})
    assert (sealed.keyring_file.read_bytes(), sealed.key_ids()) == before


def test_a_stage_done_twice_does_nothing_the_second_time(due: Clinic) -> None:
    keyring = due.keyring_file.read_bytes()
    turn(due, Stage.ADD)
    turn(due, Stage.PROMOTE)
    assert due.keyring_file.read_bytes() == keyring
    turn(due, Stage.ROWS)
    assert turn(due, Stage.ROWS).figures["rows_rewritten"] == 0


@pytest.mark.parametrize(("stage", "first"), [(Stage.PROMOTE, "add"), (Stage.ROWS, "add")])
def test_a_stage_whose_turn_it_is_not_says_which_comes_first(sealed: Clinic, stage: Stage, first: str) -> None:
    with pytest.raises(ConfigError) as caught:
        turn(sealed, stage)
    assert caught.value.hint == f"the stage `{first}` comes first"


def test_a_key_that_only_reads_yet_rewrites_no_row(sealed: Clinic) -> None:
    turn(sealed, Stage.ADD)
    with pytest.raises(ConfigError, match="not the keyring's current key"):
        turn(sealed, Stage.ROWS)


def test_everything_is_in_the_trail_with_counts_and_key_ids(due: Clinic) -> None:
    turn(due, Stage.ROWS)
    with pytest.raises(ConfigError):
        turn(due, Stage.PROMOTE, "2099-1")
    records = [record for record in due.records() if record.operation is Operation.COLUMNS]
    assert [record.phase for record in records] == [Phase.INTENT, Phase.DONE] * 3 + [Phase.INTENT, Phase.FAILED]
    assert records[4].details == {"action": "rotate", "column": "users.totp_sealed", "stage": "rows", "key_id": NEW}
    assert records[5].details == {"rows_rewritten": USERS, "overtaken": 0, "rows_left": 0}
    assert all(record.source == "clinic" for record in records)


def test_a_run_that_is_broken_off_between_batches_goes_on_where_it_was(due: Clinic) -> None:
    seen = []

    def break_off(rows: int) -> None:
        seen.append(rows)
        if len(seen) == 3:
            raise Interrupted("interrupted")

    with pytest.raises(Interrupted) as caught:
        rotate(due.column(), due.writer, NEW, Stage.ROWS, due.trail, PACE, break_off)
    assert caught.value.hint == "12 rows are done and stay so: run it again, and it goes on with the others"
    assert due.key_ids() == {FIRST, NEW}
    assert due.opened() == EVERYONE
    last = due.records()[-1]
    assert (last.phase, last.details["rows_rewritten"]) == (Phase.INTERRUPTED, 12)
    assert turn(due, Stage.ROWS).figures["rows_rewritten"] == USERS - 12
    assert due.opened() == EVERYONE


def test_a_write_of_the_application_in_between_wins_and_is_counted(due: Clinic) -> None:
    """The user enrols anew by an application that still has the old keyring: that value is rotated in the next pass."""
    old = Keyring(FIRST, {FIRST: due.keyring.key(FIRST)})
    fresh = AesGcm(old).encrypt(due.cell(2), Secret(seed(2, 1)))
    with in_the_midst(due.database, 2, "UPDATE users SET totp_sealed = %s WHERE id = 2", (fresh,)):
        report = turn(due, Stage.ROWS)
    assert report.figures == {"rows_rewritten": USERS, "overtaken": 1}
    assert due.opened() == EVERYONE | {2: seed(2, 1)}
    assert due.key_ids() == {NEW}


def test_no_write_is_lost_that_comes_while_rows_are_rewritten(due: Clinic) -> None:
    """An application enrols users anew all the while, under the old key, and finds each time what it wrote the time before."""
    reading = AesGcm(due.keyring)
    writing = AesGcm(due.keyring.promoted(FIRST))
    last = dict(EVERYONE)
    lost: list[int] = []
    over = threading.Event()

    def application() -> None:
        with due.database.connect() as connection:
            for turn_of in range(1, 60):
                for number in EVERYONE:
                    [(found,)] = connection.execute("SELECT totp_sealed FROM users WHERE id = %s", (number,)).fetchall()
                    if reading.decrypt(due.cell(number), found).text() != last[number]:
                        lost.append(number)
                    last[number] = seed(number, turn_of)
                    value = writing.encrypt(due.cell(number), Secret(last[number]))
                    connection.execute("UPDATE users SET totp_sealed = %s WHERE id = %s", (value, number))
        over.set()

    thread = threading.Thread(target=application)
    thread.start()
    while not over.is_set():
        with suppress(SourceError):  # that applications go on writing under the old key, or have a row locked
            rotate(due.column(), due.writer, NEW, Stage.ROWS, due.trail, Pace(batch=USERS, stall_s=0.0))
    thread.join()
    assert lost == []
    turn(due, Stage.ROWS)
    assert due.opened() == last
    assert due.key_ids() == {NEW}


def test_a_row_that_vanishes_in_between_is_no_error(due: Clinic) -> None:
    with in_the_midst(due.database, 2, "DELETE FROM users WHERE id = %s", (3,)):
        report = turn(due, Stage.ROWS)
    assert report.figures == {"rows_rewritten": USERS - 1, "overtaken": 1}


def test_rows_that_cannot_be_read_are_named_and_left_and_the_rest_is_done(due: Clinic) -> None:
    due.database.execute("UPDATE users SET totp_sealed = 'nonsense' WHERE id = 5")
    due.database.execute("UPDATE users SET totp_sealed = (SELECT totp_sealed FROM users WHERE id = 7) WHERE id = 6")
    before = due.database.execute("SELECT totp_sealed FROM users WHERE id IN (5, 6) ORDER BY id")
    with pytest.raises(RowsLeft) as caught:
        turn(due, Stage.ROWS)
    report = caught.value.report
    assert caught.value.exit_code == 1
    assert report.left_rows == 2
    assert report.next.startswith("look at the rows that were left")
    assert set(report.left) == {"5", "6"}
    assert "not an encrypted value" in report.left["5"]
    assert "is not what" in report.left["6"]
    assert report.figures["rows_rewritten"] == USERS - 2
    assert due.database.execute("SELECT totp_sealed FROM users WHERE id IN (5, 6) ORDER BY id") == before
    assert due.records()[-1].phase is Phase.FAILED
    assert due.records()[-1].details["rows_left"] == 2


def test_a_value_under_a_key_that_is_not_there_is_left(due: Clinic) -> None:
    keyring = Keyring.generate("elsewhere")
    due.database.execute(
        "UPDATE users SET totp_sealed = %s WHERE id = 9", (AesGcm(keyring).encrypt(due.cell(9), Secret(seed(9))),)
    )
    with pytest.raises(RowsLeft) as caught:
        turn(due, Stage.ROWS)
    assert caught.value.report.left == {"9": "the key 'elsewhere' is not in the keyring"}


@contextmanager
def locking(clinic: Clinic, statement: str) -> Iterator[psycopg.Connection]:
    """A transaction of somebody's, open inside the block."""
    with psycopg.connect(clinic.database.dsn) as connection:
        connection.execute(statement.encode())
        yield connection
        connection.rollback()


def test_a_locked_row_keeps_no_other_waiting_and_is_told(due: Clinic) -> None:
    with locking(due, "SELECT FROM users WHERE id = 4 FOR UPDATE"), pytest.raises(SourceError, match="1 rows of") as caught:
        turn(due, Stage.ROWS)
    assert "pg_stat_activity" in str(caught.value.hint)
    assert due.records()[-1].details["rows_rewritten"] == USERS - 1
    assert turn(due, Stage.ROWS).figures["rows_rewritten"] == 1
    assert due.opened() == EVERYONE


def test_a_locked_table_ends_the_run_with_nothing_lost(due: Clinic) -> None:
    with locking(due, "LOCK TABLE users IN SHARE MODE"), pytest.raises(SourceError, match="lock timeout") as caught:
        turn(due, Stage.ROWS)
    assert "someone holds a lock" in str(caught.value.hint)
    assert due.opened() == EVERYONE
    assert turn(due, Stage.ROWS).figures["rows_rewritten"] == USERS


def test_rows_that_are_locked_for_each_other_deadlock_nobody(due: Clinic) -> None:
    """The application has row 3 and wants row 1, and the batch the other way round."""
    release = threading.Event()

    def application() -> None:
        with psycopg.connect(due.database.dsn) as connection:
            connection.execute("SET deadlock_timeout = '10ms'")
            connection.execute("SELECT FROM users WHERE id = 3 FOR UPDATE")
            release.set()
            connection.execute("SELECT FROM users WHERE id IN (1, 2) FOR UPDATE")

    thread = threading.Thread(target=application)
    thread.start()
    release.wait()
    report = turn(due, Stage.ROWS)
    thread.join()
    assert report.figures["rows_rewritten"] == USERS
    assert due.opened() == EVERYONE


def test_two_rotations_of_one_column_do_not_run_at_once(due: Clinic) -> None:
    with closing(column_rows.connect(due.writer)) as connection:
        table = column_rows.find(connection, "users", "id")
        with column_rows.exclusive(connection, table, "totp_sealed"), pytest.raises(Busy, match="another run"):
            turn(due, Stage.ROWS)
        with column_rows.exclusive(connection, table, "another"):
            turn(due, Stage.ROWS)
    assert due.records()[-1].phase is Phase.DONE


def test_a_role_without_the_right_to_write_is_told_which_one_it_lacks(due: Clinic) -> None:
    with pytest.raises(SourceDenied) as caught:
        rotate(due.column(), due.reader, NEW, Stage.ROWS, due.trail, PACE)
    assert "UPDATE" in str(caught.value.hint)


def test_rows_that_a_policy_would_hide_end_the_run(due: Clinic) -> None:
    """A role that does not see all rows would find none left, and be wrong."""
    due.database.execute("ALTER TABLE users ENABLE ROW LEVEL SECURITY")
    with pytest.raises(SourceError, match="row-level security"):
        turn(due, Stage.ROWS)


def test_a_full_disk_is_called_one(due: Clinic) -> None:
    due.database.execute(
        "CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'could not extend file' USING ERRCODE = '53100'; END $$;"
        "CREATE TRIGGER disk_full BEFORE UPDATE ON users FOR EACH ROW WHEN (OLD.id = 10) EXECUTE FUNCTION disk_full()"
    )
    with pytest.raises(SourceFull) as caught:
        turn(due, Stage.ROWS)
    assert "room" in str(caught.value.hint)
    assert due.records()[-1].details["rows_rewritten"] == 8
    assert due.opened() == EVERYONE


def test_a_row_that_the_database_refuses_is_left_without_its_contents(due: Clinic) -> None:
    due.database.execute(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no: %', OLD.name; END $$;"
        "CREATE TRIGGER no BEFORE UPDATE ON users FOR EACH ROW WHEN (OLD.id = 10) EXECUTE FUNCTION no()"
    )
    with pytest.raises(RowsLeft) as caught:
        turn(due, Stage.ROWS)
    assert caught.value.report.left == {"10": "the database refused the new value: a trigger (P0001)"}
    assert caught.value.report.figures["rows_rewritten"] == USERS - 1


def test_a_trigger_that_puts_the_old_value_back_is_told_of_after_one_pass(due: Clinic) -> None:
    due.database.execute(
        "CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.totp_sealed := OLD.totp_sealed; RETURN NEW; END $$;"
        "CREATE TRIGGER guard BEFORE UPDATE ON users FOR EACH ROW WHEN (OLD.id IN (10, 11)) EXECUTE FUNCTION guard()"
    )
    with pytest.raises(RowsLeft) as caught:
        turn(due, Stage.ROWS)
    report = caught.value.report
    assert report.left == dict.fromkeys(("10", "11"), "the database refused the new value: a trigger changed it")
    assert report.figures == {"rows_rewritten": USERS - 2, "overtaken": 0}
    assert due.opened() == EVERYONE


def test_a_row_that_a_trigger_fails_on_keeps_no_other_from_being_written(due: Clinic) -> None:
    due.database.execute(
        "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM nofunc(); RETURN NEW; END $$;"
        "CREATE TRIGGER broken BEFORE UPDATE ON users FOR EACH ROW WHEN (OLD.id = 9) EXECUTE FUNCTION broken()"
    )
    with pytest.raises(RowsLeft) as caught:
        turn(due, Stage.ROWS)
    assert caught.value.report.left == {"9": "the database refused the new value: a trigger (42883)"}
    assert caught.value.report.figures["rows_rewritten"] == USERS - 1
    assert due.opened() == EVERYONE


def test_a_trigger_that_lacks_a_right_is_no_right_that_the_role_lacks(due: Clinic) -> None:
    due.database.execute(
        "CREATE TABLE history (id int);"
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO history VALUES (OLD.id); RETURN NEW; END $$;"
        "CREATE TRIGGER keep BEFORE UPDATE ON users FOR EACH ROW WHEN (OLD.id = 9) EXECUTE FUNCTION keep()"
    )
    with pytest.raises(RowsLeft) as caught:
        turn(due, Stage.ROWS)
    assert caught.value.report.left == {"9": "the database refused the new value: a trigger (42501)"}


def test_rows_are_counted_and_not_ids_where_a_child_table_has_the_same_ones(due: Clinic) -> None:
    """The parent's primary key does not reach into its children."""
    due.database.execute("CREATE TABLE guests () INHERITS (users); INSERT INTO guests SELECT * FROM ONLY users WHERE id < 10")
    report = turn(due, Stage.ROWS)
    assert report.figures["rows_rewritten"] == USERS + 9
    assert due.key_ids() == {NEW}
    assert due.opened() == EVERYONE


def test_a_trigger_that_keeps_rows_as_they_are_is_noticed(due: Clinic) -> None:
    due.database.execute(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
        "CREATE TRIGGER keep BEFORE UPDATE ON users FOR EACH ROW WHEN (OLD.id = 10) EXECUTE FUNCTION keep()"
    )
    with pytest.raises(SourceError, match="a trigger keeps them"):
        turn(due, Stage.ROWS)


def test_a_lost_connection_ends_the_run_and_the_next_goes_on(due: Clinic) -> None:
    ended: list[object] = []

    def cut(rows: int) -> None:
        if not ended:
            ended.append(
                due.database.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (due.role,))
            )

    with pytest.raises(SourceUnreachable):
        rotate(due.column(), due.writer, NEW, Stage.ROWS, due.trail, PACE, cut)
    assert turn(due, Stage.ROWS).figures["rows_rewritten"] == USERS - 4
    assert due.opened() == EVERYONE


def test_what_can_only_be_read_is_to_be_written_by_hand_and_no_key_is_told(sealed: Clinic) -> None:
    environ = {"KEYRING": sealed.keyring_file.read_text()}
    column = dataclasses.replace(sealed.column(), keys=open_custodian(SecretRef("env", "KEYRING"), environ))
    with pytest.raises(ConfigError, match="cannot write to env:KEYRING") as caught:
        rotate(column, sealed.writer, NEW, Stage.ADD, sealed.trail, PACE)
    assert "openssl rand -base64 32" in str(caught.value.hint)
    environ["KEYRING"] = sealed.keyring.joined(Keyring.generate(NEW)).render().text()
    rotate(column, sealed.writer, NEW, Stage.ADD, sealed.trail, PACE)
    with pytest.raises(ConfigError) as caught:
        rotate(column, sealed.writer, NEW, Stage.PROMOTE, sealed.trail, PACE)
    assert caught.value.hint == "there, set `current` to '2027-1'; then go on with the next stage"


def test_a_custodian_that_is_down_leaves_everything_as_it_was(sealed: Clinic) -> None:
    sealed.keyring_file.rename(sealed.directory / "away")
    with pytest.raises(SecretUnavailable):
        turn(sealed, Stage.ADD)


def test_a_cipher_without_key_ids_is_not_rotated(sealed: Clinic) -> None:
    with pytest.raises(ConfigError, match="have no ids"):
        rotate(sealed.column(cipher="fernet"), sealed.writer, NEW, Stage.ALL, sealed.trail, PACE)


@pytest.mark.parametrize(
    ("table", "id_column", "said"),
    [
        ("nowhere", "id", "no table nowhere"),
        ("users", "number", "no column users.number"),
        ("users", "name", "not the id of a row"),
        ("other.users", "id", "no table other.users"),
    ],
)
def test_a_table_that_is_not_as_configured_is_refused(sealed: Clinic, table: str, id_column: str, said: str) -> None:
    column = dataclasses.replace(sealed.column(), table=table, id_column=id_column)
    with pytest.raises(ConfigError, match=said):
        rotate(column, sealed.writer, NEW, Stage.ALL, sealed.trail, PACE)


def test_a_table_of_which_there_are_two_is_refused(sealed: Clinic) -> None:
    sealed.database.execute("CREATE SCHEMA copy; CREATE TABLE copy.users (LIKE users INCLUDING ALL)")
    with pytest.raises(ConfigError, match="2 schemas have a table users"):
        turn(sealed, Stage.ALL)


@pytest.mark.parametrize("kind", ["bigint", "text", "uuid"])
def test_ids_of_every_usual_type(sealed: Clinic, kind: str) -> None:
    """Text is ordered as its collation says, and a batch begins after the last id in that order."""
    id_of = {"bigint": "id::bigint + 5000000000", "text": "'Ä ''' || id", "uuid": "md5(id::text)::uuid"}[kind]
    sealed.database.execute(f"ALTER TABLE users ALTER id TYPE {kind} USING {id_of}")
    for (row_id,) in sealed.database.execute("SELECT id::text FROM users"):
        value = AesGcm(sealed.keyring).encrypt(Cell("users", "totp_sealed", row_id), Secret(seed(1)))
        sealed.database.execute("UPDATE users SET totp_sealed = %s WHERE id::text = %s", (value, row_id))
    assert turn(sealed, Stage.ALL).figures["rows_rewritten"] == USERS
    assert sealed.key_ids() == {NEW}


def test_a_role_whose_strings_are_of_the_old_kind_is_no_hindrance(due: Clinic) -> None:
    due.database.execute(f"ALTER ROLE {due.role} SET standard_conforming_strings = off")
    due.database.execute("UPDATE users SET totp_sealed = NULL WHERE id = 1")
    assert turn(due, Stage.ROWS).figures["rows_rewritten"] == USERS - 1
    assert plan(due.column(), due.writer, NEW, due.trail).stage == "done"


def test_a_percent_sign_in_a_name_begins_no_parameter(sealed: Clinic) -> None:
    sealed.database.execute('ALTER TABLE users RENAME TO "100%s"')
    sealed.database.execute('ALTER TABLE "100%s" RENAME totp_sealed TO "totp%"')
    sealed.database.execute('ALTER TABLE "100%s" RENAME id TO "%(id)s"')
    table = '"100%s"'
    for number in EVERYONE:
        value = AesGcm(sealed.keyring).encrypt(Cell(table, "totp%", str(number)), Secret(seed(number)))
        with sealed.database.connect() as connection:
            connection.execute(b'UPDATE "100%%s" SET "totp%%" = %s WHERE "%%(id)s" = %s', (value, number))
    column = dataclasses.replace(sealed.column(column="totp%"), table=table, id_column="%(id)s")
    report = rotate(column, sealed.writer, NEW, Stage.ALL, sealed.trail, PACE)
    assert report.figures == {"rows_rewritten": USERS, "overtaken": 0}


def test_a_session_that_stops_in_the_middle_of_a_batch_does_not_keep_its_rows_for_ever(due: Clinic) -> None:
    """It is stopped, or cut off, between UPDATE and COMMIT: then nobody whose row it has could log in."""
    with closing(column_rows.connect(due.writer)) as connection:
        assert connection.execute("SHOW idle_in_transaction_session_timeout").fetchall() == [("1min",)]
        connection.execute("SET idle_in_transaction_session_timeout = '50ms'")
        connection.execute("BEGIN")
        connection.execute("SELECT FROM users FOR UPDATE")
        due.database.execute("UPDATE users SET name = name")
        with pytest.raises(SourceUnreachable), translated("go on"):
            connection.execute("COMMIT")


def test_ids_of_fixed_length_are_ordered_by_all_of_it(sealed: Clinic) -> None:
    """`character` alone is one character long."""
    sealed.database.execute("ALTER TABLE users ALTER id TYPE char(32) USING md5(id::text)")
    for (row_id,) in sealed.database.execute("SELECT id::text FROM users"):
        value = AesGcm(sealed.keyring).encrypt(Cell("users", "totp_sealed", row_id), Secret(seed(1)))
        sealed.database.execute("UPDATE users SET totp_sealed = %s WHERE id = %s", (value, row_id))
    assert turn(sealed, Stage.ALL).figures == {"rows_rewritten": USERS, "overtaken": 0}
    assert sealed.key_ids() == {NEW}


def test_ids_without_an_order_end_the_run(due: Clinic) -> None:
    """A type of the application's, to whose operator each id is greater than each: batches would begin anew for ever."""
    labels = ", ".join(f"'{number}'" for number in EVERYONE)
    due.database.execute(
        f"CREATE TYPE ticket AS ENUM ({labels}); ALTER TABLE users ALTER id TYPE ticket USING id::text::ticket;"
        "CREATE FUNCTION always(ticket, ticket) RETURNS boolean IMMUTABLE RETURN true;"
        "CREATE OPERATOR > (LEFTARG = ticket, RIGHTARG = ticket, FUNCTION = always);"
        "UPDATE users SET totp_sealed = 'nonsense' WHERE id IN ('1', '2', '3', '4')"
    )
    with pytest.raises(SourceError, match="do not advance after"):
        turn(due, Stage.ROWS)


def test_what_is_sent_to_the_server_holds_neither_secret_nor_key(due: Clinic) -> None:
    """The server logs all that it is sent."""
    log = due.database.server.log
    before = log.stat().st_size
    due.database.execute(f"ALTER ROLE {due.role} SET log_statement = 'all'")
    turn(due, Stage.ROWS)
    with log.open("rb") as file:
        file.seek(before)
        sent = file.read()
    assert b"UPDATE" in sent
    keys = [due.keyring.key(each).reveal() for each in (FIRST, NEW)]
    for secret in [*(text.encode() for text in EVERYONE.values()), *(base64.b64encode(key) for key in keys), *keys]:
        assert secret not in sent
        assert secret.hex().encode() not in sent


def test_an_error_is_one_line_with_a_hint(due: Clinic) -> None:
    with pytest.raises(BackupdError) as caught:
        rotate(due.column(), due.reader, NEW, Stage.ROWS, due.trail, PACE)
    assert "\n" not in caught.value.message
    assert caught.value.hint
