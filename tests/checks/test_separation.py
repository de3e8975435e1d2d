"""What opens a backup opens no column, and the other way round; each test of a refusal has one in which it is no refusal."""

from __future__ import annotations

import re
import subprocess
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from backupd.checks import Outcome, Sealed
from backupd.checks.separation import Separation, opens_with
from backupd.checks.table import run
from backupd.columns.keyring import Keyring
from backupd.custody.file import PrivateFile
from backupd.openpgp import Home
from backupd.pipeline import run as run_program
from backupd.postgres.session import Connection
from backupd.redact import Secret
from tests.checks.clinic import Clinic, Safe, drilled

CHECK = Separation()


def session_key_of(sealed: Sealed) -> bytes:
    """The 32 bytes that this one stream is encrypted with, as gpg tells them to whoever holds the secret key."""
    command = sealed.home.command("gpg", "--show-session-key", "--output", "/dev/null", "--decrypt")
    done = subprocess.run(command.argv, env=dict(command.env), input=sealed.head, capture_output=True, check=False, timeout=60)
    found = re.search(rb"session key: .9:([0-9A-F]{64})", done.stderr)
    assert found is not None
    return bytes.fromhex(found[1].decode())


def test_keys_that_have_nothing_in_common_pass(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    finding = run(CHECK, drilled(untouched, steady, sealed, untouched.users, untouched.nurses, untouched.laboratory))
    assert finding.outcome is Outcome.PASS, finding.detail
    assert finding.figures["columns"] == 3
    assert finding.figures["attempts_on_columns"] == 3


def test_the_backups_own_key_opens_its_first_bytes(sealed: Sealed) -> None:
    """The control: they are cut off, and gpg comes to the archive all the same."""
    assert opens_with(sealed.home, sealed.head)
    with Home() as empty:
        assert not opens_with(empty, sealed.head)


def test_no_other_session_key_opens_it_whatever_noise_comes_out(sealed: Sealed) -> None:
    """gpg takes the noise that a wrong key makes for a message once in fifty times."""
    random = Random(9)
    with Home() as empty:
        for _ in range(60):
            assert not opens_with(empty, sealed.head, session_key=Secret(b"9:" + random.randbytes(32).hex().encode()))


def test_a_column_key_that_is_a_passphrase_of_the_backup_fails(
    untouched: Clinic, steady: Connection, sealed: Sealed, safe_of_all_tests: Safe
) -> None:
    """The stream is sealed to the recipient and, besides, to the laboratory's passphrase."""
    recipient = str(sealed.home.keep("recipient", safe_of_all_tests.pair.public))
    options = ("--cipher-algo", "AES256", "--recipient-file", recipient, "--pinentry-mode", "loopback")
    command = sealed.home.command(
        *("gpg", *options, "--passphrase", "correct horse battery staple", "--symmetric", "--encrypt")
    )
    head = run_program(command, b"PGDMP", timeout_s=60).stdout
    finding = run(CHECK, drilled(untouched, steady, replace(sealed, head=head), untouched.laboratory))
    assert finding.outcome is Outcome.FAIL
    assert finding.detail == 'a key of "Labor ä".totp_secret opens the backup'


def test_a_custodian_that_gives_the_backups_key_for_the_column_fails(
    clinic: Clinic, connection: Connection, sealed: Sealed
) -> None:
    """pgcrypto takes any text for a passphrase, an OpenPGP secret key too."""
    armoured = sealed.key.fetch()
    laboratory = replace(clinic.laboratory, keys=clinic.keep("the same", armoured.reveal()))
    clinic.execute('UPDATE "Labor ä" SET totp_secret = pgp_sym_encrypt(%s, %s)', (clinic.new_seed(), armoured.text()))
    finding = run(CHECK, drilled(clinic, connection, sealed, laboratory))
    assert finding.outcome is Outcome.FAIL
    assert "share bytes" in finding.detail
    assert "a key of" in finding.detail
    assert "the backup's key opens" in finding.detail


def test_one_place_for_both_keys_fails(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    finding = run(CHECK, drilled(untouched, steady, replace(sealed, key=untouched.users.keys), untouched.users))
    assert finding.outcome is Outcome.FAIL
    assert "kept in the same place" in finding.detail


def test_a_column_key_that_is_the_streams_session_key_fails(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    """Nobody would choose it so, but a key service that derives both from one secret might."""
    raw = session_key_of(sealed)
    clinic.keyring = Keyring("2026-1", {"2026-1": Secret(raw)})
    clinic.put(5, clinic.seeds[5])
    finding = run(CHECK, drilled(clinic, connection, sealed, clinic.users))
    assert (finding.outcome, finding.detail) == (Outcome.FAIL, "a key of users.totp_secret opens the backup")
    assert raw.hex().upper() not in str(finding).upper()


def test_a_session_key_that_is_a_column_key_fails(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    """Byte for byte, and by trying: the column's values open with it."""
    raw = untouched.keyring.keys["2026-1"].reveal()
    session_key = Secret(b"9:" + raw.hex().upper().encode())
    finding = run(CHECK, drilled(untouched, steady, replace(sealed, session_key=session_key), untouched.users))
    assert finding.outcome is Outcome.FAIL
    assert "share bytes" in finding.detail
    assert "the backup's key opens users.totp_secret" in finding.detail


@pytest.mark.parametrize("spelt", [bytes, b64encode, lambda raw: raw.hex().encode(), lambda raw: raw.hex().upper().encode()])
def test_a_column_key_inside_of_the_backups_key_fails(
    untouched: Clinic, steady: Connection, sealed: Sealed, spelt: object, tmp_path: Path
) -> None:
    assert callable(spelt)
    raw = untouched.keyring.keys["2025-1"].reveal()
    kept = untouched.keep("backup and column", b"key of everything: " + bytes(spelt(raw)) + b"\n")
    finding = run(CHECK, drilled(untouched, steady, replace(sealed, key=kept), untouched.users))
    assert finding.outcome is Outcome.FAIL
    assert "share bytes" in finding.detail


def test_without_its_control_a_refusal_proves_nothing(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    with Home() as empty:
        finding = run(CHECK, drilled(untouched, steady, replace(sealed, home=empty), untouched.users))
    assert finding.outcome is Outcome.COULD_NOT_VERIFY
    assert "own key does not open" in finding.detail


def test_a_column_that_its_own_keys_do_not_open_proves_nothing(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    other = Keyring("2026-1", {"2026-1": Secret(untouched.random.randbytes(32))})
    users = replace(untouched.users, keys=untouched.keep("other", other.render().reveal()))
    finding = run(CHECK, drilled(untouched, steady, sealed, users))
    assert finding.outcome is Outcome.COULD_NOT_VERIFY


def test_without_a_custodian_nothing_is_verified(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    nothing = PrivateFile(str(untouched.directory / "nothing"))
    down = replace(untouched.users, keys=nothing)
    assert run(CHECK, drilled(untouched, steady, sealed, down)).outcome is Outcome.COULD_NOT_VERIFY
    keyless = drilled(untouched, steady, replace(sealed, key=nothing), untouched.users)
    assert run(CHECK, keyless).outcome is Outcome.COULD_NOT_VERIFY


def test_a_source_without_column_keys_passes_and_says_so(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    finding = run(CHECK, drilled(untouched, steady, sealed))
    assert (finding.outcome, finding.figures["columns"]) == (Outcome.PASS, 0)
