"""The rules of a token, and the names in them: which paths are worth a question that nobody here could think of.

A server sums up what a token's policies allow (`sys/internal/ui/resultant-acl`, by the default policy), and lists those ways to
log in that they touch (`sys/internal/ui/mounts`). Neither decides anything here, for OpenBao's sum leaves out the rules with a
`+`: each path that is found this way is asked about like every other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from backupd.custody.vault_session import VaultSession

ANY = "backupd-asks"  # stands for a name that is not known: what is allowed there is allowed by a pattern
TELL = 'path "sys/internal/ui/resultant-acl" { capabilities = ["read"] }'


@dataclass(frozen=True, slots=True)
class Rule:
    """A path, from the token's namespace on; with `begins`, the beginning of paths."""

    path: str
    begins: bool


def told(session: VaultSession) -> tuple[Rule, ...] | None:
    """The rules of our token; None when the server does not tell them. Raises SecretUnavailable when it does not answer."""
    home = session.standing().namespace
    answer = session.ask("GET", "sys/internal/ui/resultant-acl", namespace=home)
    exact, globs = answer.data.get("exact_paths"), answer.data.get("glob_paths")
    if not answer.ok or not isinstance(exact, dict | None) or not isinstance(globs, dict | None):
        return None
    above = f"{home}/" if home else ""
    found = [*((path, False) for path in exact or {}), *((path, True) for path in globs or {})]
    return tuple(Rule(_named(path.removeprefix(above)), begins) for path, begins in found)


def _named(path: str) -> str:
    """A rule with a `+`, where the server tells of one, as a path that it takes in."""
    return _of(path.removesuffix("*").split("/"))


def logins(session: VaultSession, namespace: str) -> tuple[str, ...]:
    """The mounts of a namespace by which one logs in, as far as our token may know of them. Raises as `told`."""
    found = session.ask("GET", "sys/internal/ui/mounts", namespace=namespace).data.get("auth")
    return tuple(each.strip("/") for each in found) if isinstance(found, dict) else ()


def paths(pattern: str, rules: Iterable[Rule]) -> Iterator[str]:
    """Paths of this form: one of names that nobody has, and one for each rule that takes in some of them.

    In a pattern `+` is any one name, and `*` at its end whatever follows.
    """
    segments = pattern.split("/")
    yield _of(segments)
    for rule in rules:
        found = (_continued if rule.begins else _same)(rule.path.split("/"), segments)
        if found is not None:
            yield found


def _same(names: list[str], segments: list[str]) -> str | None:
    """The rule's own path, where it is of this form."""
    fixed = len(segments) - (segments[-1] == "*")
    if len(names) != fixed and (fixed == len(segments) or len(names) < fixed):
        return None
    return _merged(names, segments[:fixed])


def _continued(names: list[str], segments: list[str]) -> str | None:
    """A path of this form that begins as the rule does; the last of `names` may be a part of one."""
    *whole, part = names
    fixed = segments[: len(segments) - (segments[-1] == "*")]
    if len(whole) >= len(fixed):
        return _merged([*whole, part + ANY], fixed) if fixed != segments else None
    following, *rest = segments[len(whole) :]
    if following in ("+", "*"):
        following = part + ANY
    elif not following.startswith(part):
        return None
    return _merged([*whole, following, *_of(rest).split("/")] if rest else [*whole, following], fixed)


def _merged(names: list[str], segments: list[str]) -> str | None:
    """The names, as far as the form lets them be; None where it does not."""
    if not all(segment == "+" or name in (segment, ANY) for name, segment in zip(names, segments, strict=False)):
        return None
    first = (name if segment == "+" else segment for name, segment in zip(names, segments, strict=False))
    return "/".join((*first, *names[len(segments) :]))


def _of(segments: Iterable[str]) -> str:
    return "/".join(ANY if each in ("+", "*") else each for each in segments)
