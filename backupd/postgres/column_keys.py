"""Which keys the values of an encrypted column name, read from the values themselves on a host that holds no key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from psycopg import sql

from backupd.errors import BackupdError, ConfigError
from backupd.postgres.session import Connection, table_named, translated
from backupd.redact import printable

_BATCH = 2000


@dataclass(frozen=True, slots=True)
class Found:
    """Of one column: its values that are not NULL, the key ids they name, sorted, and how many are not of the cipher at all."""

    rows: int
    key_ids: tuple[str, ...]
    foreign: int


def look(connection: Connection, table: str, column: str, key_id: Callable[[bytes], str | None]) -> Found:
    """Read every value of the column, a batch at a time; `key_id` names a value's key, or raises for one that is not encrypted.

    Raises ConfigError when there is no such table or column, SourceDenied and SourceError.
    """
    rows = foreign = 0
    ids: set[str] = set()
    with connection.cursor("column_keys") as cursor:
        with translated(f"read {printable(table)}.{printable(column)}", "GRANT SELECT on it to the backup role"):
            cursor.execute(_query(connection, table, column))
        while True:
            with translated(f"read {printable(table)}.{printable(column)}"):
                batch = cursor.fetchmany(_BATCH)
            if not batch:
                return Found(rows, tuple(sorted(ids)), foreign)
            for (value,) in batch:
                rows += 1
                try:
                    named = key_id(bytes(value))
                except BackupdError:
                    foreign += 1
                else:
                    ids |= {named} if named is not None else set()


# To make text of any other type would be to call whatever its owner says, with the rights of our role.
_READ = """
SELECT format('%%I.%%I', n.nspname, c.relname), format_type(atttypid, NULL),
       CASE WHEN kind = 'bytea'::regtype THEN 'bytea'
            WHEN kind IN ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype) THEN 'text' END
  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
  JOIN pg_attribute a ON attrelid = c.oid AND attname = %s AND NOT attisdropped
  JOIN pg_type t ON t.oid = atttypid, LATERAL (SELECT coalesce(nullif(typbasetype, 0), t.oid) AS kind) AS base
 WHERE c.oid = %s::int8::oid
"""


def _query(connection: Connection, table: str, column: str) -> sql.Composed:
    where = f"{printable(table)}.{printable(column)}"
    oid = table_named(connection, table)
    with translated(f"look at {where}"):
        found = connection.execute(_READ, (column, oid)).fetchall()
    if not found:
        raise ConfigError(f"there is no column {where}", "look at [[sources.….totp]]")
    [(name, given, kind)] = found
    if kind is None:
        raise ConfigError(f"{where} is of type {printable(given)}", "encrypted values are bytea or text: name their column")
    name_of_column = sql.Identifier(column)
    value = name_of_column if kind == "bytea" else sql.SQL("convert_to({}::text, 'UTF8')").format(name_of_column)
    # The name comes quoted from the server itself.
    source = sql.SQL(name)
    return sql.SQL("SELECT {} FROM {} WHERE {} IS NOT NULL").format(value, source, name_of_column)
