"""The pg_dump that a backup is made with: its arguments, how it compresses, and what its complaints mean."""

from __future__ import annotations

import math
import re

from backupd.errors import BackupdError, ConfigError, ProcessFailed, SourceDenied, SourceError, SourceUnreachable
from backupd.pipeline import Command
from backupd.postgres import complaints
from backupd.postgres.clients import Clients
from backupd.postgres.dsn import Dsn

PROGRAMS = ("pg_dump", "pg_dumpall")  # what `explained` explains

# What pg_dump or the server says, in the C locale that it runs in. The first that fits counts. pg_dump waits for locks under a
# statement timeout, and runs everything else without one.
_MEANINGS: tuple[tuple[str, type[BackupdError], str], ...] = (
    (
        "(lock|statement) timeout",
        SourceError,
        "someone holds a lock on a table (a migration?): try again later, or raise lock_timeout_s of the source",
    ),
    ("row-level security", SourceDenied, "ALTER ROLE … BYPASSRLS"),
    (
        "permission denied",
        SourceDenied,
        "grant the role what it lacks; pg_read_all_data covers all but large objects (lo_compat_privileges)",
    ),
    ("conflict with recovery", SourceError, "try again; on a standby, raise max_standby_streaming_delay"),
    ("server version mismatch", ConfigError, "install programs of PostgreSQL at least as new as the server"),
    ("snapshot", SourceUnreachable, "the session that held the snapshot is gone: see the server's log, and try again"),
    (
        "terminating connection|server closed|connection to server|could not connect",
        SourceUnreachable,
        "see the server's log, and try again",
    ),
)


def dump(
    clients: Clients, dsn: Dsn, snapshot_id: str, compression: str, lock_timeout_s: float, application_name: str
) -> Command:
    """pg_dump of the whole database in custom format to stdout, as of the snapshot, waiting at most so long for a lock."""
    argv = (
        clients.program("pg_dump"),
        "--format=custom",
        f"--snapshot={snapshot_id}",
        f"--lock-wait-timeout={max(1, math.ceil(lock_timeout_s * 1000))}",  # milliseconds
        f"--compress={_spelt(clients, compression)}",
        "--no-password",
        f"--dbname={dsn.argument()}",
    )
    return Command("pg_dump", argv, dsn.environment(application_name=application_name))


def compression(clients: Clients, wish: str) -> str:
    """`method:level` for a wish of the configuration: `auto`, `none`, `METHOD` or `METHOD:LEVEL` (gzip, lz4, zstd).

    `auto` is zstd:1 where pg_dump has it, which is ten times as fast as gzip at its default level and no larger, else gzip:1.
    Raises ConfigError for what this pg_dump cannot do.
    """
    if wish == "auto":
        return "zstd:1" if clients.zstd else "gzip:1"
    if wish == "none":
        return "none"
    method, _, level = wish.partition(":")
    if (method == "zstd" and not clients.zstd) or (method == "lz4" and clients.major < 16):
        raise ConfigError(
            f"the pg_dump of PostgreSQL {clients.release} has no {method}", "use auto, or name newer programs of PostgreSQL"
        )
    return f"{method}:{level or 1}"


def explained(error: ProcessFailed) -> BackupdError:
    """The error to raise for a pg_dump or pg_dumpall that failed: what it or the server said first, and what to do about it."""
    program = error.program or "pg_dump"
    said = complaints.lines(program, error.stderr)
    first = next((line.removeprefix("error: ") for line in said if line.startswith("error: ")), None)
    if first is None:
        message = complaints.masked(error.message)
        return ProcessFailed(message, error.hint, program=program, status=error.status, stderr="\n".join(said))
    server = next(
        (line.partition("Error message from server: ")[2] for line in said if "Error message from server" in line), ""
    )
    message = f"{program} failed: {server or first}"
    everything = "\n".join(said)
    for pattern, kind, hint in _MEANINGS:
        if re.search(pattern, everything):
            return kind(message, hint)
    return ProcessFailed(message, "see the server's log", program=program, status=error.status, stderr=everything)


def _spelt(clients: Clients, method_and_level: str) -> str:
    """As this pg_dump reads it: before 16 it knew only gzip, and only its level's number."""
    if clients.major >= 16:
        return method_and_level
    return "0" if method_and_level == "none" else method_and_level.partition(":")[2]
