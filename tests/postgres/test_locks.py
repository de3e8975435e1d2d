"""What a snapshot shows stays as it is: nothing that is read through it can be rewritten meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest

from backupd.errors import SourceError
from backupd.manifest import Level
from backupd.postgres import expectations
from backupd.postgres.dsn import Dsn
from backupd.postgres.snapshot import Snapshot
from tests.parts.postgres import Database

DEADLINE_S = 60
NAME = "backupd locking"


@pytest.fixture(params=["database15", "database17"])
def database(request: pytest.FixtureRequest) -> Database:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Database)
    found.execute("CREATE TABLE t AS SELECT i FROM generate_series(1, 100) i")
    return found


@pytest.mark.parametrize("change", ["TRUNCATE t", "ALTER TABLE t ALTER i TYPE text", "DROP TABLE t"])
def test_a_change_that_waits_for_a_snapshot_changes_nothing_in_it(database: Database, change: str) -> None:
    """Without the lock the change would be made here, and the older snapshot would see an empty table."""
    with _snapshot(database) as snapshot, database.connect() as migration, ThreadPoolExecutor(1) as beside:
        changing = beside.submit(migration.execute, change.encode())
        try:
            _wait_or_done(database, migration.info.backend_pid, changing)
            assert expectations.collect(snapshot, Level.DIGESTS).tables['"public"."t"'].rows == 100
        finally:
            snapshot.connection.close()
        changing.result(DEADLINE_S)


def test_partitions_and_materialised_views_are_held_too(database: Database) -> None:
    database.execute(
        "CREATE TABLE p (i int) PARTITION BY RANGE (i); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (1) TO (9);"
        " CREATE MATERIALIZED VIEW v AS SELECT FROM t; CREATE MATERIALIZED VIEW w AS SELECT FROM t WITH NO DATA;"
        ' CREATE SCHEMA "Odd one"; CREATE TABLE "Odd one"."quoted ""table""" ()'
    )
    with _snapshot(database) as snapshot:
        assert _locked(database, snapshot) == {"t", "p", "p1", "v", 'quoted "table"'}


def test_more_tables_than_one_statement_locks_are_all_held(database: Database) -> None:
    database.execute("DO $$ BEGIN FOR i IN 1..450 LOOP EXECUTE format('CREATE TABLE many_%s ()', i); END LOOP; END $$")
    with _snapshot(database) as snapshot:
        assert _locked(database, snapshot) == {"t", *(f"many_{i}" for i in range(1, 451))}


def test_the_snapshot_is_younger_than_the_locks(database: Database) -> None:
    """Whoever rewrote a table while its lock was waited for is seen with all that he did."""
    with database.connect() as migration, _entering(database) as (snapshot, entering):
        with migration.transaction():
            migration.execute("TRUNCATE t; INSERT INTO t VALUES (1), (2)")
            _wait_for_the_lock(database, entering)
        entering.result(DEADLINE_S)
        assert snapshot.connection.execute("SELECT count(*) FROM public.t").fetchone() == (2,)


def test_tables_that_come_and_go_while_the_others_are_locked_are_noticed(database: Database) -> None:
    with database.connect() as migration, _entering(database) as (snapshot, entering):
        with migration.transaction():
            migration.execute("DROP TABLE t; CREATE TABLE late (); CREATE TABLE later ()")
            _wait_for_the_lock(database, entering)
        entering.result(DEADLINE_S)
        assert _locked(database, snapshot) == {"late", "later"}


def test_a_table_that_only_came_is_noticed(database: Database) -> None:
    """LOCK itself does not fail then."""
    with database.connect() as migration, _entering(database) as (snapshot, entering):
        with migration.transaction():
            migration.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE; CREATE TABLE late ()")
            _wait_for_the_lock(database, entering)
        entering.result(DEADLINE_S)
        assert _locked(database, snapshot) == {"t", "late"}


def test_a_table_that_may_not_be_read_is_left_to_whoever_tells_of_it(database: Database) -> None:
    role, password = database.server.create_role()
    dsn = Dsn.parse(database.server.dsn(database.name, role, password))
    with Snapshot(dsn, application_name=NAME) as snapshot:
        assert _locked(database, snapshot) == set()


def test_a_lock_is_waited_for_no_longer_than_was_said(database: Database) -> None:
    with database.connect() as migration, migration.transaction():
        migration.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        snapshot = Snapshot(Dsn.parse(database.dsn), application_name=NAME, lock_timeout_s=0.1)
        with pytest.raises(SourceError, match=r"could not lock the tables: .*lock timeout") as caught:
            snapshot.__enter__()
    assert "migration" in str(caught.value.hint)


def _snapshot(database: Database) -> Snapshot:
    return Snapshot(Dsn.parse(database.dsn), application_name=NAME, lock_timeout_s=1)


@contextmanager
def _entering(database: Database) -> Iterator[tuple[Snapshot, Future[Snapshot]]]:
    """A snapshot that is entered beside, and left at the end."""
    snapshot = Snapshot(Dsn.parse(database.dsn), application_name=NAME, lock_timeout_s=DEADLINE_S)
    with ThreadPoolExecutor(1) as beside:
        entering = beside.submit(snapshot.__enter__)
        yield snapshot, entering
        entering.result(DEADLINE_S).__exit__(None, None, None)


def _wait_for_the_lock(database: Database, entering: Future[Snapshot]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not database.execute(
        "SELECT 1 FROM pg_stat_activity"
        " WHERE application_name = %s AND datname = current_database() AND wait_event_type = 'Lock'",
        (NAME,),
    ):
        assert not entering.done(), entering.exception()
        assert time.monotonic() < until, "nobody waits for the lock"
        time.sleep(0.02)


def _wait_or_done(database: Database, pid: int, changing: Future[psycopg.Cursor]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not changing.done():
        if database.execute("SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted", (pid,)):
            return
        assert time.monotonic() < until, "the change neither waits nor ends"
        time.sleep(0.02)


def _locked(database: Database, snapshot: Snapshot) -> set[str]:
    """The database's own tables that the snapshot's session has locked."""
    rows = database.execute(
        "SELECT relname::text FROM pg_locks JOIN pg_class c ON c.oid = relation"
        " WHERE pid = %s AND granted AND mode = 'AccessShareLock' AND relnamespace::regnamespace::text !~ '^pg_'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        (snapshot.backend_pid,),
    )
    return {name for (name,) in rows}
