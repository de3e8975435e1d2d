"""A column's change of type while the application runs: the new column comes beside the old one, which goes when it is empty.

Each statement needs its lock for a moment only, waits briefly for it and tries again: whoever waits for an exclusive lock makes
all others wait behind it. The last look at the old column and its drop are one transaction under one lock, so that no value is
lost between them. No constraint forbids values before: its refusal would write the application's secret into the server's log.
Moves no value itself.
"""

from __future__ import annotations

import time

import psycopg
from psycopg import sql

from backupd.errors import BackupdError, ConfigError, Refused, SourceDenied
from backupd.postgres import column_rows
from backupd.postgres.column_rows import Table
from backupd.postgres.session import Connection, translated
from backupd.redact import printable

TRIES = 10
_PAUSE_S = 0.2  # before the second try, and that much longer before each further one
_HELD = "BDHLD"  # the SQLSTATE by which the last look says that there are values


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
        _patiently(connection, table, sql.SQL("ALTER TABLE {} {}").format(sql.SQL(table.name), sql.SQL(", ").join(changes)))


def finish(connection: Connection, table: Table, former: str) -> None:
    """Drop the former column. Raises Refused while it holds a value, and SourceDenied as `add` does.

    Values are counted before any lock is asked for. The lock is held for one more look through the table, and the drop.
    """
    shown = f"{printable(table.name)}.{printable(former)}"
    held = Refused(
        f"{shown} still holds values: dropping it would lose them",
        "run the stage `rows` until it leaves none, with no application of the old version at work",
    )
    if column_rows.count(connection, table, former):
        raise held
    name, column = sql.SQL(table.name), sql.Identifier(former)
    block = sql.SQL(
        "BEGIN SET LOCAL row_security = off; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE;"
        " IF EXISTS (SELECT FROM {table} WHERE {column} IS NOT NULL) THEN"
        " RAISE 'the former column still holds values' USING ERRCODE = {state}; END IF;"
        " ALTER TABLE {table} DROP COLUMN {column}; END"
    ).format(table=name, column=column, state=sql.Literal(_HELD))
    # One statement, that an owner can run as well: one from whom a policy hides rows gets an error.
    statement = sql.SQL("DO {}").format(sql.Literal(block.as_string(connection)))
    if not _is_owner(connection, table):
        raise _denied(connection, table, statement)
    try:
        _patiently(connection, table, statement)
    except psycopg.DatabaseError as error:
        if error.sqlstate != _HELD:
            raise
        raise held from None


def _patiently(connection: Connection, table: Table, statement: sql.Composed) -> None:
    """Run what changes the table, as often as its lock is not to be had. Raises an error of SQLSTATE _HELD as it is."""
    shown = printable(statement.as_string(connection))
    for attempt in range(1, TRIES + 1):
        try:
            connection.execute(statement)
            return
        except psycopg.errors.InsufficientPrivilege:
            raise _denied(connection, table, statement) from None
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if attempt == TRIES:
                raise BackupdError(
                    f"{printable(table.name)} was locked at each of {TRIES} tries: {shown} was not done",
                    "end the transactions that have been open for long (pg_stat_activity, pg_prepared_xacts), and run it again",
                ) from error
            time.sleep(_PAUSE_S * attempt)
        except psycopg.errors.DependentObjectsStillExist as error:
            raise BackupdError(
                f"other objects depend on it: {printable(error.diag.message_primary or '')}", "change them first, such as views"
            ) from None
        except psycopg.Error as error:
            if error.sqlstate == _HELD:
                raise
            with translated(f"alter {printable(table.name)}"):
                raise


def _denied(connection: Connection, table: Table, statement: sql.Composed) -> SourceDenied:
    shown = printable(statement.as_string(connection))
    return SourceDenied(f"the role may not alter {printable(table.name)}", f"let its owner run this, then go on: {shown}")


def _is_owner(connection: Connection, table: Table) -> bool:
    """Others could take the lock, and then not drop the column: the application would have waited for nothing."""
    with translated(f"ask for the owner of {printable(table.name)}"):
        [(owner,)] = connection.execute(
            "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = %s::int8::oid", (table.oid,)
        ).fetchall()
    return bool(owner)
