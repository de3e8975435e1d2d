"""A session key comes out of a message's head with its recipient's key, wherever that is kept, and opens the message."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backupd.errors import ConfigError, SecretUnavailable, Tampered
from backupd.openpgp import Home, keys, messages, packets, session_keys
from backupd.openpgp.own_home import OwnHome
from backupd.pipeline import run
from backupd.redact import Secret
from tests.openpgp.conftest import Ring, make_key
from tests.parts.process import short_directory

PLAIN = b"what is sealed" * 5000

# pinentry's side of the Assuan protocol: it answers every question for a passphrase with the same one.
PINENTRY = """\
#!/bin/sh
echo 'OK Pleased to meet you'
while read -r command rest; do
    case $command in
        GETPIN) echo asked >>'{log}'; {answer}; echo OK ;;
        BYE) echo OK; exit ;;
        *) echo OK ;;
    esac
done
"""


@pytest.fixture(scope="module")
def message(ring: Ring) -> bytes:
    with Home() as home:
        return run(messages.seal(home, ring.recipients()), PLAIN, timeout_s=60).stdout


@pytest.fixture(scope="module")
def head(message: bytes) -> bytes:
    return packets.sealed_head(message)


def test_either_recipients_key_gives_the_key_that_opens_the_message(ring: Ring, message: bytes, head: bytes) -> None:
    taken = []
    for pair in (ring.operations, ring.escrow):
        with Home() as home:
            home.import_secret(pair.secret)
            key, fingerprint = session_keys.take(home, head)
        assert fingerprint == pair.fingerprint
        taken.append(key)
    assert taken[0] == taken[1]
    with Home() as empty, messages.unseal(empty, session_key=taken[0]) as unsealing:
        assert run(unsealing.command, message, timeout_s=60).stdout == PLAIN
        unsealing.judge()


def test_a_head_holds_no_byte_of_what_is_sealed(message: bytes, head: bytes) -> None:
    assert message.startswith(head)
    assert message[len(head)] & 0x3F == 18  # RFC 4880 section 4.3: the tag of sealed data
    assert len(session_keys.require_head(head)) == 2


def test_an_rsa_key_serves_as_well() -> None:
    with Home() as home:
        made = make_key(home, "Key-Type: RSA", "Key-Length: 2048", "Key-Usage: sign", "Subkey-Type: RSA", "Name-Real: RSA")
        public = keys.inspect(home.call("--export", made).stdout, "key")
        sealed = run(messages.seal(home, [public]), PLAIN, timeout_s=60).stdout
        key, fingerprint = session_keys.take(home, packets.sealed_head(sealed))
        assert fingerprint == made
    with Home() as empty, messages.unseal(empty, session_key=key) as unsealing:
        assert run(unsealing.command, sealed, timeout_s=60).stdout == PLAIN


def test_nobody_elses_key_gives_it(ring: Ring, head: bytes) -> None:
    for key in (None, ring.stranger):
        with Home() as home:
            if key is not None:
                home.import_secret(key.secret)
            with pytest.raises(SecretUnavailable, match="it is sealed to") as caught:
                session_keys.take(home, head)
            assert ring.recipients()[1].encryption_subkeys[0].key_id in caught.value.message


def test_what_is_no_head_is_refused_before_gpg_sees_it(ring: Ring, message: bytes, head: bytes) -> None:
    with Home() as home:
        home.import_secret(ring.operations.secret)
        for wrong in (b"", head[:-1], head[1:], head + b"\0", message[: len(head) + 60], message, b"x" * 200):
            with pytest.raises(Tampered):
                session_keys.take(home, wrong)


def test_a_head_whose_bits_were_changed_gives_nothing(ring: Ring, head: bytes) -> None:
    """In the packet of this recipient; the key's own checksum tells (RFC 6637 section 8)."""
    with Home() as home:
        home.import_secret(ring.operations.secret)
        for at in range(30, len(head) // 2, 23):
            with pytest.raises((Tampered, SecretUnavailable)):
                session_keys.take(home, head[:at] + bytes([head[at] ^ 4]) + head[at + 1 :])


def test_gpg_leaves_the_session_key_in_no_file_and_no_message(ring: Ring, head: bytes) -> None:
    with Home() as home:
        home.import_secret(ring.operations.secret)
        key, _ = session_keys.take(home, head)
        digits = key.reveal()[2:]
        files = [path for path in home.path.rglob("*") if path.is_file()]
        assert files
        assert not [
            path for path in files if digits in path.read_bytes() or bytes.fromhex(digits.decode()) in path.read_bytes()
        ]


@pytest.fixture
def own(ring: Ring) -> Iterator[Path]:
    """A custodian's GNUPGHOME with the escrow key, under a passphrase."""
    with short_directory("bd-own-") as unique:
        path = unique
        path.mkdir(mode=0o700, exist_ok=True)
        path.chmod(0o700)
        environment = {**os.environ, "GNUPGHOME": str(path)}

        def gpg(*args: str, stdin: bytes = b"") -> None:
            subprocess.run(["gpg", "--batch", "--no-tty", *args], input=stdin, env=environment, check=True, capture_output=True)

        pinentry(path, "echo 'D correct horse battery'")
        gpg("--import", stdin=ring.escrow.secret.reveal())
        gpg("--change-passphrase", ring.escrow.fingerprint)  # which gpg asks for by pinentry alone
        subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=True)
        (path / "asked").unlink()
        yield path
        subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=True)


def pinentry(home: Path, answer: str) -> None:
    """Give the agent of this home a pinentry that answers so."""
    program = home / "pinentry"
    program.write_text(PINENTRY.format(log=home / "asked", answer=answer))
    program.chmod(0o700)
    (home / "gpg-agent.conf").write_text(f"pinentry-program {program}\ndisable-scdaemon\n")


def test_a_custodians_own_gpg_asks_for_the_passphrase(own: Path, ring: Ring, message: bytes, head: bytes) -> None:
    """As it asks for the PIN of a smart card. The key file itself would be refused: nobody could type there."""
    key, fingerprint = session_keys.take(OwnHome(own, os.environ), head)
    assert fingerprint == ring.escrow.fingerprint
    assert (own / "asked").read_text() == "asked\n"
    with Home() as empty, messages.unseal(empty, session_key=key) as unsealing:
        assert run(unsealing.command, message, timeout_s=60).stdout == PLAIN


def test_a_passphrase_that_is_not_given_is_told(own: Path, head: bytes) -> None:
    pinentry(own, "echo 'ERR 83886179 Operation cancelled'; continue")
    with pytest.raises(SecretUnavailable) as caught:
        session_keys.take(OwnHome(own, os.environ), head)
    assert "passphrase" in str(caught.value.hint)


def test_a_custodians_home_has_to_be_there_and_gets_no_more_than_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no directory"):
        OwnHome(tmp_path / "nothing", {})
    command = OwnHome(tmp_path, {"PATH": os.environ["PATH"], "GPG_TTY": "/dev/pts/9", "PGPASSWORD": "x"}).command("gpg")
    assert command.env == {"PATH": os.environ["PATH"], "GPG_TTY": "/dev/pts/9"}
    with pytest.raises(ConfigError, match="not installed"):
        OwnHome(tmp_path, {"PATH": str(tmp_path)}).command("gpg")
    assert shutil.which("gpg") == command.argv[0]


def test_a_session_key_is_a_secret(ring: Ring, head: bytes) -> None:
    with Home() as home:
        home.import_secret(ring.operations.secret)
        assert isinstance(session_keys.take(home, head)[0], Secret)
