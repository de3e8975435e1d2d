"""Signed texts: signed by one pinned key, and verified so strictly that a signed text can be written in only one way.

gpg decides whether a signature is good, and gpg's output is the text. Around that stands one rule: the signed text,
rendered anew from what gpg output and from the signature packet, must be the very bytes that were given. So nothing
unsigned survives: no text before or after, no second message, no odd escape, no armour header, no remark in the packet.
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from backupd.errors import ConfigError, KeyUnusable, ProcessFailed, Tampered
from backupd.openpgp.home import FINGERPRINT, TRUSTING, Home, Status, statuses
from backupd.openpgp.packets import HASHES, Signature, crc24, digest_of, signature_of

TEXT_BYTES = 16 << 20  # of the largest signed text: 50,000 parts (6 MB) and 50,000 tables with a sequence each (9 MB)
LINES = 1_000_000  # of the longest; gpg and we work line by line, and a text of nothing but line ends is no manifest
ARMOUR_BYTES = 8192  # one signature of the largest RSA key takes a fifth of it
LINE_BYTES = 19_000  # gpg cuts lines of a cleartext at 19,994 bytes, and only says so on stderr
_HEADER_BYTES = 32  # "Hash: SHA256" and two line ends
_MESSAGE = b"-----BEGIN PGP SIGNED MESSAGE-----\n"
_SIGNATURE = b"-----BEGIN PGP SIGNATURE-----\n\n"
_END = b"-----END PGP SIGNATURE-----\n"
_CUT = b"\n" + _SIGNATURE
_NOT_PINNED = (
    "only pinned signing keys count: if yours was changed, name the old one and the new one,"
    " in [encryption] signers or with one --signer for each"
)
_STRAY = re.compile(rb"\n-(?! )")
_BAD = {
    "BADSIG": "the signed text was changed",
    "REVKEYSIG": "the key that signed it is revoked",
    "EXPSIG": "the signature itself has expired",
    "NODATA": "there is no signature",
    "UNEXPECTED": "it is not a signed text",
    "DECRYPTION_OKAY": "it is not a signed text",
}


@dataclass(frozen=True, slots=True)
class Verified:
    """A text and who signed it: the fingerprint of the primary key, and when, by the signer's clock."""

    text: str
    fingerprint: str
    signed_at: datetime


def sign(home: Home, text: str, fingerprint: str) -> bytes:
    """`text` with a cleartext signature (RFC 4880 section 7) by the key of this fingerprint, primary or subkey, in `home`.

    Raises ConfigError: a text that a cleartext signature does not carry unchanged (it ends in no newline; a line of it ends
    in a blank, holds a carriage return or is longer than `LINE_BYTES`). Raises KeyUnusable: gpg could not sign, or not with
    this key.
    """
    data = text.encode()
    if not data.endswith(b"\n") or b"\r" in data or b"\0" in data:
        raise ConfigError("a text to sign ends with a newline and holds no carriage return", "render it anew")
    if len(_escaped(data)) > TEXT_BYTES - 2 * ARMOUR_BYTES or data.count(b"\n") > LINES - 1000:
        raise ConfigError(f"a text to sign has at most {TEXT_BYTES} bytes and {LINES} lines", "are there so many tables?")
    if any(line != line.rstrip(b" \t") or len(line) > LINE_BYTES for line in data.split(b"\n")):
        raise ConfigError(f"a line to sign ends in no blank and has at most {LINE_BYTES} bytes", "render it with shorter lines")
    options = (
        "--local-user",
        _pinned(home, fingerprint),
        "--digest-algo",
        "SHA256",
        "--no-emit-version",
        "--no-comments",
    )
    made = home.gnupg().sign(data, clearsign=True, extra_args=list(options))
    signed: bytes = made.data
    # python-gnupg's word is not enough, and gpg may use another key than the wanted one.
    try:
        verified = verify(home, signed, {fingerprint})
    except Tampered as error:
        raise KeyUnusable(
            f"the key {fingerprint} did not sign", "is its secret key here, has it expired, can it sign?"
        ) from error
    if verified.text != text:
        raise ConfigError("this text does not survive being signed", "render it anew")
    return signed


def verify(home: Home, signed: bytes, pinned: Collection[str]) -> Verified:
    """The text that one of the pinned keys (fingerprints of primary keys or subkeys, whose public keys are in `home`) signed.

    A key that has expired since is accepted for what it signed before: backups outlive keys. A revoked one is not.
    Raises Tampered: changed, not signed, signed by another key, more than 16 MiB or a million lines, or written in another
    way than `sign` writes.
    """
    packet = _parts(signed)
    signature = signature_of(packet)
    text, report = _ask(home, signed)
    primary, key, signed_at = _signer(home, report, pinned)
    if signature.issuer != key[-16:]:
        raise Tampered("the signature names another issuer than the key that made it")
    if not digest_of(signature, text).startswith(signature.check):
        raise Tampered("the signature does not begin with the digest of the text")
    if _render(text, signature, packet) != signed:
        raise Tampered("the signed text is not written as it was signed", "fetch it anew from the store")
    try:
        return Verified(text.decode(), primary, signed_at)
    except UnicodeDecodeError as error:
        raise Tampered("the signed text is not UTF-8") from error


def _parts(signed: bytes) -> bytes:
    """The signature packet, from an armour that is written in its only way; for the rest, `_render` is the judge.

    Anyone who may write into the store decides what this is given, so it looks at what is cheap first and copies nothing large.
    """
    if len(signed) > TEXT_BYTES:
        raise Tampered(f"a signed text of {len(signed)} bytes is too large", f"the limit is {TEXT_BYTES} bytes")
    if not signed.startswith(_MESSAGE):
        raise Tampered("the text is not signed")
    blank = signed.find(b"\n\n", len(_MESSAGE), len(_MESSAGE) + _HEADER_BYTES)
    cut = signed.rfind(_CUT, max(0, len(signed) - len(_CUT) - ARMOUR_BYTES))
    if blank < 0 or cut < blank + 2 or not signed.endswith(_END):
        raise Tampered("the text is not one signed text and nothing else")
    if signed.count(b"\n") > LINES:
        raise Tampered("a signed text of so many lines is too large", f"the limit is {LINES} lines")
    # An earlier signature, or an earlier end of the text, would be a line that begins with a dash and no blank.
    if b"\r" in signed or _STRAY.search(signed, blank + 1, cut):
        raise Tampered("the text is not one signed text and nothing else")
    armour = signed[cut + len(_CUT) :]
    name = signed[len(_MESSAGE) : blank].removeprefix(b"Hash: ").decode(errors="replace")
    if name not in HASHES.values():
        raise Tampered("the text is not signed with a hash that is accepted")
    try:
        packet = base64.b64decode(b"".join(armour.removesuffix(_END).split(b"\n")[:-2]), validate=True)
    except ValueError as error:
        raise Tampered("the signature is damaged") from error
    if _armour(packet) != armour:
        raise Tampered("the signature is damaged")
    return packet


def _render(text: bytes, signature: Signature, packet: bytes) -> bytes:
    """The only way in which gpg writes this text with this signature."""
    body = _escaped(text.removesuffix(b"\n"))
    return _MESSAGE + f"Hash: {signature.hash_name}\n\n".encode() + body + _CUT + _armour(packet)


def _escaped(text: bytes) -> bytes:
    """With `- ` before each line that begins with a dash or `From ` (RFC 4880 section 7.1)."""
    return (b"\n" + text).replace(b"\n-", b"\n- -").replace(b"\nFrom ", b"\n- From ")[1:]


def _armour(packet: bytes) -> bytes:
    """What follows the armour's first lines: base64, checksum, end (RFC 4880 section 6)."""
    encoded = base64.b64encode(packet)
    lines = b"".join(encoded[at : at + 64] + b"\n" for at in range(0, len(encoded), 64))
    return lines + b"=" + base64.b64encode(crc24(packet)) + b"\n" + _END


def _ask(home: Home, signed: bytes) -> tuple[bytes, tuple[Status, ...]]:
    """What gpg says the text is, and its report. Raises ProcessFailed only when gpg itself could not do its work."""
    file = home.fresh("status")
    try:
        try:
            text = home.call(*TRUSTING, "--status-file", str(file), "--output", "-", "--decrypt", stdin=signed).stdout
        except ProcessFailed as error:
            _explain(statuses(file), error)
            raise
        return text, statuses(file)
    finally:
        file.unlink(missing_ok=True)


def _explain(report: tuple[Status, ...], error: ProcessFailed) -> None:
    for status in report:
        if status.keyword in _BAD:
            raise Tampered(_BAD[status.keyword]) from error
        if status.keyword == "ERRSIG":
            raise Tampered(f"signed by another key ({_issuer(status)})", _NOT_PINNED) from error


def _issuer(status: Status) -> str:
    """Of an ERRSIG line: the fingerprint where gpg tells it, or the key id."""
    last = status.arguments[-1]
    return last if FINGERPRINT.fullmatch(last) else status.arguments[0]


def _signer(home: Home, report: tuple[Status, ...], pinned: Collection[str]) -> tuple[str, str, datetime]:
    """Primary fingerprint, fingerprint of the key that signed, time. Raises Tampered unless one pinned key signed."""
    for status in report:
        if status.keyword in _BAD:
            raise Tampered(_BAD[status.keyword])
    keywords = [status.keyword for status in report]
    good = keywords.count("GOODSIG") + keywords.count("EXPKEYSIG")
    if (
        not good == keywords.count("VALIDSIG") == keywords.count("NEWSIG") == keywords.count("PLAINTEXT") == 1
        or "ERRSIG" in keywords
    ):
        raise Tampered("the text has not exactly one good signature")
    words = next(status.arguments for status in report if status.keyword == "VALIDSIG")
    key, primary, signed_at = words[0], words[9], datetime.fromtimestamp(int(words[2]), UTC)
    if key not in pinned and primary not in pinned:
        raise Tampered(f"signed by another key ({primary})", _NOT_PINNED)
    if "EXPKEYSIG" in keywords and not _was_valid(home, {key, primary}, signed_at):
        raise Tampered(f"the key {primary} had expired when it signed", "who still has it?")
    return primary, key, signed_at


def _was_valid(home: Home, fingerprints: set[str], at: datetime) -> bool:
    """Whether these keys, primary and subkey, had not expired at that time."""
    records = home.listed(sorted(fingerprints)[0])
    ends = {
        following.field(10): record.field(7)
        for record, following in itertools.pairwise(records)
        if record.kind in {"pub", "sub"} and following.kind == "fpr"
    }
    return fingerprints <= ends.keys() and all(not ends[key] or at.timestamp() < int(ends[key]) for key in fingerprints)


def _pinned(home: Home, fingerprint: str) -> str:
    """How to name the key so that gpg uses it: a subkey only with `!`, or gpg takes the newest that can sign."""
    if not FINGERPRINT.fullmatch(fingerprint):
        raise KeyUnusable(f"{fingerprint} is not a full fingerprint", "give all 40 digits, in upper case, without blanks")
    try:
        records = home.listed(fingerprint)
    except ProcessFailed as error:
        raise KeyUnusable(f"there is no key {fingerprint} here", "import the signing key first") from error
    primary = next((record.field(10) for record in records if record.kind == "fpr"), "")
    return fingerprint if primary == fingerprint else f"{fingerprint}!"
