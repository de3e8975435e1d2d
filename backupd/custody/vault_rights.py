"""What is asked of Vault about an identity: each path by which it could have a secret, or give itself the right to it, and why.

One question each (`sys/capabilities-self`), many paths at once. A path has to be named to be asked about: names that nobody
knows here, of a role of tokens for instance, come from the identity's own rules (`vault_rules`), where the server tells them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backupd.custody import vault_rules
from backupd.custody.rights import Hazard, Rights
from backupd.custody.vault_login import Standing
from backupd.custody.vault_rules import ANY, Rule
from backupd.custody.vault_session import VaultSession
from backupd.errors import Denied, SecretUnavailable

if TYPE_CHECKING:
    from backupd.custody.vault import Place

ASK = 'path "sys/capabilities-self" { capabilities = ["update"] }'
_READS = frozenset({"read", "root"})
_WRITES = frozenset({"update", "create", "patch", "root"})
_USES = frozenset({"update", "create", "root"})  # Transit decrypts for whoever may update or create
_DELETES = frozenset({"delete", "root"})
_SUDO = frozenset({"sudo", "root"})
_ASKED_AT_ONCE = 200  # paths; OpenBao refuses a question of more than a thousand texts
_KEY_TYPES = ("encryption-key", "signing-key")  # an RSA key is exported as either
_VERSIONS = ("", "/latest", *(f"/{number}" for number in range(1, 10)))


@dataclass(frozen=True, slots=True)
class _Door:
    """A path, the capabilities of which one is enough, with `sudo` or without, and what they allow, to follow "may"."""

    path: str
    needed: frozenset[str]
    words: str
    sudo: bool = False

    def is_open(self, able: frozenset[str]) -> bool:
        return bool(able & self.needed) and (not self.sudo or bool(able & _SUDO))


# What gives the rights of others, in the namespace that it is in: `+` is any one name, `*` whatever follows.
_OVER_OTHERS = (
    *(_Door(f"auth/token/{each}", _WRITES, "make tokens of any policy", sudo=True) for each in ("create", "create-orphan")),
    _Door("auth/token/create/+", _WRITES, "make tokens by a role of tokens"),
    _Door("auth/token/roles/+", _WRITES, "change a role of tokens"),
    *(_Door(f"identity/entity{each}", _WRITES, "change entities") for each in ("", "/merge", "/id/+", "/name/+")),
    # Who moves its alias to another entity logs in as that; `alias` and `persona` are older names of it.
    *(_Door(f"identity/{each}", _WRITES, "change entities") for each in ("entity-alias", "alias", "persona")),
    *(_Door(f"identity/{each}/id/+", _WRITES, "change entities") for each in ("entity-alias", "alias", "persona")),
    *(_Door(f"identity/group{each}", _WRITES, "change groups") for each in ("", "/id/+", "/name/+", "-alias", "-alias/id/+")),
    _Door("sys/auth/*", _WRITES, "add ways to log in", sudo=True),
    _Door("sys/remount", _WRITES, "move what is mounted", sudo=True),
    _Door("sys/raw/*", _READS | _WRITES, "read the server's storage", sudo=True),
)
# What says who logs in by a mount. What is below `auth/`, and neither here nor harmless, is found by a rule that names it.
_LOGINS = (
    *("role/+", "role/+/policies", "role/+/secret-id", "role/+/custom-secret-id"),
    *("users/+", "users/+/policies", "users/+/password", "groups/+", "certs/+", "map/+/+", "config"),
)
_KEPT = "(?!.*/(?:role|roles|users|groups|certs|map|config)/)"  # what may have any name, that of a harmless path too
_HARMLESS = re.compile(
    rf"auth/token/.*|auth/{_KEPT}.+/(?:login|oidc|tidy)\b.*|auth/.+/role/[^/]+/secret-id(?:-accessor)?/(?:lookup|destroy)"
)


def of_secret(session: VaultSession, place: Place, key: Place | None) -> Rights:
    """By which rights the identity has the secret at `place`, in clear or wrapped by the Transit key. Fetches nothing.

    Raises Denied when the server does not tell this identity, SecretUnavailable when it does not answer.
    """
    data = place.below("data")
    read = _Door(data, _READS, f"read {data}")
    # Who writes a column's keys adds one of its own, by which every value is encrypted from then on.
    write = _Door(data, _WRITES, f"write {data}")
    gone = "destroy"
    destroy = [_Door(place.below("destroy"), _WRITES, gone), _Door(place.below("metadata"), _DELETES, gone)]
    if key is None:
        if session.ask_unnamed(data).ok:  # which may be a proxy that does not tell who it is
            return Rights((f"{read.words} without a token, at {session.url}",))
        open_ = _open(session, [read, write, *destroy], session.namespace)
        return Rights(tuple(each for each in open_ if each != gone), tuple(_destroyed(data) for each in open_ if each == gone))
    # The wrapped value may be known from elsewhere, so that the right to unwrap is enough; so is the key itself.
    told = _Door(key.below("keys"), _READS, "read about the key")
    destroy.append(_Door(key.below("keys"), _DELETES, gone))
    open_ = _open(session, [*_transit(key), write, read, told, *destroy], session.namespace)
    give = tuple(each for each in open_ if each not in (read.words, told.words, gone))
    hazards = [_older_versions(data)] if read.words in open_ else []
    if told.words in open_:
        hazards += _exportable(session, key)
    return Rights(give, (*hazards, *(_destroyed(data) for each in open_ if each == gone)))


def over_identities(
    session: VaultSession, opening: VaultSession | None, *, opens: bool, places: Iterable[Place] = ()
) -> Rights:
    """The rights by which an identity could give itself others, or become the one that opens.

    The role of the one that `opening` logs in is known by its name where this process `opens`, for then it may log in, and
    else by what the configuration says. `places` are those of the keys: who may give rights in a namespace of theirs has them.
    Raises as `of_secret`.
    """
    who = session.standing()
    hazards = _lent(session, who)
    if "root" in who.policies:
        return Rights(("do anything, by the policy root",))
    others = set[str]()
    if opening is not None and opening.login.role_path:
        others.add(opening.login.role_path)
    if opening is not None and opens:
        with suppress(SecretUnavailable):  # whoever needs it will say so
            others |= {opening.standing().role} - {""}
    within = _below(session.namespace, who.namespace)  # a token may be of a namespace above
    others = {_in(within, each) for each in others}
    rules = vault_rules.told(session)
    doors = [*_own(who.role, who.entity, who.policies), *_of_others(others)]
    for each in _namespaces(session.namespace, who.namespace, places):
        mounts = vault_rules.logins(session, _in(who.namespace, each))
        doors += _over_others(each, mounts, rules or (), who.role, {door.path for door in doors})
    if rules is None:
        hazards.append(_untold())
    return Rights(_open(session, doors, who.namespace), tuple(hazards))


def _lent(session: VaultSession, who: Standing) -> list[Hazard]:
    """Whose rights the address gives to whoever asks without a token: raises Denied when they are not ours."""
    answer = session.ask_unnamed("auth/token/lookup-self")
    if not answer.ok:
        return []
    other = Standing.told(answer.data, session.namespace)
    if (other.entity, other.policies) != (who.entity, who.policies):
        raise Denied(
            f"{session.url} answers whoever asks without a token, as somebody else than {session.identity}",
            "name the server itself as [vault] address, or a proxy without use_auto_auth_token",
        )
    return [
        Hazard(
            f"{session.url} answers without a token as {session.identity}: every process here has what makes backups",
            "name the server itself as [vault] address, or a proxy without use_auto_auth_token",
        )
    ]


def _namespaces(asked: str, home: str, places: Iterable[Place]) -> list[str]:
    """Every namespace from the token's own to that of a key, named from its own. A mount's name may begin with one."""
    found = {"", _below(asked, home)}
    for each in places:
        found.add(_below(_in(asked, each.mount.rpartition("/")[0]), home))
    return sorted({above for each in found for above in _up(each)})


def _below(namespace: str, home: str) -> str:
    return namespace.removeprefix(home).strip("/")


def _in(namespace: str, path: str) -> str:
    return f"{namespace}/{path}".strip("/")


def _transit(key: Place) -> Iterator[_Door]:
    name = key.below("keys")
    yield _Door(key.below("decrypt"), _USES, f"decrypt with {name}")
    out = f"take {name} out"
    yield _Door(key.below("backup"), _READS, out)
    for each in _KEY_TYPES:
        for version in _VERSIONS:
            yield _Door(key.below(f"export/{each}") + version, _READS, out)
    for each in ("restore", f"restore/{key.path}"):  # of a copy of another key, over this one
        yield _Door(f"{key.mount}/{each}", _WRITES, f"replace {name}")
    for version in _VERSIONS:  # wrapped by another key, of which the private half may be anywhere
        yield _Door(key.below(f"byok-export/{ANY}") + version, _READS, out)


def _own(role: str, entity: str, policies: frozenset[str]) -> Iterator[_Door]:
    """What an identity must not be able to change about itself."""
    for each in sorted(policies):
        for path in (f"sys/policies/acl/{each}", f"sys/policy/{each}"):
            yield _Door(path, _WRITES, f"change the policy {each}")
    if role:
        yield from _role(role, f"change its own role {role}")
    if entity:  # of which the default policy has a rule, so that no pattern changes it
        yield _Door(f"identity/entity/id/{entity}", _WRITES, "change entities")


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


def _over_others(namespace: str, mounts: Sequence[str], rules: Sequence[Rule], own: str, known: set[str]) -> Iterator[_Door]:
    """What gives the rights of others in a namespace: each form of it, and each path that a rule names but the `known`."""
    where = f" in the namespace {namespace}" if namespace else ""

    def paths(pattern: str) -> Iterator[str]:
        return (each for each in vault_rules.paths(_in(namespace, pattern), rules) if each not in known)

    for each in _OVER_OTHERS:
        yield from (replace(each, path=path, words=each.words + where) for path in paths(each.path))
    for path in (*paths("sys/policies/acl/+"), *paths("sys/policy/+")):
        name = path.rpartition("/")[2]
        yield _Door(path, _WRITES, f"write {'any policy' if name == ANY else f'the policy {_shown(name)}'}{where}")
    patterns = [f"auth/{mount}/{each}" for mount in ("+", *mounts) for each in _LOGINS]
    for path in (path for each in (*patterns, "auth/*") for path in paths(each)):
        its_own = own and f"{path}/".startswith(f"{own}/")  # to renew its own secret id gives it nothing
        if not its_own and not _HARMLESS.fullmatch(path.removeprefix(f"{namespace}/") if namespace else path):
            yield _Door(path, _WRITES, f"change who logs in, by {_shown(path)}")


def _shown(path: str) -> str:
    """A path as a rule would name it."""
    return path.replace(ANY, "*")


def _untold() -> Hazard:
    return Hazard(
        "Vault does not tell what makes backups its own rules: one for a certain name, or for a name's beginning, is not found",
        f"let it read them, in one of its policies: {vault_rules.TELL}",
    )


def _older_versions(data: str) -> Hazard:
    return Hazard(
        f"what makes backups may read {data}, whose older versions are in clear if it was ever written without being wrapped",
        "take that right away, for no backup needs it, and destroy those versions: bao kv destroy -versions=…",
    )


def _destroyed(data: str) -> Hazard:
    return Hazard(
        f"what makes backups may destroy {data}, and nobody opens anything by it then",
        "take that right away, for no backup needs it, and keep a copy where only others can reach it",
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


def _open(session: VaultSession, doors: Iterable[_Door], namespace: str) -> tuple[str, ...]:
    """The words of the doors that are open, each once."""
    doors = list(doors)
    able: dict[str, frozenset[str]] = {}
    paths = list(dict.fromkeys(each.path for each in doors))
    for first in range(0, len(paths), _ASKED_AT_ONCE):
        able |= _capabilities(session, paths[first : first + _ASKED_AT_ONCE], namespace)
    return tuple(dict.fromkeys(each.words for each in doors if each.is_open(able[each.path])))


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
