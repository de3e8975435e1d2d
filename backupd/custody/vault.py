"""Secrets in HashiCorp Vault or OpenBao: KV version 2, where wished wrapped by a Transit key. Never makes or deletes a path.

A secret is a member of the data at a path; the session that asks is in `vault_session`.
"""

from __future__ import annotations

import binascii
import contextlib
from base64 import b64decode
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from backupd.custody import vault_rights
from backupd.custody.file import LARGEST
from backupd.custody.member import member_of, spelt_as_before
from backupd.custody.rights import Rights
from backupd.custody.vault_session import Answer, VaultSession
from backupd.errors import ConfigError, CustodyError, SecretChanged, SecretUnavailable
from backupd.redact import Secret

VALUE = "value"  # the member that is meant where none is named; `vault kv put secret/x value=…` is how Vault's own guide begins
_MISMATCH = "check-and-set parameter did not match"


@dataclass(frozen=True, slots=True)
class Place:
    """A path below a mount: `secret/clinic/totp` is `clinic/totp` in `secret`, `team/kv//clinic` is `clinic` in `team/kv`."""

    mount: str
    path: str

    @classmethod
    def parse(cls, name: str, *, mount_is_first: bool = True) -> Place:
        """Where no `//` parts them, the mount is the first segment, or all but the last. Raises ConfigError."""
        mount, parted, path = name.partition("//")
        if not parted:
            mount, _, path = name.partition("/") if mount_is_first else name.rpartition("/")
        segments = f"{mount}/{path}".split("/")
        if any(each in ("", ".", "..") or not each.isprintable() for each in segments):
            raise ConfigError(f"not a path in Vault: {name!r}", "write MOUNT/PATH, or MOUNT//PATH for a mount with slashes")
        return cls(mount, path)

    def below(self, door: str) -> str:
        """The API path of what this place has behind a `door` of its engine: `data`, `metadata`, `decrypt`."""
        return f"{self.mount}/{door}/{self.path}"

    def locator(self, url: str, door: str) -> str:
        """The same as a locator."""
        return f"vault:{url}/{quote(self.below(door), safe='/')}"


@dataclass(frozen=True, slots=True)
class VaultSecret:
    """The member `field` of the data at `place`, of the newest version or of one; `unwrap` is the Transit key that wraps it."""

    session: VaultSession
    place: Place
    field: str = VALUE
    version: int | None = None
    unwrap: Place | None = None

    @property
    def locator(self) -> str:
        version = f"?version={self.version}" if self.version else ""
        return f"{self.place.locator(self.session.url, 'data')}{version}#{self.field}"

    @property
    def wrapped_by(self) -> str | None:
        """The key that the value is wrapped by, as a locator."""
        return self.unwrap.locator(self.session.url, "keys") if self.unwrap else None

    def fetch(self) -> Secret:
        """The member's value, unwrapped. Raises SecretUnavailable, each cause in its own words."""
        value = member_of(self._read()["data"], self.field, self._where, self.locator)
        return value if self.unwrap is None else self._unwrapped(value, self.unwrap)

    @property
    def replaceable(self) -> bool:
        return self.version is None and self.unwrap is None

    def replace(self, new: Secret, seen: Secret) -> None:
        """Write a version that differs in this member alone, if no version has come since the one that holds `seen`."""
        if not self.replaceable:
            raise ConfigError(
                f"backupd cannot write to {self.locator}", "a fixed version or a wrapped value is written by hand"
            )
        if not new.reveal().strip() or len(new) > LARGEST:
            raise CustodyError(f"the new value for {self.locator} is empty or larger than 1 MiB", "keep what is there")
        found = self._read()
        if member_of(found["data"], self.field, self._where, self.locator) != seen:
            raise SecretChanged(f"{self.locator} was changed by somebody else", "look at it, and try again")
        data = dict(found["data"])
        data[self.field] = spelt_as_before(data[self.field], new, self.locator)
        body = {"data": data, "options": {"cas": _version(found, self._where)}}
        answer = self.session.ask("POST", self.place.below("data"), body, again=False)
        if answer.ok:
            return
        if answer.says(_MISMATCH):
            raise SecretChanged(f"{self.locator} was changed by somebody else", "look at it, and try again")
        error = self.session.refused(answer, self._where)
        hint = "allow `update` on this path to who rotates keys" if answer.status == 403 else error.hint
        raise CustodyError(f"{self.locator} takes no new value: {error.message}", hint)

    def rights(self) -> Rights:
        """What the session's identity may do that gives it the secret. Fetches nothing. Raises as `vault_rights.of_secret`."""
        return vault_rights.of_secret(self.session, self.place, self.unwrap)

    @property
    def _where(self) -> str:
        return self.locator.rpartition("#")[0]

    def _read(self) -> dict[str, Any]:
        """`data` and `metadata` of the version."""
        params = {"version": str(self.version)} if self.version else {}
        answer = self.session.ask("GET", self.place.below("data"), params=params)
        found = answer.data
        if not answer.ok:
            raise self._missing(answer) if answer.status == 404 else self.session.refused(answer, self._where)
        if not isinstance(found.get("data"), dict) or not isinstance(found.get("metadata"), dict):
            raise SecretUnavailable(
                f"{self._where} is not a secret of KV version 2", "mount a KV version 2 engine there, or correct the path"
            )
        return found

    def _missing(self, answer: Answer) -> SecretUnavailable:
        metadata = answer.data.get("metadata")
        if isinstance(metadata, dict):
            number = metadata.get("version")
            if metadata.get("destroyed") is True:
                return SecretUnavailable(
                    f"{self._where}: version {number} was destroyed", "its data is gone for good: name another version"
                )
            if metadata.get("deletion_time"):
                return SecretUnavailable(
                    f"{self._where}: version {number} was deleted", "undelete it (`vault kv undelete`), or name another version"
                )
        if answer.errors:  # "no handler for route": nothing is mounted
            return self.session.refused(answer, self._where)
        missing = f"or has no version {self.version}" if self.version else "or was never written"
        return SecretUnavailable(f"{self._where} does not exist, {missing}", "write the secret there, or correct the path")

    def _unwrapped(self, value: Secret, key: Place) -> Secret:
        try:
            text = value.text().strip()
        except ValueError:
            text = ""
        if not text.startswith("vault:v"):
            raise SecretUnavailable(
                f"{self.locator} is not wrapped by a Transit key", "put what transit/encrypt gave there, or remove `unwrap`"
            )
        answer = self.session.ask("POST", key.below("decrypt"), {"ciphertext": text})
        where = f"{self.locator} cannot be unwrapped with {key.below('keys')}"
        if not answer.ok:
            if answer.status == 400:
                raise SecretUnavailable(where, "is it wrapped by this key, and by a version of it that is still allowed?")
            raise self.session.refused(answer, where)
        plaintext = answer.data.get("plaintext")
        found = None
        with contextlib.suppress(binascii.Error, TypeError, ValueError):  # what is raised may hold it
            found = b64decode(plaintext or "", validate=True)
        if not found or not found.strip():
            raise SecretUnavailable(f"{self.locator} is empty when unwrapped", "wrap the secret anew")
        return Secret(found, self.locator)


def _version(found: dict[str, Any], where: str) -> int:
    number = found["metadata"].get("version")
    if not isinstance(number, int):
        raise SecretUnavailable(f"{where} has no version", "is this a server of Vault or OpenBao?")
    return number
