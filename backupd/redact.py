"""Secrets that do not print, and the removal of secrets from text that is about to be shown, logged or recorded.

Owns `Secret`, the register of those that are alive, and `scrub`. It never logs, never raises on odd text, and takes time linear
in the text's length, whatever its shape: no pattern scans the same run of characters from many starting points.

Found: every living `Secret` of six bytes and more, as it is, in hex, base64 (also inside a longer base64 text), base32,
percent-encoded or escaped as Python and JSON escape, and its lines of 20 characters and more; and, by their shape, base32 of 16
characters and more, private keys, passwords in addresses and in `name=value`, tokens, and the other shapes of `_SHAPES`.

Not found: secrets shorter than six bytes; a piece cut out of a secret (but private keys are found when their end is missing, or
their beginning); the middle of an armoured key alone, unless that key is a living `Secret`; lower-case base32 and any text
without a tell-tale shape (a password or an AWS secret key on its own), unless it is a living `Secret`; what was compressed,
encrypted, reversed or split over two messages; upper-case hex of 32 digits and more, because fingerprints look so (a random
base32 secret of 32 characters does once in 10^13); letters-only base32 that an underscore joins to a word, because tables and
variables are called so.
"""

from __future__ import annotations

import base64
import hmac
import itertools
import json
import re
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import NoReturn, final
from urllib.parse import quote_from_bytes

REDACTED = "**redacted**"

_SHORTEST = 6  # bytes; below that, ordinary words and numbers would go too
_SHORTEST_LINE = 20
_DEEPEST = 8
_MANY = 10_000
_URL_SAFE = str.maketrans("+/", "-_")
_BASE32_TEXT = re.compile("[A-Za-z2-7]+")


@final
class Secret:
    """Bytes that do not print, however shown: repr, str, format, pickle, JSON, a dataclass's dict, a traceback's locals.

    Immutable, comparable in constant time, not hashable (sets and dicts compare early and often). While it lives, `scrub` removes
    it from text. Python cannot wipe memory: a secret is safe from being shown here, not from a core dump.
    """

    __slots__ = ("__value", "__weakref__", "label")

    label: str

    def __init__(self, value: bytes | str, label: str = "secret") -> None:
        """Text is held as UTF-8. `label` says in messages what it is, so it must not be secret itself."""
        encoded = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)
        object.__setattr__(self, "_Secret__value", encoded)
        object.__setattr__(self, "label", label)
        _REGISTER.add(self)

    def reveal(self) -> bytes:
        """The bytes themselves; every use in this code base is found by this method's name."""
        value: bytes = self.__value  # type: ignore[attr-defined]  # set past __setattr__, which refuses
        return value

    def text(self) -> str:
        """The secret as a password: UTF-8, without the one line end that editors put at the end of a file.

        Raises ValueError, without the bytes in it, for what is no UTF-8.
        """
        value = self.reveal()
        value = value[: -2 if value.endswith(b"\r\n") else -1] if value.endswith(b"\n") else value
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"the {self.label} is not UTF-8 text") from None

    def __len__(self) -> int:
        return len(self.reveal())

    def __eq__(self, other: object) -> bool:
        return hmac.compare_digest(self.reveal(), other.reveal()) if isinstance(other, Secret) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # Python's way to say "not hashable"

    def __repr__(self) -> str:
        return f"Secret({REDACTED})"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is not pickled")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a Secret has no state to show")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Secret does not change")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Secret does not change")


class _Register:
    """The secrets that are alive, and where each of their spellings begins.

    All spellings of one beginning lie in one bucket, by their length, so that looking costs one lookup per character of the text
    however many thousand secrets live. Secrets are taken in and forgotten by `_settle` alone: a weak reference's callback may run
    inside any allocation, also in the middle of a loop over these dicts, so it does nothing but note a number.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._fresh: deque[tuple[int, weakref.ref[Secret]]] = deque()
        self._dead: deque[int] = deque()
        self._alive: dict[int, tuple[weakref.ref[Secret], tuple[str, ...]]] = {}
        self._uses: dict[str, int] = {}
        self._buckets: dict[str, dict[int, set[str]]] = {}

    def add(self, secret: Secret) -> None:
        number = next(self._numbers)
        dead = self._dead
        self._fresh.append((number, weakref.ref(secret, lambda _: dead.append(number))))
        if len(dead) > _MANY:
            with self._lock:
                self._settle()

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where living secrets stand in `text`; ranges that touch or overlap are one."""
        with self._lock:
            self._settle()
            buckets, found = self._buckets, list[tuple[int, int]]()
            for start in range(len(text) - _SHORTEST + 1) if buckets else ():
                bucket = buckets.get(text[start : start + _SHORTEST])
                if bucket is None:
                    continue
                end = max(
                    (start + length for length, words in bucket.items() if text[start : start + length] in words), default=0
                )
                if not end:
                    continue
                if found and start <= found[-1][1]:
                    found[-1] = (found[-1][0], max(end, found[-1][1]))
                else:
                    found.append((start, end))
            return found

    def _settle(self) -> None:
        while self._fresh:
            number, reference = self._fresh[0]
            secret = reference()
            if secret is not None and len(secret) >= _SHORTEST:
                spellings = tuple(sorted(_spellings(secret.reveal())))
                self._alive[number] = (reference, spellings)
                for word in spellings:
                    self._uses[word] = self._uses.get(word, 0) + 1
                    self._buckets.setdefault(word[:_SHORTEST], {}).setdefault(len(word), set()).add(word)
            self._fresh.popleft()  # only now: a signal's exception in between must not lose a secret
        while self._dead:
            for word in self._alive.pop(self._dead.popleft(), (None, ()))[1]:
                self._forget(word)

    def _forget(self, word: str) -> None:
        self._uses[word] -= 1
        if self._uses[word]:
            return
        del self._uses[word]
        bucket = self._buckets[word[:_SHORTEST]]
        bucket[len(word)].discard(word)
        if not bucket[len(word)]:
            del bucket[len(word)]
        if not bucket:
            del self._buckets[word[:_SHORTEST]]


def _spellings(value: bytes) -> set[str]:
    """How these bytes may come to stand in a text; each of at least six characters."""
    value = value.strip(b"\r\n") or value
    text = value.decode("utf-8", "surrogateescape")
    found = {text, text.strip(), repr(text)[1:-1], repr(value)[2:-1]}
    found |= {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
    found |= {value.hex(), value.hex().upper(), *_percent(value), *_base64(value), *_base32(value, text)}
    found |= {
        line for line in map(str.strip, text.splitlines()) if len(line) >= _SHORTEST_LINE and not line.startswith("-----")
    }
    return {word for word in found if len(word) >= _SHORTEST}


def _percent(value: bytes) -> Iterator[str]:
    strict, path = quote_from_bytes(value, safe=""), quote_from_bytes(value, safe="/")
    for word in (strict, path, strict.replace("%20", "+")):
        yield word
        yield re.sub("%..", lambda escape: escape[0].lower(), word)


def _base64(value: bytes) -> Iterator[str]:
    """The characters that depend on `value` alone, for each of the three places it may have among another text's bytes."""
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + value).decode()
        stable = encoded[-(-shift * 8 // 6) : (shift + len(value)) * 8 // 6]
        yield stable
        yield stable.translate(_URL_SAFE)


def _base32(value: bytes, text: str) -> Iterator[str]:
    """Base32 of the bytes, and, when they are base32 themselves (a TOTP secret), how people write it down."""
    words = [base64.b32encode(value).decode().rstrip("=")]
    bare = re.sub("[ =-]", "", text)
    if _BASE32_TEXT.fullmatch(bare):
        words.append(bare.upper())
    for word in words:
        for spelt in (word, word.lower()):
            fours = [spelt[start : start + 4] for start in range(0, len(spelt), 4)]
            yield from (spelt, " ".join(fours), "-".join(fours))


_REGISTER = _Register()


def scrub(text: str) -> str:
    """`text` with every secret that the head of this module names replaced by `**redacted**`."""
    pieces, last = [], 0
    for start, end in _REGISTER.spans(text):
        pieces += [text[last:start], REDACTED]
        last = end
    return "".join([*pieces, text[last:]])
