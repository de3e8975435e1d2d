"""One member of a JSON object that another custodian keeps, as vaults and cloud secrets do. Never shows the object."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from backupd.errors import ConfigError, CustodyError, SecretChanged, SecretUnavailable
from backupd.redact import Secret


class _Place(Protocol):
    @property
    def locator(self) -> str: ...

    def fetch(self) -> Secret: ...


class _Writable(_Place, Protocol):
    def replace(self, new: Secret, seen: Secret) -> None: ...


@dataclass(frozen=True, slots=True)
class Member:
    """The member `name` of the JSON object in `place`: a text as it is, an object (a keyring) as JSON."""

    place: _Place
    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError(
                f"the field of {self.place.locator} has no name", "name a member of the JSON object, or leave it out"
            )

    @property
    def locator(self) -> str:
        return f"{self.place.locator}#{self.name}"

    def fetch(self) -> Secret:
        """The member's value. Raises SecretUnavailable: no JSON object, no such member, empty, or neither text nor object."""
        return member_of(_object(self.place, self.place.fetch()), self.name, self.place.locator, self.locator)

    def beside(self) -> list[Secret]:
        """Every text in the object, for who has this member has them all. Raises SecretUnavailable."""
        return [Secret(each.encode("utf-8", "surrogatepass")) for each in _texts(_object(self.place, self.place.fetch()))]


@dataclass(frozen=True, slots=True)
class MemberKeeper:
    """Replaces `member` alone, in a place that takes new values whole."""

    member: Member
    place: _Writable

    @property
    def replaceable(self) -> bool:
        return True

    def replace(self, new: Secret, seen: Secret) -> None:
        """Put `new` in the place of `seen`: a text stays a text, an object an object, and the other members what they are.

        A change to another member in between is a SecretChanged too.
        """
        whole = self.place.fetch()
        members = _object(self.place, whole)
        name, locator = self.member.name, self.member.locator
        if member_of(members, name, self.place.locator, locator) != seen:
            raise SecretChanged(f"{locator} was changed by somebody else", "look at it, and try again")
        members[name] = spelt_as_before(members[name], new, locator)
        self.place.replace(Secret(json.dumps(members, indent=1) + "\n", self.place.locator), whole)


def member_of(members: Mapping[str, Any], name: str, place: str, locator: str) -> Secret:
    """The value of the member `name`. `place` and `locator` are what the object and the member are called in messages.

    Raises SecretUnavailable: no such member, empty, or neither text nor object.
    """
    if name not in members:
        raise SecretUnavailable(f"{place} has no member {name!r}", "correct `field`, or add the member")
    found = members[name]
    value = json.dumps(found) if isinstance(found, dict) else found
    if not isinstance(value, str):
        raise SecretUnavailable(f"{locator} is neither a text nor an object", "put the value in quotes")
    if not value.strip():
        raise SecretUnavailable(f"{locator} is empty", "write the secret into it")
    return Secret(value.encode("utf-8", "surrogatepass"), locator)


def spelt_as_before(before: object, new: Secret, locator: str) -> object:
    """`new` as a text or as an object, whichever the value `before` is. Raises CustodyError when it cannot be that."""
    value: object = None
    # As below: what json and the codec raise hold the text.
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(new.reveal(), object_pairs_hook=_once) if isinstance(before, dict) else new.reveal().decode()
    if not isinstance(value, type(before)):
        raise CustodyError(f"the new value for {locator} is not what the old one was: a text, or an object", "keep it")
    return value


def _object(place: _Place, kept: Secret) -> dict[str, Any]:
    """The object that `place` keeps. What json raises holds the whole text, so it must not be chained to ours."""
    parsed: Any = None
    # Anything that json cannot read is no object; the exception itself may not be looked at.
    with contextlib.suppress(ValueError, RecursionError):
        parsed = json.loads(kept.reveal(), object_pairs_hook=_once)
    if not isinstance(parsed, dict):
        raise SecretUnavailable(
            f"{place.locator} is not a JSON object with each member once", "correct it, or leave `field` out to use the whole"
        )
    return parsed


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError
    return dict(pairs)
