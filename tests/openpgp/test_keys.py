"""Keys are read without a keyring, judged by the clock that is given, and made without a passphrase."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest

from backupd.errors import KeyUnusable
from backupd.openpgp import Home, keys
from backupd.openpgp.keys import Purpose
from tests.openpgp.conftest import Ring, add_subkey, make_key

ED25519 = ("Key-Type: EDDSA", "Key-Curve: ed25519", "Key-Usage: sign")
CV25519 = ("Subkey-Type: ECDH", "Subkey-Curve: cv25519", "Subkey-Usage: encrypt")


def exported(home: Home, fingerprint: str) -> bytes:
    return home.call("--export", fingerprint).stdout


def judged(data: bytes, now: datetime, purpose: Purpose = "encrypt", warn_days: int = 30) -> list[tuple[bool, str]]:
    return [(p.fatal, p.message) for p in keys.problems(keys.inspect(data, "k"), now, purpose=purpose, warn_days=warn_days)]


def test_a_new_recipient_key_certifies_and_has_one_encryption_subkey(ring: Ring) -> None:
    key = keys.inspect(ring.operations.public, "k")
    assert key.fingerprint == ring.operations.fingerprint
    assert key.user_id == "Clinic backup, operations"
    assert key.expires_at is None
    assert not key.revoked
    assert not key.can_sign
    assert [(subkey.algorithm, subkey.usable(datetime.now(UTC))) for subkey in key.encryption_subkeys] == [("cv25519", True)]
    assert key.encryption_subkeys[0].fingerprint != key.fingerprint
    assert key.weak == ()
    assert key.data == ring.operations.public
    assert keys.problems(key, datetime.now(UTC), purpose="encrypt") == []


def test_a_new_signing_key_signs_and_does_nothing_else(ring: Ring) -> None:
    key = keys.inspect(ring.signer.public, "k")
    assert [subkey.fingerprint for subkey in key.signing_keys] == [key.fingerprint]
    assert key.encryption_subkeys == ()
    assert keys.problems(key, datetime.now(UTC), purpose="sign") == []


def test_a_new_key_expires_when_it_was_told_to(ring: Ring) -> None:
    key = keys.inspect(ring.escrow.public, "k")
    assert key.expires_at == key.created_at + timedelta(days=400)
    assert [subkey.expires_at for subkey in key.encryption_subkeys] == [
        subkey.created_at + timedelta(days=400) for subkey in key.encryption_subkeys
    ]


def test_a_new_key_does_not_ask_for_packets_that_other_programs_cannot_read(home: Home, ring: Ring) -> None:
    packets = home.call("--list-packets", stdin=ring.operations.public).stdout.decode()
    features = [line.strip() for line in packets.splitlines() if "features:" in line]
    assert len(features) == 1
    assert features[0].endswith("(features: 01)"), "01 is the modification detection code; 02 and 04 are kinds of AEAD"


def test_a_new_secret_key_prints_nothing_and_opens_without_a_passphrase(home: Home, ring: Ring) -> None:
    assert "PRIVATE KEY" not in repr(ring.operations)
    assert "PRIVATE KEY" in ring.operations.secret.text()
    assert home.import_secret(ring.operations.secret) == ring.operations.fingerprint


def test_the_revocation_certificate_of_a_new_key_ends_its_use(home: Home, ring: Ring) -> None:
    home.import_public(ring.operations.public)
    certificate = ring.operations.revocation.reveal().replace(b":-----BEGIN", b"-----BEGIN")  # gpg's guard against haste
    home.call("--import", stdin=certificate)
    data = exported(home, ring.operations.fingerprint)
    assert keys.inspect(data, "k").revoked
    assert [fatal for fatal, text in judged(data, datetime.now(UTC)) if "revoked" in text] == [True]
    with Home() as other:
        other.import_public(ring.operations.public)
        assert other.import_public(data) == ring.operations.fingerprint
        assert other.listed(ring.operations.fingerprint)[1].field(2) == "r"


def test_making_a_key_logs_no_secret_though_python_gnupg_logs_what_it_handles(
    home: Home, ring: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    """python-gnupg writes the first bytes of what it imports to its debug log; that is why secret keys go round it."""
    caplog.set_level(logging.DEBUG)
    made = keys.generate("Quiet", purpose="sign", expires_days=1)
    home.import_secret(made.secret)
    assert made.fingerprint in caplog.text, "its log was meant to be seen"
    assert "PRIVATE KEY" not in caplog.text
    home.gnupg().import_keys(ring.stranger.secret.reveal())
    assert "PRIVATE KEY" in caplog.text


@pytest.mark.parametrize("user_id", ["", " ", "a\nKey-Usage: auth", "a\n%ask-passphrase", " a", "a\x1b[31m", "a" * 201])
def test_a_user_id_that_could_be_a_command_to_gpg_is_refused(user_id: str) -> None:
    with pytest.raises(KeyUnusable, match="one line"):
        keys.generate(user_id, purpose="sign", expires_days=None)


@pytest.mark.parametrize("user_id", ["x", "Søren Ærø", "100% of it", "Ops: <ops@clinic.example> (night)"])
def test_a_user_id_comes_back_as_it_was_given(user_id: str) -> None:
    made = keys.generate(user_id, purpose="sign", expires_days=None)
    assert keys.inspect(made.public, "k").user_id == user_id


@pytest.mark.parametrize("days", [0, -1, 36_501])
def test_a_life_that_is_none_is_refused(days: int) -> None:
    with pytest.raises(KeyUnusable, match="cannot expire"):
        keys.generate("Short", purpose="sign", expires_days=days)


def test_a_secret_key_is_refused_where_a_public_one_is_due_however_it_is_wrapped(home: Home, ring: Ring) -> None:
    secret = ring.operations.secret.reveal()
    home.import_secret(ring.operations.secret)
    binary = home.call("--export-secret-keys", ring.operations.fingerprint).stdout
    public = exported(home, ring.operations.fingerprint)
    for data in (
        secret,
        binary,
        ring.operations.public + secret,
        secret + ring.operations.public,
        public + binary,
        binary + public,
    ):
        with pytest.raises(KeyUnusable, match=r"^keys/operations\.asc: this is a secret key") as caught:
            keys.inspect(data, "keys/operations.asc")
        assert caught.value.hint is not None


def test_a_file_of_several_keys_is_refused_however_they_are_joined(home: Home, ring: Ring) -> None:
    home.import_public(ring.operations.public)
    home.import_public(ring.escrow.public)
    both = home.call("--export").stdout
    for data in (ring.operations.public + ring.escrow.public, both, home.call("--export", "--armor").stdout):
        with pytest.raises(KeyUnusable, match="2 keys"):
            keys.inspect(data, "k")


def test_bytes_behind_an_armoured_key_are_refused(home: Home, ring: Ring) -> None:
    home.import_secret(ring.operations.secret)
    secret = home.call("--export-secret-keys", ring.operations.fingerprint).stdout
    for more in (secret, b"x"):  # of which gpg 2.2.40 says nothing
        with pytest.raises(KeyUnusable):
            keys.inspect(ring.operations.public + more, "k")
    assert keys.inspect(ring.operations.public + b" \n\n", "k").fingerprint == ring.operations.fingerprint


def test_a_subkey_that_the_primary_key_did_not_sign_is_not_counted(home: Home, ring: Ring) -> None:
    home.import_public(ring.operations.public)
    whole = exported(home, ring.operations.fingerprint)
    listing = home.call("--list-packets", stdin=whole).stdout.decode()
    last = [int(line.split("off=")[1].split()[0]) for line in listing.splitlines() if line.startswith("# off=")][-1]
    key = keys.inspect(whole[:last], "k")
    assert key.fingerprint == ring.operations.fingerprint
    assert key.encryption_subkeys == ()


def test_what_is_no_key_is_refused(ring: Ring) -> None:
    for data in (b"", b"no key", b"\0" * 100, ring.operations.public[:200], b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n"):
        with pytest.raises(KeyUnusable, match=r"^k: "):
            keys.inspect(data, "k")


def test_a_key_cut_short_anywhere_is_refused_or_lacks_what_it_lost(home: Home, ring: Ring) -> None:
    home.import_public(ring.operations.public)
    whole = exported(home, ring.operations.fingerprint)
    for length in range(10, len(whole) - 1, 23):
        try:
            key = keys.inspect(whole[:length], "k", home=home)
        except KeyUnusable:
            continue
        assert key.fingerprint == ring.operations.fingerprint
        assert key.encryption_subkeys == ()


def test_a_file_that_is_too_large_is_refused_unread(ring: Ring) -> None:
    with pytest.raises(KeyUnusable, match="more than 1 MiB"):
        keys.inspect(ring.operations.public.ljust((1 << 20) + 1, b"\n"), "k")


def test_expiry_is_told_in_time_and_then_is_fatal(ring: Ring) -> None:
    key = keys.inspect(ring.escrow.public, "k")
    end = key.expires_at
    assert end is not None
    day = timedelta(days=1)
    assert judged(key.data, end - 31 * day) == []
    [(fatal, message)] = judged(key.data, end - 30 * day)
    assert not fatal
    assert f"expires on {end:%Y-%m-%d}" in message
    assert judged(key.data, end - 30 * day, warn_days=29) == []
    [(fatal, message)] = judged(key.data, end)
    assert fatal
    assert f"expired on {end:%Y-%m-%d}" in message


def test_a_clock_before_the_keys_birth_is_fatal(ring: Ring) -> None:
    [(fatal, message)] = judged(ring.operations.public, datetime(2020, 1, 1, tzinfo=UTC))
    assert fatal
    assert "made in the future" in message


def test_a_key_is_read_even_when_gpg_itself_thinks_it_is_not_born_yet(home: Home) -> None:
    key = keys.inspect(exported(home, make_key(home, *ED25519, *CV25519, "Name-Real: Later", at="20990101T000000")), "k")
    assert len(key.encryption_subkeys) == 1
    assert [p.fatal for p in keys.problems(key, datetime(2026, 1, 1, tzinfo=UTC), purpose="encrypt")] == [True]
    assert keys.problems(key, datetime(2099, 6, 1, tzinfo=UTC), purpose="encrypt") == []


def test_a_signing_key_cannot_be_a_recipient_nor_the_reverse(ring: Ring) -> None:
    [(fatal, message)] = judged(ring.signer.public, datetime.now(UTC))
    assert fatal
    assert "has no part that can be encrypted to" in message
    [problem] = keys.problems(keys.inspect(ring.signer.public, "k"), datetime.now(UTC), purpose="encrypt")
    assert problem.hint == "it is for something else: name the right key, or make a new one: backupd keys generate"
    [(fatal, message)] = judged(ring.operations.public, datetime.now(UTC), "sign")
    assert fatal
    assert "has no part that can sign" in message


def test_a_subkey_that_expired_alone_is_found(home: Home) -> None:
    fingerprint = make_key(home, *ED25519, "Name-Real: Old part", at="20200101T000000")
    add_subkey(home, fingerprint, "cv25519", "encr", "1y", at="20200101T000000")
    data = exported(home, fingerprint)
    assert judged(data, datetime(2020, 6, 1, tzinfo=UTC)) == []
    [(fatal, message)] = judged(data, datetime(2020, 12, 20, tzinfo=UTC))
    assert not fatal
    assert "expires on 2020-12-31" in message
    [(fatal, message)] = judged(data, datetime(2021, 6, 1, tzinfo=UTC))
    assert fatal
    assert "no part left" in message


def test_a_newer_subkey_takes_over_from_one_that_expires(home: Home) -> None:
    fingerprint = make_key(home, *ED25519, "Name-Real: Renewed", at="20200101T000000")
    add_subkey(home, fingerprint, "cv25519", "encr", "1y", at="20200101T000000")
    add_subkey(home, fingerprint, "cv25519", "encr", "never", at="20200201T000000")
    data = exported(home, fingerprint)
    assert len(keys.inspect(data, "k").encryption_subkeys) == 2
    assert judged(data, datetime(2021, 6, 1, tzinfo=UTC)) == []


def test_a_short_rsa_key_is_a_warning_and_no_more(home: Home) -> None:
    lines = ("Key-Type: RSA", "Key-Length: 1024", "Key-Usage: sign,encrypt", "Name-Real: Short")
    data = exported(home, make_key(home, *lines))
    [(fatal, message)] = judged(data, datetime.now(UTC))
    assert not fatal
    assert "RSA of 1024 bits is weak" in message
    assert [subkey.fingerprint for subkey in keys.inspect(data, "k").encryption_subkeys] == [
        keys.inspect(data, "k").fingerprint
    ]
