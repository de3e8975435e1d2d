"""The file that asks a custodian to open one backup, and what it proves to him: which backup that is, and no more.

It holds the signed manifest, the head of each artifact, and a one-time public key for the answer. The manifest says what the
heads have to be, so a head of another backup is not released under this one's name. Who asks, and why, is only said.
"""

from __future__ import annotations

import binascii
import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from backupd import manifest as manifests
from backupd.audit.records import Actor, Via
from backupd.catalog import LARGEST, MANIFEST, Entry, name_of
from backupd.errors import ConfigError, Refused, Tampered
from backupd.manifest import ARTIFACTS, Artifact, Head, Manifest
from backupd.openpgp import Home, cleartext, keys, session_keys
from backupd.openpgp.keys import KeyPair, PublicKey
from backupd.redact import printable
from backupd.stores import Store

FORMAT = 1
KIND = "backupd session-key request"
LARGEST_REQUEST = 24 << 20  # bytes: the largest manifest in base64, and its heads
EXPIRES_DAYS = 7  # of the one-time key, and so of the request: nobody finds one in a drawer and answers it
_LIFE = timedelta(days=EXPIRES_DAYS)
_CLOCKS_DIFFER = timedelta(hours=1)  # between two machines, one of which may have no network
LONGEST_TEXT = 200  # characters of who asks, and why: a custodian reads them beside the code
_CODE_DIGITS = 20  # 80 bits: read out over a telephone, and not to be met by trying


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked. `manifest` are the stored bytes, `heads` the artifacts' first bytes by name, `reply_to` a public key."""

    asked_at: datetime
    by: Actor
    manifest: bytes
    heads: Mapping[str, bytes]
    reply_to: bytes


@dataclass(frozen=True, slots=True)
class Proved:
    """A request whose manifest and heads were proved. `code` is that of the file, to be compared with the one who asks."""

    request: Request
    manifest: Manifest
    signed_by: str
    signed_at: datetime
    code: str
    sha256: str
    reply_to: PublicKey

    @property
    def manifest_sha256(self) -> str:
        """Of the manifest's stored bytes, by which a catalogue tells it from every other."""
        return hashlib.sha256(self.request.manifest).hexdigest()


def ask(entry: Entry, store: Store, by: Actor) -> tuple[bytes, KeyPair]:
    """A request for the session keys of one proved backup, and the one-time key that its answer will be sealed to.

    Raises Refused for a backup whose manifest notes no heads, Tampered for stored bytes that are not what it says, ConfigError
    for a name or reason that is too long to be read.
    """
    for text, what in ((by.operator, "the operator's name"), (by.reason, "the reason")):
        if text is not None and len(text) > LONGEST_TEXT:
            raise ConfigError(
                f"{what} is {len(text)} characters long", f"a request has room for {LONGEST_TEXT}: the custodian reads it"
            )
    manifest = entry.proved()
    heads = {artifact.name: _fetch(manifest, artifact, store) for artifact in manifest.artifacts}
    signed = store.read(name_of(entry.source, entry.backup_id, MANIFEST), 0, LARGEST + 1)
    if hashlib.sha256(signed).hexdigest() != entry.digest:
        raise Tampered(f"the manifest of {entry.backup_id} was changed while it was read", "find out who changed it")
    one_time = keys.generate(f"One-time key for {entry.backup_id}", purpose="encrypt", expires_days=EXPIRES_DAYS)
    return render(Request(datetime.now(UTC), by, signed, heads, one_time.public)), one_time


def code_of(data: bytes) -> str:
    """The code of a request file, for the telephone: `9f3c-12ab-…`."""
    digits = hashlib.sha256(data).hexdigest()[:_CODE_DIGITS]
    return "-".join(digits[at : at + 4] for at in range(0, _CODE_DIGITS, 4))


def render(request: Request) -> bytes:
    """The file: JSON in ASCII with sorted members, one on each line. `read` takes exactly this."""
    plain = {
        "format": FORMAT,
        "kind": KIND,
        "asked_at": request.asked_at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "user": request.by.user,
        "host": request.by.host,
        "via": request.by.via.value,
        "operator": request.by.operator,
        "reason": request.by.reason,
        "manifest": b64encode(request.manifest).decode(),
        "heads": {name: b64encode(head).decode() for name, head in request.heads.items()},
        "reply_to": request.reply_to.decode(),
    }
    return json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=True).encode() + b"\n"


def read(data: bytes) -> Request:
    """The request in a file. Raises ConfigError for a file that is far too large, Tampered for all that is no request."""
    if len(data) > LARGEST_REQUEST:
        raise ConfigError("this is no request: it is larger than any", "give the file that `backupd keys request` wrote")
    try:
        raw = json.loads(data.decode("ascii"))
        if isinstance(raw, dict) and raw.get("kind") == KIND and raw.get("format") != FORMAT:
            raise Tampered(
                f"a request of format {printable(str(raw.get('format')))[:40]}, and this version reads format {FORMAT}",
                "use the version of backupd that wrote it, or update this one",
            )
        request = _request(raw)
        if render(request) != data:
            raise ValueError("it is spelt in another way than backupd spells requests")
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Tampered("this is no request for session keys, or a damaged one", "have it made and sent anew") from error
    return request


def prove(data: bytes, home: Home, signers: Collection[str]) -> Proved:
    """Prove which backup a request file asks for. `signers` are the pinned fingerprints, whose public keys are in `home`.

    Raises Tampered: no request, a manifest that none of the signers signed or that lists more than one backup has, or heads
    that are not those of this backup.
    Raises Refused for a backup whose manifest notes no heads, for a request of another time, and for one whose answer would be
    sealed to a key that is not made for one answer; KeyUnusable when there is no key to answer to.
    """
    request = read(data)
    verified = cleartext.verify(home, request.manifest, signers)
    manifest = manifests.parse(verified.text)
    for artifact in manifest.artifacts:
        if artifact.name != ARTIFACTS[artifact.kind]:  # names are never doubled, so there is one of each kind at most
            raise Tampered(
                f"the manifest of {manifest.backup_id} lists {artifact.name}, and a backup has one"
                f" {' and one '.join(ARTIFACTS.values())}",
                "release nothing, and find out who signed it",
            )
    names = {artifact.name for artifact in manifest.artifacts}
    if set(request.heads) != names:
        raise Tampered("the request holds other heads than its backup has artifacts", "have it made anew")
    for artifact in manifest.artifacts:
        _require(artifact, manifest, request.heads[artifact.name])
    reply_to = keys.inspect(request.reply_to, "the one-time key of the request", home=home)
    now = datetime.now(UTC)
    for problem in keys.problems(reply_to, now, purpose="encrypt", warn_days=0):
        if problem.fatal:
            raise ConfigError(
                f"the request cannot be answered: {problem.message}",
                f"requests live {EXPIRES_DAYS} days: ask anew, or {problem.hint}",
            )
    if why := _not_to_be_answered(request, manifest, reply_to, now):
        raise Refused(
            f"the request cannot be answered: {why}", "have it made anew by `backupd keys request`; is the clock here right?"
        )
    digest = hashlib.sha256(data).hexdigest()
    return Proved(request, manifest, verified.fingerprint, verified.signed_at, code_of(data), digest, reply_to)


def _not_to_be_answered(request: Request, manifest: Manifest, reply_to: PublicKey, now: datetime) -> str | None:
    """What about a request is not as `ask` makes it, and would let an answer be of use for longer or to others; or None."""
    if not now - _LIFE <= request.asked_at <= now + _CLOCKS_DIFFER:
        return f"it says that it was made at {request.asked_at:%Y-%m-%d %H:%M} UTC, and requests live {EXPIRES_DAYS} days"
    if reply_to.expires_at is None or reply_to.expires_at > now + _LIFE + _CLOCKS_DIFFER:
        ends = "never expires" if reply_to.expires_at is None else f"expires on {reply_to.expires_at:%Y-%m-%d}"
        return f"its one-time key {ends}, and should in {EXPIRES_DAYS} days"
    if reply_to.weak:
        return f"its one-time key is weak: {', '.join(reply_to.weak)}"
    sealed_to = {key_id for head in request.heads.values() for key_id in session_keys.require_head(head)}
    if reply_to.fingerprint in manifest.recipients or any(key.key_id in sealed_to for key in reply_to.encryption_subkeys):
        return "its one-time key is a key that the backup itself is sealed to"
    return None


def _fetch(manifest: Manifest, artifact: Artifact, store: Store) -> bytes:
    head = store.read(name_of(manifest.source.name, manifest.backup_id, artifact.name), 0, _head(artifact, manifest).size)
    _require(artifact, manifest, head)
    return head


def _head(artifact: Artifact, manifest: Manifest) -> Head:
    if artifact.head is None:
        raise Refused(
            f"the manifest of {manifest.backup_id} does not say how {artifact.name} begins: no release can be bound to it",
            "open this backup with a secret key, and make a new one",
        )
    return artifact.head


def _require(artifact: Artifact, manifest: Manifest, head: bytes) -> None:
    """Nothing, when these bytes are the artifact's head: its session keys, and no byte of what they open."""
    wanted = _head(artifact, manifest)
    if len(head) != wanted.size or hashlib.sha256(head).hexdigest() != wanted.sha256:
        raise Tampered(
            f"the head of {artifact.name} is not that of {manifest.backup_id} of {manifest.source.name}",
            "release nothing, and find out whose it is",
        )
    session_keys.require_head(head)


def _request(raw: Any) -> Request:
    """From parsed JSON, loosely: `read` holds what comes out against what went in."""
    if raw["kind"] != KIND:
        raise ValueError("of another kind")
    texts = [raw[name] for name in ("user", "host", "operator", "reason") if raw[name] is not None]
    if any(not isinstance(each, str) or len(each) > LONGEST_TEXT for each in texts) or None in (raw["user"], raw["host"]):
        raise ValueError("who asks is no text, or a very long one")
    return Request(
        asked_at=datetime.fromisoformat(raw["asked_at"]).astimezone(UTC),
        by=Actor(raw["user"], raw["host"], Via(raw["via"]), raw["operator"], raw["reason"]),
        manifest=_bytes(raw["manifest"]),
        heads={name: _bytes(head) for name, head in raw["heads"].items()},
        reply_to=raw["reply_to"].encode("ascii"),
    )


def _bytes(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("no base64") from error
