"""Where secrets are kept, and how they are fetched: never configured by value, always by reference.

A custodian is one place. `locator` names the secret without telling it, so that it can be compared, recorded and printed.
A new kind of place is one file beside this one and one line in `_PLACES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from backupd.custody.credential import Credential
from backupd.custody.env import EnvironmentVariable
from backupd.custody.file import PrivateFile
from backupd.custody.member import Member, MemberKeeper
from backupd.errors import ConfigError
from backupd.redact import Secret


class Custodian(Protocol):
    """One secret in one place. Every implementation passes `tests/custody/contract.py`."""

    @property
    def locator(self) -> str:
        """The place as a URL-like text, the same for the same secret: `file:/etc/backupd/keyring.json`, `env:SEED`.

        A member of a JSON object has `#member` at its end; what stands before the `#` is the place that is shared.
        """

    def fetch(self) -> Secret:
        """The secret's bytes as they are kept there (a file's trailing newline is part of the file, not of a password:
        `Secret.text()` strips one). Raises SecretUnavailable, which says why without the value."""


@runtime_checkable
class Keeper(Protocol):
    """A place that takes a new value. Every implementation passes `KeeperContract` in `tests/custody/contract.py`."""

    def replace(self, new: Secret, seen: Secret) -> None:
        """Put `new` there, durably and whole, if what `fetch` gives is still `seen`; compare and swap.

        Raises SecretChanged when it is something else by now, CustodyError when the place does not take the value, and
        SecretUnavailable as `fetch` does. JSON objects may come back spelt otherwise: fetch again before the next `replace`.
        """


@dataclass(frozen=True, slots=True)
class SecretRef:
    """A reference to a secret: `kind` is one of `KINDS`, `name` a path, a variable's or a credential's name.

    With `field`, the place holds a JSON object and the secret is the member of that name.
    """

    kind: str
    name: str
    field: str | None = None


_PLACES: Mapping[str, Callable[[str, Mapping[str, str]], Custodian]] = {
    "file": lambda name, _: PrivateFile(name),
    "env": EnvironmentVariable,
    "credential": Credential,
}
KINDS = tuple(_PLACES)


def open_custodian(ref: SecretRef, environ: Mapping[str, str]) -> Custodian:
    """The custodian that `ref` names; nothing is fetched yet. `environ` is the environment of this process, or a test's.

    Raises ConfigError for an unknown kind, or a name that such a place cannot have.
    """
    place = _PLACES.get(ref.kind)
    if place is None:
        raise ConfigError(f"there is no custodian of the kind {ref.kind!r}", f"use one of {', '.join(KINDS)}")
    custodian = place(ref.name, environ)
    return custodian if ref.field is None else Member(custodian, ref.field)


def keeper(custodian: Custodian) -> Keeper:
    """What replaces the secret of this custodian. Raises ConfigError for a place that only others can write."""
    place = custodian.place if isinstance(custodian, Member) else custodian
    if not isinstance(place, Keeper):
        raise ConfigError(f"backupd cannot write to {custodian.locator}", "put the new value there by hand")
    return MemberKeeper(custodian, place) if isinstance(custodian, Member) else place
