"""How rows are rewritten: in batches, by compare and swap, again and again until no row is left that should be.

A row that the application writes in between is not touched: its new value is met in the next pass. A row that cannot be read is
left as it is and told by its id. Owns no key and no transaction; nothing is remembered between two runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from backupd.columns import ColumnError
from backupd.errors import Interrupted, SourceError
from backupd.postgres import column_rows
from backupd.postgres.column_rows import Row, Swap, Table
from backupd.postgres.session import Connection
from backupd.redact import printable
from backupd.rotation import SHOWN, Moved, Pace

STALLED_PASSES = 5  # that could write nothing of what there was to write
MOST_PASSES = 100  # an application that goes on writing the old form makes work for ever

Recode = Callable[[Row], bytes | None]
"""The new value for a row, None for nothing. Raises ColumnError: the row is left as it is."""


@dataclass(slots=True)
class Tally:
    """What came of it: rows rewritten, and how often one was not the one that was read; rows left, the first with reasons."""

    done: int = 0
    overtaken: int = 0
    passes: int = 0
    left_rows: int = 0
    left: dict[str, str] = field(default_factory=dict)

    def leave(self, row_id: str, reason: str) -> None:
        self.left_rows += 1
        if len(self.left) < SHOWN:
            self.left[row_id] = reason


@dataclass(frozen=True, slots=True)
class Rewriting:
    """The values of `column` that do not begin with `but` are rewritten, and put `into` a column, which may be the same.

    `tally` is kept as it goes, so that it tells the truth also when `run` raises.
    """

    connection: Connection
    table: Table
    column: str
    into: str
    recode: Recode
    but: bytes
    pace: Pace
    moved: Moved
    tally: Tally = field(default_factory=Tally)

    def run(self) -> None:
        """Until none is left but those that `tally` tells of. Raises SourceError in all its kinds."""
        try:
            self._passes()
        except Interrupted as error:
            error.hint = f"{self.tally.done} rows are done and stay so: run it again, and it goes on with the others"
            raise

    def _passes(self) -> None:
        stalled = 0
        while self.tally.passes < MOST_PASSES:
            tried, done = self._pass()
            if not tried:
                return
            if done:
                stalled = 0
                continue
            stalled += 1
            if stalled == STALLED_PASSES:
                where = printable(self.table.name)
                raise SourceError(
                    f"{tried} rows of {where} cannot be written: they are locked, or a trigger keeps them so",
                    "end the transactions that have been open for long (pg_stat_activity, pg_prepared_xacts), and run it again",
                )
            time.sleep(self.pace.stall_s)
        raise SourceError(
            f"applications go on writing {printable(self.table.name)}.{printable(self.column)} as before",
            "let each of them fetch the keyring anew, or update it, and run this again",
        )

    def _pass(self) -> tuple[int, int]:
        """Once through the table: how many rows were to be rewritten, and how many were. What was left is told anew."""
        tally = self.tally
        tally.passes += 1
        tally.left_rows, tally.left = 0, {}
        tried, done, after = 0, 0, None
        while rows := self._batch(after):
            if rows[-1].row_id == after:
                raise SourceError(
                    f"the ids of {printable(self.table.name)} do not advance after {printable(after)}",
                    "an id has to be equal to what its text is read as: a number, a text or a UUID is",
                )
            after = rows[-1].row_id
            swaps = []
            for row in rows:
                try:
                    swaps.append(Swap(row, self.recode(row)))
                except ColumnError as error:
                    tally.leave(row.row_id, error.message)
            swapped = column_rows.swap(self.connection, self.table, self.column, self.into, swaps)
            for row_id, reason in swapped.refused:
                tally.leave(row_id, reason)
            overtaken = len(swaps) - swapped.done - len(swapped.refused)
            tried += swapped.done + overtaken
            done += swapped.done
            tally.done += swapped.done
            tally.overtaken += overtaken
            self.moved(len(rows))
            if self.pace.pause_s:
                time.sleep(self.pace.pause_s)
        return tried, done

    def _batch(self, after: str | None) -> list[Row]:
        return column_rows.batch(
            self.connection, self.table, self.column, self.into, but=self.but, after=after, limit=self.pace.batch
        )
