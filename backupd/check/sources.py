"""A source, by asking its server: who we are, what we may read, which programs serve it, whether columns are encrypted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import partial

from backupd.check import columns
from backupd.check.lines import Line, Parts, failed, guarded, ok, problem, warning
from backupd.columns import ciphers
from backupd.config.models import Source, Totp
from backupd.errors import BackupdError, ConfigError
from backupd.postgres import clients, column_keys, expectations, session
from backupd.postgres.session import Connection, Server, table_named, translated
from backupd.transfer import part_sizes

LOCK_TIMEOUT = "10s"
CLOCK_WARNING_S = 60
CLOCK_PROBLEM_S = 300


def look(parts: Parts, name: str, source: Source) -> Iterator[Line]:
    """Lines on one source."""
    area = f"source {name}"
    try:
        connection = session.connect(parts.dsn(source), application_name="backupd check")
    except BackupdError as error:
        yield failed(area, error)
        return
    with closing(connection):
        try:
            server = _prepared(connection)
        except BackupdError as error:
            yield failed(area, error)
            return
        yield ok(area, f"PostgreSQL {server.version}, database {server.database}, {server.database_size / 1e6:.1f} MB")
        yield from _asked(connection, area, _role)
        yield from _asked(connection, area, _clock)
        yield from _asked(connection, area, _rights)
        if source.globals:
            yield from _asked(connection, area, _passwords)
        for each in source.totp:
            yield from _asked(connection, area, partial(_column, parts, name, each))
            yield from _asked(connection, area, partial(_former, name, each))
    if server.in_recovery:
        yield warning(area, "it is a standby: unlogged tables are in no backup", "name the primary, if they matter")
    yield from guarded(area, _programs(area, source, server))
    yield from guarded(area, _parts(parts, area, server))


def _prepared(connection: Connection) -> Server:
    with translated("prepare the session"):
        connection.execute("SELECT set_config('lock_timeout', %s, false)", (LOCK_TIMEOUT,))
    server = session.server(connection)
    connection.commit()
    return server


def _asked(connection: Connection, area: str, question: Callable[[Connection, str], Iterator[Line]]) -> Iterator[Line]:
    """The lines of one question, in a transaction of its own: what goes wrong in it spoils no other."""
    yield from guarded(area, question(connection, area))
    if not connection.closed:
        connection.rollback()


def _role(connection: Connection, area: str) -> Iterator[Line]:
    with translated("look at the role"):
        [(user, is_superuser)] = connection.execute(
            "SELECT current_user::text, rolsuper FROM pg_roles WHERE rolname = current_user"
        ).fetchall()
    if is_superuser:
        yield warning(
            area, f"{user} is a superuser", "use a role with LOGIN and BYPASSRLS that is a member of pg_read_all_data"
        )
    else:
        yield ok(area, f"{user} is no superuser")


def _clock(connection: Connection, area: str) -> Iterator[Line]:
    with translated("read the server's clock"):
        before = datetime.now(UTC)
        [(theirs,)] = connection.execute("SELECT clock_timestamp()").fetchall()
        after = datetime.now(UTC)
    apart = max((before - theirs).total_seconds(), (theirs - after).total_seconds(), 0.0)
    if apart <= CLOCK_WARNING_S:
        yield ok(area, "its clock and ours agree")
        return
    found = problem if apart > CLOCK_PROBLEM_S else warning
    yield found(area, f"its clock and ours are {apart:.0f} seconds apart", "let both hosts keep time by NTP")


def _rights(connection: Connection, area: str) -> Iterator[Line]:
    expectations.require_readable(connection)
    yield ok(area, "every table and sequence may be read, all rows of them")


def _passwords(connection: Connection, area: str) -> Iterator[Line]:
    with translated("ask for the right to read pg_authid"):
        [(may,)] = connection.execute("SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')").fetchall()
    if may:
        yield ok(area, "roles are backed up with their passwords' hashes")
    else:
        yield warning(
            area,
            "roles are backed up without passwords, for pg_authid may not be read",
            "GRANT SELECT ON pg_authid to the backup role, or set new passwords after a restore",
        )


def _column(parts: Parts, source: str, column: Totp, connection: Connection, area: str) -> Iterator[Line]:
    where = f"{column.table}.{column.column}"
    _require_column(connection, column.table, column.id_column)
    if column.enrolled is not None and _require_column(connection, column.table, column.enrolled) != "B":
        raise ConfigError(
            f"the column {column.table}.{column.enrolled} is not boolean", "correct `enrolled` in [[sources.….totp]]"
        )
    found = column_keys.look(connection, column.table, column.column, partial(ciphers.key_id, column.cipher))
    if found.foreign:
        yield problem(
            area,
            f"{found.foreign} of {found.rows} second factors in {where} are not encrypted with {column.cipher}",
            "encrypt them: whoever reads the database has them",
        )
        return
    named = f", with the keys {', '.join(found.key_ids)}" if found.key_ids else ""
    yield ok(area, f"all {found.rows} second factors in {where} are encrypted{named}")
    yield from columns.lacking(parts, source, column, found.key_ids, area)


def _former(source: str, column: Totp, connection: Connection, area: str) -> Iterator[Line]:
    """What is still where secrets were before; a dump holds that column as well."""
    former = column.former
    if former is None:
        return
    where, hint = f"{column.table}.{former.column}", f"go on with `backupd columns encrypt {source}`"
    try:
        _require_column(connection, column.table, former.column)
    except ConfigError:
        yield ok(area, f"{where} is gone: `former` may leave the configuration")
        return
    found = column_keys.look(connection, column.table, former.column, lambda _: None)
    if not found.rows:
        yield warning(area, f"{where} is empty and still there", hint)
        return
    said = f"{found.rows} second factors are still in {where}"
    if former.cipher == "plaintext":
        yield problem(area, f"{said}, in clear", hint)
    else:
        yield warning(area, f"{said}, as {former.cipher}", hint)


def _require_column(connection: Connection, table: str, name: str) -> str:
    """The category of its type, as pg_type has it. Raises ConfigError when there is no such column."""
    oid = table_named(connection, table)
    with translated(f"look at {table}"):
        found = connection.execute(
            "SELECT typcategory::text FROM pg_attribute JOIN pg_type t ON t.oid = atttypid"
            " WHERE attrelid = %s::int8::oid AND attname = %s AND attnum > 0 AND NOT attisdropped",
            (oid, name),
        ).fetchall()
    if not found:
        raise ConfigError(f"there is no column {table}.{name}", "look at [[sources.….totp]]")
    return str(found[0][0])


def _programs(area: str, source: Source, server: Server) -> Iterator[Line]:
    chosen = clients.choose(clients.find((source.clients,) if source.clients else ()), server.release)
    yield ok(area, f"pg_dump {chosen.release} in {chosen.directory} serves it")
    if behind := chosen.behind(server.release):
        yield warning(area, behind, f"install programs as new as the server: postgresql-client-{server.major}")
    for hole in chosen.known_holes():
        yield warning(area, hole, f"update the PostgreSQL {chosen.major} programs in {chosen.directory}")


def _parts(parts: Parts, area: str, server: Server) -> Iterator[Line]:
    """The dump is smaller than the database, as a rule; were it as large, it would have to fit."""
    room = sum(part_sizes(parts.store().limits, server.database_size))
    if room < server.database_size:
        yield problem(
            area,
            f"its {server.database_size} bytes may not fit into one object of {room}",
            "use a store of larger parts",
        )
