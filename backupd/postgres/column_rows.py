"""The rows of a table that holds secrets: read a batch at a time, and replaced by compare and swap. Knows no key and no cipher.

No old value ever goes back to its server, for what stands in a statement or its parameters is logged there (log_statement,
log_parameter_max_length, auto_explain, pgaudit), and it may be a secret in clear. So what is compared is its SHA-256, which the
server computes of its own value. Each batch is a transaction of its own: a run that dies between two loses nothing. Before the
commit the server is asked whether the rows hold what was written, for a trigger can have put something else there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import psycopg
from psycopg import sql

from backupd.errors import Busy, ConfigError
from backupd.postgres import session
from backupd.postgres.dsn import Dsn
from backupd.postgres.session import Connection, translated
from backupd.redact import printable

LOCK_TIMEOUT_S = 2.0
RUN_WAIT_S = 10.0  # for the lock of a run that was killed: its server process has to notice first
_READ = 2000
_TRIES = 5  # when the table is locked; rows that are locked are passed over
_SPELL = 'write SCHEMA.TABLE in [[sources.….totp]], quoted where SQL wants that: public."Users"'
_RIGHTS = "GRANT SELECT, UPDATE ON the table TO the role in columns_dsn"

_CONTENTION = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
# What concerns no row: the connection, the server's disk and memory, a cancelled statement, the server's own files.
_OF_THE_SERVER = ("08", "25P03", "53", "57", "58")
_IDLE_S = 60  # in the middle of a batch: whoever is stopped or cut off there keeps rows locked, and nobody can log in


class _Changed(Exception):
    """A trigger of the application's put something else into a row than what was written."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as its server knows it: `name` qualified and quoted, `id_type` as SQL writes it, `columns` with their types."""

    name: str
    oid: int
    id_column: str
    id_type: str
    columns: Mapping[str, str]
    required: frozenset[str]  # columns that are NOT NULL

    def bytes_of(self, column: str) -> sql.Composable:
        """The column's value as bytes, whatever text or bytea it is."""
        name = sql.Identifier(column)
        return name if self.columns[column] == "bytea" else sql.SQL("convert_to({}::text, 'UTF8')").format(name)

    def beside_parameters(self) -> Table:
        """With the names as they are written in a statement that has parameters, where % begins one."""
        return replace(
            self,
            name=_doubled(self.name),
            id_column=_doubled(self.id_column),
            id_type=_doubled(self.id_type),
            columns={_doubled(name): kind for name, kind in self.columns.items()},
        )


@dataclass(frozen=True, slots=True)
class Row:
    """`value` is what is to be replaced, `beside` what the column holds that the new value goes to, if that is another."""

    row_id: str
    value: bytes = field(repr=False)
    beside: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Swap:
    """Put `new` (None: nothing) in the place of the value that was seen in this row."""

    row: Row
    new: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Swapped:
    """How many rows were changed, and the ids of those that the database refused, with its reason. The rest had changed, or
    were locked."""

    done: int
    refused: Sequence[tuple[str, str]] = ()


def connect(dsn: Dsn) -> Connection:
    """A session that sees every row or fails, and waits for no lock for long. Its search_path is the role's: triggers need it.

    Raises as `session.connect` does, and SourceError behind a connection pooler, which would lose the lock on the column.
    """
    connection = session.connect(dsn, application_name="backupd columns", autocommit=True)
    try:
        with translated("prepare the session"):
            _set(connection, "row_security", "off")
            _set(connection, "lock_timeout", f"{LOCK_TIMEOUT_S}s")
            _set(connection, "idle_in_transaction_session_timeout", f"{_IDLE_S}s")
            _set(connection, "default_transaction_isolation", "read committed")
            _set(connection, "standard_conforming_strings", "on")  # psycopg writes bytes so that they need it
        session.refuse_pooler(connection)
        with translated("prepare the session"):
            connection.execute("RESET search_path")
    except BaseException:
        connection.close()
        raise
    return connection


def find(connection: Connection, table: str, id_column: str) -> Table:
    """The table of this name, which has to be the only one if no schema is given. Raises ConfigError, and SourceError.

    A row's id has to be unique and never NULL: it says which row a value belongs to.
    """
    shown = printable(table)
    with translated(f"find table {shown}"):
        found = connection.execute(
            "SELECT c.oid::int8, format('%%I.%%I', n.nspname, c.relname)"
            " FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
            " AND parse_ident(%(name)s) IN (ARRAY[relname::text], ARRAY[nspname::text, relname::text]) ORDER BY 2",
            {"name": table},
        ).fetchall()
    if len(found) != 1:
        what = "there is no table" if not found else f"{len(found)} schemas have a table"
        raise ConfigError(f"{what} {shown}", _SPELL)
    [(oid, name)] = found
    with translated(f"read the columns of {shown}"):
        columns = connection.execute(
            "SELECT attname::text, format_type(atttypid, atttypmod), attnotnull, EXISTS (SELECT FROM pg_index"
            " WHERE indrelid = attrelid AND indisunique AND indisvalid AND indpred IS NULL AND indnkeyatts = 1"
            " AND indkey[0] = attnum) FROM pg_attribute WHERE attrelid = %s::int8::oid AND attnum > 0 AND NOT attisdropped",
            (oid,),
        ).fetchall()
    ids = [(kind, required, unique) for column, kind, required, unique in columns if column == id_column]
    if not ids:
        raise ConfigError(f"there is no column {shown}.{printable(id_column)}", "look at id_column in [[sources.….totp]]")
    [(id_type, required, unique)] = ids
    if not (required and unique):
        raise ConfigError(
            f"{shown}.{printable(id_column)} is not the id of a row: it is not unique, or may be NULL", "name the primary key"
        )
    types = {column: kind for column, kind, _, _ in columns}
    return Table(name, oid, id_column, id_type, types, frozenset(column for column, _, needed, _ in columns if needed))


@contextmanager
def exclusive(connection: Connection, table: Table, column: str) -> Iterator[None]:
    """Nobody else works on this column by way of backupd inside the block. Raises Busy."""
    key = (f"backupd columns {table.oid}.{column}",)
    with translated("lock the column for this run"):
        _set(connection, "lock_timeout", f"{RUN_WAIT_S}s")
        try:
            connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", key)
        except psycopg.errors.LockNotAvailable:
            raise Busy(f"another run is at work on {printable(f'{table.name}.{column}')}", "wait until it has ended") from None
        _set(connection, "lock_timeout", f"{LOCK_TIMEOUT_S}s")
    try:
        yield
    finally:
        with suppress(psycopg.Error):  # a session that was lost holds no lock
            connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", key)


def values(connection: Connection, table: Table, column: str) -> Iterator[bytes]:
    """Every value of the column that is not NULL, in a transaction of its own. Raises SourceDenied and SourceError."""
    for row in rows(connection, table, column):
        yield row.value


def rows(connection: Connection, table: Table, column: str, head: bytes = b"", limit: int | None = None) -> Iterator[Row]:
    """The rows whose value in the column is not NULL and begins with `head`, read as `values` reads them."""
    value = table.bytes_of(column)
    query = sql.SQL("SELECT {}::text, {} FROM {} WHERE substring({} FROM 1 FOR {}) = {} LIMIT {}").format(
        sql.Identifier(table.id_column),
        value,
        sql.SQL(table.name),
        value,
        sql.Literal(len(head)),
        sql.Literal(head),
        sql.Literal(limit),
    )
    with (
        translated(f"read {printable(table.name)}.{printable(column)}", "GRANT SELECT on it to the role"),
        connection.transaction(),
        connection.cursor("column_values") as cursor,
    ):
        cursor.itersize = _READ
        cursor.execute(query)
        for row_id, value in cursor:
            yield Row(row_id, bytes(value))


def count(connection: Connection, table: Table, column: str, *, but: bytes = b"") -> int:
    """How many values there are that do not begin with `but`. Raises as `values` does."""
    query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(sql.SQL(table.name), _wanted(table, column, but))
    with translated(f"count the rows of {printable(table.name)}", "GRANT SELECT on it to the role"):
        [(number,)] = connection.execute(query).fetchall()
    return int(number)


def batch(
    connection: Connection, table: Table, column: str, into: str, *, but: bytes, after: str | None, limit: int
) -> list[Row]:
    """The next rows after the id `after`, in the order of ids, whose value in `column` does not begin with `but`."""
    beside = sql.SQL("NULL::bytea") if into == column else table.bytes_of(into)
    id_column = sql.Identifier(table.id_column)
    where = [_wanted(table, column, but)]
    if after is not None:
        where.append(sql.SQL("{} > {}::{}").format(id_column, sql.Literal(after), sql.SQL(table.id_type)))
    # Without the alias ORDER BY would mean the output column of that name, which is text and ordered as text.
    query = sql.SQL(
        "SELECT {id}::text, {value}, {beside} FROM {table} AS t WHERE {where} ORDER BY t.{id} LIMIT {limit}"
    ).format(
        id=id_column,
        value=table.bytes_of(column),
        beside=beside,
        table=sql.SQL(table.name),
        where=sql.SQL(" AND ").join(where),
        limit=sql.Literal(limit),
    )
    with translated(f"read a batch of {printable(table.name)}", _RIGHTS):
        found = connection.execute(query).fetchall()
    return [Row(row_id, bytes(value), None if there is None else bytes(there)) for row_id, value, there in found]


def swap(connection: Connection, table: Table, column: str, into: str, swaps: Sequence[Swap]) -> Swapped:
    """Replace the values that are still what was seen. Where `into` is another column, `column` becomes NULL with it.

    A row in which `into` held something by then is left alone, unless it was seen to hold the very thing: then `column` alone
    is emptied. A row in which a trigger puts something else is left as it was, and refused. Without any swap the server is only
    asked whether it would do it.

    Raises SourceDenied, SourceUnreachable, SourceFull and SourceError: then what earlier calls did stays done.
    """
    with translated(f"write to {printable(table.name)}", _RIGHTS):
        for _ in range(_TRIES - 1):
            with suppress(psycopg.errors.LockNotAvailable):
                return _swap_what_can_be(connection, table, column, into, swaps)
        return _swap_what_can_be(connection, table, column, into, swaps)


def _swap_what_can_be(connection: Connection, table: Table, column: str, into: str, swaps: Sequence[Swap]) -> Swapped:
    """All at once, or else one by one, so that one row that is fought over, or unwelcome, keeps no other from being written."""
    try:
        return Swapped(_swap(connection, table, column, into, swaps))
    except (_Changed, psycopg.Error) as error:
        _require_of_a_row(error)
    _swap(connection, table, column, into, [])  # what fails without any row as well is no row's doing
    done = 0
    refused: list[tuple[str, str]] = []
    for each in swaps:
        try:
            done += _swap(connection, table, column, into, [each])
        except _CONTENTION:
            continue
        except _Changed:
            refused.append((each.row.row_id, "the database refused the new value: a trigger changed it"))
        except psycopg.Error as error:
            _require_of_a_row(error)
            # Not the server's message: a trigger can put the row into it.
            by = error.diag.constraint_name or "a trigger"
            refused.append((each.row.row_id, printable(f"the database refused the new value: {by} ({error.sqlstate})")))
    return Swapped(done, refused)


def _require_of_a_row(error: _Changed | psycopg.Error) -> None:
    """Raise what ends the run. The application's constraints and triggers have a say in each row, and fail in any way."""
    if isinstance(error, _Changed):
        return
    state = error.sqlstate
    if state is None or state.startswith(_OF_THE_SERVER) or isinstance(error, psycopg.errors.LockNotAvailable):
        raise error


def _swap(connection: Connection, table: Table, column: str, into: str, swaps: Sequence[Swap]) -> int:
    """How many rows were replaced, in one transaction. Raises _Changed when one of them holds something else now."""
    seen, table, column, into = (table, column, into), table.beside_parameters(), _doubled(column), _doubled(into)
    source, target = sql.Identifier(column), sql.Identifier(into)
    change: sql.Composable
    there: sql.Composable
    if into == column:
        change = sql.SQL("{} = v.new").format(source)
        there = sql.SQL("true")
    else:
        change = sql.SQL("{} = v.new, {} = NULL").format(target, source)
        there = sql.SQL("(t.{0} IS NULL AND v.beside IS NULL OR sha256(t.{0}) = v.beside)").format(target)
    # A row that somebody has locked is passed over: waiting for it would keep the batch's other rows locked meanwhile, and the
    # logins that need them. The lock is the one that UPDATE takes, so that rows which refer to this one can still be inserted.
    statement = sql.SQL(
        "WITH v AS MATERIALIZED (SELECT s.* FROM unnest(%s::text[], %s::bytea[], %s::bytea[], %s::bytea[])"
        " WITH ORDINALITY AS s(id, seen, beside, new, place) JOIN {table} AS t ON t.{id} = s.id::{id_type}"
        " FOR NO KEY UPDATE OF t SKIP LOCKED)"
        " UPDATE {table} AS t SET {change} FROM v"
        " WHERE t.{id} = v.id::{id_type} AND sha256({value}) = v.seen AND {there} RETURNING v.place"
    ).format(
        table=sql.SQL(table.name),
        change=change,
        id=sql.Identifier(table.id_column),
        id_type=sql.SQL(table.id_type),
        value=table.bytes_of(column),
        there=there,
    )
    parameters = (
        [each.row.row_id for each in swaps],
        [_digest(each.row.value) for each in swaps],
        [None if each.row.beside is None else _digest(each.row.beside) for each in swaps],
        [each.new for each in swaps],
    )
    with connection.transaction():
        places = [place for (place,) in connection.execute(statement, parameters).fetchall()]
        if places:
            # The triggers that wait for the commit have to have done their work before it is looked at.
            connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            _require_there(connection, *seen, [swaps[place - 1] for place in set(places)])
    return len(places)


def _require_there(connection: Connection, table: Table, column: str, into: str, swaps: Sequence[Swap]) -> None:
    """Raise _Changed unless each row holds its new value, and nothing is left in the column that it was taken from."""
    table, column, into = table.beside_parameters(), _doubled(column), _doubled(into)
    emptied = sql.SQL("true") if into == column else sql.SQL("t.{} IS NULL").format(sql.Identifier(column))
    query = sql.SQL(
        "SELECT count(*) FROM unnest(%s::text[], %s::bytea[]) AS s(id, new) WHERE NOT EXISTS (SELECT FROM {table} AS t"
        " WHERE t.{id} = s.id::{id_type} AND sha256({value}) IS NOT DISTINCT FROM s.new AND {emptied})"
    ).format(
        table=sql.SQL(table.name),
        id=sql.Identifier(table.id_column),
        id_type=sql.SQL(table.id_type),
        value=table.bytes_of(into),
        emptied=emptied,
    )
    expected = [None if each.new is None else _digest(each.new) for each in swaps]
    [(wrong,)] = connection.execute(query, ([each.row.row_id for each in swaps], expected)).fetchall()
    if wrong:
        raise _Changed


def _wanted(table: Table, column: str, but: bytes) -> sql.Composable:
    name = sql.Identifier(column)
    wanted = sql.SQL("{} IS NOT NULL").format(name)
    if not but:
        return wanted
    begins = sql.SQL("substring({} FROM 1 FOR {})").format(table.bytes_of(column), sql.Literal(len(but)))
    return sql.SQL("{} AND {} <> {}").format(wanted, begins, sql.Literal(but))


def _doubled(name: str) -> str:
    return name.replace("%", "%%")


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def _set(connection: Connection, name: str, value: str) -> None:
    connection.execute("SELECT set_config(%s, %s, false)", (name, value))
