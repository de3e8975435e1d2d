"""A signed text is accepted from a pinned key alone, and in one spelling alone; what comes back is what was signed."""

from __future__ import annotations

import base64
import contextlib
import re
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupd.errors import ConfigError, KeyUnusable, Tampered
from backupd.openpgp import Home, cleartext
from backupd.openpgp.packets import crc24
from tests.openpgp.conftest import Ring, add_subkey, make_key

TEXT = '{\n "format": 1,\n "note": "-----BEGIN PGP SIGNATURE-----",\n- dash\nFrom here\n  on, ü\n}\n'
PRIMARY = ("Key-Type: EDDSA", "Key-Curve: ed25519", "Key-Usage: sign")


@pytest.fixture(scope="module")
def signing(ring: Ring) -> Iterator[Home]:
    """A home with the secret key of the pinned signer, and with that of a stranger."""
    with Home() as home:
        home.import_secret(ring.signer.secret)
        home.import_secret(ring.stranger.secret)
        yield home


@pytest.fixture(scope="module")
def checking(ring: Ring) -> Iterator[Home]:
    """A home with the pinned public key and no other."""
    with Home() as home:
        home.import_public(ring.signer.public)
        yield home


@pytest.fixture(scope="module")
def signed(signing: Home, ring: Ring) -> bytes:
    return cleartext.sign(signing, TEXT, ring.signer.fingerprint)


def by_gpg(home: Home, *options: str, text: str = TEXT) -> bytes:
    """A cleartext signature as gpg makes it when it is asked for something else than `sign` asks for."""
    return home.call("--no-emit-version", *options, "--clearsign", stdin=text.encode()).stdout


@dataclass(frozen=True, slots=True)
class Pieces:
    """A signed text taken apart, to be put together otherwise with an armour that is right."""

    head: bytes
    packet: bytes

    @classmethod
    def of(cls, signed: bytes) -> Pieces:
        head, _, armour = signed.partition(b"-----BEGIN PGP SIGNATURE-----\n\n")
        return cls(head, base64.b64decode(b"".join(armour.split(b"\n")[:-3])))

    def with_packet(self, packet: bytes) -> bytes:
        encoded = base64.b64encode(packet)
        lines = b"".join(encoded[at : at + 64] + b"\n" for at in range(0, len(encoded), 64))
        checksum = b"=" + base64.b64encode(crc24(packet)) + b"\n"
        return self.head + b"-----BEGIN PGP SIGNATURE-----\n\n" + lines + checksum + b"-----END PGP SIGNATURE-----\n"


def test_a_signed_text_comes_back_with_its_signer_and_time(checking: Home, ring: Ring, signed: bytes) -> None:
    verified = cleartext.verify(checking, signed, {ring.signer.fingerprint})
    assert verified.text == TEXT
    assert verified.fingerprint == ring.signer.fingerprint
    assert timedelta(0) <= datetime.now(UTC) - verified.signed_at < timedelta(days=1)


def test_one_may_read_a_signed_text_with_the_eye(signed: bytes) -> None:
    assert signed.startswith(b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{\n")
    assert b"\n- - dash\n- From here\n" in signed


def test_a_long_manifest_survives(signing: Home, ring: Ring) -> None:
    text = "".join(f'  "{number:064x}",\n' for number in range(50_000))
    assert (
        cleartext.verify(signing, cleartext.sign(signing, text, ring.signer.fingerprint), {ring.signer.fingerprint}).text
        == text
    )


@settings(max_examples=100)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=30), max_size=6))
def test_a_text_either_survives_being_signed_or_is_refused(signing: Home, ring: Ring, lines: list[str]) -> None:
    text = "\n".join([*lines, ""])
    try:
        made = cleartext.sign(signing, text, ring.signer.fingerprint)
    except ConfigError:
        assert not text or any(line != line.rstrip(" \t") for line in lines), (
            "only blanks at the end of a line are no reason to refuse"
        )
        return
    assert cleartext.verify(signing, made, {ring.signer.fingerprint}).text == text


@pytest.mark.parametrize(
    "text", ["", "no end", "a \n", "a\t\n", "a\r\nb\n", "a\rb\n", "a\0b\n", "x" * 19_994 + "\n", "ok\n" + "x" * 30_000 + "\n"]
)
def test_a_text_that_a_signature_does_not_carry_unchanged_is_refused(signing: Home, ring: Ring, text: str) -> None:
    """gpg drops blanks at the ends of lines and cuts lines at 19,994 bytes, and ends with exit code 0."""
    with pytest.raises(ConfigError):
        cleartext.sign(signing, text, ring.signer.fingerprint)


def test_a_key_that_is_not_there_or_not_fully_named_does_not_sign(signing: Home, ring: Ring) -> None:
    for fingerprint in (ring.operations.fingerprint, ring.signer.fingerprint[-16:], "", "Clinic", "--version"):
        with pytest.raises(KeyUnusable):
            cleartext.sign(signing, TEXT, fingerprint)


def test_no_other_key_signs_in_place_of_one_that_cannot(signing: Home, ring: Ring) -> None:
    """gpg falls back to any secret key it has when its default key cannot sign."""
    with Home() as home:
        home.import_public(ring.signer.public)
        home.import_secret(ring.stranger.secret)
        with pytest.raises(KeyUnusable, match="did not sign"):
            cleartext.sign(home, TEXT, ring.signer.fingerprint)


def test_a_text_signed_by_another_key_is_refused_whether_that_key_is_known_or_not(
    signing: Home, checking: Home, ring: Ring
) -> None:
    made = cleartext.sign(signing, TEXT, ring.stranger.fingerprint)
    for home in (signing, checking):
        with pytest.raises(Tampered, match=rf"^signed by another key \({ring.stranger.fingerprint}\)$"):
            cleartext.verify(home, made, {ring.signer.fingerprint})
    with pytest.raises(Tampered, match="another key"):
        cleartext.verify(signing, made, set())


def test_what_is_not_signed_is_refused(checking: Home, ring: Ring, signed: bytes) -> None:
    for text in (b"", TEXT.encode(), signed[:100], signed[signed.index(b"-----BEGIN PGP SIGNATURE") :]):
        with pytest.raises(Tampered):
            cleartext.verify(checking, text, {ring.signer.fingerprint})


def test_a_changed_text_is_refused_as_changed(checking: Home, ring: Ring, signed: bytes) -> None:
    with pytest.raises(Tampered, match="the signed text was changed"):
        cleartext.verify(checking, signed.replace(b'"format": 1', b'"format": 2'), {ring.signer.fingerprint})


SPELLINGS: dict[str, Callable[[bytes], bytes]] = {
    "text before": lambda signed: b"before\n" + signed,
    "an empty line before": lambda signed: b"\n" + signed,
    "text after": lambda signed: signed + b"after\n",
    "an empty line after": lambda signed: signed + b"\n",
    "no newline at the end": lambda signed: signed[:-1],
    "the same twice": lambda signed: signed + signed,
    "two signatures": lambda signed: signed + signed[signed.index(b"-----BEGIN PGP SIGNATURE") :],
    "another hash named": lambda signed: signed.replace(b"Hash: SHA256", b"Hash: SHA512"),
    "two hashes named": lambda signed: signed.replace(b"Hash: SHA256", b"Hash: SHA256,SHA512"),
    "two hash headers": lambda signed: signed.replace(b"Hash: SHA256", b"Hash: SHA256\nHash: SHA256"),
    "no hash named": lambda signed: signed.replace(b"Hash: SHA256\n", b""),
    "a comment among the headers": lambda signed: signed.replace(b"Hash: SHA256", b"Hash: SHA256\nComment: x"),
    "a comment in the armour": lambda signed: signed.replace(b"SIGNATURE-----\n\n", b"SIGNATURE-----\nComment: x\n\n"),
    "a blank behind a line": lambda signed: signed.replace(b'"format": 1,\n', b'"format": 1, \n'),
    "a carriage return behind a line": lambda signed: signed.replace(b'"format": 1,\n', b'"format": 1,\r\n'),
    "carriage returns everywhere": lambda signed: signed.replace(b"\n", b"\r\n"),
    "a needless escape": lambda signed: signed.replace(b'\n "format"', b'\n-  "format"'),
    "an escape left out": lambda signed: signed.replace(b"\n- From here", b"\nFrom here"),
    "an empty line more before the signature": lambda signed: signed.replace(b"}\n-----", b"}\n\n-----"),
    "armour in other lines": lambda signed: re.sub(rb"\n=", b"\n\n=", signed),
    "no checksum": lambda signed: re.sub(rb"\n=....\n", b"\n", signed),
    "a blank in the armour": lambda signed: signed.replace(b"\n-----END", b" \n-----END"),
    "a message in the message": lambda signed: signed.replace(b"{\n", b"- -----BEGIN PGP SIGNED MESSAGE-----\n{\n", 1),
    "a binary twin": lambda signed: Pieces.of(signed).packet,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_another_spelling_of_a_signed_text_is_refused(checking: Home, ring: Ring, signed: bytes, spelling: str) -> None:
    other = SPELLINGS[spelling](signed)
    assert other != signed
    with pytest.raises(Tampered):
        cleartext.verify(checking, other, {ring.signer.fingerprint})


def test_the_signature_packet_itself_has_one_spelling(checking: Home, ring: Ring, signed: bytes) -> None:
    """gpg accepts several of these with the same text: whoever can write could change the bytes, and with them their hash."""
    pieces = Pieces.of(signed)
    packet = pieces.packet
    assert pieces.with_packet(packet) == signed
    body = packet[2:]
    hashed = 6 + int.from_bytes(body[4:6])
    unsigned = int.from_bytes(body[hashed : hashed + 2])
    at = hashed + 2 + unsigned  # the first two bytes of the digest
    notation = bytes([12, 20]) + b"\x80\0\0\0\0\x01\0\x02abc"
    grown = body[:hashed] + (unsigned + len(notation)).to_bytes(2) + body[hashed + 2 : at] + notation + body[at:]
    issuer = body[: hashed + 4] + bytes([body[hashed + 4] ^ 1]) + body[hashed + 5 :]
    none = body[:hashed] + b"\0\0" + body[at:]
    digest = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
    bits = int.from_bytes(body[at + 2 : at + 4])
    number = body[: at + 2] + (bits + 1 if bits % 8 else bits - 1).to_bytes(2) + body[at + 4 :]
    others = {
        "a number of another length in bits": b"\x88" + bytes([len(number)]) + number,
        "a new-format header": b"\xc2" + bytes([len(body)]) + body,
        "a longer length": b"\x89" + len(body).to_bytes(2) + body,
        "an unsigned remark": b"\x88" + bytes([len(grown)]) + grown,
        "another issuer": b"\x88" + bytes([len(issuer)]) + issuer,
        "no issuer": b"\x88" + bytes([len(none)]) + none,
        "another check of the digest": b"\x88" + bytes([len(digest)]) + digest,
        "the packet twice": packet + packet,
        "a marker packet behind it": packet + b"\xa8\x03PGP",
        "a byte behind it": packet + b"\0",
        "nothing": b"",
    }
    for name, other in others.items():
        with pytest.raises(Tampered):
            pytest.fail(f"{name}: {cleartext.verify(checking, pieces.with_packet(other), {ring.signer.fingerprint})}")


def test_a_second_number_that_signs_alike_is_refused(checking: Home, ring: Ring, signed: bytes) -> None:
    """Adding the group's order to S of an Ed25519 signature gives the same signature to a verifier that does not look."""
    pieces = Pieces.of(signed)
    body = pieces.packet[2:]
    at = 6 + int.from_bytes(body[4:6])
    at += 2 + int.from_bytes(body[at : at + 2]) + 2  # the unsigned part, and the check of the digest
    at += 2 + (int.from_bytes(body[at : at + 2]) + 7) // 8  # R
    order = 2**252 + 27742317777372353535851937790883648493
    other = (int.from_bytes(body[at + 2 :].rjust(32, b"\0"), "little") + order).to_bytes(32, "little").lstrip(b"\0")
    changed = body[:at] + int.from_bytes(other).bit_length().to_bytes(2) + other
    with pytest.raises(Tampered, match="not in its only form"):
        cleartext.verify(checking, pieces.with_packet(b"\x88" + bytes([len(changed)]) + changed), {ring.signer.fingerprint})


def test_a_weak_hash_or_another_kind_of_signature_is_refused(signing: Home, ring: Ring) -> None:
    pinned = {ring.signer.fingerprint}
    user = ("--local-user", ring.signer.fingerprint)
    assert cleartext.verify(signing, by_gpg(signing, *user, "--digest-algo", "SHA512"), pinned).text == TEXT
    for options in (
        ("--digest-algo", "SHA1"),
        ("--digest-algo", "SHA224"),
        ("--comment", "x"),
        ("--sig-notation", "a@b.example=c"),
    ):
        made = by_gpg(signing, *user, *options)
        if "--sig-notation" in options:
            assert cleartext.verify(signing, made, pinned).text == TEXT, "a remark that is signed does no harm"
            continue
        with pytest.raises(Tampered):
            cleartext.verify(signing, made, pinned)
    detached = signing.call(*user, "--armor", "--detach-sign", stdin=TEXT.encode()).stdout
    glued = b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n" + TEXT.encode() + detached
    with pytest.raises(Tampered):
        cleartext.verify(signing, glued, pinned)


def test_two_signers_at_once_are_refused(signing: Home, ring: Ring) -> None:
    made = by_gpg(signing, "--local-user", ring.signer.fingerprint, "--local-user", ring.stranger.fingerprint)
    with pytest.raises(Tampered):
        cleartext.verify(signing, made, {ring.signer.fingerprint, ring.stranger.fingerprint})


def test_a_text_that_is_too_large_is_refused_unread(checking: Home, ring: Ring, signed: bytes) -> None:
    with pytest.raises(Tampered, match="too large"):
        cleartext.verify(checking, signed + bytes(32 << 20), {ring.signer.fingerprint})


@pytest.mark.parametrize("line", [b"\n", b"- \n", b"-\n", b"x\n"])
def test_a_text_of_line_ends_is_refused_without_much_memory(checking: Home, ring: Ring, signed: bytes, line: bytes) -> None:
    """Whoever may write into the store could otherwise have every listing take gigabytes: a list of lines is larger."""
    at = signed.index(b"\n\n") + 2
    planted = signed[:at] + line * ((31 << 20) // len(line)) + signed[at:]
    tracemalloc.start()
    try:
        with pytest.raises(Tampered):
            cleartext.verify(checking, planted, {ring.signer.fingerprint})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_a_text_as_large_as_a_manifest_can_be_is_signed_and_a_larger_one_is_not(signing: Home, ring: Ring) -> None:
    line = "x" * 999 + "\n"
    for count in (14_000, 17_000):
        text = line * count
        with contextlib.nullcontext() if count == 14_000 else pytest.raises(ConfigError, match="at most"):
            made = cleartext.sign(signing, text, ring.signer.fingerprint)
            assert cleartext.verify(signing, made, {ring.signer.fingerprint}).text == text
    with pytest.raises(ConfigError, match="at most"):
        cleartext.sign(signing, "\n" * 1_000_001, ring.signer.fingerprint)


def test_what_a_key_signed_before_it_expired_is_accepted_and_nothing_later(home: Home) -> None:
    """A backup outlives the key that signed it."""
    fingerprint = make_key(home, *PRIMARY, "Name-Real: Old signer", at="20200101T000000")
    options = ("--local-user", fingerprint, "--digest-algo", "SHA256", "--no-comments")
    early = by_gpg(home, "--faked-system-time", "20200115T000000!", *options)
    late = by_gpg(home, "--faked-system-time", "20200401T000000!", *options)
    assert cleartext.verify(home, late, {fingerprint}).text == TEXT
    home.call("--faked-system-time", "20200201T000000!", "--quick-set-expire", fingerprint, "29d")
    verified = cleartext.verify(home, early, {fingerprint})
    assert verified.signed_at == datetime(2020, 1, 15, tzinfo=UTC)
    with pytest.raises(Tampered, match="had expired when it signed"):
        cleartext.verify(home, late, {fingerprint})
    with pytest.raises(KeyUnusable, match="did not sign"):
        cleartext.sign(home, TEXT, fingerprint)


def test_what_a_revoked_key_signed_is_refused(ring: Ring, signed: bytes) -> None:
    with Home() as home:
        home.import_public(ring.signer.public)
        certificate = ring.signer.revocation.reveal().replace(b":-----BEGIN", b"-----BEGIN")
        home.call("--import", stdin=certificate)
        with pytest.raises(Tampered, match="revoked"):
            cleartext.verify(home, signed, {ring.signer.fingerprint})


def test_a_subkey_signs_for_its_primary_key_and_may_be_pinned_itself(home: Home) -> None:
    primary = make_key(
        home, "Key-Type: EDDSA", "Key-Curve: ed25519", "Key-Usage: cert", "Name-Real: Parts", at="20200101T000000"
    )
    add_subkey(home, primary, "ed25519", "sign", "never", at="20200102T000000")
    add_subkey(home, primary, "ed25519", "sign", "never", at="20200103T000000")
    older, newer = [record.field(10) for record in home.listed(primary) if record.kind == "fpr"][1:]
    for named, expected in ((primary, newer), (older, older), (newer, newer)):
        made = cleartext.sign(home, TEXT, named)
        assert cleartext.verify(home, made, {expected}).fingerprint == primary
        assert cleartext.verify(home, made, {primary}).fingerprint == primary
    with pytest.raises(Tampered, match="another key"):
        cleartext.verify(home, cleartext.sign(home, TEXT, older), {newer})


@settings(max_examples=150)
@given(data=st.data())
def test_no_mutation_of_a_signed_text_is_accepted(checking: Home, ring: Ring, signed: bytes, data: st.DataObject) -> None:
    """Bits flipped, bytes dropped, doubled, put in, and lines swapped: anywhere, the armour included."""
    at = data.draw(st.integers(0, len(signed) - 1))
    kind = data.draw(st.sampled_from(["flip", "drop", "double", "insert", "cut", "swap"]))
    changed = bytearray(signed)
    if kind == "flip":
        changed[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "drop":
        del changed[at : at + data.draw(st.integers(1, 40))]
    elif kind == "double":
        changed[at:at] = changed[at : at + data.draw(st.integers(1, 40))]
    elif kind == "insert":
        changed[at:at] = data.draw(
            st.sampled_from([b" ", b"\t", b"\r", b"\n", b"\0", b"- ", b"=", b"\f", b"\x1a", b"Hash: SHA256\n"])
        )
    elif kind == "cut":
        del changed[at:]
    else:
        lines = signed.splitlines(keepends=True)
        first = data.draw(st.integers(0, len(lines) - 2))
        lines[first], lines[first + 1] = lines[first + 1], lines[first]
        changed = bytearray(b"".join(lines))
    if changed == signed:
        return
    with pytest.raises(Tampered):
        cleartext.verify(checking, bytes(changed), {ring.signer.fingerprint})


@settings(max_examples=100)
@given(data=st.data())
def test_no_mutation_of_the_signature_packet_is_accepted_even_with_a_right_checksum(
    checking: Home, ring: Ring, signed: bytes, data: st.DataObject
) -> None:
    pieces = Pieces.of(signed)
    changed = bytearray(pieces.packet)
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Tampered):
        cleartext.verify(checking, pieces.with_packet(bytes(changed)), {ring.signer.fingerprint})
