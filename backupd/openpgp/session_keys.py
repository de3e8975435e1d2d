"""A message's session key, taken out of its head with a secret key: what opens that one message, and tells nothing of the key.

The head is the session-key packets alone, so whoever holds the secret key sees no byte of what is sealed. The session key
leaves this module only as a `Secret`; gpg prints it among its debugging lines, so nothing that gpg logs is kept.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from subprocess import PIPE
from typing import Protocol

from backupd.errors import BackupdError, ProcessFailed, SecretUnavailable, Tampered
from backupd.openpgp.home import TRUSTING, Status, status_lines
from backupd.openpgp.packets import recipients_of, sealed_head
from backupd.pipeline import Command, Pipeline
from backupd.redact import Secret

# RFC 4880 section 5.13: a sealed-data packet that holds nothing, behind which gpg asks for the session key all the same.
_SEALED_NOTHING = b"\xd2\x2a\x01" + bytes(41)
_PATIENCE_S = 600.0  # a person looks for a smart card, and types its PIN
_SESSION_KEY = re.compile(r"9:[0-9A-F]{64}")  # AES256, RFC 4880 section 9.2


class Keyring(Protocol):
    """Where a secret key is: a `Home`, or a custodian's `OwnHome`."""

    def command(self, name: str, *args: str) -> Command: ...


def require_head(head: bytes) -> tuple[str, ...]:
    """The key ids that a head is sealed to. Raises Tampered: it is not session-key packets and nothing else."""
    whole = head + _SEALED_NOTHING
    if sealed_head(whole) != head:
        raise Tampered("the head of a sealed stream holds more than its session keys")
    return recipients_of(whole)


def take(keyring: Keyring, head: bytes) -> tuple[Secret, str]:
    """The session key (`9:` and 64 hex digits) in a head, and the fingerprint of the primary key that opened it.

    Raises SecretUnavailable: no secret key here opens it, or its custodian's passphrase or PIN was not given. Raises Tampered:
    a head that is none, or a session key of another cipher than AES256.
    """
    wanted = require_head(head)
    report = _ask(keyring, head)
    keys = [status.arguments[0] for status in report if status.keyword == "SESSION_KEY" and status.arguments]
    openers = [status.arguments[1] for status in report if status.keyword == "DECRYPTION_KEY" and len(status.arguments) > 1]
    if len(keys) != 1 or len(openers) != 1:
        if any(status.keyword == "ERROR" and "pkdecrypt" in status.arguments[0] for status in report):
            raise SecretUnavailable(
                "the secret key is here and did not open the session key", "was its PIN or passphrase given?"
            )
        raise SecretUnavailable(f"no secret key here opens this; it is sealed to {', '.join(wanted)}", "give one of these keys")
    if not _SESSION_KEY.fullmatch(keys[0]):
        raise Tampered("the session key is not one of AES256, as those of backups are", "who made this backup?")
    return Secret(keys[0], "session key"), openers[0]


def _ask(keyring: Keyring, head: bytes) -> tuple[Status, ...]:
    """What gpg reports. It always fails, for there is nothing to decrypt, and by then has said all that is wanted."""
    quiet = ("--logger-file", os.devnull)  # the log holds the session key
    wanted = ("--status-fd", "1", "--show-session-key", "--output", os.devnull, "--decrypt")
    command = keyring.command("gpg", *TRUSTING, *quiet, *wanted)
    with Pipeline([command], stdin=PIPE, stdout=PIPE, deadline_s=_PATIENCE_S) as pipeline:
        with suppress(BrokenPipeError):
            pipeline.write(head + _SEALED_NOTHING)  # less than a pipe takes at once
        pipeline.close_stdin()
        report = bytearray()
        buffer = memoryview(bytearray(64 << 10))
        while count := pipeline.read_into(buffer):
            report += buffer[:count]
        try:
            pipeline.finish()
        except ProcessFailed as error:
            if error.status is None or error.status < 0:
                raise BackupdError(
                    "gpg did not come to its end", "was the PIN or passphrase asked for, and not given?"
                ) from None
    return status_lines(bytes(report))
