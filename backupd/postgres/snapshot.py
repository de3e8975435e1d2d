"""One moment of a source, held for as long as it is needed: everything that is read through it belongs together.

Owns the source's lock, the locks of its tables and the exported snapshot, all on one connection, so that the death of backupd
ends them. Of the application's it reads only where the sequences stand.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import psycopg

from backupd.errors import Busy, SourceError
from backupd.manifest import Moment
from backupd.postgres import locks, sequences
from backupd.postgres.dsn import Dsn
from backupd.postgres.session import Connection, Server, connect, server, translated
from backupd.redact import printable

# The two keys of the advisory lock. Such locks are the database's own, so one pair serves for every source; the first
# spells "bkpd" and keeps away from an application's locks.
LOCK = (0x626B7064, 1)

# Whatever the role or the database sets, a long dump may idle in its transaction, and a killed backupd is noticed: without
# the check a server goes on counting, and holding the lock, until its query ends.
_SETTINGS = {
    "statement_timeout": "0",
    "transaction_timeout": "0",  # since 17
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",  # since 14
    "DateStyle": "ISO, YMD",  # the only one that psycopg reads
    "TimeZone": "UTC",
    "row_security": "off",  # a query that row security would filter fails instead
    "tcp_keepalives_idle": "60",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "6",
}
_CONNECTION_CHECK_MS = 5000
LOCK_PATIENCE_S = 8.0  # longer than that check: the lock of a run that was killed goes within it
_LOCK_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Session:
    """A database session as pg_stat_activity and the server's log name it.

    `started_at` is None when the session acts as a role (`ALTER ROLE … SET role`) that may not see its own.
    """

    pid: int
    started_at: datetime | None

    @classmethod
    def shown(cls, pid: int, started_at: datetime | None) -> Session:
        """As pg_stat_activity shows it."""
        return cls(pid, None if started_at is None else started_at.astimezone(UTC))

    def describe(self) -> str:
        """For the trail: `pid 7, started 2026-11-24T02:00:00.000000Z`."""
        return f"pid {self.pid}" + ("" if self.started_at is None else f", started {self.started_at:%Y-%m-%dT%H:%M:%S.%fZ}")


class Snapshot:
    """A context manager; everything but the constructor's arguments exists inside the block only.

    Entering raises Busy when another run holds the source and has not let go of it after `lock_patience_s` seconds, and
    SourceUnreachable, SourceDenied or SourceError. `lock_timeout_s` is how long to wait for a lock of a table.
    """

    id: str
    moment: Moment
    server: Server
    session: Session
    connection: Connection
    sequences: Mapping[str, int | None]
    notes: list[str]

    def __init__(
        self,
        dsn: Dsn,
        *,
        application_name: str,
        lock_timeout_s: float = 30,
        lock_patience_s: float = LOCK_PATIENCE_S,
        connect_timeout_s: int = 10,
    ) -> None:
        self._lock_patience_s = lock_patience_s
        self._dsn = dsn
        self._application_name = application_name
        self._lock_timeout_s = lock_timeout_s
        self._connect_timeout_s = connect_timeout_s

    @property
    def backend_pid(self) -> int:
        """The process id of the server's end."""
        return self.session.pid

    @property
    def backend_start(self) -> datetime | None:
        """When the server's end started, if the role may know."""
        return self.session.started_at

    def __enter__(self) -> Self:
        self.connection = connect(
            self._dsn,
            application_name=self._application_name,
            connect_timeout_s=self._connect_timeout_s,
            autocommit=True,
        )
        try:
            self._begin()
        except BaseException:
            self.connection.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:  # at once: after a close the server takes a moment to end the session, and a next run may be waiting
            with contextlib.suppress(psycopg.Error):
                self.connection.execute("ROLLBACK")
                self.connection.execute("SELECT pg_advisory_unlock(%s, %s)", LOCK)
        self.connection.close()  # ends transaction, snapshot and lock in any case

    def _begin(self) -> None:
        _prepare(self.connection, self._lock_timeout_s)
        self.server = server(self.connection)
        lock(self.connection, self.server.database, self._lock_patience_s)
        with translated("lock the tables"):
            locks.begin(self.connection)
        with translated("take a snapshot"):
            [(self.id,)] = self.connection.execute("SELECT pg_export_snapshot()").fetchall()
            [row] = self.connection.execute(
                "SELECT clock_timestamp(),"
                " (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END)::text,"
                " pid, backend_start, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)"
                " FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            ).fetchall()
        taken_at, lsn, pid, started_at, is_superuser = row
        self.moment = Moment(taken_at.astimezone(UTC), lsn or "0/0")
        self.session = Session.shown(pid, started_at)
        self.sequences = sequences.read(self.connection)
        self.notes = list(_notes(self._dsn, is_superuser, self.server))

    def alive(self) -> None:
        """Raises SourceUnreachable when the snapshot is gone: what was read through it since is then worth nothing."""
        with translated("keep the snapshot"):
            self.connection.execute("SELECT 1")

    def companion(self, application_name: str, *, while_running: Callable[[], bool]) -> Session | None:
        """The session of the pg_dump that was given this name, once it is there; None when `while_running` ends before.

        Looked for by name and role: good enough to record one's own session, and no proof of anyone else's.
        """
        with translated("find pg_dump's session"):
            while True:
                running = while_running()
                found = self.connection.execute(
                    "SELECT pid, backend_start FROM pg_stat_activity WHERE application_name = %s AND usename = session_user"
                    " AND pid <> pg_backend_pid() ORDER BY backend_start",
                    (application_name,),
                ).fetchall()
                if found:
                    return Session.shown(*found[0])
                if not running:
                    return None
                self.connection.execute("SELECT pg_stat_clear_snapshot(), pg_sleep(0.02)")

    def cut(self) -> None:
        """End the connection under a query of another thread, which then raises SourceUnreachable; the server notices too."""
        with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(self.connection.fileno())) as wire:
            wire.shutdown(socket.SHUT_RDWR)


def lock(connection: Connection, database: str, patience_s: float = LOCK_PATIENCE_S) -> None:
    """Take the source's lock for the length of the session, across hosts. Raises Busy that names the session holding it."""
    until = time.monotonic() + patience_s
    with translated("lock the source"):
        while True:
            [(taken,)] = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", LOCK).fetchall()
            if taken:
                return
            if time.monotonic() >= until:
                raise Busy(f"another run holds {printable(database)}: {_holder(connection)}", "wait for it, or end it")
            time.sleep(_LOCK_POLL_S)


def _holder(connection: Connection) -> str:
    found: list[tuple[Any, ...]] = connection.execute(
        "SELECT pid, application_name, backend_start FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)"
        " WHERE locktype = 'advisory' AND classid = %s AND objid = %s AND objsubid = 2 AND pg_locks.granted"
        " AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        LOCK,
    ).fetchall()
    if not found:
        return "it has just ended"
    pid, name, since = found[0]
    started = "" if since is None else f", since {since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"{printable(name or 'a session without a name')} (pid {pid} on the server{started})"


def _prepare(connection: Connection, lock_timeout_s: float) -> None:
    wanted = _SETTINGS | {"lock_timeout": str(max(1, math.ceil(lock_timeout_s * 1000)))}
    with translated("prepare the session"):
        connection.execute(
            "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS wanted (name, value)"
            " WHERE name IN (SELECT name FROM pg_settings)",
            (list(wanted), list(wanted.values())),
        )
    # Older than 14, or on a platform that cannot tell: the keepalives must do. Outside of any transaction, so nothing breaks.
    with contextlib.suppress(psycopg.Error):
        connection.execute(f"SET client_connection_check_interval = {_CONNECTION_CHECK_MS}".encode())
    if connection.closed:
        raise SourceError("the server ended the session while it was prepared", "see the server's log")


def _notes(dsn: Dsn, is_superuser: bool, at: Server) -> list[str]:
    notes = []
    if is_superuser:
        notes.append(f"{printable(dsn.user)} is a superuser: a role with pg_read_all_data and BYPASSRLS is enough for backups")
    if at.in_recovery:
        notes.append("the backup was made from a standby: unlogged tables are not in it")
    return notes
