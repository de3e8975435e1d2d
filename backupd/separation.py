"""Whether the keys of backups and the keys of columns are apart, in one configuration: asked before every backup and drill.

Reads what this process may read anyway, asks the servers what the identity that makes backups may do, and refuses on the first
thing that is shared. What nobody can prove is told, not passed over: whether two files of one host have one reader, say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from backupd import logs
from backupd.checks.leaks import keys_of
from backupd.columns import ColumnError
from backupd.config.models import Config, SecretRef, Source
from backupd.custodians import ServerLogin
from backupd.custody import SERVED, Custodian, beside, file_of, guard_of, to_compare
from backupd.custody.rights import Rights
from backupd.custody.separation import Kept, digests, digests_within, shared
from backupd.errors import BackupdError, Denied, KeyUnusable, Refused, SecretUnavailable
from backupd.openpgp.home import Record, names
from backupd.openpgp.keys import PublicKey
from backupd.redact import Secret

log = logs.get(__name__)

DRILL_KEY = "the drill's secret key"
_TOLD = 4  # of the rights by which an identity could have more: who has more of them has a wildcard
_OWN_LOGIN = (
    "open backups on another host or in another pod, or give the unit of the drill alone a login, as a systemd credential"
)
_OPENPGP = b"-----BEGIN PGP "
_SECRET_KEY = b"-----BEGIN PGP PRIVATE KEY BLOCK-----"


class Weight(StrEnum):
    """What a finding means. A doubt is a question that an outage left unanswered; a note is what no answer could settle.

    Where a server answers, and what makes backups may not ask it, that counts as shared: else forbidding the question would do.
    """

    SHARED = "shared"
    DOUBT = "doubt"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about the separation of keys."""

    weight: Weight
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Identities:
    """How each identity opens a reference, and what is known of OpenPGP keys without asking anybody.

    `own` is who needs the secret for the work at hand; `backups` is who makes backups, whatever the work. `over_identities`
    tells by which rights it could have more than it was given. `signer` gives the fingerprint of the key that signs here, and
    the names of all its secret parts; `show` is what gpg sees in a key file. `logins` are those of what makes backups,
    `opening_logins` of what opens them.
    """

    own: Callable[[SecretRef], Custodian]
    backups: Callable[[SecretRef], Custodian]
    over_identities: Callable[[bool], Rights]
    signer: Callable[[], tuple[str, frozenset[str]]]
    show: Callable[[bytes], tuple[Record, ...]]
    recipients: tuple[PublicKey, ...]
    logins: tuple[ServerLogin, ...] = ()
    opening_logins: tuple[ServerLogin, ...] = ()


def require_apart(config: Config, source: str, who: Identities, opening: Custodian | None) -> None:
    """Refuse to go on where a key of backups and a key of the source's columns are not apart; warn of what was not answered.

    `opening` is the key that a drill opens backups with, None for a backup. Raises Refused.
    """
    for each in require(examine(config, (source,), who, opening=opening, opens=opening is not None)):
        if each.weight is Weight.DOUBT:  # what is so every night is for `check` to say
            log.warning("the separation of keys", source=source, finding=each.text, hint=each.hint)


def require(findings: Iterable[Finding]) -> list[Finding]:
    """Raises Refused when something is shared, with everything that is; else gives back the findings."""
    findings = list(findings)
    found = [each for each in findings if each.weight is Weight.SHARED]
    if found:
        raise Refused("; ".join(each.text for each in found), found[0].hint)
    return findings


def examine(
    config: Config, sources: Iterable[str], who: Identities, *, opening: Custodian | None = None, opens: bool
) -> Iterator[Finding]:
    """Everything about the keys of backups and of these sources' columns.

    `opens` says that the work at hand opens backups and columns, so that their keys may be read from servers too; `opening` is
    the key that it opens backups with, None where it is a backup or only looks.
    """
    named = [(name, config.sources[name]) for name in sources]
    signer = _signer(config, who)
    makes = list(_that_makes(config, who, signer, looks=opens and opening is None, opens=opens))
    backup_keys = [*_backup_keys(config, who, opening, opens), *makes]
    column_keys = list(_column_keys(named, who, opens))
    if column_keys:
        yield from (Finding(Weight.SHARED, each.text, each.hint) for each in shared(backup_keys, column_keys))
    yield from _own_reader(who, signer)
    if config.encryption.signing_key is not None:  # else no backups are made here, and there is no such identity
        yield from _asked(config, list(_that_open(config, named)), who, opens, quiet=opening is not None)
        yield from _logins(who, makes, quiet=opening is not None)
    if column_keys:
        yield from _unprovable([*backup_keys, *column_keys])


def _signer(config: Config, who: Identities) -> tuple[str, frozenset[str]] | None:
    """The fingerprint and the names of the key that signs here, None where no key does, or where it is not to be had."""
    if config.encryption.signing_key is None:
        return None
    try:
        return who.signer()
    except SecretUnavailable:  # the unit of a drill does without it
        return None


def _own_reader(who: Identities, signer: tuple[str, frozenset[str]] | None) -> Iterator[Finding]:
    if signer is None:
        return
    fingerprint, called = signer
    for key in who.recipients:
        if fingerprint == key.fingerprint or (called | {fingerprint}) & _openers(key):
            which = (
                "is also a recipient" if fingerprint == key.fingerprint else f"has a part of the recipient {key.fingerprint}"
            )
            yield Finding(
                Weight.SHARED,
                f"the signing key {fingerprint} {which}: this host can read its own backups",
                "make a key that only signs: backupd keys generate",
            )


def _openers(key: PublicKey) -> frozenset[str]:
    """The names of the keys that open what is sealed to this one."""
    return frozenset(name for each in key.encryption_subkeys for name in each.names)


def _backup_keys(config: Config, who: Identities, opening: Custodian | None, opens: bool) -> Iterator[Kept]:
    for key in who.recipients:
        yield Kept(
            f"the recipient {key.fingerprint}",
            f"recipient:{key.fingerprint}",
            fingerprints=_openers(key) | {key.fingerprint},
        )
    if opening is not None:
        yield _kept(who, "the key that opens backups", opening, read=True)
    ref = config.drill.secret_key
    if ref is not None and (opening is None or who.own(ref).locator != opening.locator):
        yield _kept(who, DRILL_KEY, who.own(ref), _readable(ref, opens))


def _that_makes(
    config: Config, who: Identities, signer: tuple[str, frozenset[str]] | None, *, looks: bool, opens: bool
) -> Iterator[Kept]:
    """What makes backups reads to make them; nothing on a host that makes none. A drill asks no server for a password."""
    signing = config.encryption.signing_key
    if signing is None:
        return
    fingerprints = signer[1] | {signer[0]} if signer is not None else frozenset()
    yield _kept(who, "the signing key", who.own(signing), _readable(signing, opens), fingerprints=fingerprints)
    named: list[tuple[str, SecretRef | None]] = [
        ("the store's secret access key", config.store.secret_access_key),
        ("the store's connection string", config.store.connection_string),
        ("the trail's password", config.audit.password),
        *((f"the password of {name}", source.password) for name, source in config.sources.items()),
    ]
    yield from (_kept(who, what, who.own(ref), _readable(ref, looks)) for what, ref in named if ref is not None)
    yield from (_kept(who, each.name, each.secret, read=True) for each in who.logins if each.secret is not None)


def _column_keys(sources: Iterable[tuple[str, Source]], who: Identities, opens: bool) -> Iterator[Kept]:
    for what, cipher, ref in _of_columns(sources):
        yield _kept(who, what, who.own(ref), _readable(ref, opens), cipher)


def _of_columns(sources: Iterable[tuple[str, Source]]) -> Iterator[tuple[str, str, SecretRef]]:
    """What it is, the cipher, and where it is kept, of every key of a column."""
    for name, source in sources:
        for each in source.totp:
            column = f"{name}: {each.table}.{each.column}"
            yield f"the column keys of {column}", each.cipher, each.keys
            if each.archive is not None:
                yield f"the retired column keys of {column}", each.cipher, each.archive
            if each.former is not None and each.former.keys is not None:
                yield f"the column keys of {name}: {each.table}.{each.former.column}", each.former.cipher, each.former.keys


def _that_open(config: Config, sources: Iterable[tuple[str, Source]]) -> Iterator[tuple[str, SecretRef]]:
    """What the identity that makes backups may neither read nor write."""
    if config.drill.secret_key is not None:
        yield DRILL_KEY, config.drill.secret_key
    sources = tuple(sources)
    yield from ((what, ref) for what, _, ref in _of_columns(sources))
    for name, source in sources:
        if source.columns_password is not None:
            yield f"the password of who writes columns of {name}", source.columns_password
        for each in source.totp:
            if each.canary is not None:
                yield f"the canary of {name}: {each.table}.{each.column}", each.canary.secret


def _readable(ref: SecretRef, opens: bool) -> bool:
    """Whether to read it. A backup asks no server for a key that it does not need: that it could is what is to be found out."""
    return opens or ref.kind not in SERVED


def _kept(
    who: Identities,
    name: str,
    custodian: Custodian,
    read: bool,
    cipher: str | None = None,
    fingerprints: frozenset[str] = frozenset(),
) -> Kept:
    guard = guard_of(custodian)
    kept = Kept(
        name, custodian.locator, guard.wrapped_by if guard else None, fingerprints=fingerprints, file=file_of(custodian)
    )
    if not read:
        return kept
    custodian = to_compare(custodian)
    try:
        secret, others = custodian.fetch(), beside(custodian)
    except SecretUnavailable:  # whoever needs it will say so; here it is enough that it is not compared
        return kept
    pieces = [secret]
    if cipher is not None:
        pieces += _keys(cipher, secret)
        fingerprints |= _fingerprints(who, secret)
    others = [*others, secret]
    inside = frozenset(name for each in others if _SECRET_KEY in each.reveal() for name in _fingerprints(who, each))
    known = replace(kept, digests=digests(pieces), fingerprints=fingerprints)
    return replace(known, beside=digests_within(others), keys_beside=inside)


def _keys(cipher: str, secret: Secret) -> list[Secret]:
    try:
        return keys_of(cipher, secret)
    except (ColumnError, ValueError):  # a drill and `check` say what is wrong with it
        return []


def _fingerprints(who: Identities, secret: Secret) -> frozenset[str]:
    """Of a column key that is an OpenPGP key, to pgcrypto for instance; nothing for others."""
    if _OPENPGP not in secret.reveal():
        return frozenset()
    try:
        return names(who.show(secret.reveal()))
    except KeyUnusable:
        return frozenset()


def _asked(
    config: Config, that_open: list[tuple[str, SecretRef]], who: Identities, opens: bool, *, quiet: bool
) -> Iterator[Finding]:
    """What servers tell of the identity that makes backups: how far its rights reach, which of these secrets it could have."""
    rights = Rights()
    silent = False
    try:
        rights = who.over_identities(opens)
    except BackupdError as error:
        silent = True
        yield _untold("a key that opens", error)
    yield from (Finding(Weight.WARNING, each.text, each.hint) for each in rights.hazards)
    if give := rights.give:
        more = f", and {len(give) - _TOLD} things more" if len(give) > _TOLD else ""
        yield Finding(
            Weight.SHARED,
            f"what makes backups could give itself the keys that open: it may {', '.join(give[:_TOLD])}{more}",
            "take that from its policies in Vault: to make backups it needs to read its own secrets, and nothing more",
        )
    for what, ref in that_open:
        if not (silent and ref.kind == "vault"):  # it would say the same once more
            yield from _reach(what, ref, who, quiet=quiet)
    if (config.vault or config.azure_key_vault) and not any(ref.kind in SERVED for _, ref in that_open):
        yield Finding(
            Weight.NOTE,
            "no key that opens is named here as kept in Vault or Key Vault, so it was not asked whether what makes backups"
            " could read one: name [drill] secret_key and the keys of columns, and it will be",
        )


def _untold(what: str, error: BackupdError) -> Finding:
    if isinstance(error, Denied):
        return Finding(
            Weight.SHARED, f"nothing shows that what makes backups cannot read {what}: {error.message}", error.hint or ""
        )
    return Finding(
        Weight.DOUBT,
        f"whether what makes backups could read {what} was not answered: {error.message}",
        error.hint or "try again",
    )


def _reach(what: str, ref: SecretRef, who: Identities, *, quiet: bool) -> Iterator[Finding]:
    """Whether the identity that makes backups could have a key that opens something. A drill is `quiet` of what it needs."""
    custodian = who.backups(ref)
    guard = guard_of(custodian)
    if guard is None:
        if not quiet and what == DRILL_KEY and _is_there(custodian):
            yield Finding(
                Weight.WARNING,
                f"what makes backups here can read the key that opens them, {custodian.locator}",
                "keep it on another host, or give it to the unit of the drill alone, as a systemd credential",
            )
        return
    try:
        rights = guard.rights()
    except BackupdError as error:
        yield _untold(what, error)
        return
    for each in rights.hazards:
        yield Finding(Weight.WARNING, f"{what}: {each.text}", each.hint)
    for right in rights.give:
        yield Finding(
            Weight.SHARED,
            f"what makes backups may {right}: {what}",
            "take that right from its policies, and name another identity in [drill.vault] or [drill.azure_key_vault]",
        )


def _logins(who: Identities, makes: list[Kept], *, quiet: bool) -> Iterator[Finding]:
    """Whether what makes backups has, or could have, the login that opens them: that login is worth all that it opens."""
    for login in who.opening_logins:
        if login.secret is None:
            reader = None if quiet else "is this machine's own, so that what makes backups here may be given it too"
        else:
            kept = _kept(who, login.name, login.secret, read=True)
            found = list(shared(makes, [kept]))
            yield from (Finding(Weight.SHARED, each.text, _OWN_LOGIN) for each in found)
            readable = kept.digests and not found and not quiet
            reader = f"can be read by what makes backups here, {kept.locator}" if readable else None
        if reader is not None:
            yield Finding(Weight.WARNING, f"{login.name} {reader}", _OWN_LOGIN)


def _is_there(custodian: Custodian) -> bool:
    try:
        to_compare(custodian).fetch()
    except SecretUnavailable:
        return False
    return True


def _unprovable(keys: list[Kept]) -> Iterator[Finding]:
    local = [each for each in keys if each.locator.partition(":")[0] in ("file", "env", "credential")]
    if len(local) > 1:
        yield Finding(
            Weight.NOTE,
            "which accounts of this host can read which files cannot be proved from here: "
            f"{', '.join(sorted({each.locator for each in local}))}",
        )
    unread = [each.name for each in keys if not each.digests and not each.locator.startswith("recipient:")]
    if unread:
        yield Finding(Weight.NOTE, f"not read here, so their bytes were not compared: {', '.join(unread)}")
