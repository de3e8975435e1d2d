"""Secrets move from a column in clear text, Fernet or pgcrypto into one of AES-256-GCM beside it, while applications use them.

    column  the column of bytes is added, empty; the former one may be NULL from now on
            → the application's new version is put in place everywhere: it reads the new column, and the former where that is
              NULL, and writes to the new one alone, emptying the former in the same UPDATE
    rows    every value of the former column is encrypted into the new one, and taken from the former, in one UPDATE a row
    finish  the former column is dropped, once it is shown to be empty and nobody can write to it

One shape serves all: text becomes bytes without the table being rewritten, and old and new never share a column, so that no
version of the application meets a value of a form that it does not know. What a row holds is moved as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from backupd.audit.records import Operation
from backupd.audit.trail import Run, Trail
from backupd.columns import Cell, Cipher, ColumnError, Malformed
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.ciphers import open_cipher
from backupd.columns.forms import Form, form_of
from backupd.errors import ConfigError, Refused, Tampered
from backupd.postgres import column_change, column_rows, pgcrypto
from backupd.postgres.column_rows import Row, Table
from backupd.postgres.dsn import Dsn
from backupd.postgres.session import Connection
from backupd.redact import Secret, printable
from backupd.rotation import Former, Moved, Pace, Report, RowsLeft, SecretColumn, cells, keyrings
from backupd.rotation.batches import Rewriting
from backupd.rotation.watch import Watched


class Stage(StrEnum):
    """In this order."""

    COLUMN = "column"
    ROWS = "rows"
    FINISH = "finish"


@dataclass(frozen=True, slots=True)
class Opening:
    """Where a scratch server for pgcrypto may lie, and its programs; the other forms need none."""

    client_directories: tuple[Path, ...] = ()
    scratch_directory: Path | None = None


_NEXT = {
    Stage.COLUMN: "put the application's new version in place everywhere, which reads both columns and writes the new one;"
    " then --stage rows --apply",
    Stage.ROWS: "look with `backupd columns status`, back up and drill; then --stage finish --apply",
    Stage.FINISH: "remove `former` from the configuration. Backups and disks still hold the old values: see"
    " docs/rotating-column-keys.md",
}


_LOOK = "look at the rows that were left: docs/encrypting-a-column.md, step 5, says what may be done; then --stage rows --apply"


class BothFilled(ColumnError):
    """A row holds two secrets, and nobody here knows which one its owner's phone has."""

    def __init__(self) -> None:
        super().__init__(
            "both columns hold a value, and they are not the same secret; the application uses the new column's",
            "if the new one is right, set the former to NULL; if the former is, let the application assign it anew",
        )


def plan(column: SecretColumn, dsn: Dsn, trail: Trail) -> Report:
    """What is to be done next, and how many values there are to move. Changes nothing."""
    former = _former(column)
    with (
        trail.recording(Operation.COLUMNS, source=column.source, action="encrypt", column=column.name, stage="plan"),
        cells.primary(dsn) as connection,
    ):
        table = column_rows.find(connection, column.table, column.id_column)
        if former.column not in table.columns:
            return Report(column, "encrypt", "done", False, next=_gone(connection, table, column, former))
        rows = column_rows.count(connection, table, former.column)
    figures = {"rows_to_move": rows}
    if column.column not in table.columns or former.column in table.required:
        stage = Stage.COLUMN
    else:
        stage = Stage.ROWS if rows else Stage.FINISH
    return Report(column, "encrypt", stage.value, False, figures, next=f"--stage {stage.value} --apply")


def encrypt(
    column: SecretColumn,
    dsn: Dsn,
    stage: Stage,
    trail: Trail,
    pace: Pace,
    opening: Opening = Opening(),
    moved: Moved = lambda _: None,
) -> Report:
    """One stage. Raises RowsLeft when values could not be moved, ConfigError for a stage whose turn it is not, Refused, Busy,
    SourceDenied that says what the table's owner has to do, SourceError, and what custodians raise."""
    former = _former(column)
    details = {"action": "encrypt", "column": column.name, "former": former.column, "stage": stage.value}
    following = _NEXT[stage]
    with trail.recording(Operation.COLUMNS, source=column.source, **details) as run:
        if stage is Stage.ROWS:
            return _rows(column, former, dsn, run, pace, opening, moved)
        with cells.primary(dsn) as connection:
            table = column_rows.find(connection, column.table, column.id_column)
            with column_rows.exclusive(connection, table, column.column):
                if stage is Stage.COLUMN:
                    column_change.add(connection, table, column.column, former.column)
                elif former.column in table.columns:
                    _require_opening(connection, cells.table(connection, column), column, AesGcm(keyrings.both(column).reading))
                    column_change.finish(connection, table, former.column)
                else:
                    following = _gone(connection, table, column, former)
    return Report(column, "encrypt", stage.value, True, next=following)


def _rows(column: SecretColumn, former: Former, dsn: Dsn, run: Run, pace: Pace, opening: Opening, moved: Moved) -> Report:
    with (
        cells.primary(dsn) as connection,
        _opened(former, opening) as source,
    ):
        table = cells.table(connection, column)
        if former.column not in table.columns:
            raise ConfigError(f"there is no column {printable(f'{column.table}.{former.column}')}", "look at totp.former")
        if former.column in table.required:
            raise ConfigError(f"{printable(former.column)} may not be NULL yet", "the stage `column` comes first")
        with column_rows.exclusive(connection, table, column.column):
            watched = _watched(column, pace)
            run.note(key_id=watched.key_id)
            _require_opening(connection, table, column, watched.cipher)
            recode = _Recode(column, source, lambda: watched.during(tally.passes))
            rewriting = Rewriting(connection, table, former.column, column.column, recode, b"", pace, moved)
            tally = rewriting.tally
            try:
                rewriting.run()
                watched.look()
                _require_opening(connection, table, column, watched.cipher)
            finally:
                run.note(rows_moved=tally.done, overtaken=tally.overtaken, rows_left=tally.left_rows)
    figures = {"rows_moved": tally.done, "overtaken": tally.overtaken}
    report = Report(
        column,
        "encrypt",
        Stage.ROWS.value,
        True,
        figures,
        tally.left,
        tally.left_rows,
        key_id=watched.key_id,
        next=_LOOK if tally.left_rows else _NEXT[Stage.ROWS],
    )
    if report.left_rows:
        raise RowsLeft(report)
    return report


def _gone(connection: Connection, table: Table, column: SecretColumn, former: Former) -> str:
    """What to do when there is no former column. Raises ConfigError where no encrypted value shows that there was one.

    Where there are some it can still be misspelt, with values in the one that is meant: nobody here knows its name.
    """
    missing = f"there is no column {printable(f'{column.table}.{former.column}')}"
    if column.column not in table.columns or not column_rows.count(connection, table, column.column):
        raise ConfigError(missing, "is it misspelt in totp.former? If it was dropped, remove `former` from the configuration")
    return f"{missing}: was it dropped, or is it misspelt? If it was dropped, {_NEXT[Stage.FINISH]}"


def _watched(column: SecretColumn, pace: Pace) -> Watched:
    """The keyring's current key, which the archive has too where there is one: the rows will hang on it alone."""
    both = keyrings.both(column)
    if both.archive is not None:
        archive = keyrings.archived(both.archive, both.kept.keyring, both.kept.keyring.current)
        both = replace(both, archive=keyrings.following(archive, both.kept.keyring))
    return Watched.of(column, both, pace.look_s)


def _require_opening(connection: Connection, table: Table, column: SecretColumn, cipher: AesGcm) -> None:
    """Raise Refused unless every value that the encrypted column holds opens here.

    What the application has written there shows whether table and column are spelt as it spells them, and whether its keys are
    these: if not, it could open nothing of what this run writes.
    """
    closed, first = 0, ""
    for row_id, reason in cells.closed(column, cipher, column_rows.rows(connection, table, column.column)):
        closed += 1
        first = first or f"row {printable(row_id)}: {printable(reason)}"
    if closed:
        raise Refused(
            f"{closed} value{'s'[: closed > 1]} in {printable(column.name)} cannot be opened here; the first is {first}",
            "spell `table` and `column` as the application does, and use its keyring; set to NULL what opens for nobody",
        )


@dataclass(frozen=True, slots=True)
class _Source:
    """What opens the former column's values; `cipher` is None for clear text. No such form knows its row."""

    column: str
    form: Form
    cipher: Cipher | None

    def open(self, row: Row) -> Secret:
        """Raises ColumnError for a value of another form than configured: encrypted twice, it would open for nobody."""
        told = form_of(row.value).form
        if told is not self.form:
            raise Malformed(f"it looks like {told.value}, not like {self.form.value}")
        if self.cipher is None:
            return Secret(row.value, "column value")
        return self.cipher.decrypt(Cell("", self.column, row.row_id), row.value)


@dataclass(frozen=True, slots=True)
class _Recode:
    """A row's new value: what it held, encrypted for its new cell."""

    column: SecretColumn
    source: _Source
    target: Callable[[], AesGcm]

    def __call__(self, row: Row) -> bytes | None:
        if form_of(row.value).form is Form.EMPTY:
            return row.beside
        plaintext = self.source.open(row)
        cell, target = cells.cell(self.column, row.row_id), self.target()
        if row.beside is not None:
            if target.decrypt(cell, row.beside) != plaintext:
                raise BothFilled
            return row.beside
        new = target.encrypt(cell, plaintext)
        if target.decrypt(cell, new) != plaintext:
            raise Tampered(f"what was encrypted for row {row.row_id} does not decrypt", "nothing was written: report this")
        return new


@contextmanager
def _opened(former: Former, opening: Opening) -> Iterator[_Source]:
    """The former column's cipher, with a scratch server if it is pgcrypto. Raises CouldNotVerify, and KeysUnusable."""
    form = Form(former.cipher)
    if former.keys is None:
        yield _Source(former.column, form, None)
        return
    keys = former.keys.fetch()
    if form is not Form.PGCRYPTO:
        yield _Source(former.column, form, open_cipher(former.cipher, keys))
        return
    with pgcrypto.scratch_opener(opening.client_directories, opening.scratch_directory) as decrypt:
        yield _Source(former.column, form, open_cipher(former.cipher, keys, decrypt))


def _former(column: SecretColumn) -> Former:
    if column.former is None:
        raise ConfigError(
            f"{printable(column.name)} has no former column to move secrets from", "name it: [sources.NAME.totp.former]"
        )
    return column.former
