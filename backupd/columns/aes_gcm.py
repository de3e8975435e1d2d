"""AES-256-GCM (NIST SP 800-38D) for one cell: a value opens in the row, column and table it was written to, and nowhere else.

    envelope  = version (1 byte, 1) ‖ length of the key id (1 byte) ‖ key id ‖ nonce (12) ‖ ciphertext ‖ tag (16)
    authenticated beside it = for each of label and version, table, column, row id, key id: length (4 bytes, big-endian) ‖ UTF-8

The lengths keep ("ab", "c") and ("a", "bc") apart. The nonce is random: rotate a key long before 2^32 values were written with
it. The envelope is bytes, for a BYTEA column; as base32 it would look like a leaked TOTP seed to every scanner.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from backupd.columns import Cell, Malformed, NotAuthentic
from backupd.columns.keyring import Keyring
from backupd.redact import Secret, secret_due

VERSION = 1
_NONCE = 12
_TAG = 16
_LONGEST_KEY_ID = 32
_LABEL = "backupd column 1"


@dataclass(frozen=True, slots=True)
class AesGcm:
    """The cipher `aes-256-gcm`: writes with the keyring's current key, reads with all of them."""

    keyring: Keyring

    def key_id(self, data: bytes) -> str:
        return key_id(data)

    def encrypt(self, cell: Cell, plaintext: Secret) -> bytes:
        """The envelope of `plaintext` for this cell; len(plaintext) + 30 + len(key id) bytes, another one at each call.

        Raises TypeError for a plaintext that is no Secret.
        """
        if not isinstance(plaintext, Secret):
            raise secret_due("what is encrypted", plaintext)
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        current = self.keyring.current
        nonce = os.urandom(_NONCE)
        sealed = AESGCM(self.keyring.key(current).reveal()).encrypt(nonce, plaintext.reveal(), _bound_to(cell, current))
        return head(current) + nonce + sealed

    def decrypt(self, cell: Cell, data: bytes) -> Secret:
        """What was encrypted into this cell. Raises Malformed, UnknownKey or NotAuthentic."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        named = key_id(data)
        start = 2 + len(named)
        nonce, sealed = data[start : start + _NONCE], data[start + _NONCE :]
        key = self.keyring.key(named)
        try:
            plaintext = AESGCM(key.reveal()).decrypt(bytes(nonce), bytes(sealed), _bound_to(cell, named))
        except InvalidTag as error:
            raise NotAuthentic(f"a value in {cell.table}.{cell.column} is not what {named!r} encrypted there") from error
        return Secret(plaintext, f"{cell.table}.{cell.column}")


def head(key_id: str) -> bytes:
    """How every envelope under this key begins, and none under another."""
    return bytes((VERSION, len(key_id))) + key_id.encode()


def key_id(data: bytes) -> str:
    """The id of the key that this envelope names; needs no key. Raises Malformed, and TypeError for NULL and for text."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(
            f"an encrypted value is bytes, not {type(data).__name__}: where the column is NULL there is none to open"
        )
    if not data:
        raise Malformed("it is empty")
    if data[0] != VERSION:
        raise Malformed(f"its first byte is {data[0]}, not the version {VERSION}")
    length = data[1] if len(data) > 1 else 0
    if not 1 <= length <= _LONGEST_KEY_ID or len(data) < 2 + length + _NONCE + _TAG:
        raise Malformed(f"{len(data)} bytes are too few for an envelope, or the length of its key id is wrong")
    named = bytes(data[2 : 2 + length])
    if not re.fullmatch(rb"[A-Za-z0-9._-]+", named):
        raise Malformed("its key id holds other characters than A-Z a-z 0-9 . _ -")
    return named.decode()


def _bound_to(cell: Cell, named: str) -> bytes:
    pieces = (each.encode() for each in (_LABEL, cell.table, cell.column, cell.row_id, named))
    return b"".join(len(piece).to_bytes(4, "big") + piece for piece in pieces)
