"""A search for secrets in a stream of SQL, of any length, in memory that depends on the number of secrets alone.

What counts as a hit:
- a *seed* that is known to live in an encrypted column. Standing alone: its base32, also in groups of four that blanks or
  hyphens part. Anywhere, also glued to other letters or inside of a longer value: its base32 in upper or in lower case; the hex
  (a BYTEA value, a large object) or base64 of that or of its bytes, wherever in a longer base64 they begin;
- a *key* that is known, anywhere, also inside of longer text: its hex (a BYTEA value), base64, base64url, base32, or as text;
- a *shape*: an unknown base32 seed. That is a run of A-Z and 2-7, delimited by something other than letters, digits, `+` and
  `/`, of 16, 26, 32 or more characters that base32 may have, with two digits, eight different characters and a letter beyond
  F. So upper-case words, hex digests and codes with 0, 1, 8 or 9 are none. One random seed of 16 in six has fewer than two
  digits and is not seen by its shape; a column of them is.
Not looked into: what is compressed or encrypted, encoded twice, or broken by line ends or by the pages of a large object. Known
seeds are held as keyed digests and as pieces of eight bytes. Nothing here keeps a piece of the stream longer than it takes to
look at it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from base64 import b32encode, b64encode
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

REACH = 4096  # bytes; nothing longer is looked for, so that much is carried from one chunk into the next
OUTSIDE = "(outside of tables)"
_SHORTEST = 16  # characters of a seed, in any spelling
_LONGEST = 512
_CONTEXT = 2 * _LONGEST + 2  # bytes kept before the fresh ones: the longest run, and what says whether it stands alone
_PIECE = 8  # bytes: what a seed inside of longer text is noticed by, before its digest is looked at
_STRIDE = 4  # bytes from one piece of the stream to the next; a word of 11 bytes or more holds one of them whole
_SHORTEST_INSIDE = 12  # characters, 72 bits of base64; fewer could stand there by chance
_SHORTEST_KEY = 8  # bytes, and characters of a spelling; shorter ones stand everywhere

_RUN = re.compile(rb"[A-Za-z0-9+/_-]{16,}")
_RUN_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-")
_GROUPS = re.compile(rb"(?<![A-Za-z0-9])[A-Za-z2-7]{4}(?: [A-Za-z2-7]{4}){3,}(?: [A-Za-z2-7]{1,3})?(?![A-Za-z0-9])")
_MOST_GROUPS = 32
_ESCAPED = frozenset(b"bfnrtvx")  # the letters of COPY's escapes, and the x of a BYTEA value in hex
_SEED = re.compile(rb"[A-Z2-7]{16,}")
_NAME = rb'(?:"(?:[^"]|"")*"|[^\s".(]+)'
_COPY = re.compile(rb"COPY (" + _NAME + rb"(?:\." + _NAME + rb")?)[ (]")
_URLSAFE = bytes.maketrans(b"+/", b"-_")


class Hit(StrEnum):
    """What was found."""

    SEED = "known seed"
    KEY = "known key"
    SHAPE = "base32 secret by its shape"


class Wanted:
    """The secrets to look for."""

    def __init__(self) -> None:
        self._salt = os.urandom(32)
        self._seeds: set[bytes] = set()
        self._keys: set[bytes] = set()
        self.seeds = 0  # how many, each in all its spellings
        self.lengths: set[int] = set()  # of those spellings
        self.lengths_inside: set[int] = set()  # of those that are looked for inside of longer text
        self.pieces: set[int] = set()  # of these, each by the pieces that the stream's strides may fall on

    def seed(self, text: bytes, raw: bytes) -> None:
        """A TOTP seed: its base32 as it is written, and its bytes."""
        bare = re.sub(rb"[ \t=-]", b"", text).upper()
        base64 = b64encode(raw).rstrip(b"=")
        words = {bare, base64, base64.translate(_URLSAFE)}
        words |= {each.hex().encode() for each in (raw, text, bare, bare.lower())}
        self.seeds += 1
        for word in words:
            if _SHORTEST <= len(word) <= _LONGEST:
                self._seeds.add(self._digest(word))
                self.lengths.add(len(word))
        for word in _inside(raw, bare):
            if _SHORTEST_INSIDE <= len(word) <= _LONGEST:
                self._seeds.add(self._digest(word))
                self.lengths_inside.add(len(word))
                self.pieces.update(int.from_bytes(word[at : at + _PIECE], sys.byteorder) for at in range(_STRIDE))

    def key(self, raw: bytes) -> bool:
        """A key, 8 to 1024 bytes long; those that are text are looked for as text too. False for one of another length."""
        if not _SHORTEST_KEY <= len(raw) <= REACH // 4:
            return False
        words = {raw.hex().encode(), raw.hex().upper().encode(), b32encode(raw).rstrip(b"=")}
        if not re.search(rb"[\x00-\x1f]", raw):
            words |= {raw, raw.replace(b"\\", b"\\\\")}  # COPY doubles backslashes
        words |= _inside_base64(raw)
        self._keys |= {word for word in words if len(word) >= _SHORTEST_KEY}
        return True

    @property
    def keys(self) -> Collection[bytes]:
        """The spellings of all keys."""
        return self._keys

    def knows(self, word: bytes) -> bool:
        """Whether this is a spelling of a seed: base32 in upper case, hex in lower."""
        return self._digest(word) in self._seeds

    def _digest(self, word: bytes) -> bytes:
        return hashlib.blake2b(word, digest_size=16, key=self._salt).digest()


def _inside(raw: bytes, bare: bytes) -> set[bytes]:
    """A seed's spellings that are looked for anywhere."""
    words: set[bytes] = {bare, bare.lower()}
    for each in (raw, bare, bare.lower()):
        words |= {each.hex().encode(), each.hex().upper().encode()} | _inside_base64(each)
    return words


def _inside_base64(raw: bytes) -> set[bytes]:
    """The characters of base64 that only these bytes make; in a longer text they may begin at any of three places."""
    words = set()
    for shift in range(3):
        base64 = b64encode(bytes(shift) + raw)[-(-shift * 8 // 6) : (shift + len(raw)) * 8 // 6]
        words |= {base64, base64.translate(_URLSAFE)}
    return words


@dataclass(slots=True)
class Report:
    """What a scan saw: bytes, tables, rows of tables, and hits by kind and by table."""

    size: int = 0
    rows: int = 0
    tables: int = 0
    hits: Counter[Hit] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Scanner:
    """One pass. `feed` takes chunks of any size, `close` ends the stream. A hit counts once, wherever the chunks were cut."""

    wanted: Wanted
    report: Report = field(default_factory=Report)
    _carried: bytes = b"\n"  # the first line begins after a line end, as all others do
    _fresh: int = 1  # where the bytes begin that were not looked at yet
    _table: str | None = None

    def feed(self, chunk: bytes) -> None:
        self.report.size += len(chunk)
        data = self._carried + chunk
        end = len(data) - REACH
        if end > self._fresh:
            self._look(data, self._fresh, end)
            cut = max(0, end - _CONTEXT)
            self._carried, self._fresh = data[cut:], end - cut
        else:
            self._carried = data

    def close(self) -> Report:
        self._look(self._carried, self._fresh, len(self._carried))
        self._carried, self._fresh = b"\n", 1
        return self.report

    def _look(self, data: bytes, start: int, end: int) -> None:
        """Count what begins in data[start:end]; the bytes before and after show whether it stands alone and where it ends."""
        sections = list(self._sections(data, start, end))
        starts = [begin for begin, _ in sections]
        found = dict.fromkeys(self._keys(data, start, end), Hit.KEY)
        for at in self._inside(data, start, end):
            found.setdefault(at, Hit.SEED)
        for at, hit in self._seeds(data, start, end):
            found.setdefault(at, hit)
        for at, hit in found.items():
            self.report.hits[hit] += 1
            self.report.places[sections[bisect_right(starts, at) - 1][1] or OUTSIDE] += 1

    def _sections(self, data: bytes, start: int, end: int) -> Iterator[tuple[int, str | None]]:
        """Where in data[start:end] each table's rows begin and end. No row can do that: line ends in values are escaped."""
        while True:
            yield start, self._table
            wanted = b"\nCOPY " if self._table is None else b"\n\\.\n"
            at = data.find(wanted, start - 1, end - 2 + len(wanted)) + 1  # of the line, not of the line end before it
            if self._table is not None:
                self.report.rows += data.count(b"\n", start, at or end)
            if not at:
                return
            if self._table is None:
                named = _COPY.match(data, at)
                self._table = named[1].decode(errors="replace") if named else "(a table whose name is not understood)"
                self.report.tables += 1
                self.report.rows -= 1  # the line end that is the header's
            else:
                self._table = None
            start = at

    def _keys(self, data: bytes, start: int, end: int) -> Iterator[int]:
        for key in self.wanted.keys:
            limit = end - 1 + len(key)
            at = data.find(key, start, limit)
            while at >= 0:
                yield at
                at = data.find(key, at + len(key), limit)

    def _inside(self, data: bytes, start: int, end: int) -> Iterator[int]:
        """Where in data[start:end] known seeds begin, whatever stands around them. All but the candidates is done in C."""
        pieces, stop = self.wanted.pieces, min(len(data), end + _LONGEST)
        for first in range(start, start + _PIECE, _STRIDE):
            last = stop - (stop - first) % _PIECE
            if last <= first:
                continue
            view = memoryview(data)[first:last].cast("Q")
            if pieces.isdisjoint(view):
                continue
            for index, piece in enumerate(view):
                if piece in pieces:
                    at = first + index * _PIECE
                    yield from (
                        begin for begin in range(max(start, at - _STRIDE + 1), min(end, at + 1)) if self._begins(data, begin)
                    )

    def _begins(self, data: bytes, at: int) -> bool:
        """Whether a known seed begins here."""
        return any(self.wanted.knows(data[at : at + length]) for length in self.wanted.lengths_inside)

    def _seeds(self, data: bytes, start: int, end: int) -> Iterator[tuple[int, Hit]]:
        for match in _GROUPS.finditer(data, start):
            if match.start() >= end:
                break
            yield from ((at, Hit.SEED) for at in self._grouped(match[0], match.start()) if start <= at < end)
        before = max(1, start - _CONTEXT + 1)
        for match in _RUN.finditer(data, before):
            at = match.start()
            if at >= end:
                break
            if at == before and data[at - 1] in _RUN_BYTES:
                continue  # the rest of a run that began before, and is too long
            run = match[0]
            skipped = data[at - 1] == ord("\\") and run[0] in _ESCAPED
            run = run[skipped:]
            if match.end() > start and len(run) <= 2 * _LONGEST and (judged := self._judge(run)) is not None:
                begin = at + skipped + judged[0]
                if start <= begin < end:
                    yield begin, judged[1]

    def _grouped(self, text: bytes, at: int) -> Iterator[int]:
        """Where in `text`, which begins at `at`, seeds in groups of four begin: words of four letters may stand around them."""
        groups = text.split(b" ")
        for first in range(len(groups) - 3):
            for last in range(first + 4, min(first + _MOST_GROUPS, len(groups)) + 1):
                if self._known(b"".join(groups[first:last])):
                    yield at + 5 * first

    def _judge(self, run: bytes) -> tuple[int, Hit] | None:
        """What a run of characters holds, and where in it that begins."""
        if run.isalnum():  # nearly all are, and most are dismissed by their length and case
            if self._known(run):
                return 0, Hit.SEED
            return (0, Hit.SHAPE) if run.isupper() and looks_like_a_seed(run) else None
        if self._known(run) or self._known(run.replace(b"-", b"")):
            return 0, Hit.SEED
        for piece in re.finditer(rb"[^+/_-]+", run):
            if self._known(piece[0]):
                return piece.start(), Hit.SEED
        for piece in re.finditer(rb"[^_-]+", run):
            if looks_like_a_seed(piece[0]):
                return piece.start(), Hit.SHAPE
        return None

    def _known(self, word: bytes) -> bool:
        return len(word) in self.wanted.lengths and any(map(self.wanted.knows, {word, word.upper(), word.lower()}))


def looks_like_a_seed(text: bytes) -> bool:
    """Whether this is a base32 secret by its shape alone, as the head of this module says."""
    length = len(text)
    return (
        (length in (16, 26) or (length >= 32 and length % 8 not in (1, 3, 6)))
        and _SEED.fullmatch(text) is not None
        and sum(text.count(digit) for digit in b"234567") >= 2
        and len(set(text)) >= 8
        and max(text) > ord("F")
    )
