"""A migration that begins while a backup is made: it waits, and the backup is right, whatever it would have done."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from backupd.backup import Protected, SecondFactors, back_up
from backupd.manifest import Level
from backupd.postgres.dsn import Dsn
from tests.e2e.rig import Pairs, Rig, file_store, rigged
from tests.parts.postgres import Database

DEADLINE_S = 60


@pytest.fixture
def rig(pairs: Pairs, tmp_path: Path) -> Iterator[Rig]:
    """Over a directory."""
    with rigged(file_store(tmp_path), pairs, tmp_path) as made:
        yield made


@pytest.mark.parametrize("change", ["TRUNCATE users, visits", "ALTER TABLE users ALTER id TYPE bigint", "DROP TABLE users"])
def test_a_backup_shows_what_a_restore_shows_when_a_migration_waits(rig: Rig, database17: Database, change: str) -> None:
    """The lock timeout is far shorter than the migration has to wait."""
    database17.execute(
        "CREATE TABLE users AS SELECT i AS id, decode(repeat('00', 40), 'hex') AS totp FROM generate_series(1, 1000) i;"
        " CREATE TABLE visits AS SELECT i FROM generate_series(1, 500) i"
    )
    source = Protected(
        "clinic",
        Dsn.parse(database17.dsn),
        level=Level.ROWS,
        second_factors=(SecondFactors("users", "totp", "aes-256-gcm"),),
        lock_timeout_s=1,
    )
    changing: list[Future[psycopg.Cursor]] = []
    starting = threading.Lock()  # parts of the database and of the roles arrive beside each other
    with ThreadPoolExecutor(1) as beside, ExitStack() as connections:

        def migrate(count: int) -> None:
            with starting:
                if not changing:
                    migration = connections.enter_context(database17.connect())
                    changing.append(beside.submit(migration.execute, change.encode()))
                    waits(database17, migration.info.backend_pid, changing[0])

        manifest = back_up(source, lambda: rig.catalog, rig.sealing, rig.trail, migrate)
        changing[0].result(DEADLINE_S)
    assert {name: table.rows for name, table in manifest.expect.tables.items()} == {
        '"public"."users"': 1000,
        '"public"."visits"': 500,
    }
    assert manifest.column_keys[0].rows == 1000
    target = database17.server.create_database()
    try:
        rig.restore(manifest, database17.server.dsn(target))
    finally:
        database17.server.drop_database(target)


def waits(database: Database, pid: int, changing: Future[psycopg.Cursor]) -> None:
    """Return once the session waits for a lock."""
    until = time.monotonic() + DEADLINE_S
    while not database.execute("SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted", (pid,)):
        assert not changing.done(), "the migration did not wait"
        assert time.monotonic() < until, "the migration neither waits nor ends"
        time.sleep(0.02)
