"""Custodians and OpenPGP keys: every secret can be fetched, and every key does its work."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from datetime import datetime

from backupd import separation
from backupd.check.lines import Line, Parts, State, guarded, ok, problem, warning
from backupd.config.models import Config, SecretRef
from backupd.custody import open_to_others
from backupd.errors import BackupdError
from backupd.openpgp import Home, cleartext, keys, messages
from backupd.openpgp.keys import PublicKey
from backupd.pipeline import run
from backupd.separation import Weight

PROBE = "backupd check\n"
SEAL_TIMEOUT_S = 120.0


def look(parts: Parts, now: datetime) -> Iterator[Line]:
    """Lines on custodians, recipients, the signing key and the key of the drill."""
    for what, ref in references(parts.config):
        yield from guarded("custody", _fetched(parts, what, ref))
    opens = yield from _opening_secrets(parts)
    yield from guarded("separation", _apart(parts))
    recipients: list[PublicKey] = []
    for path in parts.config.encryption.recipients:
        try:
            key = parts.public_key(path)
        except BackupdError as error:
            yield problem("keys", error.message, error.hint or "export the public key anew")
            continue
        recipients.append(key)
        yield from _judged(key, now, "encrypt", "recipient")
    if recipients:
        yield from guarded("keys", _seals(parts, recipients))
    yield from guarded("keys", _signs(parts, recipients, now))
    if parts.config.drill.secret_key is not None and recipients and opens:
        yield from guarded("keys", _opens(parts, recipients))


def references(config: Config) -> Iterator[tuple[str, SecretRef]]:
    """Every secret that the making of backups needs, and what it is."""
    named: list[tuple[str, SecretRef | None]] = [
        ("the store's secret access key", config.store.secret_access_key),
        ("the store's connection string", config.store.connection_string),
        ("the signing key", config.encryption.signing_key),
        ("the trail's password", config.audit.password),
        *((f"the password of {name}", source.password) for name, source in config.sources.items()),
    ]
    return ((what, ref) for what, ref in named if ref is not None)


def opening_references(config: Config) -> Iterator[tuple[str, SecretRef]]:
    """Every secret that opens backups or columns, and what it is: where backups are made alone, none has to be there."""
    named: list[tuple[str, SecretRef | None]] = [("the drill's secret key", config.drill.secret_key)]
    for name, source in config.sources.items():
        named.append((f"the password of who writes columns of {name}", source.columns_password))
        for each in source.totp:
            column = f"{each.table}.{each.column}"
            named.append((f"the column keys of {name}: {column}", each.keys))
            named.append((f"the archive of column keys of {name}: {column}", each.archive))
            named.append((f"the former keys of {name}: {column}", each.former.keys if each.former else None))
            named.append((f"the canary of {name}: {column}", each.canary.secret if each.canary else None))
    return ((what, ref) for what, ref in named if ref is not None)


def _opening_secrets(parts: Parts) -> Generator[Line, None, bool]:
    """Lines on them, and whether this host opens anything: one that has some of these secrets is meant to have all."""
    found = [list(guarded("custody", _fetched(parts, what, ref))) for what, ref in opening_references(parts.config)]
    missing = [line for lines in found for line in lines if line.state is State.PROBLEM]
    exposed = any(open_to_others(parts.custodian(ref)) for _, ref in opening_references(parts.config))
    if found and len(missing) == len(found) and not exposed:
        yield warning(
            "custody",
            f"this host opens neither backups nor columns: {missing[0].text}",
            "that is as it should be where backups are only made; run restore tests on another host",
        )
        return False
    for lines in found:
        yield from lines
    return True


def _fetched(parts: Parts, what: str, ref: SecretRef) -> Iterator[Line]:
    custodian = parts.custodian(ref)
    custodian.fetch()
    if ref.kind == "env":
        yield warning(
            "custody",
            f"{what} is in the environment, {custodian.locator}: every process of this user can read it",
            "keep it in a file of mode 0600 or a systemd credential",
        )
    else:
        yield ok("custody", f"{what} is in {custodian.locator}")


def _apart(parts: Parts) -> Iterator[Line]:
    """Keys of backups and of columns that are not apart would fall to one thief: a backup and a drill refuse to begin."""
    config = parts.config
    found = list(separation.examine(config, config.sources, parts.identities(), opens=True))
    told = {Weight.SHARED: problem, Weight.DOUBT: warning, Weight.WARNING: warning}
    for each in found:
        yield told[each.weight]("separation", each.text, each.hint) if each.weight in told else ok("separation", each.text)
    undecided = any(each.weight in (Weight.SHARED, Weight.DOUBT) for each in found)
    if any(source.totp for source in config.sources.values()) and not undecided:
        yield ok("separation", "nothing that was looked at is shared by the keys of backups and of columns")


def _judged(key: PublicKey, now: datetime, purpose: keys.Purpose, what: str) -> Iterator[Line]:
    found = keys.problems(key, now, purpose=purpose)
    for each in found:
        yield (problem if each.fatal else warning)("keys", each.message, each.hint)
    if not found:
        end = "never" if key.expires_at is None else f"on {key.expires_at:%Y-%m-%d}"
        yield ok("keys", f"{what} {key.fingerprint} ({key.user_id}) expires {end}")


def _seals(parts: Parts, recipients: list[PublicKey]) -> Iterator[Line]:
    sealed = run(messages.seal(parts.home(), recipients), PROBE.encode(), timeout_s=SEAL_TIMEOUT_S)
    messages.assert_sealed_to(sealed.stdout, recipients)
    yield ok("keys", f"a text was sealed to the {len(recipients)} recipients")


def _signs(parts: Parts, recipients: list[PublicKey], now: datetime) -> Iterator[Line]:
    if parts.config.encryption.signing_key is None:
        yield ok("keys", "this host signs nothing: it can restore, and makes no backups")
        return
    signer = parts.signer()
    public = keys.inspect(parts.home().call("--armor", "--export", signer).stdout, "the signing key", home=parts.home())
    yield from _judged(public, now, "sign", "signing key")
    signed = cleartext.sign(parts.home(), PROBE, signer)
    named = {parts.public_key(path).fingerprint for path in parts.config.encryption.signers} or {signer}
    if public.fingerprint not in named:
        yield problem("keys", f"the signing key {signer} is none of the signers", "add its public key to [encryption] signers")
    cleartext.verify(parts.home(), signed, {signer})
    yield ok("keys", "a text was signed, and its signature verified")


def _opens(parts: Parts, recipients: list[PublicKey]) -> Iterator[Line]:
    """The drill's key is one that backups are sealed to; it is looked at in a home of its own, away from the signing key's."""
    ref = parts.config.drill.secret_key
    if ref is None:
        return
    with Home() as home:
        fingerprint = home.import_secret(parts.custodian(ref).fetch())
    if fingerprint in {key.fingerprint for key in recipients}:
        yield ok("keys", f"the drill's secret key {fingerprint} is a recipient's")
    else:
        yield problem(
            "keys", f"the drill's secret key {fingerprint} opens nothing: it is no recipient's", "see [drill] secret_key"
        )
