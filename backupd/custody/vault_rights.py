"""What is asked of Vault about an identity: each path by which it could have a secret, or give itself the right to it, and why.

One question each (`sys/capabilities-self`), for all paths at once. A path has to be named to be asked about: what stands at a
name that nobody here knows, a role of tokens for instance, is not found, unless a pattern of a policy takes in any name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd.custody.rights import Hazard, Rights
from backupd.custody.vault_session import VaultSession
from backupd.errors import Denied, SecretUnavailable

if TYPE_CHECKING:
    from backupd.custody.vault import Place

ASK = 'path "sys/capabilities-self" { capabilities = ["update"] }'
_ANY = "backupd-asks"  # stands for a name that is not known: what is allowed there is allowed by a pattern
_READS = frozenset({"read", "root"})
_WRITES = frozenset({"update", "create", "patch", "root"})
_USES = frozenset({"update", "create", "root"})  # Transit decrypts for whoever may update or create
_SUDO = frozenset({"sudo", "root"})
_KEY_TYPES = ("encryption-key", "signing-key")  # an RSA key is exported as either
_VERSIONS = ("", "/latest", *(f"/{number}" for number in range(1, 10)))


@dataclass(frozen=True, slots=True)
class _Door:
    """A path, the capabilities of which one is enough, and what they allow, in words to follow "may"."""

    path: str
    needed: frozenset[str]
    words: str


def of_secret(session: VaultSession, place: Place, key: Place | None) -> Rights:
    """By which rights the identity has the secret at `place`, in clear or wrapped by the Transit key. Fetches nothing.

    Raises Denied when the server does not tell this identity, SecretUnavailable when it does not answer.
    """
    data = place.below("data")
    read = _Door(data, _READS, f"read {data}")
    if key is None:
        return Rights(_open(session, [read], session.namespace))
    # The wrapped value may be known from elsewhere, so that the right to unwrap is enough; so is the key itself.
    told = _Door(key.below("keys"), _READS, "read about the key")
    open_ = _open(session, [*_transit(key), read, told], session.namespace)
    give = tuple(each for each in open_ if each not in (read.words, told.words))
    hazards = [_older_versions(data)] if read.words in open_ else []
    if told.words in open_:
        hazards += _exportable(session, key)
    return Rights(give, tuple(hazards))


def over_identities(session: VaultSession, opening: VaultSession | None, *, opens: bool) -> tuple[str, ...]:
    """The rights by which an identity could give itself others, or become the one that opens; in words, as `Rights.give`.

    The role of the one that `opening` logs in is known by its name where this process `opens`, for then it may log in, and
    else by what the configuration says. Raises as `of_secret`.
    """
    who = session.standing()
    if "root" in who.policies:
        return ("do anything, by the policy root",)
    others = set[str]()
    if opening is not None and opening.login.role_path:
        others.add(opening.login.role_path)
    if opening is not None and opens:
        with suppress(SecretUnavailable):  # whoever needs it will say so
            others |= {opening.standing().role} - {""}
    within = session.namespace.removeprefix(who.namespace).strip("/")  # a token may be of a namespace above
    others = {f"{within}/{each}" if within else each for each in others}
    return _open(session, [*_own(who.role, who.entity, who.policies), *_of_others(others)], who.namespace)


def _transit(key: Place) -> Iterator[_Door]:
    name = key.below("keys")
    yield _Door(key.below("decrypt"), _USES, f"decrypt with {name}")
    out = f"take {name} out"
    yield _Door(key.below("backup"), _READS, out)
    for each in _KEY_TYPES:
        for version in _VERSIONS:
            yield _Door(key.below(f"export/{each}") + version, _READS, out)
    for version in _VERSIONS:  # wrapped by another key, of which the private half may be anywhere
        yield _Door(key.below(f"byok-export/{_ANY}") + version, _READS, out)


def _own(role: str, entity: str, policies: frozenset[str]) -> Iterator[_Door]:
    """What an identity must not be able to change about itself. To renew its own secret id gives it nothing."""
    for each in sorted(policies | {_ANY}):
        words = f"change the policy {each}" if each in policies else "write any policy"
        yield _Door(f"sys/policies/acl/{each}", _WRITES, words)
        yield _Door(f"sys/policy/{each}", _WRITES, words)
    if role:
        yield from _role(role, f"change its own role {role}")
    for each in ("create", "create-orphan"):
        yield _Door(f"auth/token/{each}", _SUDO, "make tokens of any policy")
    yield _Door(f"auth/token/create/{_ANY}", _WRITES, "make tokens by any role of tokens")
    yield _Door(f"auth/token/roles/{_ANY}", _WRITES, "change any role of tokens")
    own = f"entity/id/{entity or _ANY}"  # of which the default policy has a rule, so that no pattern changes it
    for each in (own, "entity", "entity/merge", "entity-alias", f"entity/id/{_ANY}", f"entity/name/{_ANY}"):
        yield _Door(f"identity/{each}", _WRITES, "change entities")
    for each in ("group", "group-alias", f"group/id/{_ANY}", f"group/name/{_ANY}"):
        yield _Door(f"identity/{each}", _WRITES, "change groups")
    yield _Door("sys/remount", _SUDO, "move what is mounted")
    yield _Door(f"sys/raw/{_ANY}", _SUDO, "read the server's storage")


def _of_others(roles: set[str]) -> Iterator[_Door]:
    for each in sorted(roles):
        yield from _role(each, f"change the role {each}, which opens")
        for end in ("secret-id", "custom-secret-id"):
            yield _Door(f"{each}/{end}", _WRITES, f"make a secret id of the role {each}, which opens")


def _role(role: str, words: str) -> Iterator[_Door]:
    for end in ("", "/policies", "/bind-secret-id"):
        yield _Door(role + end, _WRITES, words)
    mount, found, _ = role.rpartition("/role/")
    if found:  # who says which server judges logins, logs in as anybody
        yield _Door(f"{mount}/config", _WRITES, f"change the logins of {mount}")


def _older_versions(data: str) -> Hazard:
    return Hazard(
        f"what makes backups may read {data}, whose older versions are in clear if it was ever written without being wrapped",
        "take that right away, for no backup needs it, and destroy those versions: bao kv destroy -versions=…",
    )


def _exportable(session: VaultSession, key: Place) -> Iterator[Hazard]:
    found = session.ask("GET", key.below("keys")).data
    ways = [each for each in ("exportable", "allow_plaintext_backup") if found.get(each) is True]
    if ways:
        yield Hazard(
            f"{key.below('keys')} can be taken out of Vault ({', '.join(ways)}): a copy of it unwraps what it wraps",
            "neither can be undone: wrap the secret anew with a key that was made without them",
        )


# ----------------------------------------------------------------------------------------------------------- the question


def _open(session: VaultSession, doors: Sequence[_Door], namespace: str) -> tuple[str, ...]:
    """The words of the doors that are open, each once."""
    able = _capabilities(session, [each.path for each in doors], namespace)
    return tuple(dict.fromkeys(each.words for each in doors if able[each.path] & each.needed))


def _capabilities(session: VaultSession, paths: Sequence[str], namespace: str) -> dict[str, frozenset[str]]:
    """What the identity may do at these paths of a namespace. Raises as `of_secret`."""
    home = session.standing().namespace
    error: SecretUnavailable | None = None
    # A token's policies are those of its own namespace, which may be one above, and the default one lets it ask there.
    for each in sorted(_up(namespace), key=lambda found: found != home):
        within = namespace.removeprefix(each).strip("/")
        names = {path: f"{within}/{path}" if within else path for path in paths}
        answer = session.ask("POST", "sys/capabilities-self", {"paths": list(names.values())}, namespace=each)
        if answer.ok:
            found = {path: answer.data.get(name) for path, name in names.items()}
            if not all(isinstance(able, list) for able in found.values()):
                raise session.no_answer()
            return {path: frozenset(able or ()) for path, able in found.items()}
        error = session.refused(answer, f"{session.url}: what {session.identity} may do")
        if answer.status != 403:
            raise error
    raise Denied(error.message if error else "", f"let it ask, in one of its policies: {ASK}")


def _up(namespace: str) -> list[str]:
    """A namespace, and those that it is in, up to the root."""
    parts = namespace.split("/") if namespace else []
    return ["/".join(parts[:end]) for end in range(len(parts), -1, -1)]
