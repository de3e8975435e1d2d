"""OpenPGP keys: what one can do and for how long, what speaks against it, and new ones.

Looks at public keys without any keyring. A secret key leaves this module only as a `Secret`; it has no passphrase, because its
custodian is what protects it, and nobody types one at night.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from backupd.errors import ConfigError, KeyUnusable
from backupd.openpgp.home import FINGERPRINT, KEY_FILE_BYTES, Home, Record, names
from backupd.redact import Secret, printable

Purpose = Literal["encrypt", "sign"]

WARN_DAYS = 30
LONGEST_USER_ID = 200
_ALGORITHMS = {
    1: "RSA",
    2: "RSA",
    3: "RSA",
    16: "Elgamal",
    17: "DSA",
    18: "ECDH",
    19: "ECDSA",
    20: "Elgamal",
    22: "EdDSA",
}  # RFC 4880, 9.1
_BY_FACTORS_OR_LOGARITHMS = {"RSA", "Elgamal", "DSA"}
_ENOUGH_BITS = 2048  # of those; elliptic curves count otherwise


@dataclass(frozen=True, slots=True)
class Subkey:
    """One key of a certificate, the primary included. `algorithm` is `RSA` or a curve's name, `bits` its size.

    `names` are its fingerprint and its keygrip, as in `home.names`.
    """

    fingerprint: str
    created_at: datetime
    expires_at: datetime | None
    revoked: bool
    algorithm: str
    bits: int
    names: frozenset[str]

    @property
    def key_id(self) -> str:
        """How a sealed stream names it: the last 16 digits of the fingerprint."""
        return self.fingerprint[-16:]

    def usable(self, now: datetime) -> bool:
        """Whether it may be used at this time."""
        return not self.revoked and self.created_at <= now and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One certificate. `data` is the file's content, armoured or not, as it was read."""

    fingerprint: str
    user_id: str
    created_at: datetime
    expires_at: datetime | None
    revoked: bool
    encryption_subkeys: tuple[Subkey, ...]
    signing_keys: tuple[Subkey, ...]
    weak: tuple[str, ...]
    data: bytes

    @property
    def can_sign(self) -> bool:
        """Whether it was made for signing, by its primary key or by a subkey."""
        return bool(self.signing_keys)


@dataclass(frozen=True, slots=True)
class Problem:
    """What speaks against a key: now (`fatal`), or soon."""

    fatal: bool
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A new key. `public` and `secret` are armoured; `revocation` is the certificate that, once imported, ends its use: it is
    armoured too, behind a colon that has to be removed first and so keeps it from being imported by accident."""

    fingerprint: str
    public: bytes
    secret: Secret
    revocation: Secret


def inspect(data: bytes, where: str, *, home: Home | None = None) -> PublicKey:
    """The one public key that a file holds; `where` names it in errors. Expired and revoked keys are read too: see `problems`.

    Raises KeyUnusable: a secret key, several keys, a key of another version than 4, not a key, more than 1 MiB.
    """
    try:
        if home is not None:
            return _public_key(home.show(data), data)
        with Home() as private:
            return _public_key(private.show(data), data)
    except KeyUnusable as error:
        raise KeyUnusable(f"{where}: {error.message}", error.hint) from error


def read(path: Path, home: Home) -> PublicKey:
    """The public key in a file, looked at in `home`. Raises ConfigError: it cannot be read; KeyUnusable: it holds none."""
    try:
        with path.open("rb") as file:
            data = file.read(KEY_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"the key {printable(str(path))} cannot be read: {error.strerror}", "check its path and mode"
        ) from error
    return inspect(data, printable(str(path)), home=home)


def problems(key: PublicKey, now: datetime, *, purpose: Purpose, warn_days: int = WARN_DAYS) -> list[Problem]:
    """What speaks against using `key` at `now`, the worst first; nothing when it is sound for `warn_days` days more."""
    name = f"key {key.fingerprint} ({key.user_id})"
    found = [*_fatal(key, now, name, purpose)]
    if not found:
        found += _soon(key, now, name, purpose, timedelta(days=warn_days))
    found += [Problem(False, f"{name}: {weakness} is weak", "make a new key: backupd keys generate") for weakness in key.weak]
    return found


def generate(user_id: str, *, purpose: Purpose, expires_days: int | None, home: Home | None = None) -> KeyPair:
    """A new key of Curve25519: to encrypt to (a primary key that only certifies, and a subkey), or to sign with (one key).

    It is made in `home`, or in a private one, which must be in memory. Raises KeyUnusable: a user id that cannot be one;
    Refused.
    """
    if not 0 < len(user_id) <= LONGEST_USER_ID or not user_id.isprintable() or user_id != user_id.strip():
        raise KeyUnusable("a user id is one line of printable text", "as in: Clinic backup, operations")
    if expires_days is not None and not 0 < expires_days <= 36_500:
        raise KeyUnusable(f"a key cannot expire after {expires_days} days", "give at least 1 day, or none at all")
    if home is not None:
        return _generate(home, user_id, purpose, expires_days)
    with Home() as private:
        return _generate(private, user_id, purpose, expires_days)


def _generate(home: Home, user_id: str, purpose: Purpose, expires_days: int | None) -> KeyPair:
    home.require_secrecy()
    encrypt = ("Subkey-Type: ECDH", "Subkey-Curve: cv25519", "Subkey-Usage: encrypt")
    lines = (
        "%no-protection",
        *("Key-Type: EDDSA", "Key-Curve: ed25519", "Key-Usage: cert" if purpose == "encrypt" else "Key-Usage: sign"),
        *(encrypt if purpose == "encrypt" else ()),
        f"Name-Real: {user_id}",
        f"Expire-Date: {f'{expires_days}d' if expires_days is not None else 0}",
        # Said here because gpg 2.4 would otherwise note that this key takes its OCB packets, which other programs cannot read.
        "Preferences: AES256 AES192 AES SHA512 SHA384 SHA256 Uncompressed",
        "%commit",
    )
    made = home.gnupg().gen_key("\n".join(lines) + "\n")
    fingerprint = made.fingerprint
    if not isinstance(fingerprint, str) or not FINGERPRINT.fullmatch(fingerprint):
        raise KeyUnusable("gpg made no key", "is there entropy, and room in shared memory?")
    public = home.call("--armor", "--export", fingerprint).stdout
    secret = Secret(home.call("--armor", "--export-secret-keys", fingerprint).stdout, label="OpenPGP secret key")
    certificate = (home.path / "openpgp-revocs.d" / f"{fingerprint}.rev").read_bytes()
    key = inspect(public, "the new key", home=home)
    if key.fingerprint != fingerprint or b"PRIVATE KEY" not in secret.reveal():
        raise KeyUnusable("gpg exported another key than it made", "is the installed gpg whole?")
    # Without gpg's words before it: they name the fingerprint, which would then be taken for a secret wherever it stands.
    certificate = certificate[certificate.index(b":-----BEGIN") :]
    return KeyPair(fingerprint, public, secret, Secret(certificate, label="OpenPGP revocation certificate"))


def _public_key(records: tuple[Record, ...], data: bytes) -> PublicKey:
    kinds = [record.kind for record in records]
    if "sec" in kinds or "ssb" in kinds:
        raise KeyUnusable("this is a secret key, and it must leave this host", "use the file that gpg --export made")
    if kinds.count("pub") != 1:
        raise KeyUnusable(f"{kinds.count('pub')} keys in one file", "one file holds one key")
    _, armour, rest = data.partition(b"-----END PGP PUBLIC KEY BLOCK-----")
    if armour and rest.strip():
        raise KeyUnusable("something follows the key", "one file holds one key, and nothing else")
    keys = list(_keys(records))
    primary = keys[0][0]
    users = [printable(record.field(10)) for record in records if record.kind == "uid" and record.field(2) not in {"r", "i"}]
    return PublicKey(
        fingerprint=primary.fingerprint,
        user_id=users[0] if users else "no user id",
        created_at=primary.created_at,
        expires_at=primary.expires_at,
        revoked=primary.revoked,
        encryption_subkeys=tuple(key for key, can in keys if "e" in can),
        signing_keys=tuple(key for key, can in keys if "s" in can),
        weak=tuple(dict.fromkeys(weakness for key, _ in keys if (weakness := _weakness(key)))),
        data=data,
    )


def _keys(records: tuple[Record, ...]) -> Iterable[tuple[Subkey, str]]:
    """Each key with what it may do; those without a valid signature of the primary key (`i`) are left out."""
    for at, (record, following) in enumerate(itertools.pairwise(records), 1):
        if record.kind not in {"pub", "sub"}:
            continue
        if record.field(2) == "i":
            if record.kind == "pub":
                raise KeyUnusable("the key has no valid signature of its own", "was the file cut short?")
            continue
        fingerprint = following.field(10)
        if following.kind != "fpr" or not FINGERPRINT.fullmatch(fingerprint):
            raise KeyUnusable(
                "the key is not of version 4",
                "other programs could not read what is sealed to it: make an RSA or Curve25519 key",
            )
        number, bits = int(record.field(4)), int(record.field(3))
        algorithm = record.field(17) or _ALGORITHMS.get(number, f"algorithm {number}")
        created, expires = _time(record.field(6)), _time(record.field(7))
        if created is None:
            raise KeyUnusable("the key does not say when it was made", "make a new key")
        called = names(itertools.takewhile(lambda each: each.kind not in {"pub", "sub"}, records[at:]))
        yield Subkey(fingerprint, created, expires, record.field(2) == "r", algorithm, bits, called), record.field(12)


def _weakness(key: Subkey) -> str | None:
    return (
        f"{key.algorithm} of {key.bits} bits"
        if key.algorithm in _BY_FACTORS_OR_LOGARITHMS and key.bits < _ENOUGH_BITS
        else None
    )


def _time(field: str) -> datetime | None:
    return datetime.fromtimestamp(int(field), UTC) if field else None


def _fatal(key: PublicKey, now: datetime, name: str, purpose: Purpose) -> Iterable[Problem]:
    if key.revoked:
        yield Problem(True, f"{name} is revoked", "use the key that replaced it")
    elif key.created_at > now:
        yield Problem(True, f"{name} was made in the future, {_day(key.created_at)}", "set the clock of this host")
    elif key.expires_at is not None and key.expires_at <= now:
        yield Problem(
            True,
            f"{name} expired on {_day(key.expires_at)}",
            "extend it with gpg --quick-set-expire, and export it anew",
        )
    elif not any(subkey.usable(now) for subkey in _working(key, purpose)):
        work = "be encrypted to" if purpose == "encrypt" else "sign"
        if _working(key, purpose):
            state, hint = "has no part left that is valid and can", "extend it with gpg --quick-set-expire, or make a new key"
        else:
            state, hint = "has no part that can", "it is for something else: name the right key, or make a new one"
        yield Problem(True, f"{name} {state} {work}", f"{hint}: backupd keys generate")


def _soon(key: PublicKey, now: datetime, name: str, purpose: Purpose, notice: timedelta) -> Iterable[Problem]:
    ends = [subkey.expires_at for subkey in _working(key, purpose) if subkey.usable(now)]
    last = None if None in ends else max(end for end in ends if end is not None)
    end = min((moment for moment in (last, key.expires_at) if moment is not None), default=None)
    if end is not None and end - now <= notice:
        yield Problem(False, f"{name} expires on {_day(end)}", "extend it with gpg --quick-set-expire, and export it anew")


def _working(key: PublicKey, purpose: Purpose) -> tuple[Subkey, ...]:
    return key.encryption_subkeys if purpose == "encrypt" else key.signing_keys


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"
