"""The few OpenPGP packets that are read here and not by gpg: session keys at the head of a message, one signature (RFC 4880).

Pure. Decrypts and verifies nothing: it says to whom bytes are sealed, and whether a signature's bytes are the only way to
write it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from backupd.errors import Tampered

HEAD_BYTES = 64 << 10  # holds the session-key packets of more recipients than anyone has
HASHES = {8: "SHA256", 9: "SHA384", 10: "SHA512"}  # RFC 4880 section 9.4: those that are still sound
_SESSION_KEY, _SIGNATURE, _PASSPHRASE, _SEALED = 1, 2, 3, 18
_MPIS = {1: 1, 3: 1, 17: 2, 19: 2, 22: 2}  # RSA, RSA sign only, DSA, ECDSA, EdDSA: numbers in one signature
_EDDSA = 22
_ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493  # RFC 8032 section 5.1
_ISSUER = 16


@dataclass(frozen=True, slots=True)
class Signature:
    """One version 4 signature packet that says nothing beyond what it signs.

    `issuer` is the 16 upper-case hex digits of the key id; `signed_part` is what of the packet itself is signed; `check`
    are the first two bytes of the digest.
    """

    hash_name: str
    issuer: str
    signed_part: bytes
    check: bytes


def recipients_of(head: bytes) -> tuple[str, ...]:
    """The key ids (16 upper-case hex digits) of the subkeys that a sealed stream opens with, in its order.

    `head` is the stream's first `HEAD_BYTES`, or all of it. Raises Tampered: not a message sealed to public keys alone, in
    the packet that every OpenPGP program reads (tag 18, version 1), or one that hides its recipients.
    """
    return _session_keys(head)[0]


def sealed_head(stream: bytes) -> bytes:
    """The session-key packets that a sealed stream begins with: all that a custodian's key is needed for.

    `stream` is as for `recipients_of`, which tells what is refused.
    """
    return stream[: _session_keys(stream)[1]]


def _session_keys(head: bytes) -> tuple[tuple[str, ...], int]:
    """The key ids of the session-key packets, and where the sealed data begins behind them."""
    ids: list[str] = []
    at = 0
    while True:
        tag, start, length = _header(head, at)
        if tag == _SEALED:
            if head[start : start + 1] != b"\x01":
                raise Tampered("the sealed data is in a packet format that other programs may not read")
            break
        if tag != _SESSION_KEY or length is None:
            what = "opens with a passphrase too" if tag == _PASSPHRASE else f"has a packet of type {tag} before its sealed data"
            raise Tampered(f"the message {what}")
        body = head[start : start + length]
        if len(body) != length or length < 10 or body[0] != 3:
            raise Tampered("a session-key packet is cut short or of an unknown version")
        ids.append(body[1:9].hex().upper())
        at = start + length
    if not ids or "0" * 16 in ids:
        raise Tampered("the message does not say to whom it is sealed")
    return tuple(ids), at


def signature_of(packet: bytes) -> Signature:
    """The one signature that `packet` is. Raises Tampered: more or other packets, a version other than 4, a kind other than
    of a text, a weak hash, an unsigned remark beside the issuer, or a number that is not in its only form."""
    tag, start, length = _header(packet, 0)
    body = packet[start:]
    if tag != _SIGNATURE or length != len(body) or packet[:start] != _shortest_header(len(body)):
        raise Tampered("the signature is not exactly one signature packet")
    version, kind, algorithm, hash_id = _take(body, 0, 4)
    if version != 4 or kind != 1 or algorithm not in _MPIS or hash_id not in HASHES:
        raise Tampered("the signature is of a version, kind or algorithm that is not accepted")
    at = 6 + int.from_bytes(_take(body, 4, 2))
    signed_part = _take(body, 0, at)
    unsigned = _take(body, at + 2, int.from_bytes(_take(body, at, 2)))
    if len(unsigned) != 10 or unsigned[0] != 9 or unsigned[1] != _ISSUER:
        raise Tampered("the signature has an unsigned part that holds more than its issuer")
    at += 2 + len(unsigned)
    check = _take(body, at, 2)
    at += 2
    numbers: list[bytes] = []
    for _ in range(_MPIS[algorithm]):
        bits = int.from_bytes(_take(body, at, 2))
        number = _take(body, at + 2, (bits + 7) // 8)
        if int.from_bytes(number).bit_length() != bits:
            raise Tampered("a number in the signature is not in its shortest form")
        numbers.append(number)
        at += 2 + len(number)
    if at != len(body):
        raise Tampered("the signature has bytes behind its end")
    # S and S + order sign alike to a verifier that does not look (RFC 8032 section 5.1.7); the octets are little-endian.
    if algorithm == _EDDSA and int.from_bytes(numbers[1].rjust(32, b"\0"), "little") >= _ED25519_ORDER:
        raise Tampered("a number in the signature is not in its only form")
    return Signature(HASHES[hash_id], unsigned[2:].hex().upper(), signed_part, check)


def digest_of(signature: Signature, text: bytes) -> bytes:
    """The digest that a cleartext's signature is over (RFC 4880, 5.2.4 and 7.1): lines joined by CR LF, less the last end."""
    canonical = text.removesuffix(b"\n").replace(b"\n", b"\r\n")
    trailer = signature.signed_part + b"\x04\xff" + len(signature.signed_part).to_bytes(4)
    return hashlib.new(signature.hash_name, canonical + trailer).digest()


def crc24(data: bytes) -> bytes:
    """The checksum of an armour, RFC 4880 section 6.1."""
    crc = 0xB704CE
    for byte in data:
        crc ^= byte << 16
        for _ in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= 0x1864CFB
    return crc.to_bytes(3)


def _header(data: bytes, at: int) -> tuple[int, int, int | None]:
    """Tag, where the body starts, and its length, or None where it comes in parts or runs to the end (RFC 4880 section 4.2)."""
    first = _take(data, at, 1)[0]
    if not first & 0x80:
        raise Tampered("these are no OpenPGP packets")
    if not first & 0x40:
        size = (1, 2, 4, 0)[first & 3]
        return (first >> 2) & 15, at + 1 + size, int.from_bytes(_take(data, at + 1, size)) if size else None
    tag, octet = first & 63, _take(data, at + 1, 1)[0]
    if octet < 192:
        return tag, at + 2, octet
    if octet < 224:
        return tag, at + 3, ((octet - 192) << 8) + _take(data, at + 2, 1)[0] + 192
    if octet < 255:
        return tag, at + 2, None
    return tag, at + 6, int.from_bytes(_take(data, at + 2, 4))


def _shortest_header(length: int) -> bytes:
    """How gpg writes the header of a signature packet: old format, shortest length."""
    size = 1 if length < 1 << 8 else 2 if length < 1 << 16 else 4
    return bytes([0x80 | _SIGNATURE << 2 | (1, 2, 4).index(size)]) + length.to_bytes(size)


def _take(data: bytes, at: int, count: int) -> bytes:
    piece = data[at : at + count]
    if len(piece) != count:
        raise Tampered("the OpenPGP packets end too soon")
    return piece
