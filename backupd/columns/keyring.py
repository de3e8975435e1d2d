"""Column keys as custodians keep them: a keyring with ids, a list of Fernet keys, or a passphrase. Never encrypts anything.

    {"current": "2026-1", "keys": {"2025-1": "<32 bytes in base64>", "2026-1": "<32 bytes in base64>"}}

Parsing is strict: a key that is misread locks people out. No message holds a key, or a piece of one.
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from backupd.columns import KeysUnusable, UnknownKey
from backupd.redact import Secret

KEY_BYTES = 32
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,32}")
_HINT = 'a keyring is {"current": "ID", "keys": {"ID": "32 bytes in base64", …}}'


@dataclass(frozen=True, slots=True)
class Keyring:
    """AES-256 keys by id. `current` is the one to encrypt with; the others only read."""

    current: str
    keys: Mapping[str, Secret]

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", MappingProxyType(dict(self.keys)))
        for key_id, key in self.keys.items():
            _check_key(key_id, key)
        if self.current not in self.keys:
            raise KeysUnusable("the keyring's current key is not among its keys", _HINT)
        if len({key.reveal() for key in self.keys.values()}) != len(self.keys):
            raise KeysUnusable("the keyring has the same key under two ids", "give each id a key of its own")

    @classmethod
    def parse(cls, secret: Secret) -> Keyring:
        """The keyring that this JSON says. Raises KeysUnusable."""
        raw: Any = None
        # What json raises holds the whole text, so it is neither looked at nor chained.
        with contextlib.suppress(ValueError, RecursionError):
            raw = json.loads(secret.reveal(), object_pairs_hook=_once)
        if not isinstance(raw, dict):
            raise KeysUnusable("the keyring is not a JSON object with each member once", _HINT)
        if set(raw) != {"current", "keys"} or not isinstance(raw["current"], str) or not isinstance(raw["keys"], dict):
            raise KeysUnusable("the keyring has not exactly a text `current` and an object `keys`", _HINT)
        return cls(raw["current"], {key_id: _decode(key_id, text) for key_id, text in raw["keys"].items()})

    @classmethod
    def generate(cls, key_id: str) -> Keyring:
        """A keyring of one fresh key. Raises KeysUnusable for an id that is none."""
        return cls(key_id, {key_id: Secret(os.urandom(KEY_BYTES), f"column key {key_id}")})

    def extended(self, key_id: str) -> Keyring:
        """This keyring with a fresh key that becomes the current one: the first step of a rotation. Raises KeysUnusable."""
        if key_id in self.keys:
            raise KeysUnusable(f"the keyring has a key {key_id!r} already", "choose a new id")
        return Keyring(key_id, {**self.keys, **Keyring.generate(key_id).keys})

    def key(self, key_id: str) -> Secret:
        """The key of this id. Raises UnknownKey."""
        if key_id not in self.keys:
            raise UnknownKey(key_id)
        return self.keys[key_id]

    def render(self) -> Secret:
        """The JSON that `parse` reads, with a line end."""
        keys = {key_id: b64encode(key.reveal()).decode() for key_id, key in self.keys.items()}
        return Secret(json.dumps({"current": self.current, "keys": keys}, indent=1) + "\n", "keyring")


@dataclass(frozen=True, slots=True)
class FernetKeys:
    """Fernet keys in the application's order: the first encrypts. Each is the urlsafe base64 text that Fernet takes."""

    keys: tuple[Secret, ...]

    @classmethod
    def parse(cls, secret: Secret) -> FernetKeys:
        """Keys parted by commas or line ends. Raises KeysUnusable. (A key is base64 of 32 bytes: 44 characters.)"""
        words = [word.strip() for word in re.split(rb"[,\r\n]", secret.reveal()) if word.strip()]
        if not words:
            raise KeysUnusable("the list of Fernet keys is empty", "one key a line, the newest first")
        for number, word in enumerate(words, 1):
            if _base64(word.translate(bytes.maketrans(b"-_", b"+/"))) is None:
                raise KeysUnusable(f"key {number} of the list is no Fernet key", "it is 44 characters of urlsafe base64")
        if len(set(words)) != len(words):
            raise KeysUnusable("the list has the same Fernet key twice", "remove one of them")
        return cls(tuple(Secret(word, key_id_of_fernet(index)) for index, word in enumerate(words)))


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


def _check_key(key_id: str, key: Secret) -> None:
    if not _KEY_ID.fullmatch(key_id):
        raise KeysUnusable(f"not the id of a key: {key_id[:40]!r}", "an id is 1 to 32 of A-Z a-z 0-9 . _ -")
    if len(key) != KEY_BYTES:
        raise KeysUnusable(f"the key {key_id!r} has {len(key)} bytes, not {KEY_BYTES}", "AES-256 takes 32 random bytes")
    if len(set(key.reveal())) == 1:
        raise KeysUnusable(f"the key {key_id!r} is one byte over and over", "replace the placeholder by 32 random bytes")


def _decode(key_id: str, text: object) -> Secret:
    data = _base64(text.encode("utf-8", "replace")) if isinstance(text, str) else None
    if data is None:
        raise KeysUnusable(f"the key {key_id[:40]!r} is not 32 bytes in base64", "44 characters, the last of them =")
    return Secret(data, f"column key {key_id}")


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
