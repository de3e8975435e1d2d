"""What the columns of secrets hold, counted by form and key id. Needs a role that reads, and no key.

Where the keyring may be read all the same, it is said which keys it lacks: what names one of them is read by no application.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from backupd.audit.records import Operation
from backupd.audit.trail import Trail
from backupd.columns.forms import Form, Told, form_of
from backupd.errors import BackupdError, ConfigError
from backupd.postgres import column_rows
from backupd.postgres.column_rows import Table
from backupd.postgres.dsn import Dsn
from backupd.postgres.session import Connection
from backupd.redact import printable
from backupd.rotation import SecretColumn, keyrings

# What anybody reads who reads the database: text, and bytes that no cipher wrote, for a seed is bytes too.
HAZARDS = frozenset({Form.PLAINTEXT, Form.UNKNOWN})


@dataclass(frozen=True, slots=True)
class Count:
    """So many rows of a column hold a value of this form, under this key where the form names one."""

    column: str
    form: Form
    key_id: str | None
    rows: int

    @property
    def is_hazard(self) -> bool:
        return self.form in HAZARDS


@dataclass(frozen=True, slots=True)
class Status:
    """Of one configured column, and of its former column while there is one. `lacking`: keys that values name and the keyring
    has not, as far as it may be read here."""

    column: SecretColumn
    counts: tuple[Count, ...]
    lacking: tuple[str, ...] = ()

    @property
    def hazards(self) -> int:
        """Rows whose secret is not encrypted."""
        return sum(each.rows for each in self.counts if each.is_hazard)

    @property
    def foreign(self) -> int:
        """Rows of the encrypted column that another cipher wrote, or that are empty: its application cannot read them."""
        known = {Form(self.column.cipher), *HAZARDS}
        return sum(each.rows for each in self.counts if each.column == self.column.column and each.form not in known)

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The keys that values name, sorted."""
        return tuple(sorted({each.key_id for each in self.counts if each.key_id is not None}))

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "source": self.column.source,
            "table": self.column.table,
            "column": self.column.column,
            "cipher": self.column.cipher,
            "rows": sum(each.rows for each in self.counts),
            "hazards": self.hazards,
            "foreign": self.foreign,
            "key_ids": list(self.key_ids),
            "keys_lacking": list(self.lacking),
            "counts": [
                {
                    "column": each.column,
                    "form": each.form.value,
                    "key_id": each.key_id,
                    "rows": each.rows,
                    "hazard": each.is_hazard,
                }
                for each in self.counts
            ],
        }


def look(source: str, columns: Sequence[SecretColumn], dsn: Dsn, trail: Trail) -> list[Status]:
    """Count all values of a source's columns. Raises ConfigError for a table or column that is not there, SourceError."""
    with trail.recording(Operation.COLUMNS, source=source, action="status") as run:
        with closing(column_rows.connect(dsn)) as connection:
            found = [_look(connection, column) for column in columns]
        run.note(
            **{f"{each.column.name} hazards": each.hazards for each in found},
            **{f"{each.column.name} keys": each.key_ids for each in found},
            **{f"{each.column.name} keys lacking": each.lacking for each in found if each.lacking},
        )
    return found


def _look(connection: Connection, column: SecretColumn) -> Status:
    table = column_rows.find(connection, column.table, column.id_column)
    former = column.former.column if column.former is not None else None
    # Before a migration there is no encrypted column yet, after it no former one.
    names = [name for name in (column.column, former) if name is not None and name in table.columns]
    if not names or (column.column not in names and former is None):
        raise ConfigError(f"there is no column {printable(column.name)}", "look at [[sources.….totp]]")
    found = Status(column, tuple(each for name in names for each in counts(connection, table, name)))
    return replace(found, lacking=_lacking(column, found.key_ids))


def _lacking(column: SecretColumn, key_ids: Sequence[str]) -> tuple[str, ...]:
    if column.cipher != Form.AES_256_GCM:
        return ()
    try:
        keyring = keyrings.fetched(column.keys).keyring
    except BackupdError:  # the host that makes backups should not get it
        return ()
    return tuple(each for each in key_ids if each not in keyring.keys)


def counts(connection: Connection, table: Table, name: str) -> list[Count]:
    """The values of one column, counted. Raises SourceError."""
    seen = Counter[Told](form_of(value) for value in column_rows.values(connection, table, name))
    found = [Count(name, told.form, told.key_id, rows) for told, rows in seen.items()]
    return sorted(found, key=lambda each: (each.form.value, each.key_id or ""))
