"""One encrypted column of the restored database, row by row: what the checks of second factors read.

Reads a batch of rows at a time, so memory does not grow with the number of users. Leaves the database as it was: everything
happens in one transaction that is rolled back, pgcrypto's installation included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg import sql

from backupd.checks import TotpColumn
from backupd.columns import Cell, Cipher, ciphers
from backupd.errors import ConfigError
from backupd.postgres import pgcrypto
from backupd.postgres.session import Connection, translated
from backupd.redact import printable

_BATCH = 2000


@dataclass(frozen=True, slots=True)
class Row:
    """`value` is what the column holds: ciphertext, if all is well; None for NULL."""

    row_id: str
    enrolled: bool
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Reader:
    """A column and what opens it; both usable inside the `with` block of `opened` only."""

    connection: Connection
    column: TotpColumn
    cipher: Cipher
    _query: sql.Composed
    _waiting: sql.Composed | None

    def waiting(self) -> int:
        """How many values the former column still holds, where one is configured and there. Raises SourceError."""
        if self._waiting is None:
            return 0
        with translated(f"count what is still to be moved to {printable(self.column.name)}"):
            [(number,)] = self.connection.execute(self._waiting).fetchall()
        return int(number)

    def rows(self) -> Iterator[Row]:
        """Every row. Raises SourceError."""
        with translated(f"read {printable(self.column.name)}"), self.connection.cursor("backupd_column") as cursor:
            cursor.itersize = _BATCH
            cursor.execute(self._query)
            for row_id, enrolled, value in cursor:
                yield Row(row_id, enrolled, None if value is None else bytes(value))

    def cell(self, row: Row) -> Cell:
        """Where the value stands, as the application that wrote it spells that."""
        return Cell(self.column.table, self.column.column, row.row_id)


@contextmanager
def opened(connection: Connection, column: TotpColumn) -> Iterator[Reader]:
    """The column with the keys that its own custodian gives.

    Raises SecretUnavailable, KeysUnusable, ConfigError for a table or column that is not there, CouldNotVerify without pgcrypto
    where that is needed, SourceError.
    """
    keys = column.fetch_keys()
    with connection.transaction(force_rollback=True):
        name = _table(connection, column.table)
        types = dict(_columns(connection, name))
        query = _query(name, types, column)
        waiting = None
        if column.former in types:
            waiting = sql.SQL("SELECT count(*) FROM {} WHERE {} IS NOT NULL").format(
                sql.SQL(name), sql.Identifier(column.former)
            )
        decrypt = pgcrypto.opener(connection) if column.cipher == "pgcrypto" else None
        yield Reader(connection, column, ciphers.open_cipher(column.cipher, keys, decrypt), query, waiting)


def _query(name: str, types: Mapping[str, str], column: TotpColumn) -> sql.Composed:
    for wanted in filter(None, (column.id_column, column.column, column.enrolled)):
        if wanted not in types:
            message = f"the restored table {printable(name)} has no column {printable(wanted)}"
            raise ConfigError(message, "look at [[sources.….totp]]")
    if column.enrolled is not None and types[column.enrolled] != "bool":
        message = f"the column {printable(column.enrolled)} of the restored table {printable(name)} is not boolean"
        raise ConfigError(message, "correct `enrolled` in [[sources.….totp]]")  # a cast that fails would show a value
    value = sql.Identifier(column.column)
    data = value if types[column.column] == "bytea" else sql.SQL("pg_catalog.convert_to({}::text, 'UTF8')").format(value)
    enrolled = sql.SQL("{} IS NOT NULL").format(value)
    if column.enrolled is not None:
        enrolled = sql.SQL("coalesce({}, false)").format(sql.Identifier(column.enrolled))
    source = sql.SQL(name)  # as the server itself quoted it
    return sql.SQL("SELECT {}::text, {}, {} FROM {}").format(sql.Identifier(column.id_column), enrolled, data, source)


def _table(connection: Connection, name: str) -> str:
    """The table's qualified name. One without a schema is looked for in all of them, and has to be the only one.

    No search_path chooses, not even `public`: whoever may create a schema could put a copy before the table that is meant.
    """
    with translated(f"find table {printable(name)}"):
        found = connection.execute(
            "SELECT format('%%I.%%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
            " AND parse_ident(%(name)s) IN (ARRAY[relname::text], ARRAY[nspname::text, relname::text]) ORDER BY 1",
            {"name": name},
        ).fetchall()
    if not found:
        raise ConfigError(
            f"in the restored database there is no table {printable(name)}", "write SCHEMA.TABLE in [[sources.….totp]]"
        )
    if len(found) > 1:
        shown = ", ".join(printable(each) for (each,) in found[:3])
        raise ConfigError(
            f"the table {printable(name)} is ambiguous: there are {len(found)} of that name ({shown})",
            "write SCHEMA.TABLE in [[sources.….totp]]",
        )
    return str(found[0][0])


def _columns(connection: Connection, table: str) -> list[tuple[str, str]]:
    """Names and types; a domain over boolean is `bool` as well."""
    with translated(f"read the columns of {printable(table)}"):
        return connection.execute(
            "SELECT attname::text, CASE typcategory WHEN 'B' THEN 'bool' ELSE typname::text END"
            " FROM pg_attribute JOIN pg_type t ON t.oid = atttypid"
            " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
            (table,),
        ).fetchall()
