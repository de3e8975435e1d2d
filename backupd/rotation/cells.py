"""Where a configured column's values stand: its table on the server, and each value's cell as the application spells it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager

from backupd.columns import Cell, ColumnError
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.forms import Form, form_of
from backupd.errors import ConfigError, SourceError
from backupd.postgres import column_rows, column_state
from backupd.postgres.column_rows import Row, Swap, Table
from backupd.postgres.dsn import Dsn
from backupd.postgres.session import Connection
from backupd.redact import printable
from backupd.rotation import SecretColumn


@contextmanager
def primary(dsn: Dsn) -> Iterator[Connection]:
    """A session for rewriting rows. Raises Refused on a standby, and as `column_rows.connect` does."""
    with closing(column_rows.connect(dsn)) as connection:
        column_state.require_primary(connection)
        yield connection


def cell(column: SecretColumn, row_id: str) -> Cell:
    """The cell of the encrypted value in this row."""
    return Cell(column.table, column.column, row_id)


def table(connection: Connection, column: SecretColumn) -> Table:
    """The table, if it has the encrypted column. Raises ConfigError."""
    found = column_rows.find(connection, column.table, column.id_column)
    kind = found.columns.get(column.column)
    if kind is None:
        hint = "look at [[sources.….totp]]" if column.former is None else "the stage `column` of `columns encrypt` adds it"
        raise ConfigError(f"there is no column {printable(column.name)}", hint)
    if column.cipher == "aes-256-gcm" and kind != "bytea":
        raise ConfigError(
            f"{printable(column.name)} is of type {kind}; AES-256-GCM is kept in bytea", "name the column of that type"
        )
    return found


def closed(column: SecretColumn, cipher: AesGcm, rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
    """Of these rows, the ids of those that hold a value which does not open, and why."""
    for row in rows:
        try:
            if form_of(row.value).form is not Form.EMPTY:
                cipher.decrypt(cell(column, row.row_id), row.value)
        except ColumnError as error:
            yield row.row_id, error.message


def require_writable(connection: Connection, table: Table, column: SecretColumn) -> None:
    """Ask the server for what rewriting a row takes, and change none: nothing may be in the way when a key is made current.

    Raises SourceDenied, and SourceError for a policy that hides rows, a rule, or a lock.
    """
    rows = column_rows.batch(connection, table, column.column, column.column, but=b"", after=None, limit=1)  # or none at all
    # What was seen is not what is there, so the row stays as it is.
    swaps = [Swap(Row(row.row_id, row.value + b"?"), None) for row in rows]
    try:
        column_rows.swap(connection, table, column.column, column.column, swaps)
    except SourceError as error:
        if error.hint is None:
            error.hint = "no key was changed. Look at the table's rules, triggers and policies"
        raise
