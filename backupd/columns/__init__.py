"""Encrypted columns: what an application writes into them, and what a drill must be able to read from a restored database.

Importable without the rest of backupd; `cryptography` is imported by the first cell that is opened. Keys go in and plaintext
comes out as `Secret`. Nothing here knows a backup or a file, or opens a connection; of databases only `sqlalchemy.py`
and its `sealed_sql.py` know.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from backupd.errors import BackupdError
from backupd.redact import Secret

_QUOTED = re.compile(r'"((?:[^"]|"")+)"')
_QUALIFIED = re.compile(rf'(?:[^".]+|{_QUOTED.pattern})(?:\.(?:[^".]+|{_QUOTED.pattern}))?')


@dataclass(frozen=True, slots=True)
class Cell:
    """Where a value stands. A cell is part of what is authenticated, so whoever reads must spell it as whoever wrote did.

    `table` and `column` are the names that the configuration uses; `row_id` is the primary key as text (`str(id)`). A table is
    `public.Users` here where SQL wants `public."Users"`: SQLAlchemy names it without the quotation marks. Raises TypeError for
    an id that is no text.
    """

    table: str
    column: str
    row_id: str

    def __post_init__(self) -> None:
        if not isinstance(self.row_id, str):
            raise TypeError(f"the row's id is text, not {type(self.row_id).__name__}: str(id), as PostgreSQL spells id::text")
        if '"' in self.table and _QUALIFIED.fullmatch(self.table):
            plain = _QUOTED.sub(lambda found: found[1].replace('""', '"'), self.table)
            object.__setattr__(self, "table", plain)  # it is frozen for everybody else


class Cipher(Protocol):
    """How one column is encrypted, with the keys to read it. `backupd.columns.ciphers` holds the table of them."""

    def key_id(self, data: bytes) -> str | None:
        """The id of the key that `data` is encrypted with; None when it cannot be told. Raises Malformed."""

    def decrypt(self, cell: Cell, data: bytes) -> Secret:
        """The plaintext. Raises a ColumnError: Malformed, UnknownKey or NotAuthentic."""


class ColumnError(BackupdError):
    """A value cannot be read with the keys that are there."""


class Malformed(ColumnError):
    """The bytes were never written by this cipher: plaintext, another cipher's, or cut off."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"not an encrypted value: {reason}", "is the column's cipher configured right, and every row encrypted?"
        )


class UnknownKey(ColumnError):
    """The value names a key that is not in the keyring."""

    def __init__(self, key_id: str) -> None:
        super().__init__(
            f"the key {key_id!r} is not in the keyring", "add it: a key must live as long as any row or backup names it"
        )
        self.key_id = key_id


class RetiredKey(UnknownKey):
    """The value names a key that the keyring had, and has no more."""

    def __init__(self, key_id: str) -> None:
        super().__init__(key_id)
        self.message = f"the key {key_id!r} is retired"
        self.hint = "a value under it is old: restored, copied back, or left out by a rotation. The archive still has the key"


class NotAuthentic(ColumnError):
    """The key is there, and the value is not what was written with it into this cell: changed, moved, or another key's."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "it was changed, moved from another row or column, or written with another key of the same id")


class SeedInvalid(ColumnError):
    """A decrypted value is no TOTP seed."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"not a TOTP seed: {reason}", "a seed is base32: A to Z and 2 to 7")


class KeysUnusable(ColumnError):
    """What the custodian gave is no set of keys of this cipher."""
