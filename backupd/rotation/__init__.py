"""Columns of secrets that change their cipher or their key while the application runs: `backupd columns`.

    status.py    what the columns hold, counted by form and key
    encrypt.py   from clear text, Fernet or pgcrypto to AES-256-GCM, in a column of bytes beside the old one
    rotate.py    to another key: it joins the keyring, becomes the current one, then the rows follow
    retire.py    a key that no row names any more goes to the archive; none is ever destroyed
    naming.py    which living backups name a key
    batches.py   how rows are rewritten: by compare and swap, so that the application's own writes win
    keyrings.py  how a keyring and its archive are read, and given a new one
    watch.py     the keys that rows are rewritten with, looked at all the while

Each operation is made of stages that a person starts one by one, for between them the applications have to follow. A stage may
be killed at any moment and run again: what is done is seen from the keyring and the rows, and kept nowhere else. Every one is
recorded in the trail, with counts and key ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backupd.custody import Custodian
from backupd.errors import BackupdError
from backupd.postgres.dsn import Dsn
from backupd.redact import printable

SHOWN = 20  # rows that are named one by one
Moved = Callable[[int], None]
"""Told how many rows were done since the last call."""


@dataclass(frozen=True, slots=True)
class Former:
    """The column that the secrets are moved from. `keys` opens it; None for clear text."""

    column: str
    cipher: str
    keys: Custodian | None = None


@dataclass(frozen=True, slots=True)
class SecretColumn:
    """A column of secrets as it is configured, with the custodians of its keys. Names are spelt as the application's are."""

    source: str
    table: str
    id_column: str
    column: str
    cipher: str
    keys: Custodian
    archive: Custodian | None = None
    former: Former | None = None

    @property
    def name(self) -> str:
        return f"{self.table}.{self.column}"


def _none(_: str) -> Sequence[str]:
    return ()


@dataclass(frozen=True, slots=True)
class Sharing:
    """Who else hangs on a column's keyring: the other columns that have it, of all sources, each with its server's address, and
    the ids of the backups that name a key, as far as they can be read."""

    others: Sequence[tuple[SecretColumn, Dsn]] = ()
    backups: Callable[[str], Sequence[str]] = _none


NOBODY_ELSE = Sharing()


@dataclass(frozen=True, slots=True)
class Pace:
    """How hard a stage works: rows in a batch, which is one transaction, and the rest between two batches, in seconds.

    `stall_s` is the rest after a pass that could write nothing, for whoever has the rows locked may be done by then; `look_s`
    is how long it rewrites rows before it looks again whether the key that it writes with is still in the keyring.
    """

    batch: int = 500
    pause_s: float = 0.0
    stall_s: float = 2.0
    look_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a stage did, or without `applied` would do, and what comes next. `left`: why rows were left, by their ids, the first
    of them; `left_rows` is how many there are."""

    column: SecretColumn
    action: str
    stage: str
    applied: bool
    figures: Mapping[str, int] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    left_rows: int = 0
    key_id: str | None = None
    next: str = ""

    def to_json(self) -> dict[str, Any]:
        """The report for machines."""
        return {
            "source": self.column.source,
            "column": self.column.name,
            "action": self.action,
            "stage": self.stage,
            "applied": self.applied,
            "key_id": self.key_id,
            "figures": dict(self.figures),
            "left_rows": self.left_rows,
            "left": [{"row": printable(row_id), "reason": printable(reason)} for row_id, reason in self.left.items()],
            "next": self.next,
        }


class RowsLeft(BackupdError):
    """A stage did what it could, and rows are left as they were; `report` names them."""

    def __init__(self, report: Report) -> None:
        first = next(iter(report.left.items()), None)
        shown = f"; the first is row {printable(first[0])}: {printable(first[1])}" if first else ""
        super().__init__(
            f"{report.left_rows} of the rows of {printable(report.column.name)} were left as they were{shown}",
            "look at these rows, then run the same stage again: it goes on where it is",
        )
        self.report = report
