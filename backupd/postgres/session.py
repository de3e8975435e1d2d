"""How to connect to a database, what its server says of itself, and what psycopg's errors mean."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from backupd.errors import BackupdError, SourceDenied, SourceError, SourceFull, SourceUnreachable
from backupd.postgres.dsn import KEEPALIVES, Dsn, environment_names, password_text
from backupd.redact import printable, scrub

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself and of the database one is connected to; `database_size` in bytes, `version` as `17.10`."""

    version_num: int
    version: str
    major: int
    system_identifier: str
    database: str
    in_recovery: bool
    database_size: int

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version."""
        return self.major, self.version_num % 10_000


def connect(dsn: Dsn, *, application_name: str, connect_timeout_s: int = 10, autocommit: bool = False) -> Connection:
    """A connection that notices a vanished server, and finds the server's own functions and relations alone by their names.

    Whoever owns the database may set a search_path for it, and so put functions of his own before the server's: they would run
    with our role's rights. Raises SourceUnreachable, SourceDenied, or SourceError for the rest.
    """
    ours = {"application_name": application_name, "connect_timeout": str(connect_timeout_s)}
    _forget_environment()
    try:
        connection = psycopg.connect(_conninfo(dsn, ours), autocommit=True)
    except psycopg.Error as error:
        raise _connection_error(str(error), dsn) from None  # psycopg's traceback would show the parameters
    try:
        with translated("prepare the session"):
            connection.execute(_OWN_NAMES)
            connection.autocommit = autocommit
    except BaseException:
        connection.close()
        raise
    return connection


# Not by `options`, which poolers refuse with words of their own. Its one function is named in full.
_OWN_NAMES = "SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false)"


def table_named(connection: Connection, name: str) -> int | None:
    """The oid of the table or view that the role would find by this name, as SQL writes it; None when there is none.

    Nothing is called meanwhile whose name is not written in full. Raises SourceError and SourceDenied.
    """
    shown = printable(name)
    with translated(f"find table {shown}", "GRANT USAGE on its schema"), connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL search_path TO DEFAULT")
        [(oid,)] = connection.execute("SELECT pg_catalog.to_regclass(%s)::pg_catalog.oid::pg_catalog.int8", (name,)).fetchall()
    return None if oid is None else int(oid)


def _conninfo(dsn: Dsn, ours: Mapping[str, str]) -> str:
    """With the password in it, so it is never held in a variable: tracebacks show those."""
    known = {"sslmode": "prefer", **KEEPALIVES, **dict(dsn.parameters), **ours, "client_encoding": "UTF8"}
    return make_conninfo("", **known, password="" if dsn.password is None else password_text(dsn.password))


# What libpq reads and no keyword stands for.
_WITHOUT_KEYWORD = {"PGSERVICEFILE", "PGSYSCONFDIR", "PGREQUIRESSL", "PGTZ", "PGDATESTYLE", "PGGEQO", "PGLOCALEDIR", "PGREALM"}


def _forget_environment() -> None:
    """Take libpq's variables from this process: they would lead its sessions elsewhere than the programs, which get none.

    An empty parameter does not do: libpq then looks for a service with an empty name. PGPASSWORD stays for who asks for it.
    """
    for name in (_WITHOUT_KEYWORD | set(environment_names().values())) - {"PGPASSWORD"}:
        os.environ.pop(name, None)


def server(connection: Connection) -> Server:
    """The server at the other end. Raises SourceError for a connection pooler, and SourceDenied without the right to ask."""
    with translated("read the server's identity", "GRANT EXECUTE ON FUNCTION pg_control_system() TO the role"):
        [row] = connection.execute(
            "SELECT current_setting('server_version_num')::int, current_setting('server_version'),"
            " (SELECT system_identifier::text FROM pg_control_system()), current_database()::text,"
            " pg_is_in_recovery(), pg_database_size(current_database())::bigint"
        ).fetchall()
    number, version, identifier, database, in_recovery, size = row
    refuse_pooler(connection)
    return Server(number, version.split()[0], number // 10000, identifier, database, in_recovery, size)


def refuse_pooler(connection: Connection) -> None:
    """A pooler hands out a process id of its own at the start; a server's own start message and its answer agree.

    Raises SourceError when they do not.
    """
    with translated("ask for the session's process"):
        [(pid,)] = connection.execute("SELECT pg_backend_pid()").fetchall()
    if connection.info.backend_pid != pid:
        raise SourceError(
            f"between us and {printable(connection.info.dbname)} stands a connection pooler",
            "give the server's own address: exported snapshots and session locks do not survive a pooler in transaction mode",
        )


@contextmanager
def translated(what: str, hint_denied: str | None = None) -> Iterator[None]:
    """What psycopg raises in the block leaves it as a SourceError, `could not WHAT: …`, without statement and rows."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, what, hint_denied) from None  # rows and parameters would stand in the cause


def translate(error: psycopg.Error, what: str, hint_denied: str | None = None) -> BackupdError:
    """The error of backupd's that says what `error` says. Only the server's primary message is kept: details quote rows."""
    state = error.sqlstate or ""
    primary = error.diag.message_primary or str(error).strip().partition("\n")[0]
    if state in _QUOTE_A_VALUE:
        primary = re.sub(r'(?s)".*"', "…", primary)
    said = scrub(printable(primary[:300]))
    message = f"could not {what}: {said}"
    if state == "42501" and "row-level security" in said:
        return SourceDenied(message, "ALTER ROLE … BYPASSRLS: rows that a policy hides would be passed over")
    if state == "42501":
        return SourceDenied(message, hint_denied)
    if state == "53100":
        return SourceFull(message, "make room on the server's disk, then try again")
    if state.startswith("40") or "conflict with recovery" in said:
        return SourceError(message, _RETRY_STANDBY)
    if state == "55P03":
        return SourceError(message, _RETRY_LOCK)
    if state == "57014" and "statement timeout" in said:
        return SourceError(message, "a setting of the role or database ended it: ALTER ROLE … SET statement_timeout = 0")
    if state == "57014":
        return SourceError(message, "someone cancelled the session: try again")
    if state == "22021":
        return SourceError(message, "a name or value is not UTF-8, as SQL_ASCII lets in: rename or convert it")
    if state.startswith(("08", "25P03", "57P")) or (not state and isinstance(error, psycopg.OperationalError)):
        return SourceUnreachable(message, "the connection was lost: see the server's log, and try again")
    return SourceError(message)


# Conversions that fail: `invalid input syntax for type boolean: "…"`, and the like for numbers, dates and enums.
_QUOTE_A_VALUE = {"22P02", "22003", "22007", "22008"}
_RETRY_STANDBY = "try again; on a standby, raise max_standby_streaming_delay or set hot_standby_feedback = on"
_RETRY_LOCK = "someone holds a lock on a table (a migration?): try again later; backups wait for lock_timeout_s of their source"

# What libpq and the server say when a connection fails. There is no SQLSTATE to go by before a session exists. The first
# that fits counts; a server that speaks another language falls through to the last resort, which shows its own words.
_CONNECTION_ERRORS: tuple[tuple[str, type[SourceError], str, str], ...] = (
    (r"no password supplied", SourceDenied, "the server wants a password, and none was given",
     "for a source, set `password = { file = … }`; for a restore's target, --password-file FILE or PGPASSWORD"),
    (r"password authentication failed|authentication failed for user", SourceDenied,
     "the server does not accept the password", "check the password: it is read from {}"),
    (r"no pg_hba\.conf entry.*(no encryption|SSL off)", SourceDenied,
     "the server wants TLS, or does not know this client", "add sslmode=require to the address, or an entry to pg_hba.conf"),
    (r"no pg_hba\.conf entry|pg_hba\.conf rejects", SourceDenied,
     "the server does not let this client in", "add an entry for this host, role and database to pg_hba.conf"),
    (r'role ".*" does not exist', SourceDenied, "the role does not exist", "create it, or correct the address's user"),
    (r"is not permitted to log in", SourceDenied, "the role may not log in", "ALTER ROLE … LOGIN"),
    (r"permission denied for database", SourceDenied, "the role may not connect", "GRANT CONNECT ON DATABASE … TO the role"),
    (r'database ".*" does not exist', SourceError, "the database does not exist", "correct the address's database"),
    (r"is not currently accepting connections", SourceError, "the database accepts no connections",
     "ALTER DATABASE … ALLOW_CONNECTIONS true"),
    (r"too many (clients|connections)|connection slots are reserved", SourceUnreachable,
     "the server has no connection left", "try again later, or raise max_connections or the role's connection limit"),
    (r"system is (starting up|shutting down|in recovery mode|not yet accepting)", SourceUnreachable,
     "the server is starting or stopping", "try again in a moment"),
    (r"server does not support SSL", SourceUnreachable, "the server has no TLS, and the address asks for it",
     "turn ssl on in the server; sslmode=prefer would send the data in clear"),
    (r"certificate|SSL error|root\.crt|sslmode", SourceUnreachable, "no TLS session could be agreed on",
     "check sslmode, sslrootcert and the server's certificate"),
    (r"could not translate host name|name resolution|failed to resolve host", SourceUnreachable, "the host's name is not known",
     "correct the address's host"),
    (r"timeout expired|timed out", SourceUnreachable, "the server did not answer in time", "check host, port and firewall"),
    (r"(?s)^(?!.*FATAL: ).*(Connection refused|No such file or directory|No route to host|unreachable|could not receive data"
     r"|closed the connection)", SourceUnreachable,
     "there is no server at this address", "is it running, and are host and port right?"),
)  # fmt: skip  # one line of text and its meaning side by side is what makes this table readable


def _connection_error(said: str, dsn: Dsn) -> SourceError:
    for pattern, kind, message, hint in _CONNECTION_ERRORS:
        if re.search(pattern, said):
            place = dsn.password.label if dsn.password is not None else "where libpq keeps it: passfile=, or ~/.pgpass"
            return kind(f"{dsn.describe()}: {message}", hint.replace("{}", place))
    first = scrub(printable(said.strip().partition("\n")[0][:300]))
    return SourceUnreachable(f"{dsn.describe()}: {first}", "see the server's log")
