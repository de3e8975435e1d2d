"""pgcrypto columns: messages of `pgp_sym_encrypt` (OpenPGP, RFC 4880, symmetric-key encrypted). Read only.

Python's libraries do not open them, and the application's server must never get the key: it would stand in its statement log.
So the caller gives a function that opens one message, by `pgp_sym_decrypt_bytea($1, $2)` with bind parameters on a scratch
server of its own. A message names neither its key nor its row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from backupd.columns import Cell, Malformed
from backupd.redact import Secret

PgpDecrypt = Callable[[bytes, Secret], bytes]
"""Message and passphrase to plaintext bytes; raises NotAuthentic for SQLSTATE 39000, "Wrong key or corrupt data"."""

_SYMMETRIC_KEY_PACKET = 3  # RFC 4880, 5.3: the first packet of every such message


@dataclass(frozen=True, slots=True)
class PgCrypto:
    """The cipher `pgcrypto`: one passphrase for the whole column."""

    passphrase: Secret
    open: PgpDecrypt = field(repr=False)

    def key_id(self, data: bytes) -> None:
        """None: a message does not tell. Raises Malformed."""
        check_message(data)

    def decrypt(self, cell: Cell, data: bytes) -> Secret:
        """The plaintext. Raises Malformed, and what the given function raises: NotAuthentic."""
        check_message(data)
        return Secret(self.open(bytes(data), self.passphrase), f"{cell.table}.{cell.column}")


def check_message(data: bytes) -> None:
    """Raises Malformed for what does not begin as a symmetrically encrypted OpenPGP message does."""
    first = data[0] if data else 0
    if data[:5] == b"-----":
        raise Malformed("it is armoured text: give the bytes, pgcrypto's dearmor() makes them")
    if not first & 0x80:
        raise Malformed("it does not begin with an OpenPGP packet")
    tag = first & 0x3F if first & 0x40 else (first & 0x3C) >> 2
    if tag != _SYMMETRIC_KEY_PACKET:
        raise Malformed(f"it begins with an OpenPGP packet of type {tag}, not of type {_SYMMETRIC_KEY_PACKET}")
