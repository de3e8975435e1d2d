"""One-time passwords: HOTP (RFC 4226) and TOTP (RFC 6238), and seeds as apps write them. No clock: `at` is given.

Nor a memory: a code is good once (RFC 6238, 5.2), and the application keeps the step that `accepted_step` tells. Two requests
with the same code race for it, so it has to be one statement that sets the step and looks whether it was lower:

    UPDATE users SET last_totp_step = :step WHERE id = :id AND coalesce(last_totp_step, -1) < :step
"""

from __future__ import annotations

import hmac
import os
import re
from base64 import b32decode, b32encode
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from urllib.parse import quote

from backupd.columns import SeedInvalid
from backupd.redact import Secret, secret_due

LENGTH = 20  # bytes of a new seed: the length of SHA-1's output, as RFC 4226, section 4, recommends
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


def new_seed() -> Secret:
    """A fresh seed, as the 32 characters of base32 that the column keeps and an authenticator takes."""
    return Secret(b32encode(os.urandom(LENGTH)), "TOTP seed")


def provisioning_uri(seed: Secret, account: str, issuer: str, parameters: Parameters = STANDARD) -> Secret:
    """The `otpauth://` address that an authenticator reads from a QR code. It holds the seed: show it once, and store it never.

    Raises SeedInvalid, and ValueError for an empty name or one with a colon, which parts issuer and account.
    """
    decode_seed(seed)
    for name in (account, issuer):
        if not name.strip() or ":" in name:
            raise ValueError("an account and an issuer have a name each, without a colon")
    label = f"{quote(issuer, safe='')}:{quote(account, safe='')}"  # before the seed is in a variable: it may fail
    letters = re.sub(r"[^A-Za-z2-7]", "", seed.text()).upper()
    query = [("secret", letters), ("issuer", issuer)]
    if parameters.algorithm is not Algorithm.SHA1:
        query.append(("algorithm", parameters.algorithm.upper()))
    if parameters.digits != STANDARD.digits:
        query.append(("digits", str(parameters.digits)))
    if parameters.period_s != STANDARD.period_s:
        query.append(("period", str(parameters.period_s)))
    arguments = "&".join(f"{name}={quote(value, safe='')}" for name, value in query)
    return Secret(f"otpauth://totp/{label}?{arguments}", "provisioning URI")


def decode_seed(text: Secret) -> Seed:
    """The seed that this base32 says; spaces, hyphens, lower case and missing padding are as apps take them.

    Raises SeedInvalid: empty, other characters, or a length that base32 never has; and TypeError for what is no Secret.
    """
    if not isinstance(text, Secret):
        raise secret_due("a seed", text)
    read = _read(text)
    if isinstance(read, Seed):
        return read
    # From here, for whatever logs an error may log the local variables of its frames, and those of `_read` hold the seed.
    raise SeedInvalid(read)


def _read(text: Secret) -> Seed | str:
    """The seed, or why it is none."""
    try:
        written = text.text()
    except ValueError:
        return "it is not even text"
    # ASCII first, for upper() makes ASCII letters out of others: of the dotless i, of the long s
    bare = re.sub(r"[ \t-]", "", written)
    if not bare.isascii():
        return "it has characters outside of ASCII"
    bare = bare.upper()
    letters = bare.rstrip("=")
    if not letters:
        return "it is empty"
    if not re.fullmatch("[A-Z2-7]+", letters):
        return "it has characters that base32 does not know"
    padded = letters + "=" * (-len(letters) % 8)
    if len(letters) % 8 in (1, 3, 6) or (bare != letters and bare != padded):
        return f"base32 never has this length: {len(letters)} characters, {len(bare) - len(letters)} of padding"
    key = Secret(b32decode(padded), "TOTP seed")
    warnings = []
    if len(key) < SHORTEST:
        warnings.append(f"a seed of {len(key)} bytes: 10 is the least in use, RFC 4226 asks for 16")
    if _last_bits(letters):
        warnings.append("the seed's last character holds bits that belong to no byte: cut off, or drawn letter by letter")
    return Seed(key, tuple(warnings))


def hotp(key: Secret, counter: int, parameters: Parameters = STANDARD) -> str:
    """The code of this counter: RFC 4226, section 5.3. Raises TypeError for a key that is no Secret."""
    if not isinstance(key, Secret):
        raise secret_due("the key of codes, decode_seed(…).key,", key)
    digest = hmac.digest(key.reveal(), counter.to_bytes(8, "big"), parameters.algorithm.value)
    offset = digest[-1] & 0x0F
    number = int.from_bytes(digest[offset : offset + 4], "big") & 0x7FFFFFFF
    return str(number % 10**parameters.digits).zfill(parameters.digits)


def code(key: Secret, at: datetime, parameters: Parameters = STANDARD) -> str:
    """The code that an authenticator shows at `at` (aware): RFC 6238, section 4."""
    return hotp(key, _step(at, parameters), parameters)


def verify(key: Secret, given: str, at: datetime, parameters: Parameters = STANDARD, *, window: int = 1) -> bool:
    """Whether `given` is the code of `at`, or of up to `window` periods before or after. Looks at all, in constant time."""
    return accepted_step(key, given, at, parameters, window=window) is not None


def accepted_step(
    key: Secret, given: str, at: datetime, parameters: Parameters = STANDARD, *, window: int = 1, after: int | None = None
) -> int | None:
    """The time step whose code `given` is, if it is later than `after`, the last one that was accepted; else None.

    Clocks may differ by `window` periods. Looks at all of them, in constant time. Where a code is that of two steps, the later
    one is told, so that it is spent for both. Raises TypeError for a code that is no text.
    """
    if not isinstance(given, str):
        raise TypeError(f"a code is text as it was typed, not {type(given).__name__}: a number has lost its leading zeros")
    typed = given.encode("utf-8", "replace")
    accepted = None
    for step in _window(at, parameters, window):
        good = hmac.compare_digest(hotp(key, step, parameters).encode(), typed)
        if good and (after is None or step > after):
            accepted = step
    return accepted


def wrong_code(key: Secret, at: datetime, parameters: Parameters = STANDARD, *, window: int = 1) -> str:
    """A code of the right form that `verify` must refuse: the next number after the right one that is right in no period."""
    right = [hotp(key, step, parameters) for step in _window(at, parameters, window)]
    number = int(code(key, at, parameters))
    candidates = (str((number + more) % 10**parameters.digits).zfill(parameters.digits) for more in range(1, len(right) + 1))
    return next(each for each in candidates if each not in right)


def _window(at: datetime, parameters: Parameters, window: int) -> range:
    middle = _step(at, parameters)
    return range(max(0, middle - window), middle + window + 1)


def _step(at: datetime, parameters: Parameters) -> int:
    if at.tzinfo is None or at < _EPOCH:
        raise ValueError("a time is aware, and not before 1970")
    elapsed = at - _EPOCH
    return (elapsed.days * 86_400 + elapsed.seconds) // parameters.period_s


def _last_bits(letters: str) -> int:
    """The bits of the last character beyond the last whole byte; a writer of base32 leaves them zero (RFC 4648, 3.5)."""
    value = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".index(letters[-1])
    return int(value & ((1 << (len(letters) * 5 % 8)) - 1))
