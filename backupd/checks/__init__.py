"""What a drill asks of a restored database: one file per check, one Protocol; `table.ALL` lists them.

A check never decides the verdict and never restores anything. It looks at a restored database and says what it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from backupd.columns.keyring import Keyring
from backupd.columns.totp import STANDARD, Parameters
from backupd.custody import Custodian
from backupd.manifest import Kind, Manifest
from backupd.openpgp import Home
from backupd.postgres.session import Connection
from backupd.redact import Secret

Figure = int | float | str | bool | None
Unsealed = Callable[[Kind], AbstractContextManager[Iterator[bytes]]]


class Outcome(StrEnum):
    """Of one check; a drill's verdict has the same three values."""

    PASS = "PASS"  # noqa: S105  # a verdict, not a password
    FAIL = "FAIL"
    COULD_NOT_VERIFY = "COULD NOT VERIFY"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check saw: one line for people (`detail`) and figures for machines; counts and key ids, never a secret."""

    name: str
    outcome: Outcome
    detail: str
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Canary:
    """An account made for drills, `row_id` as text, whose TOTP seed is kept a second time, apart from database and backups."""

    row_id: str
    seed: Custodian


@dataclass(frozen=True, slots=True)
class TotpColumn:
    """A column of encrypted TOTP seeds. `table` as the application's cipher spells it: `users`, or `clinic.users`.

    `enrolled` is a boolean column; None means that every row with a value is enrolled. `keys` is the custodian of the
    column's own keys, which must open no backup; `archive` that of the keys which were retired since the backup was made.
    `former` is the column that its values are moved from, while they are.
    """

    table: str
    id_column: str
    column: str
    enrolled: str | None
    cipher: str
    keys: Custodian
    parameters: Parameters = STANDARD
    canary: Canary | None = None
    archive: Custodian | None = None
    former: str | None = None

    @property
    def name(self) -> str:
        return f"{self.table}.{self.column}"

    @property
    def locators(self) -> tuple[str, ...]:
        """Where its keys are kept."""
        return tuple(each.locator for each in (self.keys, self.archive) if each is not None)

    def fetch_keys(self) -> Secret:
        """All that the column's values were ever encrypted with. Raises SecretUnavailable and KeysUnusable."""
        if self.archive is None:
            return self.keys.fetch()
        return Keyring.parse(self.keys.fetch()).together(Keyring.parse(self.archive.fetch())).render()

    def archived_ids(self) -> frozenset[str]:
        """The keys that the archive alone has: no application reads what names one. Raises as `fetch_keys` does."""
        if self.archive is None:
            return frozenset()
        return frozenset(Keyring.parse(self.archive.fetch()).keys) - frozenset(Keyring.parse(self.keys.fetch()).keys)


@dataclass(frozen=True, slots=True)
class Question:
    """A query of the user's and the rows that must come back, in order, each value as PostgreSQL writes it (None for NULL)."""

    name: str
    sql: str
    expected: tuple[tuple[str | None, ...], ...]

    @classmethod
    def expecting(cls, name: str, sql: str, rows: Iterable[Iterable[str | int | float | bool | None]]) -> Question:
        """The same from values of a configuration: PostgreSQL writes true as `t`; a numeric's zeros need text (`"1.50"`)."""
        return cls(name, sql, tuple(tuple(_as_postgresql_writes(value) for value in row) for row in rows))


@dataclass(frozen=True, slots=True)
class Objectives:
    """What recovery was promised to cost at most; None where nothing was."""

    rpo_hours: float | None = None
    rto_minutes: float | None = None


@dataclass(frozen=True, slots=True)
class Sealed:
    """The backup from outside: the first 64 KiB of its database artifact, proved, and what opens it.

    `home` holds the secret key unless `session_key` is given; `key` is where the key comes from.
    """

    head: bytes
    home: Home
    key: Custodian
    session_key: Secret | None = None


@dataclass(frozen=True, slots=True)
class Drilled:
    """All that a check may look at. Times in seconds.

    `newest_at` is the snapshot's time of the source's newest backup, which need not be the one that is drilled.
    `none_claimed` is the configuration's word that the source has no second factors.
    `connection` is to the restored database, in autocommit, as a role that may read everything. `unsealed` gives an artifact's
    plaintext (of the database its SQL, decompressed) in chunks; it counts only if the block ends without an error.
    """

    manifest: Manifest
    connection: Connection
    unsealed: Unsealed
    sealed: Sealed
    columns: tuple[TotpColumn, ...]
    questions: tuple[Question, ...]
    objectives: Objectives
    newest_at: datetime
    started_at: datetime
    restore_s: float
    elapsed_s: Callable[[], float]
    none_claimed: bool = False


def _as_postgresql_writes(value: str | int | float | bool | None) -> str | None:
    if isinstance(value, bool):
        return "t" if value else "f"
    return None if value is None else str(value)


class Check(Protocol):
    """One question. `run` may raise a BackupdError: CouldNotVerify becomes that outcome, all others FAIL."""

    @property
    def name(self) -> str: ...

    def run(self, drilled: Drilled) -> Finding: ...
