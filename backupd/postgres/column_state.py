"""What has to be known of a table of secrets before their keys change: who is writing to it just now.

Takes no lock and writes nothing, so a role that may read is enough. What an application has in hand and has not begun to write
yet is seen by nobody here.
"""

from __future__ import annotations

import time

from backupd.errors import Busy, Refused
from backupd.postgres.column_rows import Table
from backupd.postgres.session import Connection, translated
from backupd.redact import printable

WRITERS_WAIT_S = 10.0
_LOOK_S = 0.1

# Transactions that have written to the table or its partitions, or are about to; also prepared ones, which have no process.
_WRITERS = """
WITH RECURSIVE family AS (
  SELECT %s::int8::oid AS oid UNION SELECT inhrelid FROM pg_catalog.pg_inherits JOIN family ON inhparent = oid)
SELECT virtualtransaction FROM pg_catalog.pg_locks
 WHERE locktype = 'relation' AND relation IN (SELECT oid FROM family) AND pid IS DISTINCT FROM pg_backend_pid()
   AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
   AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
"""


def require_primary(connection: Connection) -> None:
    """Raises Refused on a standby: it is behind, and neither sees nor keeps out who writes."""
    with translated("ask whether the server is a standby"):
        [(standby,)] = connection.execute("SELECT pg_is_in_recovery()").fetchall()
    if standby:
        raise Refused(
            f"the server of {printable(connection.info.dbname)} is a standby, and does not see all that was written",
            "set columns_dsn to the primary's address",
        )


def wait_for_writers(connection: Connection, table: Table) -> None:
    """Until every transaction that is writing to the table now has ended, so that what is read next has what they wrote.

    Those that begin later are not waited for. Raises Busy after ten seconds, and SourceError.
    """
    deadline = time.monotonic() + WRITERS_WAIT_S
    writing = _writers(connection, table)
    while writing and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        writing &= _writers(connection, table)
    if writing:
        raise Busy(
            f"{len(writing)} transaction{'s'[: len(writing) > 1]} that wrote to {printable(table.name)}"
            " did not end, and nobody sees what they wrote",
            "end what has been open for long (pg_stat_activity, pg_prepared_xacts), and run it again",
        )


def _writers(connection: Connection, table: Table) -> set[str]:
    with translated(f"look who writes to {printable(table.name)}"):
        return {name for (name,) in connection.execute(_WRITERS.encode(), (table.oid,)).fetchall()}
