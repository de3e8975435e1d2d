"""What is sealed opens for its recipients and for nobody else, in any OpenPGP program; what was touched never counts as opened.

gpg alone would accept several of these: each is a line of the table of its exit codes that was measured for this project.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupd.errors import ConfigError, KeyUnusable, ProcessFailed, SecretUnavailable, Tampered
from backupd.openpgp import Home, keys, messages
from backupd.openpgp.keys import KeyPair, PublicKey
from backupd.openpgp.packets import HEAD_BYTES, recipients_of
from backupd.pipeline import run
from backupd.redact import Secret
from tests.openpgp.conftest import Ring, make_key

PLAIN = bytes(range(256)) * 400  # more than one chunk of gpg's


def sealed(ring: Ring, data: bytes = PLAIN) -> bytes:
    with Home() as home:
        return run(messages.seal(home, ring.recipients()), data, timeout_s=60).stdout


def opened(home: Home, message: bytes, session_key: Secret | None = None) -> bytes:
    """What an operation does: run gpg to its end, ask for the reason when it failed, and for the proof when it did not."""
    with messages.unseal(home, session_key=session_key) as unsealing:
        try:
            done = run(unsealing.command, message, timeout_s=60)
        except ProcessFailed:
            unsealing.judge()
            raise
        unsealing.judge()
        return done.stdout


def holder(key: KeyPair) -> Home:
    home = Home()
    home.import_secret(key.secret)
    return home


@pytest.fixture(scope="module")
def message(ring: Ring) -> bytes:
    return sealed(ring)


def without_judging(home: Home, message: bytes) -> int:
    """The exit code of gpg alone."""
    return subprocess.run(
        [*home.command("gpg", "--decrypt").argv], input=message, capture_output=True, env=home.environment(), check=False
    ).returncode


def test_each_recipient_opens_it_alone(ring: Ring, message: bytes) -> None:
    for key in (ring.operations, ring.escrow):
        with holder(key) as home:
            assert opened(home, message) == PLAIN


def test_an_empty_stream_is_sealed_and_opened_too(ring: Ring) -> None:
    with holder(ring.escrow) as home:
        assert opened(home, sealed(ring, b"")) == b""


def test_another_openpgp_program_opens_it(ring: Ring, message: bytes) -> None:
    """Sequoia's sq shares no code with gpg. It reads the secret key from shared memory, never from a disk."""
    with Home() as home:
        secret = home.path / "escrow.asc"
        secret.write_bytes(ring.escrow.secret.reveal())
        argv = ["sq", "decrypt", "--recipient-key", str(secret)]
        done = subprocess.run(argv, input=message, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, PLAIN), done.stderr


def test_it_is_binary_and_not_compressed(message: bytes) -> None:
    assert message[0] & 0x80
    assert len(message) > len(PLAIN)


def test_nobody_else_opens_it_and_is_told_whose_key_it_wants(ring: Ring, message: bytes) -> None:
    other = keys.generate("Other", purpose="encrypt", expires_days=None)
    with holder(other) as home, pytest.raises(SecretUnavailable) as caught:
        opened(home, message)
    for key in ring.recipients():
        assert key.encryption_subkeys[0].key_id in caught.value.message


def test_it_is_sealed_to_exactly_the_subkeys_that_were_asked_for(ring: Ring, message: bytes) -> None:
    operations, escrow = ring.recipients()
    messages.assert_sealed_to(message[:HEAD_BYTES], [escrow, operations])
    assert sorted(recipients_of(message)) == sorted(key.encryption_subkeys[0].key_id for key in (operations, escrow))
    with pytest.raises(Tampered, match="another key"):
        messages.assert_sealed_to(message, [operations])
    stranger = keys.inspect(keys.generate("Third", purpose="encrypt", expires_days=None).public, "k")
    with pytest.raises(Tampered, match="2 keys where 3"):
        messages.assert_sealed_to(message, [operations, escrow, stranger])


def test_a_head_that_is_cut_in_its_session_keys_proves_nothing(ring: Ring, message: bytes) -> None:
    for length in range(0, 192, 5):
        with pytest.raises(Tampered):
            messages.assert_sealed_to(message[:length], ring.recipients())


def test_hidden_recipients_passphrases_and_other_packet_formats_are_refused(home: Home, ring: Ring, message: bytes) -> None:
    key = home.path / "key.asc"
    key.write_bytes(ring.operations.public)
    hidden = home.call("--hidden-recipient-file", str(key), "--encrypt", stdin=b"x").stdout
    with pytest.raises(Tampered, match="to whom"):
        recipients_of(hidden)
    loopback = ("--pinentry-mode", "loopback", "--passphrase", "open sesame", "--s2k-count", "65536")
    both = home.call(*loopback, "--symmetric", "--encrypt", "--recipient-file", str(key), stdin=b"x").stdout
    with pytest.raises(Tampered, match="passphrase"):
        recipients_of(both)
    session_keys = message[:192]
    assert recipients_of(session_keys + b"\xd2\xff\x00\x00\x00\x01\x01") == recipients_of(message)
    # The packets of gpg 2.4 (type 20), those without a code against changes (9), and version 2 of RFC 9580 (type 18).
    for other in (b"\xd4\x05\x01\x09\x02\x10\x00", b"\xc9\x05abcde", b"\xd2\x05\x02\x09\x02\x06\x00"):
        with pytest.raises(Tampered):
            recipients_of(session_keys + other)


def test_no_recipient_or_one_twice_is_refused(home: Home, ring: Ring) -> None:
    operations, _ = ring.recipients()
    for recipients in ([], [operations, operations]):
        with pytest.raises(KeyUnusable, match="at least one recipient"):
            messages.seal(home, recipients)


def test_one_expired_recipient_stops_the_whole_seal(home: Home, ring: Ring) -> None:
    with Home() as elsewhere:
        parts = ("Key-Type: EDDSA", "Key-Curve: ed25519", "Subkey-Type: ECDH", "Subkey-Curve: cv25519")
        old = make_key(elsewhere, *parts, "Name-Real: Old", "Expire-Date: 1y", at="20200101T000000")
        expired: PublicKey = keys.inspect(elsewhere.call("--export", old).stdout, "old")
    with pytest.raises(ProcessFailed):
        run(messages.seal(home, [ring.recipients()[0], expired]), PLAIN, timeout_s=60)


def test_several_seals_at_once_in_one_home_do_not_disturb_each_other(home: Home, ring: Ring) -> None:
    recipients = ring.recipients()

    def one(number: int) -> bytes:
        return run(messages.seal(home, recipients), b"%d" % number, timeout_s=60).stdout

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(one, range(24)))
    with holder(ring.operations) as reader:
        assert [opened(reader, message) for message in made] == [b"%d" % number for number in range(24)]


def test_a_recipients_file_is_written_once(home: Home, ring: Ring) -> None:
    messages.seal(home, ring.recipients())
    before = {path.name: path.stat().st_ino for path in home.path.iterdir()}
    messages.seal(home, ring.recipients())
    assert {path.name: path.stat().st_ino for path in home.path.iterdir()} == before


def test_a_session_key_opens_one_message_without_any_secret_key(ring: Ring, message: bytes) -> None:
    with holder(ring.operations) as home:
        report = home.call("--status-fd", "1", "--show-session-key", "--output", "/dev/null", "--decrypt", stdin=message).stdout
    line = next(line for line in report.decode().splitlines() if " SESSION_KEY " in line)
    session_key = Secret(line.split()[2])
    with Home() as home:
        unsealing = messages.unseal(home, session_key=session_key)
        unsealing.close()
        assert session_key.text() not in repr(unsealing.command.argv)
        assert opened(home, message, session_key) == PLAIN
        for number in range(40):  # what gpg takes the garbage for differs each time, and some of it is an error of its own
            with pytest.raises(Tampered):
                opened(home, message, Secret(f"9:{number:064x}"))


@pytest.mark.parametrize("value", ["", "9", "9:00", "7:" + "0" * 32, "9:" + "g" * 64, "9:" + "0" * 64 + "\n--output"])
def test_what_is_no_session_key_is_refused_without_being_shown(home: Home, value: str) -> None:
    with pytest.raises(ConfigError, match=r"^this is not a session key of AES256$"):
        messages.unseal(home, session_key=Secret(value))


def test_a_message_cut_in_its_session_keys_is_refused_though_gpg_is_content(ring: Ring, message: bytes) -> None:
    """gpg ends with exit code 0 there, and has written nothing: a restore of nothing would look like a success."""
    with holder(ring.operations) as home:
        content = 0
        for length in (50, 96, 191, 192):
            content += without_judging(home, message[:length]) == 0
            with pytest.raises(Tampered):
                opened(home, message[:length])
        assert content > 0, "gpg was meant to be content with some of these"


def test_no_message_at_all_is_refused(home: Home) -> None:
    for nothing in (b"", b"\0" * 100, b"select 1;"):
        with pytest.raises(Tampered):
            opened(home, nothing)


def test_a_message_that_is_only_stored_or_only_signed_is_refused_though_gpg_is_content(ring: Ring) -> None:
    with holder(ring.operations) as home:
        home.import_secret(ring.signer.secret)
        stored = home.call("--store", stdin=PLAIN).stdout
        signed = home.call("--local-user", ring.signer.fingerprint, "--sign", stdin=PLAIN).stdout
        for message in (stored, signed):
            assert without_judging(home, message) == 0
            with pytest.raises(Tampered, match="not one whole sealed message"):
                opened(home, message)


def test_a_truncated_message_is_refused_with_definite_and_with_partial_lengths(
    ring: Ring, message: bytes, tmp_path: Path
) -> None:
    with holder(ring.operations) as home:
        (tmp_path / "key.asc").write_bytes(ring.operations.public)
        (tmp_path / "nothing-secret").write_bytes(PLAIN)
        definite = home.call(
            *("--recipient-file", str(tmp_path / "key.asc"), "--compress-algo", "none", "--trust-model", "always"),
            *("--set-filesize", str(len(PLAIN)), "--output", "-", "--encrypt", str(tmp_path / "nothing-secret")),
        ).stdout
        assert opened(home, definite) == PLAIN
        for whole in (definite, message):
            for cut in (1, 20, 21, 22, 23, 1000, len(whole) // 2):
                with pytest.raises((Tampered, ProcessFailed)):
                    opened(home, whole[:-cut])


def test_what_follows_a_message_is_refused(ring: Ring, message: bytes) -> None:
    """gpg reports DECRYPTION_OKAY and GOODMDC for these."""
    with holder(ring.operations) as home:
        stored = home.call("--store", stdin=b"more").stdout
        for more in (b"\0", b"garbage", stored, message):
            with pytest.raises((Tampered, ProcessFailed)):
                opened(home, message + more)
            with pytest.raises((Tampered, ProcessFailed)):
                opened(home, more + message)


def test_a_message_without_a_code_against_changes_is_refused(ring: Ring) -> None:
    with holder(ring.operations) as home:
        words = ("--recipient", ring.operations.fingerprint, "--trust-model", "always")
        legacy = home.call("--rfc2440", *words, "--cipher-algo", "AES256", "--encrypt", stdin=PLAIN).stdout
        with pytest.raises((Tampered, ProcessFailed)):
            opened(home, legacy)


def test_a_message_of_a_weaker_cipher_is_refused(ring: Ring) -> None:
    with holder(ring.operations) as home:
        words = ("--recipient", ring.operations.fingerprint, "--trust-model", "always")
        weaker = home.call(*words, "--cipher-algo", "AES128", "--encrypt", stdin=PLAIN).stdout
        assert without_judging(home, weaker) == 0
        with pytest.raises(Tampered, match="AES256"):
            opened(home, weaker)


def test_each_line_that_proves_a_whole_message_is_needed_exactly_once(reader: Home, message: bytes) -> None:
    """Other versions of gpg may end well where this one fails: the report alone must do."""
    unsealing = messages.unseal(reader)
    report = Path(unsealing.command.argv[unsealing.command.argv.index("--status-file") + 1])
    run(unsealing.command, message, timeout_s=60)
    lines = report.read_text().splitlines(keepends=True)
    unsealing.judge()
    for keyword in ("BEGIN_DECRYPTION", "DECRYPTION_INFO", "PLAINTEXT", "DECRYPTION_OKAY", "GOODMDC", "END_DECRYPTION"):
        [at] = [number for number, line in enumerate(lines) if line.split()[1] == keyword]
        for others in (lines[:at] + lines[at + 1 :], [*lines[:at], lines[at], *lines[at:]]):
            report.write_text("".join(others))
            with pytest.raises(Tampered, match=keyword):
                unsealing.judge()
    for more in ("DECRYPTION_FAILED", "BADMDC", "NODATA 3", "FAILURE decrypt 1"):
        report.write_text("".join(lines) + f"[GNUPG:] {more}\n")
        with pytest.raises(Tampered, match="damaged"):
            unsealing.judge()
    at = next(number for number, line in enumerate(lines) if line.split()[1] == "PLAINTEXT")
    report.write_text(lines[at] + "".join(lines[:at] + lines[at + 1 :]))
    with pytest.raises(Tampered, match="did not come out"):
        unsealing.judge()
    unsealing.close()


def test_opening_many_messages_leaves_no_reports_behind(reader: Home, message: bytes) -> None:
    opened(reader, message)
    before = set(reader.path.iterdir())
    opened(reader, message)
    assert set(reader.path.iterdir()) == before


def test_sealing_starts_no_agent(home: Home, ring: Ring) -> None:
    """What would outlive a seal that is killed is nothing."""
    run(messages.seal(home, ring.recipients()), PLAIN, timeout_s=60)
    assert not [path for path in home.path.iterdir() if path.is_socket()]


def test_a_judgement_before_gpg_ran_is_no_pass(home: Home) -> None:
    with pytest.raises(Tampered):
        messages.unseal(home).judge()


@pytest.fixture(scope="module")
def reader(ring: Ring) -> Iterator[Home]:
    with holder(ring.operations) as home:
        yield home


@settings(max_examples=100)
@given(data=st.data())
def test_no_message_with_a_changed_bit_is_opened(reader: Home, ring: Ring, message: bytes, data: st.DataObject) -> None:
    """Bits of the other recipient's session key are not this reader's to judge: there the data must come out whole."""
    at = data.draw(st.integers(0, len(message) * 8 - 1) | st.integers(0, 220 * 8))
    changed = bytearray(message)
    changed[at // 8] ^= 1 << at % 8
    try:
        plain = opened(reader, bytes(changed))
    except (Tampered, SecretUnavailable, ProcessFailed):
        return
    assert plain == PLAIN
    assert at // 8 < 192
