"""Fernet columns (github.com/fernet/spec), as applications have them: AES-128-CBC with HMAC-SHA256. Read only.

A token names neither its key nor its row: the keys are tried in order, and a token that was moved to another row opens there.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64encode
from dataclasses import dataclass

from backupd.columns import Cell, Malformed, NotAuthentic
from backupd.columns.keyring import FernetKeys, key_id_of_fernet
from backupd.redact import Secret

_VERSION = 0x80
_OVERHEAD = 1 + 8 + 16 + 32  # version, time, IV, HMAC
_BLOCK = 16


@dataclass(frozen=True, slots=True)
class FernetCipher:
    """The cipher `fernet`: reads what Fernet or MultiFernet wrote with any of the keys."""

    keys: FernetKeys

    def key_id(self, data: bytes) -> str | None:
        """The id (`fernet-1` is the list's first) of the key that opens it, None when none does. Raises Malformed."""
        found = self._open(data)
        return None if found is None else key_id_of_fernet(found[0])

    def decrypt(self, cell: Cell, data: bytes) -> Secret:
        """The plaintext. Raises Malformed, or NotAuthentic when no key opens it, be the key lost or the token changed."""
        found = self._open(data)
        if found is None:
            raise NotAuthentic(f"none of {len(self.keys.keys)} Fernet keys opens the value in {cell.table}.{cell.column}")
        return found[1]

    def _open(self, data: bytes) -> tuple[int, Secret] | None:
        from cryptography.fernet import Fernet, InvalidToken

        check_token(data)
        for index, key in enumerate(self.keys.keys):
            try:
                return index, Secret(Fernet(key.reveal()).decrypt(bytes(data)), "column value")
            except InvalidToken:
                continue
        return None


def check_token(data: bytes) -> None:
    """Raises Malformed for what no key could open. Strict, for Fernet's own base64 skips characters that are none."""
    try:
        token = binascii.a2b_base64(bytes(data).translate(bytes.maketrans(b"-_", b"+/")), strict_mode=True)
    except ValueError:
        raise Malformed("a Fernet token is urlsafe base64") from None
    if urlsafe_b64encode(token) != bytes(data):
        raise Malformed("a Fernet token has one spelling, and this is another")
    if token[:1] != bytes((_VERSION,)) or len(token) < _OVERHEAD + _BLOCK or (len(token) - _OVERHEAD) % _BLOCK:
        raise Malformed("it has not the version and the length of a Fernet token")
