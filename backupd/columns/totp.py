"""One-time passwords: HOTP (RFC 4226) and TOTP (RFC 6238), and seeds as apps write them. No clock: `at` is given."""

from __future__ import annotations

import hmac
import re
from base64 import b32decode
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from backupd.columns import SeedInvalid
from backupd.redact import Secret

SHORTEST = 10  # bytes; what the first authenticator apps used. RFC 4226, section 4, asks for 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Algorithm(StrEnum):
    """The hash inside the HMAC. Most apps know SHA1 only; its weakness against collisions does not matter in an HMAC."""

    SHA1 = "sha1"
    SHA256 = "sha256"
    SHA512 = "sha512"


@dataclass(frozen=True, slots=True)
class Parameters:
    """How codes are made. `period_s` is the time step in seconds."""

    digits: int = 6
    period_s: int = 30
    algorithm: Algorithm = Algorithm.SHA1

    def __post_init__(self) -> None:
        if self.digits not in (6, 7, 8) or self.period_s < 1:
            raise ValueError("codes have 6 to 8 digits and a period of at least a second")


STANDARD = Parameters()


@dataclass(frozen=True, slots=True)
class Seed:
    """The shared secret's bytes, and what is odd about it without being wrong."""

    key: Secret
    warnings: tuple[str, ...] = ()


def decode_seed(text: Secret) -> Seed:
    """The seed that this base32 says; spaces, hyphens, lower case and missing padding are as apps take them.

    Raises SeedInvalid: empty, other characters, or a length that base32 never has.
    """
    try:
        written = text.text()
    except ValueError:
        raise SeedInvalid("it is not even text") from None
    # ASCII first, for upper() makes ASCII letters out of others: of the dotless i, of the long s
    bare = re.sub(r"[ \t-]", "", written)
    if not bare.isascii():
        raise SeedInvalid("it has characters outside of ASCII")
    bare = bare.upper()
    letters = bare.rstrip("=")
    if not letters:
        raise SeedInvalid("it is empty")
    if not re.fullmatch("[A-Z2-7]+", letters):
        raise SeedInvalid("it has characters that base32 does not know")
    padded = letters + "=" * (-len(letters) % 8)
    if len(letters) % 8 in (1, 3, 6) or (bare != letters and bare != padded):
        raise SeedInvalid(f"base32 never has this length: {len(letters)} characters, {len(bare) - len(letters)} of padding")
    key = Secret(b32decode(padded), "TOTP seed")
    warnings = []
    if len(key) < SHORTEST:
        warnings.append(f"a seed of {len(key)} bytes: 10 is the least in use, RFC 4226 asks for 16")
    if _last_bits(letters):
        warnings.append("the seed's last character holds bits that belong to no byte: cut off, or drawn letter by letter")
    return Seed(key, tuple(warnings))


def hotp(key: Secret, counter: int, parameters: Parameters = STANDARD) -> str:
    """The code of this counter: RFC 4226, section 5.3."""
    digest = hmac.digest(key.reveal(), counter.to_bytes(8, "big"), parameters.algorithm.value)
    offset = digest[-1] & 0x0F
    number = int.from_bytes(digest[offset : offset + 4], "big") & 0x7FFFFFFF
    return str(number % 10**parameters.digits).zfill(parameters.digits)


def code(key: Secret, at: datetime, parameters: Parameters = STANDARD) -> str:
    """The code that an authenticator shows at `at` (aware): RFC 6238, section 4."""
    return hotp(key, _step(at, parameters), parameters)


def verify(key: Secret, given: str, at: datetime, parameters: Parameters = STANDARD, *, window: int = 1) -> bool:
    """Whether `given` is the code of `at`, or of up to `window` periods before or after. Looks at all, in constant time."""
    good = False
    for expected in _window(key, at, parameters, window):
        good |= hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace"))
    return good


def wrong_code(key: Secret, at: datetime, parameters: Parameters = STANDARD, *, window: int = 1) -> str:
    """A code of the right form that `verify` must refuse: the next number after the right one that is right in no period."""
    right = _window(key, at, parameters, window)
    number = int(code(key, at, parameters))
    candidates = (str((number + more) % 10**parameters.digits).zfill(parameters.digits) for more in range(1, len(right) + 1))
    return next(each for each in candidates if each not in right)


def _window(key: Secret, at: datetime, parameters: Parameters, window: int) -> list[str]:
    middle = _step(at, parameters)
    return [hotp(key, step, parameters) for step in range(max(0, middle - window), middle + window + 1)]


def _step(at: datetime, parameters: Parameters) -> int:
    if at.tzinfo is None or at < _EPOCH:
        raise ValueError("a time is aware, and not before 1970")
    elapsed = at - _EPOCH
    return (elapsed.days * 86_400 + elapsed.seconds) // parameters.period_s


def _last_bits(letters: str) -> int:
    """The bits of the last character beyond the last whole byte; a writer of base32 leaves them zero (RFC 4648, 3.5)."""
    value = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".index(letters[-1])
    return int(value & ((1 << (len(letters) * 5 % 8)) - 1))
