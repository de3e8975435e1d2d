"""Column keys as custodians keep them: a keyring with ids, a list of Fernet keys, or a passphrase. Never encrypts anything.

    {"current": "2026-1", "keys": {"2025-1": "<32 bytes in base64>", "2026-1": "<32 bytes in base64>"}}

A member `retired` may list the ids of keys that were there once, so that a value which still names one is told apart from one
under a key that nobody knows. A member `created` may say when keys were made: {"2026-1": "2026-01-05"}. An archive of retired
keys is a keyring too, and nothing encrypts with it. Parsing is strict: a key that is misread locks people out. No message holds
a key, or a piece of one.
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from types import MappingProxyType
from typing import Any

from backupd.columns import KeysUnusable, RetiredKey, UnknownKey
from backupd.redact import Secret, secret_due

KEY_BYTES = 32
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,32}")
_CREATED_HINT = 'write {"created": {"ID": "2026-01-31", …}}, or leave it out'
_HINT = 'a keyring is {"current": "ID", "keys": {"ID": "32 bytes in base64", …}}'


@dataclass(frozen=True, slots=True)
class Keyring:
    """AES-256 keys by id. `current` is the one to encrypt with; the others only read. `retired` ids have no key here.

    `created` holds the day (UTC) on which a key was made, of the keys for which it is known.
    """

    current: str
    keys: Mapping[str, Secret]
    retired: tuple[str, ...] = ()
    created: Mapping[str, date] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", MappingProxyType(dict(self.keys)))
        object.__setattr__(self, "created", MappingProxyType(dict(self.created)))
        for key_id, key in self.keys.items():
            _check_key(key_id, key)
        if self.current not in self.keys:
            raise KeysUnusable("the keyring's current key is not among its keys", _HINT)
        if len({key.reveal() for key in self.keys.values()}) != len(self.keys):
            raise KeysUnusable("the keyring has the same key under two ids", "give each id a key of its own")
        if set(self.created) - set(self.keys):
            raise KeysUnusable("the keyring says when a key was created that is not in it", _HINT)
        for key_id in self.retired:
            _check_id(key_id)
            if key_id in self.keys:
                raise KeysUnusable(f"the keyring has the key {key_id!r}, and says that it is retired", "it can be one only")

    @classmethod
    def parse(cls, secret: Secret) -> Keyring:
        """The keyring that this JSON says. Raises KeysUnusable, and TypeError for what is no Secret."""
        if not isinstance(secret, Secret):
            raise secret_due("a keyring's JSON", secret)
        try:
            return _parsed(secret)
        except KeysUnusable as error:
            said = error.message, error.hint
        # Anew, for whatever logs an error may log the local variables of its frames, and those of the first one hold keys.
        raise KeysUnusable(*said)

    @classmethod
    def generate(cls, key_id: str, on: date | None = None) -> Keyring:
        """A keyring of one fresh key, made `on` that day. Raises KeysUnusable for an id that is none."""
        key = Secret(os.urandom(KEY_BYTES), f"column key {key_id}")
        return cls(key_id, {key_id: key}, created={} if on is None else {key_id: on})

    def extended(self, key_id: str, on: date | None = None) -> Keyring:
        """This keyring with a fresh key that becomes the current one at once. Raises KeysUnusable.

        Whoever fetched the keyring earlier cannot read what is then written: a rotation lets the key be `joined` first.
        """
        return self.joined(Keyring.generate(key_id, on)).promoted(key_id)

    def joined(self, other: Keyring) -> Keyring:
        """This keyring with the other's current key, which only reads here. Raises KeysUnusable for an id that is taken."""
        key_id = other.current
        if key_id in self.keys or key_id in self.retired:
            raise KeysUnusable(f"the keyring has, or had, a key {key_id!r} already", "choose a new id")
        created = {key_id: other.created[key_id]} if key_id in other.created else {}
        return replace(self, keys={**self.keys, key_id: other.key(key_id)}, created={**self.created, **created})

    def promoted(self, key_id: str) -> Keyring:
        """This keyring with another of its keys as the current one. Raises UnknownKey."""
        self.key(key_id)
        return replace(self, current=key_id)

    def without(self, key_id: str) -> Keyring:
        """Without a key, whose id it remembers as retired. Raises UnknownKey, and KeysUnusable for the current one."""
        self.key(key_id)
        kept = {each: key for each, key in self.keys.items() if each != key_id}
        created = {each: day for each, day in self.created.items() if each != key_id}
        return Keyring(self.current, kept, (*self.retired, key_id), created)

    def together(self, archive: Keyring) -> Keyring:
        """These keys and the archive's: what old backups are read with. Raises KeysUnusable when one id names two keys."""
        for key_id, key in archive.keys.items():
            if key_id in self.keys and self.keys[key_id] != key:
                raise KeysUnusable(
                    f"{key_id!r} is one key in the keyring and another in the archive",
                    "find out which is right; two keyrings have two archives",
                )
        keys = {**archive.keys, **self.keys}
        retired = tuple(each for each in self.retired if each not in keys)
        return Keyring(self.current, keys, retired, {**archive.created, **self.created})

    def key(self, key_id: str) -> Secret:
        """The key of this id. Raises UnknownKey, or RetiredKey where that is known."""
        if key_id in self.retired:
            raise RetiredKey(key_id)
        if key_id not in self.keys:
            raise UnknownKey(key_id)
        return self.keys[key_id]

    def render(self) -> Secret:
        """The JSON that `parse` reads, with a line end."""
        keys = {key_id: b64encode(key.reveal()).decode() for key_id, key in self.keys.items()}
        raw: dict[str, object] = {"current": self.current, "keys": keys}
        if self.retired:
            raw["retired"] = list(self.retired)
        if self.created:
            raw["created"] = {key_id: day.isoformat() for key_id, day in self.created.items()}
        return Secret(json.dumps(raw, indent=1) + "\n", "keyring")


@dataclass(frozen=True, slots=True)
class FernetKeys:
    """Fernet keys in the application's order: the first encrypts. Each is the urlsafe base64 text that Fernet takes."""

    keys: tuple[Secret, ...]

    @classmethod
    def parse(cls, secret: Secret) -> FernetKeys:
        """Keys parted by commas or line ends. Raises KeysUnusable. (A key is base64 of 32 bytes: 44 characters.)"""
        if not isinstance(secret, Secret):
            raise secret_due("a list of Fernet keys", secret)
        try:
            return cls(_fernet_keys(secret))
        except KeysUnusable as error:
            said = error.message, error.hint
        raise KeysUnusable(*said)  # anew, as a Keyring does


def key_id_of_fernet(index: int) -> str:
    """Fernet keys have no ids, so they are counted from the first of the list: `fernet-1`."""
    return f"fernet-{index + 1}"


def passphrase(secret: Secret) -> Secret:
    """A pgcrypto passphrase: UTF-8 without its line end. Raises KeysUnusable when it is empty or no UTF-8."""
    try:
        text = secret.text()
    except ValueError as error:
        raise KeysUnusable("the passphrase is not UTF-8 text", "pgcrypto takes it as text") from error
    if not text:
        raise KeysUnusable("the passphrase is empty", "put the passphrase where its custodian looks for it")
    return Secret(text, "passphrase")


def _parsed(secret: Secret) -> Keyring:
    raw: Any = None
    # What json raises holds the whole text, so it is neither looked at nor chained.
    with contextlib.suppress(ValueError, RecursionError):
        raw = json.loads(secret.reveal(), object_pairs_hook=_once)
    if not isinstance(raw, dict):
        raise KeysUnusable("the keyring is not a JSON object with each member once", _HINT)
    retired, created = raw.pop("retired", []), raw.pop("created", {})
    if set(raw) != {"current", "keys"} or not isinstance(raw["current"], str) or not isinstance(raw["keys"], dict):
        raise KeysUnusable("the keyring has not exactly a text `current` and an object `keys`", _HINT)
    if not isinstance(retired, list) or not all(isinstance(each, str) for each in retired):
        raise KeysUnusable("`retired` is not a list of ids", _HINT)
    if not isinstance(created, dict):
        raise KeysUnusable("the keyring's `created` is no object", _CREATED_HINT)
    keys = {key_id: _decode(key_id, text) for key_id, text in raw["keys"].items()}
    return Keyring(raw["current"], keys, tuple(retired), {key_id: _day(text) for key_id, text in created.items()})


def _fernet_keys(secret: Secret) -> tuple[Secret, ...]:
    words = [word.strip() for word in re.split(rb"[,\r\n]", secret.reveal()) if word.strip()]
    if not words:
        raise KeysUnusable("the list of Fernet keys is empty", "one key a line, the newest first")
    for number, word in enumerate(words, 1):
        if _base64(word.translate(bytes.maketrans(b"-_", b"+/"))) is None:
            raise KeysUnusable(f"key {number} of the list is no Fernet key", "it is 44 characters of urlsafe base64")
    if len(set(words)) != len(words):
        raise KeysUnusable("the list has the same Fernet key twice", "remove one of them")
    return tuple(Secret(word, key_id_of_fernet(index)) for index, word in enumerate(words))


def _check_id(key_id: str) -> None:
    if not _KEY_ID.fullmatch(key_id):
        raise KeysUnusable(f"not the id of a key: {key_id[:40]!r}", "an id is 1 to 32 of A-Z a-z 0-9 . _ -")


def _check_key(key_id: str, key: Secret) -> None:
    _check_id(key_id)
    if len(key) != KEY_BYTES:
        raise KeysUnusable(f"the key {key_id!r} has {len(key)} bytes, not {KEY_BYTES}", "AES-256 takes 32 random bytes")
    if len(set(key.reveal())) == 1:
        raise KeysUnusable(f"the key {key_id!r} is one byte over and over", "replace the placeholder by 32 random bytes")


def _decode(key_id: str, text: object) -> Secret:
    data = _base64(text.encode("utf-8", "replace")) if isinstance(text, str) else None
    if data is None:
        raise KeysUnusable(f"the key {key_id[:40]!r} is not 32 bytes in base64", "44 characters, the last of them =")
    return Secret(data, f"column key {key_id}")


def _day(text: object) -> date:
    """A day in its one spelling here; ISO 8601 has others, and so has `fromisoformat`."""
    with contextlib.suppress(ValueError):
        if isinstance(text, str) and (day := date.fromisoformat(text)).isoformat() == text:
            return day
    raise KeysUnusable("the keyring's `created` holds what is no day", _CREATED_HINT)


def _base64(word: bytes) -> bytes | None:
    """The 32 bytes that `word` is the base64 of, the one canonical spelling only; None for anything else."""
    try:
        data = binascii.a2b_base64(word, strict_mode=True)
    except ValueError:
        return None
    return data if len(data) == KEY_BYTES and b64encode(data) == word else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError
    return dict(pairs)
