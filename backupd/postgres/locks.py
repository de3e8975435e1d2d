"""The locks of the tables that a backup reads, taken before its snapshot and kept as long as that.

A snapshot alone is not enough: TRUNCATE and ALTER TABLE that rewrite a table are not MVCC-safe, so that an older snapshot then
sees an empty table where rows were. Locked tables cannot be rewritten, and what waits for them waits until the backup is made.
Owns no session and no transaction's end.
"""

from __future__ import annotations

import psycopg

from backupd.errors import SourceError
from backupd.postgres.session import Connection

_TRIES = 5
_BATCH = 200  # tables locked by one statement

# What a dump reads and this role may read: what it may not is told of with more to say than LOCK has. Partitions are
# tables of their own here, so that one which was attached in between is noticed. A view that is not populated is not read.
_READ = """
SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name, c.relkind
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE (c.relkind IN ('r', 'p') OR c.relkind = 'm' AND c.relispopulated) AND c.relpersistence <> 't'
   AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
   AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
"""
_TABLES = f"SELECT name FROM ({_READ}) AS c WHERE relkind <> 'm' ORDER BY oid"  # noqa: S608  # constants of this file
_VIEWS = f"SELECT name FROM ({_READ}) AS c WHERE relkind = 'm' ORDER BY oid"  # noqa: S608  # as above
_UNLOCKED = f"""
SELECT count(*) FROM ({_READ}) AS c WHERE oid NOT IN (
  SELECT relation FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation' AND mode = 'AccessShareLock' AND granted
     AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""  # noqa: S608  # as above

# A table that was listed is gone, or is something else now; and of two who wait for each other one is told so.
_CHANGED = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.WrongObjectType,
    psycopg.errors.ObjectNotInPrerequisiteState,
    psycopg.errors.DeadlockDetected,
)


def begin(connection: Connection) -> None:
    """Begin a read-only transaction whose snapshot sees no table that is not locked in ACCESS SHARE mode.

    The connection is in autocommit mode, and its lock_timeout holds for each lock. LOCK takes no snapshot: the first query
    after it does. Raises psycopg's errors, and SourceError when tables come and go each time.
    """
    for _ in range(_TRIES):
        tables = _names(connection, _TABLES)
        connection.execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        try:
            for start in range(0, len(tables), _BATCH):
                only = ", ".join(f"ONLY {name}" for name in tables[start : start + _BATCH])
                connection.execute(f"LOCK TABLE {only} IN ACCESS SHARE MODE".encode())
            for name in _names(connection, _VIEWS):  # LOCK takes no materialised views; they are only counted
                connection.execute(f"SELECT FROM {name} LIMIT 0".encode())
            [(unlocked,)] = connection.execute(_UNLOCKED.encode()).fetchall()
            if not unlocked:
                return
        except _CHANGED:
            pass
        connection.execute("ROLLBACK")
    raise SourceError(
        f"tables were made, renamed or dropped each of the {_TRIES} times that all were to be locked",
        "a migration seems to be running: try again later",
    )


def _names(connection: Connection, query: str) -> list[str]:
    """Names as the server quotes them."""
    return [name for (name,) in connection.execute(query.encode()).fetchall()]
