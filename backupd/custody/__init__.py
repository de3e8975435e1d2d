"""Where secrets are kept, and how they are fetched: never configured by value, always by reference.

A custodian is one place. `locator` names the secret without telling it, so that it can be compared, recorded and printed.
A new kind of place is one file beside this one and one line in `_PLACES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from backupd.custody.credential import Credential
from backupd.custody.env import EnvironmentVariable
from backupd.custody.file import AnyFile, FileId, PrivateFile, to_others
from backupd.custody.member import Member, MemberKeeper
from backupd.custody.rights import Rights
from backupd.errors import ConfigError
from backupd.redact import Secret

if TYPE_CHECKING:  # the clients of servers are imported by whoever refers to one
    from backupd.custody.key_vault import KeyVaults
    from backupd.custody.vault_session import VaultSession


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

    @property
    def replaceable(self) -> bool:
        """Whether this value of it can be replaced: a fixed version cannot, nor one that another key wraps."""

    def replace(self, new: Secret, seen: Secret) -> None:
        """Put `new` there, durably and whole, if what `fetch` gives is still `seen`; compare and swap.

        Raises SecretChanged when it is something else by now, CustodyError when the place does not take the value, Busy when
        it is locked, and SecretUnavailable as `fetch` does. JSON objects may come back spelt otherwise: fetch again before the
        next `replace`.
        """


@runtime_checkable
class Guarded(Protocol):
    """A place behind a server that decides who may read: it can be asked what our identity may do."""

    @property
    def wrapped_by(self) -> str | None:
        """The locator of the key that the secret is wrapped by there, if it is."""

    def rights(self) -> Rights:
        """What gives our identity the secret, or might. Where the server tells nobody's rights, it is asked for and forgotten.

        Raises SecretUnavailable when there is no answer, and Denied when the server answers but tells our identity nothing.
        """


@runtime_checkable
class Filed(Protocol):
    """A place that is a file of this host, which may have other names: links, mounts, or a credential's."""

    @property
    def file(self) -> FileId | None:
        """Which file it is, None where there is none."""


@dataclass(frozen=True, slots=True)
class SecretRef:
    """A reference to a secret: `kind` is one of `KINDS`, `name` a path, a variable's or a credential's name.

    With `field`, the place holds a JSON object and the secret is the member of that name. `version` and `unwrap` are for places
    that have them: which version of the secret, and which key of the same kind of place it is wrapped by.
    """

    kind: str
    name: str
    field: str | None = None
    version: str | None = None
    unwrap: str | None = None


@dataclass(frozen=True, slots=True)
class Servers:
    """One identity's sessions with the servers that references may name; None where none is configured."""

    vault: VaultSession | None = None
    key_vaults: KeyVaults | None = None


def _vault(ref: SecretRef, _: Mapping[str, str], servers: Servers) -> Custodian:
    from backupd.custody import vault

    if servers.vault is None:
        raise ConfigError(f"which server keeps {ref.name} is not said", "add a table [vault] with its address")
    if ref.version is not None and not (ref.version.isascii() and ref.version.isdecimal() and int(ref.version)):
        raise ConfigError(f"not the version of a secret in Vault: {ref.version!r}", "a version is 1, 2, 3, …")
    return vault.VaultSecret(
        servers.vault,
        vault.Place.parse(ref.name),
        vault.VALUE if ref.field is None else ref.field,
        int(ref.version) if ref.version else None,
        vault.Place.parse(ref.unwrap, mount_is_first=False) if ref.unwrap else None,
    )


def _azure(ref: SecretRef, _: Mapping[str, str], servers: Servers) -> Custodian:
    from backupd.custody import key_vault

    vaults = servers.key_vaults or key_vault.KeyVaults()
    secret = key_vault.KeyVaultSecret.parse(vaults, ref.name, ref.version)
    if ref.unwrap is None:
        return _member(secret, ref)
    return key_vault.Unwrapped(_member(secret, ref), secret, key_vault.KeyId.parse(ref.unwrap))


def _member(place: Custodian, ref: SecretRef) -> Custodian:
    return place if ref.field is None else Member(place, ref.field)


_PLACES: Mapping[str, Callable[[SecretRef, Mapping[str, str], Servers], Custodian]] = {
    "file": lambda ref, _, __: _member(PrivateFile(ref.name), ref),
    "env": lambda ref, environ, _: _member(EnvironmentVariable(ref.name, environ), ref),
    "credential": lambda ref, environ, _: _member(Credential(ref.name, environ), ref),
    "vault": _vault,
    "azure": _azure,
}
KINDS = tuple(_PLACES)
SERVED = ("vault", "azure")  # the kinds that know versions and wrapped values


def open_custodian(ref: SecretRef, environ: Mapping[str, str], servers: Servers = Servers()) -> Custodian:
    """The custodian that `ref` names; nothing is fetched yet. `environ` is the environment of this process, or a test's.

    Raises ConfigError for an unknown kind, or a name that such a place cannot have.
    """
    place = _PLACES.get(ref.kind)
    if place is None:
        raise ConfigError(f"there is no custodian of the kind {ref.kind!r}", f"use one of {', '.join(KINDS)}")
    if (ref.version or ref.unwrap) and ref.kind not in SERVED:
        raise ConfigError(f"a {ref.kind} has no version and nothing to unwrap", "remove `version` and `unwrap`")
    return place(ref, environ, servers)


def guard_of(custodian: Custodian) -> Guarded | None:
    """The server's answer on who may have this secret; None for a place that no server guards."""
    place = custodian.place if isinstance(custodian, Member) else custodian
    return place if isinstance(place, Guarded) else None


def file_of(custodian: Custodian) -> FileId | None:
    """Which file of this host the secret lies in; None for a place that is no file, or is not there."""
    place = custodian.place if isinstance(custodian, Member) else custodian
    return place.file if isinstance(place, Filed) else None


def to_compare(custodian: Custodian) -> Custodian:
    """The same secret, given also where its file is open to others: what nobody may use must still be nothing else's copy."""
    place = custodian.place if isinstance(custodian, Member) else custodian
    if not isinstance(place, PrivateFile):
        return custodian
    anyone = AnyFile(place.path, place.locator)
    return Member(anyone, custodian.name) if isinstance(custodian, Member) else anyone


def open_to_others(custodian: Custodian) -> bool:
    """Whether the secret lies in a file that others may read or write."""
    place = custodian.place if isinstance(custodian, Member) else custodian
    return isinstance(place, PrivateFile) and to_others(place.path)


def beside(custodian: Custodian) -> list[Secret]:
    """What whoever can fetch this secret has with it: the texts of the JSON object that it is a member of, itself too.

    Raises SecretUnavailable.
    """
    return custodian.beside() if isinstance(custodian, Member) else []


def keeper(custodian: Custodian) -> Keeper:
    """What replaces the secret of this custodian. Raises ConfigError for a place that only others can write."""
    place = custodian.place if isinstance(custodian, Member) else custodian
    if not isinstance(place, Keeper) or not place.replaceable:
        raise ConfigError(f"backupd cannot write to {custodian.locator}", "put the new value there by hand")
    return MemberKeeper(custodian, place) if isinstance(custodian, Member) else place
