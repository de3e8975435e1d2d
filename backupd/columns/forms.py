"""Which form a stored value has: in clear, or written by which cipher and under which key. It opens nothing and needs no key.

For everything that meets a column half way through a migration: the counts of `columns status`, the batches that encrypt it,
the application that reads old rows and new ones. No value has two of them: an envelope
begins with a control character, a message of pgcrypto with two bytes that no UTF-8 text has, and a Fernet token is text of at
least 100 characters that no seed could be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from backupd.columns import Malformed, aes_gcm, fernet, pgcrypto


class Form(StrEnum):
    """What a value looks like. The ciphers' names are those of `backupd.columns.ciphers` and of the configuration."""

    AES_256_GCM = "aes-256-gcm"
    FERNET = "fernet"
    PGCRYPTO = "pgcrypto"
    PLAINTEXT = "plaintext"
    """Any other text. Whether it is a seed or not, it stands there in clear: a hazard."""
    EMPTY = "empty"
    """Nothing, or blanks: how some applications mark a user who has no second factor."""
    UNKNOWN = "unknown"
    """Bytes that are neither text nor any cipher's: damaged, a seed in raw bytes, or a cipher that is not known here."""


@dataclass(frozen=True, slots=True)
class Told:
    """A value's form, and the id of its key where the value names one: only `aes-256-gcm` does."""

    form: Form
    key_id: str | None = None


def form_of(stored: bytes | str) -> Told:
    """The form of a value as the database gave it, from a BYTEA or a text column. NULL is no value: do not ask.

    It looks at the outside: that a value has a cipher's form does not mean that it opens. Raises TypeError for NULL.
    """
    if not isinstance(stored, str | bytes | bytearray | memoryview):
        raise TypeError(f"a value is text or bytes, not {type(stored).__name__}: where the column is NULL there is none")
    data = stored.encode("utf-8", "surrogateescape") if isinstance(stored, str) else bytes(stored)
    if not data.strip():
        return Told(Form.EMPTY)
    if _fits(fernet.check_token, data):
        return Told(Form.FERNET)
    if _is_text(data):
        return Told(Form.PLAINTEXT)
    if _fits(aes_gcm.key_id, data):
        return Told(Form.AES_256_GCM, aes_gcm.key_id(data))
    return Told(Form.PGCRYPTO if _fits(pgcrypto.check_message, data) else Form.UNKNOWN)


def _fits(check: Callable[[bytes], object], data: bytes) -> bool:
    try:
        check(data)
    except Malformed:
        return False
    return True


def _is_text(data: bytes) -> bool:
    try:
        return all(character.isprintable() or character.isspace() for character in data.decode())
    except UnicodeDecodeError:
        return False
