"""A column's change of type while the application runs: the new column comes beside the old one, which goes when it is empty.

Each statement needs its lock for a moment only, waits briefly for it and tries again: whoever waits for an exclusive lock makes
all others wait behind it. Before the old column is dropped a constraint keeps everybody from writing to it, so that no
value is lost between the last look and the drop. Moves no value itself.
"""

from __future__ import annotations

import time

import psycopg
from psycopg import sql

from backupd.errors import BackupdError, ConfigError, Refused, SourceDenied
from backupd.postgres.column_rows import Table
from backupd.postgres.session import Connection, translated
from backupd.redact import printable

TRIES = 10
_PAUSE_S = 0.2  # before the second try, and that much longer before each further one
_MOVED = "backupd_moved"  # the constraint on the column that is about to go


def add(connection: Connection, table: Table, column: str, former: str) -> None:
    """Add the BYTEA column, and let the former one be NULL. Raises SourceDenied that names the statement for the owner."""
    if former not in table.columns:
        raise ConfigError(f"there is no column {printable(table.name)}.{printable(former)}", "look at totp.former")
    kind = table.columns.get(column)
    if kind not in (None, "bytea"):
        raise ConfigError(f"{printable(table.name)}.{printable(column)} is of type {kind}, not bytea", "name a new column")
    changes = []
    if kind is None:
        changes.append(sql.SQL("ADD COLUMN {} bytea").format(sql.Identifier(column)))
    if former in table.required:
        changes.append(sql.SQL("ALTER COLUMN {} DROP NOT NULL").format(sql.Identifier(former)))
    if changes:
        _alter(connection, table, sql.SQL(", ").join(changes))


def finish(connection: Connection, table: Table, former: str) -> None:
    """Drop the former column. Raises Refused while it holds a value, and SourceDenied as `add` does."""
    name, constraint = sql.Identifier(former), sql.Identifier(f"{_MOVED}_{former}"[:60])
    if not _has_constraint(connection, table, f"{_MOVED}_{former}"[:60]):
        _alter(connection, table, sql.SQL("ADD CONSTRAINT {} CHECK ({} IS NULL) NOT VALID").format(constraint, name))
    try:
        _alter(connection, table, sql.SQL("VALIDATE CONSTRAINT {}").format(constraint))
    except psycopg.errors.CheckViolation:
        _alter(connection, table, sql.SQL("DROP CONSTRAINT {}").format(constraint))
        raise Refused(
            f"{printable(table.name)}.{printable(former)} still holds values: dropping it would lose them",
            "run the stage `rows` until it leaves none, with no application of the old version at work",
        ) from None
    _alter(connection, table, sql.SQL("DROP COLUMN {}").format(name))


def _alter(connection: Connection, table: Table, change: sql.Composable) -> None:
    """Raises CheckViolation as it is, all else translated."""
    statement = sql.SQL("ALTER TABLE {} {}").format(sql.SQL(table.name), change)
    shown = printable(statement.as_string(connection))
    for attempt in range(1, TRIES + 1):
        try:
            connection.execute(statement)
            return
        except psycopg.errors.CheckViolation:
            raise
        except psycopg.errors.InsufficientPrivilege:
            raise SourceDenied(
                f"the role may not alter {printable(table.name)}", f"let its owner run this, then go on: {shown}"
            ) from None
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if attempt == TRIES:
                raise BackupdError(
                    f"{printable(table.name)} was locked at each of {TRIES} tries: {shown} was not done",
                    "end the transactions that have been open for long (pg_stat_activity), and run it again",
                ) from error
            time.sleep(_PAUSE_S * attempt)
        except psycopg.errors.DependentObjectsStillExist as error:
            raise BackupdError(
                f"other objects depend on it: {printable(error.diag.message_primary or '')}", "change them first, such as views"
            ) from None
        except psycopg.Error:
            with translated(f"alter {printable(table.name)}"):
                raise


def _has_constraint(connection: Connection, table: Table, name: str) -> bool:
    with translated(f"look at the constraints of {printable(table.name)}"):
        found = connection.execute(
            "SELECT FROM pg_constraint WHERE conrelid = %s::int8::oid AND conname = %s", (table.oid, name)
        ).fetchall()
    return bool(found)
