"""The file that answers a request: one backup's session keys, sealed to the one-time key of whoever asked.

So it may travel like the request does: who has it opens nothing without the one-time key. It names the request and the manifest
that it was given for, and is of use with no other.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from backupd.audit.records import Actor
from backupd.errors import ConfigError, ProcessFailed, Refused, SecretUnavailable, Tampered
from backupd.manifest import BACKUP_ID, SOURCE_NAME
from backupd.opening import SessionKeys
from backupd.openpgp import Home, messages, session_keys
from backupd.openpgp.session_keys import Keyring
from backupd.pipeline import run
from backupd.redact import Secret, printable
from backupd.release.request import Proved

FORMAT = 1
KIND = "backupd session-key release"
LARGEST_RELEASE = 1 << 20  # bytes; a few hundred of them are used
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SESSION_KEY = re.compile(r"9:[0-9A-F]{64}")
_HINT = "give the file that `backupd keys release` wrote, or have it made anew"
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Given:
    """A release: the file, and the fingerprints of the keys that opened the heads."""

    data: bytes = field(repr=False)
    fingerprints: tuple[str, ...]
    released_at: datetime

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.data).hexdigest()


def give(proved: Proved, keyring: Keyring, home: Home, by: Actor, recipient: str | None = None) -> Given:
    """Release the session keys of a proved request with the secret key in `keyring`; `home` only seals the answer.

    Raises SecretUnavailable when no key there opens this backup, Refused when one does that is not the `recipient` named, or
    that the manifest does not name: a keyring may hold keys for other things than backups.
    """
    taken = {name: session_keys.take(keyring, head) for name, head in proved.request.heads.items()}
    allowed = [each for each in proved.manifest.recipients if recipient in (None, each)]
    for name, (_, opener) in taken.items():
        if opener not in allowed:
            raise Refused(
                f"what the request calls {name} was opened by the key {opener}, not by {' or '.join(allowed) or recipient}",
                "nothing was released: find out who made the request, and whose message this is",
            )
    now = datetime.now(UTC)
    plain = {
        "format": FORMAT,
        "kind": KIND,
        "source": proved.manifest.source.name,
        "backup_id": proved.manifest.backup_id,
        "manifest_sha256": proved.manifest_sha256,
        "request_sha256": proved.sha256,
        "released_at": now.isoformat(timespec="seconds"),
        "released_by": {"user": by.user, "host": by.host, "operator": by.operator, "reason": by.reason},
        "session_keys": {
            hashlib.sha256(proved.request.heads[name]).hexdigest(): key.text() for name, (key, _) in taken.items()
        },
    }
    text = Secret(json.dumps(plain, sort_keys=True), "release")
    sealed = run(messages.seal(home, [proved.reply_to]), text.reveal(), timeout_s=_TIMEOUT_S).stdout
    return Given(sealed, tuple(dict.fromkeys(fingerprint for _, fingerprint in taken.values())), now)


def accept(data: bytes, one_time: Secret) -> tuple[SessionKeys, str]:
    """What a release file holds, opened with the one-time key, and the SHA-256 of the request that it answers.

    Raises ConfigError for a file that is far too large, SecretUnavailable for the release of another request, Tampered for a
    damaged one.
    """
    if len(data) > LARGEST_RELEASE:
        raise ConfigError("this is no release: it is larger than any", _HINT)
    with Home() as private:
        private.import_secret(one_time)
        text = _unsealed(private, data)
    try:
        raw = json.loads(text.reveal())
        if isinstance(raw, dict) and raw.get("kind") == KIND and raw.get("format") != FORMAT:
            raise Tampered(
                f"a release of format {printable(str(raw.get('format')))[:40]}, and this version reads format {FORMAT}",
                "use the version of backupd that wrote it, or update this one",
            )
        return _session_keys(raw), raw["request_sha256"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass  # its own error would quote what it stumbled over
    raise Tampered("this is no release of session keys", _HINT)


def _unsealed(home: Home, data: bytes) -> Secret:
    with messages.unseal(home) as unsealing:
        try:
            done = run(unsealing.command, data, timeout_s=_TIMEOUT_S)
        except ProcessFailed:
            _judge(unsealing)
            raise
        _judge(unsealing)
        return Secret(done.stdout, "release")


def _judge(unsealing: messages.Unsealing) -> None:
    try:
        unsealing.judge()
    except SecretUnavailable as error:
        raise SecretUnavailable(
            "this release answers another request, or is damaged: the one-time key does not open it",
            "give the key that was made with the request, with --request-key",
        ) from error
    except Tampered as error:
        raise Tampered(f"the release is damaged, or is none: {error.message}", _HINT) from error


def _session_keys(raw: Any) -> SessionKeys:
    found: Mapping[str, str] = raw["session_keys"]
    well_formed = (
        raw["kind"] == KIND
        and SOURCE_NAME.fullmatch(raw["source"])
        and BACKUP_ID.fullmatch(raw["backup_id"])
        and _DIGEST.fullmatch(raw["manifest_sha256"])
        and _DIGEST.fullmatch(raw["request_sha256"])
        and all(_DIGEST.fullmatch(head) and _SESSION_KEY.fullmatch(key) for head, key in found.items())
    )
    if not well_formed:
        raise ValueError("malformed")
    by_head = {head: Secret(key, "session key") for head, key in found.items()}
    return SessionKeys(raw["source"], raw["backup_id"], raw["manifest_sha256"], by_head)
