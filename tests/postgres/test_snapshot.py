"""A snapshot holds one moment of a source and the source's lock, and both go when its holder does."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest

from backupd.errors import Busy, SourceError, SourceUnreachable
from backupd.postgres.dsn import Dsn
from backupd.postgres.session import connect, translated
from backupd.postgres.snapshot import LOCK, Snapshot
from tests.parts.postgres import Database

DEADLINE_S = 60

_HOLDER = """
import sys
from backupd.postgres.dsn import Dsn
from backupd.postgres.snapshot import Snapshot
with Snapshot(Dsn.parse(sys.stdin.readline().strip()), application_name="backupd doomed"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["database15", "database17"])
def database(request: pytest.FixtureRequest) -> Database:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Database)
    return found


def _snapshot(database: Database, name: str = "backupd test") -> Snapshot:
    return Snapshot(Dsn.parse(database.dsn), application_name=name)


def test_a_snapshot_sees_its_moment_and_so_does_whoever_imports_it(database: Database) -> None:
    database.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
    with _snapshot(database) as snapshot:
        database.execute("INSERT INTO t VALUES (2)")
        assert snapshot.connection.execute("SELECT count(*) FROM public.t").fetchone() == (1,)
        with database.connect() as other:
            other.execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            other.execute(f"SET TRANSACTION SNAPSHOT '{snapshot.id}'".encode())
            assert other.execute("SELECT count(*) FROM t").fetchone() == (1,)
        assert database.execute("SELECT count(*) FROM t") == [(2,)]


def test_a_snapshot_says_when_where_and_by_which_session(database: Database) -> None:
    with _snapshot(database) as snapshot:
        assert abs((datetime.now(UTC) - snapshot.moment.taken_at).total_seconds()) < 3600
        assert snapshot.moment.taken_at.tzinfo is UTC
        [(earlier,)] = database.execute("SELECT pg_current_wal_lsn() >= %s::pg_lsn", (snapshot.moment.lsn,))
        assert earlier
        session = database.execute(
            "SELECT backend_start, application_name FROM pg_stat_activity WHERE pid = %s", (snapshot.backend_pid,)
        )
        assert session == [(snapshot.backend_start, "backupd test")]
        assert snapshot.server.database == database.name


def test_nothing_can_be_written_through_a_snapshot(database: Database) -> None:
    with _snapshot(database) as snapshot, pytest.raises(SourceError, match="read-only"), translated("write"):
        snapshot.connection.execute("CREATE TABLE t ()")


def test_settings_of_the_role_do_not_cut_a_dump_short(database: Database) -> None:
    role, password = database.server.create_role()
    settings = ("statement_timeout = '10min'", "idle_in_transaction_session_timeout = '10min'", "datestyle = 'German'")
    for setting in settings:
        database.execute(f"ALTER ROLE {role} IN DATABASE {database.name} SET {setting}")
    dsn = Dsn.parse(database.server.dsn(database.name, role, password))
    expected = {
        "statement_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "lock_timeout": "2500ms",
        "row_security": "off",
        "client_connection_check_interval": "5s",
    }
    with Snapshot(dsn, application_name="backupd test", lock_timeout_s=2.5) as snapshot:
        shown = {name: snapshot.connection.execute(f"SHOW {name}".encode()).fetchall() for name in expected}
        assert shown == {name: [(value,)] for name, value in expected.items()}
        assert snapshot.notes == []


def test_a_superusers_backup_carries_a_note(database: Database) -> None:
    with _snapshot(database) as snapshot:
        assert [note for note in snapshot.notes if "postgres is a superuser" in note]


def test_a_second_run_is_refused_with_the_name_of_the_first(database: Database) -> None:
    with _snapshot(database, "backupd 20261124T020000Z-5f3c9a") as first:
        second = Snapshot(Dsn.parse(database.dsn), application_name="backupd test", lock_patience_s=0)
        with pytest.raises(Busy) as caught:
            second.__enter__()
        assert caught.value.exit_code == 4
        for part in (
            database.name,
            "backupd 20261124T020000Z-5f3c9a",
            f"pid {first.backend_pid}",
            f"{first.backend_start:%H:%M:%S}",
        ):
            assert part in caught.value.message
    with _snapshot(database):
        pass


def test_a_second_run_waits_a_moment_for_the_first_to_go(database: Database) -> None:
    with ExitStack() as first:
        snapshot = first.enter_context(_snapshot(database, "backupd first"))
        ends = threading.Thread(target=first.pop_all().close)
        second = Snapshot(Dsn.parse(database.dsn), application_name="backupd second", lock_patience_s=DEADLINE_S)
        ends.start()
        with second:
            assert second.backend_pid != snapshot.backend_pid
        ends.join(DEADLINE_S)


def test_two_databases_of_one_server_do_not_hinder_each_other(database: Database) -> None:
    other = database.server.create_database()
    try:
        with _snapshot(database), Snapshot(Dsn.parse(database.server.dsn(other)), application_name="backupd test"):
            pass
    finally:
        database.server.drop_database(other)


def test_the_lock_of_a_killed_holder_is_free_again(database: Database) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(database.dsn + "\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "held\n"
        assert _is_locked(database)
    finally:
        holder.kill()
        holder.communicate()
    until = time.monotonic() + DEADLINE_S
    while _is_locked(database):
        assert time.monotonic() < until, "the lock outlived its holder"
        time.sleep(0.02)
    with _snapshot(database):
        pass


def test_a_lost_session_is_noticed(database: Database) -> None:
    with _snapshot(database) as snapshot:
        snapshot.alive()
        database.execute(f"SELECT pg_terminate_backend({snapshot.backend_pid}, 30000)")
        with pytest.raises(SourceUnreachable, match="keep the snapshot"):
            snapshot.alive()


def test_a_session_that_is_cut_ends_at_the_server_too(database: Database) -> None:
    with _snapshot(database) as snapshot:
        snapshot.cut()
        with pytest.raises(SourceUnreachable):
            snapshot.alive()
        until = time.monotonic() + DEADLINE_S
        while database.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (snapshot.backend_pid,)):
            assert time.monotonic() < until, "the server kept the session"
            time.sleep(0.02)


def test_the_companion_of_a_snapshot_is_found_by_its_name(database: Database) -> None:
    with _snapshot(database) as snapshot:
        assert snapshot.companion("backupd dumping", while_running=lambda: False) is None
        with connect(Dsn.parse(database.dsn), application_name="backupd dumping") as other:
            found = snapshot.companion("backupd dumping", while_running=lambda: True)
            assert found is not None
            assert found.pid == other.info.backend_pid


def test_an_unreachable_source_is_no_snapshot(database: Database) -> None:
    dsn = Dsn.parse(database.server.dsn("nowhere"))
    with pytest.raises(SourceError, match="does not exist"), Snapshot(dsn, application_name="backupd test"):
        pass


def _is_locked(database: Database) -> bool:
    [(held,)] = database.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid = %s"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        LOCK,
    )
    return bool(held)
