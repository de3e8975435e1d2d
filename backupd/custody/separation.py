"""The rule that parts the keys of backups from the keys of columns, on what is known of each: never reads a key, never asks.

Whoever finds one of them must not have the other with it. Two keys are one when they are the same bytes in any spelling, or the
same OpenPGP key; and they fall together when they lie in one place, or are wrapped by one key.
"""

from __future__ import annotations

import binascii
import hmac
import os
import re
from base64 import b64decode
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from backupd.redact import Secret

SHORTEST = 8  # bytes of a piece that is compared; shorter ones are equal by chance
_WORD = re.compile(rb"[A-Za-z0-9+/_-]{16,}")  # shorter ones may be names
_CHECKSUM = re.compile(rb"=[A-Za-z0-9+/]{4}\Z")  # of an armour, RFC 4880 section 6.1
_APART = "keep them with different custodians"
_SALT = os.urandom(32)  # a digest is worth nothing outside of this process


@dataclass(frozen=True, slots=True)
class Kept:
    """One key, as far as it is known: `digests` are empty when it was not read, `fingerprints` when it is no OpenPGP key.

    `file` is the device and inode of the file that it lies in. `beside` are digests of what lies in one object or text with it,
    and `keys_beside` the names of the secret OpenPGP keys there.
    """

    name: str
    locator: str
    wrapped_by: str | None = None
    digests: frozenset[bytes] = frozenset()
    fingerprints: frozenset[str] = frozenset()
    file: tuple[int, int] | None = None
    beside: frozenset[bytes] = frozenset()
    keys_beside: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Sharing:
    """What a key of the backups and a column key have in common, and what to do about it."""

    text: str
    hint: str


def shared(backup: Iterable[Kept], columns: Iterable[Kept]) -> Iterator[Sharing]:
    """Everything that a key of one side shares with a key of the other."""
    columns = tuple(columns)
    for ours in backup:
        for theirs in columns:
            yield from _shared(ours, theirs)


def _shared(ours: Kept, theirs: Kept) -> Iterator[Sharing]:
    both = f"{theirs.name} and {ours.name}"
    if ours.locator == theirs.locator:
        yield Sharing(f"{both} are in one place, {place_of(ours.locator)}", _APART)
        return  # one secret: all else follows
    together = place_of(ours.locator) == place_of(theirs.locator)
    if together:
        yield Sharing(f"{both} are in one place, {place_of(ours.locator)}", _APART)
    elif ours.file is not None and ours.file == theirs.file:
        together = True
        yield Sharing(f"{both} are in one file, {place_of(theirs.locator)} and {place_of(ours.locator)}", _APART)
    if ours.wrapped_by and theirs.wrapped_by and place_of(ours.wrapped_by) == place_of(theirs.wrapped_by):
        yield Sharing(f"{both} are wrapped by one key, {place_of(ours.wrapped_by)}", "wrap each with a key of its own")
    if ours.fingerprints & theirs.fingerprints:
        (found, *_) = sorted(ours.fingerprints & theirs.fingerprints)
        yield Sharing(f"{both} are one OpenPGP key, {found}", "make a key of its own for the column, and encrypt it anew")
    if _meet(ours.digests, theirs.digests):
        yield Sharing(f"{both} share bytes", "make a key of its own for the column: `backupd columns rotate`")
    elif not together:
        for one, other in ((ours, theirs), (theirs, ours)):
            named = one.fingerprints & other.keys_beside and not ours.fingerprints & theirs.fingerprints
            if named or _meet(one.digests, other.beside):
                yield Sharing(f"{place_of(other.locator)} holds {one.name} as well as {other.name}", "take it out of there")


def _meet(some: frozenset[bytes], others: frozenset[bytes]) -> bool:
    return not some.isdisjoint(others)


def place_of(locator: str) -> str:
    """Where a secret lies: its locator without the member of a JSON object, and without the version, that it names there."""
    kind, _, place = locator.partition("#")[0].partition(":")
    if kind == "vault":
        place = place.partition("?version=")[0]
    if kind == "azure":
        parts = urlsplit(place)
        place = f"{parts.scheme}://{parts.netloc}/{'/'.join(parts.path.strip('/').split('/')[:2])}"
    return f"{kind}:{place}"


def digests(pieces: Iterable[Secret]) -> frozenset[bytes]:
    """Digests of keys, such that two spellings of the same bytes have one in common: raw, hexadecimal, base64, armour."""
    # A file may end in a line end that is no part of the key, and a key in a byte that is one.
    return _digests(each for piece in pieces for each in (piece.reveal(), piece.reveal().strip()))


def digests_within(texts: Iterable[Secret]) -> frozenset[bytes]:
    """The same of these texts, and of each word in them: a line, what follows a `=`, a member's value in a text of JSON."""
    texts = tuple(texts)
    return digests(texts) | _digests(word for text in texts for word in _WORD.findall(text.reveal()))


def _digests(pieces: Iterable[bytes]) -> frozenset[bytes]:
    spelt = (each for piece in pieces for each in _spelt(piece))
    return frozenset(hmac.digest(_SALT, each, "sha256") for each in spelt if len(each) >= SHORTEST)


def _spelt(raw: bytes) -> Iterator[bytes]:
    yield raw
    with suppress(binascii.Error, ValueError):
        yield bytes.fromhex(raw.decode("ascii"))
    for body in (raw, *_armoured(raw)):
        text = b"".join(body.split()).translate(bytes.maketrans(b"-_", b"+/"))
        for each in {text, _CHECKSUM.sub(b"", text)}:
            with suppress(binascii.Error, ValueError):
                yield b64decode(each + b"=" * (-len(each) % 4), validate=True)


def _armoured(raw: bytes) -> Iterator[bytes]:
    """What stands in each armour (RFC 4880, 6.2): from the blank line behind its headers to its last line."""
    body: list[bytes] | None = None
    headers = False
    for line in raw.splitlines():
        if line.startswith(b"-----BEGIN PGP "):
            body, headers = [], True
        elif line.startswith(b"-----END PGP ") and body:
            yield b"".join(body)
            body = None
        elif headers:
            headers = bool(line.strip())
        elif body is not None:
            body.append(line)
