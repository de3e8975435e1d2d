"""Secrets move into an encrypted column: from clear text, Fernet and pgcrypto, and never more than one step at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from cryptography.fernet import Fernet

from backupd.audit.records import Phase
from backupd.columns import Cell
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.errors import BackupdError, ConfigError, Refused, SecretChanged, SecretUnavailable, SourceDenied, SourceError
from backupd.redact import Secret
from backupd.rotation import Pace, Report, RowsLeft
from backupd.rotation.encrypt import BothFilled, Stage, encrypt, plan
from tests.installation import keep
from tests.parts.postgres import Database
from tests.rotation.clinic import FIRST, USERS, Clinic, clinic, grant_ownership, seed
from tests.rotation.meanwhile import beside, in_the_midst, seen, waiting

PACE = Pace(batch=4, stall_s=0.0)
EVERYONE = {number: seed(number) for number in range(1, USERS + 1)}
PASSPHRASE = "a passphrase of the clinic's"


def turn(made: Clinic, stage: Stage, former: str = "plaintext", keys: str | None = None) -> Report:
    return encrypt(made.column(former=former, former_keys=keys), made.writer, stage, made.trail, PACE)


def columns_of(made: Clinic) -> set[str]:
    rows = made.database.execute("SELECT attname::text FROM pg_attribute WHERE attrelid = 'users'::regclass AND attnum > 0")
    return {name for (name,) in rows if not name.startswith("....")}


@pytest.fixture
def owned(in_clear: Clinic) -> Clinic:
    """Its writing role owns the table."""
    grant_ownership(in_clear)
    return in_clear


@pytest.fixture
def ready(owned: Clinic) -> Clinic:
    """The encrypted column is there, and empty."""
    turn(owned, Stage.COLUMN)
    return owned


def test_secrets_in_clear_are_moved_stage_by_stage(owned: Clinic) -> None:
    def next_stage() -> str:
        return plan(owned.column(former="plaintext"), owned.writer, owned.trail).stage

    assert next_stage() == "column"
    assert "new version" in turn(owned, Stage.COLUMN).next
    assert next_stage() == "rows"
    assert turn(owned, Stage.ROWS).figures == {"rows_moved": USERS, "overtaken": 0}
    assert owned.database.execute("SELECT count(*) FROM users WHERE totp_secret IS NOT NULL") == [(0,)]
    assert owned.opened() == EVERYONE
    assert next_stage() == "finish"
    turn(owned, Stage.FINISH)
    assert columns_of(owned) >= {"totp_sealed"}
    assert "totp_secret" not in columns_of(owned)
    assert owned.opened() == EVERYONE
    assert next_stage() == "done"


def test_a_stage_done_twice_does_nothing_the_second_time(ready: Clinic) -> None:
    turn(ready, Stage.COLUMN)
    turn(ready, Stage.ROWS)
    assert turn(ready, Stage.ROWS).figures["rows_moved"] == 0
    turn(ready, Stage.FINISH)
    turn(ready, Stage.FINISH)
    assert ready.opened() == EVERYONE


def test_everything_is_in_the_trail(ready: Clinic) -> None:
    turn(ready, Stage.ROWS)
    intent, outcome = ready.records()[-2:]
    assert intent.details == {
        "action": "encrypt",
        "column": "users.totp_sealed",
        "former": "totp_secret",
        "stage": "rows",
    }
    assert outcome.details == {"key_id": FIRST, "rows_moved": USERS, "overtaken": 0, "rows_left": 0}
    assert outcome.phase is Phase.DONE


def test_a_column_that_may_not_be_null_is_let_be(owned: Clinic) -> None:
    owned.database.execute("ALTER TABLE users ALTER totp_secret SET NOT NULL")
    turn(owned, Stage.COLUMN)
    turn(owned, Stage.ROWS)
    assert owned.opened() == EVERYONE


def test_rows_come_after_the_column(owned: Clinic) -> None:
    with pytest.raises(ConfigError) as caught:
        turn(owned, Stage.ROWS)
    assert "`column`" in str(caught.value.hint)


def test_the_owner_is_told_what_to_run_when_the_role_owns_nothing(in_clear: Clinic) -> None:
    with pytest.raises(SourceDenied) as caught:
        turn(in_clear, Stage.COLUMN)
    statement = str(caught.value.hint).partition(": ")[2]
    assert statement == 'ALTER TABLE public.users ADD COLUMN "totp_sealed" bytea'
    in_clear.database.execute(statement)
    turn(in_clear, Stage.COLUMN)
    turn(in_clear, Stage.ROWS)
    assert in_clear.opened() == EVERYONE


def test_nothing_is_dropped_that_holds_a_value(ready: Clinic) -> None:
    turn(ready, Stage.ROWS)
    ready.database.execute("UPDATE users SET totp_secret = %s, totp_sealed = NULL WHERE id = 3", (seed(3, 1),))
    with pytest.raises(Refused, match="still holds values"):
        turn(ready, Stage.FINISH)
    assert ready.records()[-1].phase is Phase.REFUSED
    ready.database.execute("UPDATE users SET totp_secret = %s WHERE id = 4 AND totp_secret IS NULL", ("",))
    turn(ready, Stage.ROWS)
    turn(ready, Stage.FINISH)
    assert ready.opened() == EVERYONE | {3: seed(3, 1)}


def test_what_an_old_version_writes_during_the_last_stage_is_taken_and_kept(ready: Clinic) -> None:
    """It meets no constraint of ours, whose refusal would put the row, and so the secret, into the server's log."""
    turn(ready, Stage.ROWS)
    log = ready.database.server.log
    before = log.stat().st_size
    with psycopg.connect(ready.database.dsn) as application, ready.database.connect() as observer:
        application.execute("UPDATE users SET totp_secret = %s, totp_sealed = NULL WHERE id = 3", (seed(3, 1),))

        def commit() -> None:  # the values were counted by then, and this one was not among them
            try:
                seen(observer, waiting("relation", "relation = 'users'::regclass AND mode = 'AccessExclusiveLock'"))
            finally:
                application.commit()

        with beside(commit), pytest.raises(Refused, match="still holds values"):
            turn(ready, Stage.FINISH)
    assert ready.database.execute("SELECT totp_secret FROM users WHERE id = 3") == [(seed(3, 1),)]
    assert ready.database.execute("SELECT FROM pg_constraint WHERE conrelid = 'users'::regclass AND contype = 'c'") == []
    assert seed(3, 1).encode() not in log.read_bytes()[before:]


def test_the_owner_is_told_of_a_last_statement_that_loses_nothing(ready: Clinic) -> None:
    turn(ready, Stage.ROWS)
    ready.database.execute(f"ALTER TABLE users OWNER TO postgres; GRANT SELECT, UPDATE ON users TO {ready.role}")
    with psycopg.connect(ready.database.dsn) as connection:
        connection.execute("SELECT FROM users LIMIT 1")  # whoever may not drop the column does not wait for its lock either
        with pytest.raises(SourceDenied) as caught:
            turn(ready, Stage.FINISH)
    statement = str(caught.value.hint).partition(": ")[2]
    ready.database.execute("UPDATE users SET totp_secret = 'written meanwhile' WHERE id = 3")
    with pytest.raises(psycopg.DatabaseError, match="still holds values"):
        ready.database.execute(statement)
    ready.database.execute(
        f"GRANT CREATE ON SCHEMA public TO {ready.role}; ALTER TABLE users OWNER TO {ready.role};"
        "ALTER TABLE users ENABLE ROW LEVEL SECURITY; ALTER TABLE users FORCE ROW LEVEL SECURITY"
    )
    with psycopg.connect(ready.database.dsn) as connection:
        connection.execute(f"SET ROLE {ready.role}")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            connection.execute(statement.encode())
    ready.database.execute("ALTER TABLE users DISABLE ROW LEVEL SECURITY; UPDATE users SET totp_secret = NULL WHERE id = 3")
    ready.database.execute(statement)
    turn(ready, Stage.FINISH)
    assert ready.opened() == EVERYONE


def test_a_last_stage_that_gets_no_lock_leaves_everything_as_it_was(ready: Clinic) -> None:
    turn(ready, Stage.ROWS)
    with psycopg.connect(ready.database.dsn) as connection:
        connection.execute("SELECT FROM users LIMIT 1")
        with pytest.raises(BackupdError, match="was locked at each of 10 tries"):
            turn(ready, Stage.FINISH)
    ready.database.execute("UPDATE users SET totp_secret = %s, totp_sealed = NULL WHERE id = 3", (seed(3),))
    turn(ready, Stage.ROWS)
    turn(ready, Stage.FINISH)
    assert ready.opened() == EVERYONE


def test_a_table_whose_name_needs_quotes_is_bound_without_them(ready: Clinic) -> None:
    """SQLAlchemy names it so. What the application has written, and what is moved, open alike."""
    ready.database.execute('ALTER TABLE users RENAME TO "Users12"')
    written = AesGcm(ready.keyring).encrypt(Cell("Users12", "totp_sealed", "1"), Secret(seed(1)))
    ready.database.execute('UPDATE "Users12" SET totp_secret = NULL, totp_sealed = %s WHERE id = 1', (written,))
    for stage in (Stage.ROWS, Stage.FINISH):
        column = dataclasses.replace(ready.column(former="plaintext"), table='public."Users12"')
        with pytest.raises(Refused, match=r"values? in .* cannot be opened here; the first is row 1: "):
            encrypt(column, ready.writer, stage, ready.trail, PACE)
        column = dataclasses.replace(column, table='"Users12"')
        encrypt(column, ready.writer, stage, ready.trail, PACE)
    cipher = AesGcm(ready.keyring)
    rows = ready.database.execute('SELECT id, totp_sealed FROM "Users12"')
    opened = {number: cipher.decrypt(Cell("Users12", "totp_sealed", str(number)), value).text() for number, value in rows}
    assert opened == EVERYONE


@pytest.mark.parametrize("stage", [Stage.ROWS, Stage.FINISH])
def test_nothing_is_moved_nor_dropped_beside_values_that_do_not_open(ready: Clinic, stage: Stage) -> None:
    """The application spells the table with its schema, or has another keyring: it could not open what is written here."""
    turn(ready, Stage.ROWS)
    ready.database.execute("UPDATE users SET totp_secret = 'JBSWY3DPEHPK3PXP', totp_sealed = NULL WHERE id = 5")
    if stage is Stage.FINISH:
        turn(ready, Stage.ROWS)
    for number, table, keyring in ((2, "public.users", ready.keyring), (3, "users", Keyring.generate("another"))):
        value = AesGcm(keyring).encrypt(Cell(table, "totp_sealed", str(number)), Secret(seed(number)))
        ready.database.execute("UPDATE users SET totp_sealed = %s WHERE id = %s", (value, number))
    before = ready.database.execute("SELECT * FROM users ORDER BY id")
    with pytest.raises(Refused, match=r"2 values in users\.totp_sealed cannot be opened here") as caught:
        turn(ready, stage)
    assert "as the application does" in str(caught.value.hint)
    assert ready.database.execute("SELECT * FROM users ORDER BY id") == before


def test_a_former_column_that_is_misspelt_is_not_done(ready: Clinic) -> None:
    column = ready.column(former="plaintext", former_column="totp_secrt")
    missing = r"there is no column users\.totp_secrt"
    with pytest.raises(ConfigError, match=missing) as planned:
        plan(column, ready.writer, ready.trail)
    with pytest.raises(ConfigError, match=missing) as finished:
        encrypt(column, ready.writer, Stage.FINISH, ready.trail, PACE)
    assert all("misspelt" in str(caught.value.hint) for caught in (planned, finished))
    assert ready.records()[-1].phase is Phase.FAILED


def test_a_former_column_that_is_not_there_is_asked_about_where_values_are_encrypted(ready: Clinic) -> None:
    turn(ready, Stage.ROWS)
    column = ready.column(former="plaintext", former_column="totp_secrt")
    question = "there is no column users.totp_secrt: was it dropped, or is it misspelt?"
    assert plan(column, ready.writer, ready.trail).next.startswith(question)
    assert encrypt(column, ready.writer, Stage.FINISH, ready.trail, PACE).next.startswith(question)
    assert "totp_secret" in columns_of(ready)


def test_a_table_that_stays_locked_is_given_up(owned: Clinic) -> None:
    with psycopg.connect(owned.database.dsn) as connection:
        connection.execute("SELECT FROM users LIMIT 1")
        with pytest.raises(BackupdError, match="was locked at each of 10 tries"):
            turn(owned, Stage.COLUMN)
        connection.rollback()
    turn(owned, Stage.COLUMN)


def test_views_on_the_former_column_are_named(ready: Clinic) -> None:
    turn(ready, Stage.ROWS)
    ready.database.execute("CREATE VIEW enrolled AS SELECT id FROM users WHERE totp_secret IS NOT NULL")
    with pytest.raises(BackupdError, match="other objects depend on it"):
        turn(ready, Stage.FINISH)
    ready.database.execute("DROP VIEW enrolled")
    turn(ready, Stage.FINISH)


@pytest.fixture
def fernet_clinic(ready: Clinic) -> tuple[Clinic, Fernet]:
    """Its former column holds Fernet tokens, under the older of two keys."""
    old, new = Fernet.generate_key(), Fernet.generate_key()
    keep(ready.directory / "fernet", new + b"\n" + old + b"\n")
    ready.database.execute("ALTER TABLE users ALTER totp_secret TYPE text")
    token = Fernet(old)
    for number in EVERYONE:
        value = token.encrypt(seed(number).encode()).decode()
        ready.database.execute("UPDATE users SET totp_secret = %s WHERE id = %s", (value, number))
    return ready, token


@pytest.mark.parametrize("kind", ["text", "bytea"])
def test_fernet_is_moved(fernet_clinic: tuple[Clinic, Fernet], kind: str) -> None:
    made, _ = fernet_clinic
    made.database.execute(f"ALTER TABLE users ALTER totp_secret TYPE {kind} USING totp_secret::{kind}")
    assert turn(made, Stage.ROWS, "fernet", "fernet").figures["rows_moved"] == USERS
    assert made.opened() == EVERYONE
    turn(made, Stage.FINISH, "fernet", "fernet")


def test_a_token_in_a_column_that_is_said_to_be_in_clear_is_not_encrypted_twice(
    fernet_clinic: tuple[Clinic, Fernet],
) -> None:
    made, _ = fernet_clinic
    with pytest.raises(RowsLeft) as caught:
        turn(made, Stage.ROWS)
    assert caught.value.report.left_rows == USERS
    assert "looks like fernet, not like plaintext" in caught.value.report.left["1"]
    assert made.opened() == {}


def test_tokens_under_a_lost_key_and_values_in_clear_are_left(fernet_clinic: tuple[Clinic, Fernet]) -> None:
    made, _ = fernet_clinic
    lost = Fernet(Fernet.generate_key()).encrypt(b"JBSWY3DPEHPK3PXP").decode()
    made.database.execute("UPDATE users SET totp_secret = %s WHERE id = 2", (lost,))
    made.database.execute("UPDATE users SET totp_secret = %s WHERE id = 3", (seed(3),))
    with pytest.raises(RowsLeft) as caught:
        turn(made, Stage.ROWS, "fernet", "fernet")
    assert "none of 2 Fernet keys opens" in caught.value.report.left["2"]
    assert "looks like plaintext" in caught.value.report.left["3"]
    assert made.opened() == {number: text for number, text in EVERYONE.items() if number not in (2, 3)}


@pytest.fixture
def pgcrypto_clinic(ready: Clinic) -> Clinic:
    """Its former column holds what pgp_sym_encrypt made."""
    keep(ready.directory / "passphrase", PASSPHRASE.encode() + b"\n")
    ready.database.execute(
        "CREATE EXTENSION pgcrypto; ALTER TABLE users ALTER totp_secret TYPE bytea USING"
        f" pgp_sym_encrypt(totp_secret, '{PASSPHRASE.replace(chr(39), chr(39) * 2)}')"
    )
    return ready


def test_pgcrypto_is_moved_and_the_passphrase_never_reaches_the_server(
    pgcrypto_clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pgcrypto_clinic
    made.database.execute("UPDATE users SET totp_secret = pgp_sym_encrypt('x', 'another') WHERE id = 2")
    log = made.database.server.log
    before = log.stat().st_size
    made.database.execute(f"ALTER ROLE {made.role} SET log_statement = 'all'")
    with pytest.raises(RowsLeft) as caught:
        turn(made, Stage.ROWS, "pgcrypto", "passphrase")
    assert "pgcrypto does not open" in caught.value.report.left["2"]
    assert made.opened() == {number: text for number, text in EVERYONE.items() if number != 2}
    with log.open("rb") as file:
        file.seek(before)
        logged = file.read()
    assert b"UPDATE" in logged
    assert PASSPHRASE.encode() not in logged


def test_secrets_in_clear_do_not_stand_in_the_server_s_log(ready: Clinic) -> None:
    """Neither in a statement nor as a parameter, though the server logs both."""
    log = ready.database.server.log
    before = log.stat().st_size
    ready.database.execute(f"ALTER ROLE {ready.role} SET log_statement = 'all'")
    turn(ready, Stage.ROWS)
    with log.open("rb") as file:
        file.seek(before)
        logged = file.read()
    assert b"UPDATE" in logged
    assert not any(secret.encode() in logged for secret in EVERYONE.values())


def test_an_enrolment_in_between_wins(ready: Clinic) -> None:
    """The application's new version writes to the new column alone, after the batch was read."""
    enrolled = ("UPDATE users SET totp_sealed = %s, totp_secret = NULL WHERE id = 2", (ready.seal(2, seed(2, 1)),))
    with in_the_midst(ready.database, 1, *enrolled):
        report = turn(ready, Stage.ROWS)
    assert report.figures == {"rows_moved": USERS - 1, "overtaken": 1}
    assert ready.opened() == EVERYONE | {2: seed(2, 1)}


def test_a_row_with_two_secrets_is_left_and_one_with_the_same_twice_is_cleared(ready: Clinic) -> None:
    for number, text in ((2, seed(2)), (3, seed(3, 1))):
        ready.database.execute("UPDATE users SET totp_sealed = %s WHERE id = %s", (ready.seal(number, text), number))
    with pytest.raises(RowsLeft) as caught:
        turn(ready, Stage.ROWS)
    assert caught.value.report.left == {"3": BothFilled().message}
    assert caught.value.report.next.startswith("look at the rows that were left")
    assert "finish" not in caught.value.report.next
    assert ready.database.execute("SELECT id FROM users WHERE totp_secret IS NOT NULL") == [(3,)]
    assert ready.opened() == EVERYONE | {3: seed(3, 1)}


def test_empty_texts_are_no_secrets(ready: Clinic) -> None:
    ready.database.execute("UPDATE users SET totp_secret = '' WHERE id = 2")
    turn(ready, Stage.ROWS)
    assert ready.database.execute("SELECT totp_secret, totp_sealed FROM users WHERE id = 2") == [(None, None)]
    turn(ready, Stage.FINISH)


def test_only_the_current_key_encrypts(ready: Clinic) -> None:
    keep(ready.keyring_file, ready.keyring.joined(Keyring.generate("2027-1")).render().reveal())
    turn(ready, Stage.ROWS)
    assert ready.key_ids() == {FIRST}


def test_a_missing_keyring_moves_nothing(ready: Clinic) -> None:
    ready.keyring_file.rename(ready.directory / "away")
    with pytest.raises(SecretUnavailable):
        turn(ready, Stage.ROWS)
    assert ready.database.execute("SELECT count(*) FROM users WHERE totp_secret IS NULL") == [(0,)]


def test_a_column_without_a_former_one_says_so(ready: Clinic) -> None:
    with pytest.raises(ConfigError, match="no former column"):
        encrypt(ready.column(), ready.writer, Stage.ROWS, ready.trail, PACE)


def test_a_column_of_text_is_not_taken_for_envelopes(owned: Clinic) -> None:
    owned.database.execute("ALTER TABLE users ADD totp_sealed text")
    with pytest.raises(ConfigError, match="of type text, not bytea"):
        turn(owned, Stage.COLUMN)


@pytest.fixture
def guarded(database17: Database, tmp_path: Path) -> Iterator[Clinic]:
    """A clinic whose encrypted column takes no value, by a constraint."""
    with clinic(database17, tmp_path) as made:
        made.enrol(sealed=False)
        made.database.execute("ALTER TABLE users ADD CONSTRAINT short CHECK (id <> 7 OR totp_sealed IS NULL)")
        yield made


def test_a_constraint_s_refusal_names_it_and_no_value(guarded: Clinic) -> None:
    with pytest.raises(RowsLeft) as caught:
        turn(guarded, Stage.ROWS)
    assert caught.value.report.left == {"7": "the database refused the new value: short (23514)"}


@pytest.mark.parametrize("when", ["BEFORE", "AFTER", "DEFERRED"])
def test_no_secret_is_lost_to_a_trigger_that_puts_the_former_value_back(ready: Clinic, when: str) -> None:
    """Of everybody but the application. The former column is emptied only where the new one holds the secret."""
    if when == "BEFORE":
        body, kind = "NEW.totp_sealed := OLD.totp_sealed; RETURN NEW;", "TRIGGER guard BEFORE UPDATE ON users"
    else:
        body = "UPDATE users SET totp_sealed = NULL WHERE id = NEW.id AND totp_sealed IS NOT NULL; RETURN NULL;"
        kind = "TRIGGER guard AFTER UPDATE ON users"
        if when == "DEFERRED":
            kind = f"CONSTRAINT {kind} DEFERRABLE INITIALLY DEFERRED"
    ready.database.execute(
        f"CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;"
        f"CREATE {kind} FOR EACH ROW WHEN (OLD.id <> 5) EXECUTE FUNCTION guard()"
    )
    with pytest.raises(RowsLeft) as caught:
        turn(ready, Stage.ROWS)
    assert caught.value.report.figures["rows_moved"] == 1
    assert caught.value.report.left_rows == USERS - 1
    assert caught.value.report.left["1"] == "the database refused the new value: a trigger changed it"
    assert ready.opened() == {5: EVERYONE[5]}
    in_clear = dict(ready.database.execute("SELECT id, totp_secret FROM users WHERE totp_secret IS NOT NULL"))
    assert in_clear == {number: text for number, text in EVERYONE.items() if number != 5}
    with pytest.raises(Refused, match="still holds values"):
        turn(ready, Stage.FINISH)


def test_a_trigger_that_fills_the_former_column_again_is_refused_its_rows(ready: Clinic) -> None:
    ready.database.execute(
        "CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.totp_secret := coalesce(NEW.totp_secret, OLD.totp_secret); RETURN NEW; END $$;"
        "CREATE TRIGGER guard BEFORE UPDATE ON users FOR EACH ROW WHEN (OLD.id = 5) EXECUTE FUNCTION guard()"
    )
    with pytest.raises(RowsLeft) as caught:
        turn(ready, Stage.ROWS)
    assert caught.value.report.left == {"5": "the database refused the new value: a trigger changed it"}
    assert ready.opened() == {number: text for number, text in EVERYONE.items() if number != 5}


def test_without_the_right_to_read_there_is_no_plan(ready: Clinic) -> None:
    ready.database.execute(f"ALTER TABLE users OWNER TO postgres; REVOKE ALL ON users FROM {ready.role}")
    with pytest.raises(SourceError):
        plan(ready.column(former="plaintext"), ready.writer, ready.trail)


@pytest.mark.parametrize("archive", ["archive.json", None])
def test_a_keyring_that_is_replaced_meanwhile_ends_the_run_and_its_key_is_not_lost(ready: Clinic, archive: str | None) -> None:
    """What was in clear is encrypted by then: its key is in the archive, or joins the new keyring as one that only reads."""
    keep(ready.directory / "archive.json", Keyring.generate("2019-1").render().reveal())
    other, key = Keyring.generate("2030-1").render(), ready.keyring.key(FIRST)

    def somebody(_: int) -> None:
        keep(ready.keyring_file, other.reveal())

    column = ready.column(former="plaintext", archive=archive)
    with pytest.raises(SecretChanged, match="the keyring was replaced while rows were rewritten") as caught:
        encrypt(column, ready.writer, Stage.ROWS, ready.trail, PACE, moved=somebody)
    assert caught.value.hint
    there = Keyring.parse(Secret((ready.directory / (archive or "keyring.json")).read_bytes()))
    assert there.key(FIRST) == key
    assert there.current == (FIRST if archive else "2030-1")
