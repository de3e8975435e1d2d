"""Sealed streams: the gpg that encrypts a dump, the gpg that opens it again, and whether each did exactly what was wanted.

Makes commands and judges what became of them; runs none of them, and never sees a byte of the stream except its head.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from backupd.errors import ConfigError, KeyUnusable, SecretUnavailable, Tampered
from backupd.openpgp.home import TRUSTING, Home, Status, statuses
from backupd.openpgp.keys import PublicKey
from backupd.openpgp.packets import recipients_of
from backupd.pipeline import Command
from backupd.redact import Secret

# RFC 4880 section 9.2 and GnuPG's doc/DETAILS: packets with a modification detection code, AES with a key of 256 bits.
_MDC, _AES256 = "2", "9"
_SESSION_KEY = re.compile(rb"9:[0-9A-Fa-f]{64}")


def seal(home: Home, recipients: Sequence[PublicKey]) -> Command:
    """A gpg that encrypts its stdin to every recipient and writes binary packets. Raises KeyUnusable: no recipient, or one
    twice.

    Recipients are given as files, each whole and never changed: no keyring, no trust setting and no other key of the same
    name can come between. gpg ends with exit code 2 when one of them has expired. Nothing is compressed: pg_dump has done
    that, at a tenth of the cost. The packet format is RFC 4880's, which every OpenPGP program reads; see `assert_sealed_to`.
    """
    fingerprints = [key.fingerprint for key in recipients]
    if not fingerprints or len(set(fingerprints)) != len(fingerprints):
        raise KeyUnusable("a backup is sealed to at least one recipient, and to none twice", "look at [encryption] recipients")
    files = [str(home.keep(key.fingerprint, key.data)) for key in recipients]
    return home.command(
        "gpg",
        "--rfc4880",  # resets algorithms, so it stands before them; keeps gpg 2.4 from its own packets
        *TRUSTING,
        *("--cipher-algo", "AES256", "--compress-algo", "none", "--no-armor", "--no-encrypt-to"),
        *(word for file in files for word in ("--recipient-file", file)),
        *("--output", "-", "--encrypt"),
    )


def assert_sealed_to(head: bytes, recipients: Sequence[PublicKey]) -> None:
    """Nothing, when the sealed stream that starts with `head` (`packets.HEAD_BYTES`, or all of it) opens with one encryption
    subkey of each recipient and with nothing else, and is in the packet format that every OpenPGP program reads.

    Raises Tampered. A key may ask gpg 2.4 for one more recipient of its own choosing (an ADK), or for OCB packets: not here.
    """
    owners = {subkey.key_id: key.fingerprint for key in recipients for subkey in key.encryption_subkeys}
    found = recipients_of(head)
    strangers = [key_id for key_id in found if key_id not in owners]
    if strangers:
        raise Tampered(f"the stream is sealed to another key too: {', '.join(strangers)}", "was the key file changed?")
    if sorted(owners[key_id] for key_id in found) != sorted(key.fingerprint for key in recipients):
        raise Tampered(
            f"the stream is sealed to {len(found)} keys where {len(recipients)} are due",
            "is each recipient's key sound?",
        )


@dataclass(slots=True)
class Unsealing:
    """A gpg that opens a sealed stream, and the report it writes. Used once; a context manager, within which it is judged.

    gpg releases plaintext before it finds that something is wrong, and ends well on some messages that nobody sealed. So
    what came out counts only after exit code 0 *and* `judge`; and the ciphertext is to be proved before it goes in.
    """

    command: Command
    _report: Path = field(repr=False)
    _fd: int | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give back the session key's pipe and the report. May be called twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._report.unlink(missing_ok=True)

    def judge(self) -> None:
        """Nothing, when gpg opened exactly one sealed message and it was whole.

        To be called after gpg ended, also after it failed: then it names the reason, if gpg told one. Raises
        SecretUnavailable: no secret key here opens it. Raises Tampered for everything else.
        """
        report = statuses(self._report)
        counts = {keyword: len(_of(report, keyword)) for keyword in {status.keyword for status in report}}
        if "DECRYPTION_OKAY" not in counts and "DECRYPTION_KEY" not in counts and "SESSION_KEY" not in counts:
            wanted = [status.arguments[0] for status in _of(report, "ENC_TO")]
            # Other errors come from what a false session key makes of the message.
            refused = any(status.arguments[:1] == ("pkdecrypt_failed",) for status in _of(report, "ERROR"))
            if wanted and ("NO_SECKEY" in counts or refused):
                raise SecretUnavailable(
                    f"no secret key here opens this; it is sealed to {', '.join(wanted)}", "give one of these keys"
                )
        for keyword in ("DECRYPTION_FAILED", "BADMDC", "NODATA", "UNEXPECTED", "FAILURE", "BADARMOR"):
            if keyword in counts:
                raise Tampered(f"the sealed message is damaged ({keyword})", "restore another backup with --backup ID")
        for keyword in (
            "BEGIN_DECRYPTION",
            "PLAINTEXT",
            "DECRYPTION_OKAY",
            "GOODMDC",
            "END_DECRYPTION",
            "DECRYPTION_INFO",
        ):
            if counts.get(keyword, 0) != 1:
                raise Tampered(
                    f"this is not one whole sealed message ({keyword} came {counts.get(keyword, 0)} times)",
                    "restore another backup with --backup ID",
                )
        info = _of(report, "DECRYPTION_INFO")[0].arguments
        if info[:2] != (_MDC, _AES256) or info[2:] not in {(), ("0",)}:
            raise Tampered("the message is not sealed the way backups are (AES256 with an MDC)", "who made it?")
        order = [status.keyword for status in report]
        if not order.index("BEGIN_DECRYPTION") < order.index("PLAINTEXT") < order.index("DECRYPTION_OKAY"):
            raise Tampered("the plaintext did not come out of the sealed message", "restore another backup with --backup ID")


def unseal(home: Home, *, session_key: Secret | None = None) -> Unsealing:
    """A gpg that decrypts its stdin with a secret key of `home`, or with one message's session key (`9:` and 64 hex digits).

    Raises ConfigError: a session key that cannot be one.
    """
    report = home.fresh("status")
    if session_key is None:
        return Unsealing(home.command("gpg", *TRUSTING, "--status-file", str(report), "--output", "-", "--decrypt"), report)
    value = session_key.reveal().strip()
    if not _SESSION_KEY.fullmatch(value):
        raise ConfigError("this is not a session key of AES256", "it reads 9: and 64 hexadecimal digits")
    fd = _pipe_with(value + b"\n")  # an argument would be seen by every user of the host
    options = (*TRUSTING, "--status-file", str(report), "--override-session-key-fd", str(fd))
    return Unsealing(home.command("gpg", *options, "--output", "-", "--decrypt", pass_fds=(fd,)), report, fd)


def _pipe_with(value: bytes) -> int:
    """The reading end of a pipe that holds `value`, which is less than a pipe takes at once, and then ends."""
    reading, writing = os.pipe()
    os.write(writing, value)
    os.close(writing)
    return reading


def _of(report: Sequence[Status], keyword: str) -> list[Status]:
    return [status for status in report if status.keyword == keyword]
