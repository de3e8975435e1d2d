"""Secrets that do not print, and the removal of secrets from text that is about to be shown, logged or recorded.

Owns `Secret`, the register of those that are alive, and `scrub`. It never logs, never raises on odd text, and takes time linear
in the text's length, whatever its shape: no pattern scans the same run of characters from many starting points.

Found: every living `Secret` of six characters and more, as it is, in hex, base64 (also inside a longer base64 text), base32,
percent-encoded or escaped as Python and JSON escape, and its lines of 20 characters and more; and, by their shape, base32 of
16 characters and more, private keys, passwords in addresses and in `name=value`, tokens, and the other shapes of `_SHAPES`.

Not found: secrets shorter than six characters; a piece cut out of a secret (but private keys are found when their end is
missing, or their beginning); the middle of an armoured key alone, unless that key is a living `Secret`; lower-case base32 and
any text without a tell-tale shape (a password or an AWS secret key on its own), unless it is a living `Secret`; what was
compressed, encrypted, reversed or split over two messages; upper-case hex of 32 digits and more, because fingerprints look so
(a random base32 secret of 32 characters does once in 10^13); letters-only base32 that an underscore joins to a word, because
tables and variables are called so.
"""

from __future__ import annotations

import base64
import hmac
import itertools
import json
import re
import threading
import unicodedata
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import date, timedelta
from pathlib import PurePath
from typing import NoReturn, final
from urllib.parse import quote_from_bytes
from uuid import UUID

REDACTED = "**redacted**"

_SHORTEST = 6  # characters; below that, ordinary words and numbers would go too
_SHORTEST_LINE = 20
_DEEPEST = 8
_MANY = 10_000
_URL_SAFE = str.maketrans("+/", "-_")
_BASE32_TEXT = re.compile("[A-Za-z2-7]+")


@final
class Secret:
    """Bytes that do not print, however shown: repr, str, format, pickle, JSON, a dataclass's dict, a traceback's locals.

    Immutable, comparable in constant time, not hashable (sets and dicts compare early and often). While it lives, `scrub`
    removes it from text. Python cannot wipe memory: a secret is safe from being shown here, not from a core dump.
    """

    __slots__ = ("__value", "__weakref__", "label")

    label: str

    def __init__(self, value: bytes | str, label: str = "secret") -> None:
        """Text is held as UTF-8. `label` says in messages what it is, so it must not be secret itself."""
        if not isinstance(value, str | bytes | bytearray | memoryview):
            raise TypeError(f"a Secret is made of text or bytes, not of {type(value).__name__}")  # bytes(5) would be five zeros
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
            pass  # its own error would carry the bytes along, as its object and as the next one's context
        del value  # and so would this frame, to whatever logs local variables
        raise ValueError(f"the {self.label} is not UTF-8 text")

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


def secret_due(what: str, given: object) -> TypeError:
    """The error for a value of another type where `what` has to be a Secret. Of the value it tells the type alone."""
    return TypeError(f"{what} is a Secret, not {type(given).__name__}: wrap text in backupd.redact.Secret(…)")


class _Register:
    """The secrets that are alive, and where each of their spellings begins.

    All spellings of one beginning lie in one bucket, by their length, so that looking costs one lookup per character of the
    text however many thousand secrets live. Secrets are taken in and forgotten by `_settle` alone: a weak reference's callback
    may run inside any allocation, also in the middle of a loop over these dicts, so it does nothing but note a number.
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


# ------------------------------------------------------------------------------------------------------------- by shape

_EDGE_OF_KEY = re.compile(r"-----(BEGIN|END) [A-Z0-9 ]{0,32}(?:PRIVATE|SECRET) KEY(?:[A-Z ]{0,8}-----)?")
_ARMOUR = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/= \t\r\n\\"

# Quoted as in JSON inside JSON, JSON, Python, libpq, SQL; or bare: to a blank, a closing quote, the next `;name=` or `&name=`.
_APOSTROPHES = r"""'(?:[^'\\]|\\.|\'\')*+'?"""
_QUOTED = r"""\\"(?:[^"\\]|\\[^"])*+(?:\\")?|"(?:[^"\\]|\\.)*+"?|""" + _APOSTROPHES
_BARE = r"""(?:[^\s"'&;]|["'](?=[^\s,;:)\]}&])|[&;](?![A-Za-z][\w.-]*=))++"""
_NAME = (
    r"(?i:pass(?:word|wd|phrase|code)|pwd|secret|token|credential|session[_-]?key|private[_-]?key|api[_-]?key|access[_-]?key"
    r"|account[_-]?key|shared[_-]?access[_-]?signature|amz-signature|(?<![a-z])sig)(?i:[_-]?(?:access[_-]?)?(?:key|value|id))?"
)
# What may stand after `password =` and say nothing: a reference to a custodian, and what was removed already.
_REFERENCE = r"(?!\{\s*(?:file|env|credential|vault|azure|field)\b)"
_REMOVED = r"(?!\*\*redacted\*\*(?:[\s\"'&;,)\]}]|$))"


_HEX = set("ABCDEF234567")


def _keep_quotes(match: re.Match[str]) -> str:
    """What led to the value, and the value's quotes, so that JSON stays JSON."""
    lead, value = match[1], match[2]
    quote = next((mark for mark in ('\\"', '"', "'") if value.startswith(mark)), "")
    return f"{lead}{quote}{REDACTED}{quote}"


def _keep_names_and_hashes(match: re.Match[str]) -> str:
    """Base32, unless it is upper-case hex of a known kind, or letters that an underscore joins to a longer word."""
    found, start, end, text = match[0], match.start(), match.end(), match.string
    joined = text[start - 1 : start] == "_" or text[end : end + 1] == "_"
    key_id = len(found) == 16 and not set(found) - _HEX and text[max(0, start - 3) : start].endswith(("0x", "ID ", "ey ", "/"))
    return found if match["hex"] or key_id or (joined and found.isalpha()) else REDACTED


_Replacement = str | Callable[[re.Match[str]], str]
_SHAPES: tuple[tuple[re.Pattern[str], _Replacement], ...] = (
    (re.compile(r"(?i)(otpauth(?:-migration)?://)[^\s\"'<>]+"), rf"\1{REDACTED}"),
    # What a living secret was cut out of: the rest of a longer base32 text is secret too, and may be too short to look like it.
    (re.compile(r"(?:(?<![A-Z2-7])[A-Z2-7]++)?\*\*redacted\*\*(?:[A-Z2-7]++=*+)?"), REDACTED),
    # SQLAlchemy puts the values of a failed statement into its message.
    (re.compile(rf"(\[parameters: ){_REMOVED}[^\n]*"), rf"\1{REDACTED}]"),
    # scheme://user:password@host; a password may hold @, and an unescaped / unless a port stands there.
    (
        re.compile(
            r"(?<=://)([^\s/?#@:]{0,256}+:)(?:(?!\d{1,5}/)(?:(?!://)[^\s?#])*@|[^\s/]*@|(?!\d{1,5}[/?#])(?:(?!://)[^\s@])*+@)"
        ),
        rf"\1{REDACTED}@",
    ),
    (re.compile(rf"({_NAME}[\"']?\s*+=>?\s*+){_REFERENCE}{_REMOVED}({_QUOTED}|{_BARE})", re.DOTALL), _keep_quotes),
    (re.compile(rf"({_NAME}\\?[\"']\s*+:\s*+b?)({_QUOTED})", re.DOTALL), _keep_quotes),
    (re.compile(rf"((?i:password)\s++E?)({_APOSTROPHES})", re.DOTALL), _keep_quotes),
    (re.compile(r"((?i:authorization)\\?[\"']?\s*+[:=]\s*+\\?[\"']?(?:[A-Za-z0-9-]{1,32}\s++)?)[^\s\"',]++"), rf"\1{REDACTED}"),
    (re.compile(r"\b((?i:bearer)\s++)(?!(?i:auth|tokens?\b|realm|error|scheme))[A-Za-z0-9._~+/=-]{8,}+"), rf"\1{REDACTED}"),
    (re.compile(r"\b((?i:basic)\s++)(?=[A-Za-z0-9+/]+[A-Z0-9=+/])[A-Za-z0-9+/]{8,}+=*+"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)(session[ _]key:?\s*+[\"'`]?)\d{1,2}:[0-9a-f]{16,}+"), rf"\1{REDACTED}"),
    (re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{5,}+\.[A-Za-z0-9_.-]*+"), REDACTED),
    (re.compile(r"(?<![A-Za-z0-9])(?:A3T|AKIA|ASIA|AGPA|AIDA|AROA|ABIA|ACCA)[A-Z0-9]{12,}+(?![A-Za-z0-9])"), REDACTED),
    (re.compile(r"hv[sbr]\.[A-Za-z0-9_-]{8,}+"), REDACTED),
    (re.compile(r"(?:gh[opusr]_|github_pat_|glpat-|xox[abeprs]-|AGE-SECRET-KEY-1)[A-Za-z0-9_-]{10,}+"), REDACTED),
    # How PostgreSQL stores passwords, as `pg_dumpall --globals-only` writes them.
    (re.compile(r"SCRAM-SHA-256\$\d++:[A-Za-z0-9+/=$:]++|(?<![A-Za-z0-9])md5[0-9a-f]{32}(?![A-Za-z0-9])"), REDACTED),
    (
        re.compile(
            r"(?P<hex>(?<![0-9A-Z])(?:[0-9A-F]{32,}+|[0-9A-F]{4}(?:\ {1,2}[0-9A-F]{4}){9})(?![0-9A-Z]))"
            r"|(?<![A-Z2-7])[A-Z2-7]{16,}+=*+"
            r"|(?<![A-Z0-9])[A-Z2-7]{4}(?:[ \-\u00a0][A-Z2-7]{4}){3,}(?:[ \-\u00a0][A-Z2-7]{1,3})?(?![A-Z0-9])=*+"
        ),
        _keep_names_and_hashes,
    ),
)


def scrub(text: str) -> str:
    """`text` with every secret that the head of this module names replaced by `**redacted**`."""
    pieces, last = list[str](), 0
    for start, end in _REGISTER.spans(text):
        pieces += [text[last:start], REDACTED]
        last = end
    text = _without_private_keys("".join([*pieces, text[last:]]))
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    return text


def _without_private_keys(text: str) -> str:
    """From BEGIN to END; to the end of the text when END is missing; back over what looks like armour when BEGIN is."""
    pieces, last, begun = list[str](), 0, -1
    for edge in _EDGE_OF_KEY.finditer(text):
        if edge[1] == "BEGIN":
            begun = edge.start() if begun < 0 else begun
            continue
        kept = text[last:begun] if begun >= 0 else text[last : edge.start()].rstrip(_ARMOUR)
        pieces += [kept, REDACTED]
        last, begun = edge.end(), -1
    return "".join([*pieces, text[last:begun], REDACTED] if begun >= 0 else [*pieces, text[last:]])


# -------------------------------------------------------------------------------------------------------------- by name

_WORDS = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_PLURALS = {"secrets", "tokens", "keys", "seeds", "pins", "credentials"}
_SENSITIVE = (
    {each.removesuffix("s") for each in _PLURALS} | _PLURALS | {"otp", "cookie", "authorization", "params", "parameters"}
)
_ALWAYS = re.compile("pass(?:word|wd|phrase|code)|pwd|secret")
# `key_id`, `secret_file`, `keys_count` tell about a secret; a public key, a primary key and an object's key are none.
_ABOUT = {"id", "ids", "fingerprint", "fingerprints", "name", "names", "path", "file", "count", "size", "label", "kind", "type"}
_ABOUT |= {"version", "days", "at", "age"}
_OPEN = {"public", "primary", "foreign", "object"}


def scrub_value(key: str, value: object) -> object:
    """`value` of a field called `key`, fit for a log: plain JSON types, text scrubbed, and nothing at all of a secret's field.

    Flags stay, and so do numbers under a plural (`keys=3` counts them). Never raises.
    """
    try:
        return _fit_member(key, value, 0)
    except Exception:  # an object's own repr may do anything
        return f"<{type(value).__name__} that cannot be shown>"


def _is_sensitive(key: str) -> bool:
    words = [word.lower() for word in _WORDS.findall(key)]
    if not words or words[-1] in _ABOUT or _OPEN & set(words):
        return False
    return words[-1] in _SENSITIVE or _ALWAYS.search("".join(words)) is not None


def _fit(hidden: bool, value: object, depth: int, *, plural: bool = False) -> object:
    if value is None or isinstance(value, bool):
        return value
    if hidden or isinstance(value, Secret):
        return value if plural and isinstance(value, int | float) else REDACTED
    if isinstance(value, int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {scrub(str(key)): _fit_member(str(key), each, depth + 1) for key, each in value.items()}
    if depth < _DEEPEST and isinstance(value, list | tuple | set | frozenset):
        return [_fit(False, each, depth + 1) for each in value]
    return scrub(value if isinstance(value, str) else str(value) if _speaks(value) else repr(value))


def _fit_member(key: str, value: object, depth: int) -> object:
    return _fit(_is_sensitive(key), value, depth, plural=(_WORDS.findall(key) or [""])[-1].lower() in _PLURALS)


def _speaks(value: object) -> bool:
    return isinstance(value, BaseException | date | timedelta | PurePath | UUID)


# ----------------------------------------------------------------------------------------------------------- by control

# C0 and C1 controls and DEL; direction marks, overrides and isolates (CVE-2021-42574); separators and joiners that do not show;
# letters that are blank (the fillers of Hangul, a Braille cell without dots); the soft hyphen; tags; lone surrogates. Not the
# joiners U+200C and U+200D, which Persian and emoji are written with.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


_MARKS_IN_A_ROW = 4  # on one letter; Hebrew and Vietnamese have three at most, and a pile of them covers the lines above


def printable(text: str) -> str:
    """`text` on one line, with what would move a terminal's cursor, turn its direction or stay unseen written as an escape.

    So are combining marks beyond the fourth on one letter.
    """
    shown = _UNPRINTABLE.sub(lambda match: _escape(match[0]), text)
    return shown if shown.isascii() else "".join(_unpiled(shown))


def _unpiled(text: str) -> Iterator[str]:
    marks = 0
    for each in text:
        marks = marks + 1 if unicodedata.category(each) in {"Mn", "Me"} else 0
        yield each if marks <= _MARKS_IN_A_ROW else _escape(each)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
