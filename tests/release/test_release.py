"""A release opens the backup that was asked for and no other, and only for whoever asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupd import opening
from backupd.errors import ConfigError, Refused, SecretUnavailable, Tampered
from backupd.manifest import Head, Manifest
from backupd.manifest import render as render_manifest
from backupd.opening import Opening, SessionKeys
from backupd.openpgp import Home, cleartext, keys, messages
from backupd.openpgp.keys import KeyPair
from backupd.openpgp.packets import sealed_head
from backupd.pipeline import run
from backupd.redact import Secret
from backupd.release import Given, Proved, accept, ask, give, prove, read
from backupd.release.answer import KIND as RELEASE
from backupd.release.request import LARGEST_REQUEST, code_of, render
from tests.release.conftest import ASKER, CUSTODIAN, PLAIN, Shelf


@pytest.fixture(scope="module")
def asked(shelf: Shelf) -> tuple[bytes, KeyPair]:
    """The request for backup `a`, and its one-time key."""
    return ask(shelf.a, shelf.store, ASKER)


@pytest.fixture(scope="module")
def proved(shelf: Shelf, asked: tuple[bytes, KeyPair]) -> Proved:
    return proven(shelf, asked[0])


@pytest.fixture(scope="module")
def given_(shelf: Shelf, proved: Proved) -> Given:
    return released(shelf, proved)


@pytest.fixture(scope="module")
def session_keys(given_: Given, asked: tuple[bytes, KeyPair]) -> SessionKeys:
    return accept(given_.data, asked[1].secret)[0]


def proven(shelf: Shelf, data: bytes) -> Proved:
    """As a custodian proves a request: with the signing key's public half, in a home that has nothing else."""
    with Home() as home:
        return prove(data, home, {home.import_public(shelf.pairs.signing.public)})


def released(shelf: Shelf, proved: Proved, key: KeyPair | None = None) -> Given:
    with Home() as keyring, Home() as home:
        keyring.import_secret((key or shelf.pairs.escrow).secret)
        return give(proved, keyring, home, CUSTODIAN)


def opened(shelf: Shelf, manifest: Manifest, key: SessionKeys) -> list[bytes]:
    """The plaintext of every artifact, in a home that has no key."""
    with Home() as home:
        return [b"".join(opening.read(manifest, each, shelf.store, Opening(home, key))) for each in manifest.artifacts]


def test_the_session_keys_of_a_open_all_of_a_without_any_secret_key(shelf: Shelf, session_keys: SessionKeys) -> None:
    Opening(shelf.home, session_keys).require(shelf.a.proved(), shelf.a.digest)
    assert opened(shelf, shelf.a.proved(), session_keys) == [PLAIN, PLAIN]
    assert len({key.text() for key in session_keys.by_head.values()}) == 2


def test_they_do_not_open_b(shelf: Shelf, session_keys: SessionKeys) -> None:
    b = shelf.b.proved()
    with pytest.raises(Refused, match="is not what the session keys were released for, which is 20261101T020000Z-aaaaaa"):
        Opening(shelf.home, session_keys).require(b, shelf.b.digest)
    with pytest.raises(Refused):
        opened(shelf, b, session_keys)
    # Were the names forged, the heads would still be others; and were those forged, gpg would find that nothing fits.
    with pytest.raises(Refused):
        opened(shelf, b, replace(session_keys, backup_id=b.backup_id))
    values = list(session_keys.by_head.values())
    heads = {each.head.sha256: key for each, key in zip(b.artifacts, values, strict=True) if each.head is not None}
    with pytest.raises(Tampered):
        opened(shelf, b, replace(session_keys, backup_id=b.backup_id, by_head=heads))


def test_another_manifest_of_the_same_backup_is_refused(shelf: Shelf, session_keys: SessionKeys) -> None:
    with pytest.raises(Refused, match="another than the one that the session keys were released for"):
        Opening(shelf.home, session_keys).require(shelf.a.proved(), shelf.b.digest)


def test_the_custodian_sees_what_is_asked_and_by_whom(shelf: Shelf, asked: tuple[bytes, KeyPair], proved: Proved) -> None:
    assert proved.manifest == shelf.a.proved()
    assert proved.signed_by == shelf.signer
    assert proved.request.by == ASKER
    assert proved.code == code_of(asked[0])
    assert proved.reply_to.fingerprint == asked[1].fingerprint
    assert proved.manifest_sha256 == shelf.a.digest


def test_a_request_holds_no_secret_and_is_small(shelf: Shelf, asked: tuple[bytes, KeyPair], session_keys: SessionKeys) -> None:
    data, one_time = asked
    assert len(data) < 16_000
    assert b"PRIVATE" not in data
    assert one_time.secret.reveal() not in data
    assert not [key for key in session_keys.by_head.values() if key.reveal()[2:] in data]


def test_a_release_is_sealed_and_names_who_gave_it_with_which_key(
    shelf: Shelf, proved: Proved, given_: Given, session_keys: SessionKeys
) -> None:
    assert given_.fingerprints == (shelf.pairs.escrow.fingerprint,)
    assert not [key for key in session_keys.by_head.values() if key.reveal()[2:] in given_.data]
    assert "9:" not in repr(session_keys)
    assert released(shelf, proved, shelf.pairs.operations).fingerprints == (shelf.pairs.operations.fingerprint,)


def test_a_release_opens_with_its_own_one_time_key_only(shelf: Shelf, given_: Given) -> None:
    _, another = ask(shelf.a, shelf.store, ASKER)
    with pytest.raises(SecretUnavailable, match="answers another request") as caught:
        accept(given_.data, another.secret)
    assert "--request-key" in str(caught.value.hint)


def test_a_key_that_the_backup_is_not_sealed_to_releases_nothing(shelf: Shelf, proved: Proved) -> None:
    stranger = keys.generate("Somebody else", purpose="encrypt", expires_days=None)
    with pytest.raises(SecretUnavailable, match="no secret key here opens this; it is sealed to") as caught:
        released(shelf, proved, stranger)
    assert caught.value.hint


def test_heads_of_another_backup_are_not_released_under_this_ones_name(shelf: Shelf, asked: tuple[bytes, KeyPair]) -> None:
    """The custodian would see a backup of a test system, and open that of the clinic."""
    request = read(asked[0])
    theirs = read(ask(shelf.b, shelf.store, ASKER)[0]).heads
    one = {**request.heads, "database.dump.gpg": theirs["database.dump.gpg"]}
    swapped = dict(zip(request.heads, reversed(list(request.heads.values())), strict=True))
    for heads in (theirs, one, swapped):
        with pytest.raises(Tampered, match="is not that of 20261101T020000Z-aaaaaa"):
            proven(shelf, render(replace(request, heads=heads)))
    for heads in ({}, {"database.dump.gpg": request.heads["database.dump.gpg"]}, {**request.heads, "more": b"x"}):
        with pytest.raises(Tampered, match="other heads than its backup has artifacts"):
            proven(shelf, render(replace(request, heads=heads)))


def resigned(shelf: Shelf, data: bytes, manifest: Manifest, heads: dict[str, bytes]) -> bytes:
    """What somebody can ask who has the signing key."""
    signed = cleartext.sign(shelf.home, render_manifest(manifest), shelf.signer)
    return render(replace(read(data), manifest=signed, heads=heads))


def test_a_signer_cannot_ask_for_many_backups_as_one(shelf: Shelf, asked: tuple[bytes, KeyPair]) -> None:
    a, heads = shelf.a.proved(), dict(read(asked[0]).heads)
    head = read(ask(shelf.b, shelf.store, ASKER)[0]).heads["database.dump.gpg"]
    for name in ("database-2.dump.gpg", "globals.sql"):
        more = replace(a.artifacts[0], name=name, head=Head(len(head), hashlib.sha256(head).hexdigest()))
        request = resigned(shelf, asked[0], replace(a, artifacts=(*a.artifacts, more)), {**heads, name: head})
        with pytest.raises(Tampered, match=f"lists {name}, and a backup has one database.dump.gpg and one globals.sql.gpg"):
            proven(shelf, request)
    swapped = tuple(replace(each, kind=other.kind) for each, other in zip(a.artifacts, reversed(a.artifacts), strict=True))
    with pytest.raises(Tampered, match="and a backup has one"):
        proven(shelf, resigned(shelf, asked[0], replace(a, artifacts=swapped), heads))


def test_another_message_of_the_custodians_is_not_released(shelf: Shelf, asked: tuple[bytes, KeyPair]) -> None:
    """Its head stands in a manifest that a thief of the signing key signed; a key opens it that backups are not sealed to."""
    private = keys.generate("Private letters", purpose="encrypt", expires_days=None)
    with Home() as home:
        letter = run(messages.seal(home, [keys.inspect(private.public, "key")]), b"dear keeper", timeout_s=60).stdout
    a, head = shelf.a.proved(), sealed_head(letter)
    noted = replace(a.artifacts[0], head=Head(len(head), hashlib.sha256(head).hexdigest()))
    forged = replace(a, artifacts=(noted, a.artifacts[1]))
    heads = {**read(asked[0]).heads, noted.name: head}
    with Home() as keyring, Home() as home:
        for pair in (shelf.pairs.escrow, private):
            keyring.import_secret(pair.secret)
        proved = proven(shelf, resigned(shelf, asked[0], forged, heads))
        with pytest.raises(Refused, match=f"database.dump.gpg was opened by the key {private.fingerprint}, not by"):
            give(proved, keyring, home, CUSTODIAN)
        # A manifest that names that key too gets no further where the custodian says which key he means.
        named = replace(forged, recipients=(*forged.recipients, private.fingerprint))
        proved = proven(shelf, resigned(shelf, asked[0], named, heads))
        with pytest.raises(Refused, match=f"{private.fingerprint}, not by {shelf.pairs.escrow.fingerprint}"):
            give(proved, keyring, home, CUSTODIAN, shelf.pairs.escrow.fingerprint)


def test_a_manifest_that_no_pinned_key_signed_is_not_believed(shelf: Shelf, asked: tuple[bytes, KeyPair]) -> None:
    """Even with the very heads that it names: anybody can make a manifest."""
    thief = keys.generate("Thief", purpose="sign", expires_days=None)
    request = read(asked[0])
    text = cleartext.verify(shelf.home, request.manifest, {shelf.signer}).text
    with Home() as den:
        forged = cleartext.sign(den, text, den.import_secret(thief.secret))
    with pytest.raises(Tampered, match="signed by another key"):
        proven(shelf, render(replace(request, manifest=forged)))
    with pytest.raises(Tampered):
        proven(shelf, render(replace(request, manifest=request.manifest.replace(b"clinic", b"klinik", 1))))


def test_a_backup_without_noted_heads_is_refused_on_both_sides(shelf: Shelf, asked: tuple[bytes, KeyPair]) -> None:
    old = shelf.add("20261001T020000Z-000000", heads=False)
    with pytest.raises(Refused, match="no release can be bound to it"):
        ask(old, shelf.store, ASKER)
    signed = shelf.store.read("clinic/20261001T020000Z-000000/manifest.asc")
    with pytest.raises(Refused):
        proven(shelf, render(replace(read(asked[0]), manifest=signed)))


def test_a_reason_that_nobody_reads_is_told_to_who_asks(shelf: Shelf) -> None:
    with pytest.raises(ConfigError, match="the reason is 201 characters long"):
        ask(shelf.a, shelf.store, replace(ASKER, reason="x" * 201))
    with pytest.raises(ConfigError, match="the operator's name is 300 characters long"):
        ask(shelf.a, shelf.store, replace(ASKER, operator="x" * 300))


def test_a_stored_head_that_was_changed_is_told_before_anybody_is_asked(shelf: Shelf) -> None:
    changed = replace(shelf.a, digest="0" * 64)
    with pytest.raises(Tampered, match="was changed while it was read"):
        ask(changed, shelf.store, ASKER)
    manifest = shelf.a.proved()
    foreign = tuple(
        replace(each, head=other.head) for each, other in zip(manifest.artifacts, shelf.b.proved().artifacts, strict=True)
    )
    with pytest.raises(Tampered, match="is not that of"):
        ask(replace(shelf.a, manifest=replace(manifest, artifacts=foreign)), shelf.store, ASKER)


def test_a_request_that_cannot_be_answered_any_more_is_told(shelf: Shelf, asked: tuple[bytes, KeyPair]) -> None:
    with Home() as home:
        parts = ["%no-protection", "Key-Type: EDDSA", "Key-Curve: ed25519", "Subkey-Type: ECDH", "Subkey-Curve: cv25519"]
        text = "\n".join([*parts, "Name-Real: Old", "Expire-Date: 7d", "%commit", ""])
        home.call("--faked-system-time", "20200101T000000!", "--gen-key", stdin=text.encode())
        old = home.call("--armor", "--export").stdout
    with pytest.raises(ConfigError, match="expired on 2020-01-08"):
        proven(shelf, render(replace(read(asked[0]), reply_to=old)))
    aged = read(asked[0]).asked_at - timedelta(days=8)
    with pytest.raises(Refused, match=f"made at {aged:%Y-%m-%d %H:%M} UTC, and requests live 7 days"):
        proven(shelf, render(replace(read(asked[0]), asked_at=aged)))
    with pytest.raises(Refused, match="made at 2099-01-01 00:00 UTC"):
        proven(shelf, render(replace(read(asked[0]), asked_at=datetime(2099, 1, 1, tzinfo=UTC))))
    soon = read(asked[0]).asked_at + timedelta(minutes=30)  # by a clock that is ahead
    assert proven(shelf, render(replace(read(asked[0]), asked_at=soon))).request.asked_at == soon
    with pytest.raises(ConfigError, match="one-time key of the request"):
        proven(shelf, render(replace(read(asked[0]), reply_to=b"no key")))


def test_a_key_that_is_not_for_one_answer_gets_none(shelf: Shelf, asked: tuple[bytes, KeyPair]) -> None:
    """One that lives on, one that somebody may break, or the very key that the release is to keep away."""
    with Home() as home:
        home.call("--passphrase", "", "--quick-generate-key", "Weak", "rsa1024", "encr", "7d")
        weak = home.call("--armor", "--export").stdout
    cases = [
        (keys.generate("For ever", purpose="encrypt", expires_days=None).public, "its one-time key never expires"),
        (keys.generate("For long", purpose="encrypt", expires_days=30).public, "its one-time key expires on 2"),
        (weak, "its one-time key is weak: RSA of 1024 bits"),
    ]
    for reply_to, message in cases:
        with pytest.raises(Refused, match=f"the request cannot be answered: {message}") as caught:
            proven(shelf, render(replace(read(asked[0]), reply_to=reply_to)))
        assert caught.value.hint
    with Home() as home:
        home.import_secret(shelf.pairs.operations.secret)
        for part in ("", "*"):
            home.call("--quick-set-expire", shelf.pairs.operations.fingerprint, "5d", *([part] if part else []))
        operations = home.call("--armor", "--export").stdout
    with pytest.raises(Refused, match="a key that the backup itself is sealed to"):
        proven(shelf, render(replace(read(asked[0]), reply_to=operations)))
    # The same by its encryption subkey alone, under another primary key.
    a = replace(shelf.a.proved(), recipients=(shelf.pairs.escrow.fingerprint,))
    request = resigned(shelf, asked[0], a, dict(read(asked[0]).heads))
    with pytest.raises(Refused, match="a key that the backup itself is sealed to"):
        proven(shelf, render(replace(read(request), reply_to=operations)))


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.update(kind="something else"),
        lambda raw: raw.pop("reason"),
        lambda raw: raw.update(extra=1),
        lambda raw: raw.update(asked_at="yesterday"),
        lambda raw: raw.update(asked_at="2026-11-01T00:00:00"),
        lambda raw: raw.update(asked_at="0001-01-01T00:00:00+23:00"),
        lambda raw: raw.update(via="telepathy"),
        lambda raw: raw.update(reason=["a", "list"]),
        lambda raw: raw.update(reason="x" * 201),
        lambda raw: raw.update(user=None),
        lambda raw: raw.update(host=None),
        lambda raw: raw.update(manifest="not base64!"),
        lambda raw: raw.update(manifest=5),
        lambda raw: raw.update(heads=[]),
        lambda raw: raw.update(reply_to=None),
    ],
)
def test_what_is_no_request_is_refused(asked: tuple[bytes, KeyPair], change: Callable[[dict[str, Any]], None]) -> None:
    raw = json.loads(asked[0])
    change(raw)
    with pytest.raises(Tampered, match="no request for session keys"):
        read(json.dumps(raw, indent=1, sort_keys=True).encode() + b"\n")


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{}", b"[" * 100_000, b"\xff", b'{"kind": NaN}'])
def test_other_files_are_no_requests(data: bytes) -> None:
    with pytest.raises(Tampered, match="no request for session keys"):
        read(data)


def test_a_request_of_another_format_says_so(asked: tuple[bytes, KeyPair]) -> None:
    with pytest.raises(Tampered, match="a request of format 2") as caught:
        read(asked[0].replace(b'"format": 1', b'"format": 2'))
    assert "update this one" in str(caught.value.hint)


def test_a_request_that_is_larger_than_any_is_not_looked_into() -> None:
    with pytest.raises(ConfigError, match="larger than any"):
        read(b" " * (LARGEST_REQUEST + 1))


@settings(max_examples=60)
@given(st.data())
def test_a_changed_request_is_another_or_none(asked: tuple[bytes, KeyPair], data: st.DataObject) -> None:
    """Every change either is refused or shows: in what the custodian sees, and in the code."""
    original = asked[0]
    at = data.draw(st.integers(0, len(original) - 1))
    changed = original[:at] + bytes([original[at] ^ data.draw(st.integers(1, 255))]) + original[at + 1 :]
    assert code_of(changed) != code_of(original)
    with suppress(Tampered):
        assert read(changed) != read(original)


@settings(max_examples=25)
@given(st.data())
def test_a_damaged_release_is_refused(
    asked: tuple[bytes, KeyPair], given_: Given, session_keys: SessionKeys, data: st.DataObject
) -> None:
    """Any bit, anywhere, and any end. Of its own head, gpg does not look at every bit; such a one changes nothing."""
    whole = given_.data
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    damaged = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))]) + whole[at + 1 :]
    with suppress(Tampered, SecretUnavailable):
        found, _ = accept(damaged, asked[1].secret)
        assert not cut
        assert at < len(sealed_head(whole))
        assert found == session_keys


def forged(one_time: KeyPair, text: bytes) -> bytes:
    """What anybody can make who has the request: a message sealed to its one-time key."""
    with Home() as home:
        return run(messages.seal(home, [keys.inspect(one_time.public, "key")]), text, timeout_s=60).stdout


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[1]",
        json.dumps({"kind": RELEASE, "format": 1}).encode(),
        json.dumps({"kind": RELEASE, "format": 1, "source": "../up", "session_keys": {}}).encode(),
    ],
)
def test_what_is_sealed_and_no_release_is_refused(asked: tuple[bytes, KeyPair], text: bytes) -> None:
    with pytest.raises(Tampered, match="no release"):
        accept(forged(asked[1], text), asked[1].secret)


def test_a_release_of_another_format_or_size_says_so(asked: tuple[bytes, KeyPair]) -> None:
    with pytest.raises(Tampered, match="a release of format 2"):
        accept(forged(asked[1], json.dumps({"kind": RELEASE, "format": 2}).encode()), asked[1].secret)
    with pytest.raises(ConfigError, match="larger than any"):
        accept(b" " * ((1 << 20) + 1), asked[1].secret)


def test_session_keys_that_somebody_made_up_open_nothing(shelf: Shelf, session_keys: SessionKeys) -> None:
    made_up = {head: Secret(f"9:{number:064X}", "session key") for number, head in enumerate(session_keys.by_head)}
    with pytest.raises(Tampered, match="the released session keys do not open 20261101T020000Z-aaaaaa") as caught:
        opened(shelf, shelf.a.proved(), replace(session_keys, by_head=made_up))
    assert "ask the custodian" in str(caught.value.hint)
