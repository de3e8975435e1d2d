"""The four tests that the hazard asks for: ciphertext in the column, a restart, a scan of the dump, backup and restore."""

import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backupd.columns import Cell, totp
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.openpgp import Home
from backupd.pipeline import Command
from backupd.pipeline import run as run_program
from backupd.postgres import clients
from backupd.redact import Secret
from tests.installation import SOURCE, Installation, installed, plant
from tests.leak_watch import Planted
from tests.parts.postgres import Database, PostgresServer

BASE32 = re.compile(rb"(?<![A-Z2-7])[A-Z2-7]{32}(?![A-Z2-7])")

# What an application does after a restart: the keyring from its custodian, the row from the database, the code from the phone.
LOGIN = """
import sys
from datetime import UTC, datetime
import psycopg
from backupd.columns import Cell, totp
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.custody import SecretRef, open_custodian

keyring, user, code, at = sys.argv[1:]
cipher = AesGcm(Keyring.parse(open_custodian(SecretRef("file", keyring), {}).fetch()))
with psycopg.connect(sys.stdin.readline().strip()) as connection:
    [(stored,)] = connection.execute("SELECT totp_secret FROM users WHERE id = %s", (user,)).fetchall()
seed = totp.decode_seed(cipher.decrypt(Cell("users", "totp_secret", user), stored))
print("in" if totp.verify(seed.key, code, datetime.fromtimestamp(int(at), UTC)) else "out")
"""
NOW = datetime(2026, 11, 24, 12, 0, 15, tzinfo=UTC)


@pytest.fixture
def clinic(tmp_path: Path, postgres17: PostgresServer, planted: Planted) -> Iterator[Installation]:
    """An installation with enrolled clinicians; ids count from 1, as the seeds do."""
    with installed(tmp_path, postgres17, plant(planted)) as made:
        yield made


def login(clinic: Installation, dsn: str, user: int, code: str) -> str:
    """A login in a process of its own, which has nothing but the keyring's place, the database and the code."""
    arguments = [str(clinic.custody / "keyring.json"), str(user), code, str(int(NOW.timestamp()))]
    done = subprocess.run(
        [sys.executable, "-c", LOGIN, *arguments], input=dsn.encode(), capture_output=True, env=clinic.environment(), check=True
    )
    return done.stdout.decode().strip()


def phone(seed: str) -> str:
    """The code that a phone with this seed shows."""
    return totp.code(totp.decode_seed(Secret(seed)).key, NOW)


def wrong(seed: str) -> str:
    """A code that no phone with this seed shows around now."""
    return totp.wrong_code(totp.decode_seed(Secret(seed)).key, NOW)


def sql_of(clinic: Installation, *arguments: str) -> bytes:
    """The source database as plain SQL, which only a superuser's pg_dump in this test ever makes."""
    database = clinic.database
    [chosen, *_] = clients.find((database.server.bin,))
    env = {"PGPASSWORD": database.server.password, "LC_ALL": "C"}
    address = f"host=127.0.0.1 port={database.server.port} user=postgres dbname={database.name}"
    argv = (chosen.program("pg_dump"), f"--dbname={address}", *arguments)
    return run_program(Command("pg_dump", argv, env), timeout_s=120).stdout


def test_the_column_holds_ciphertext_that_only_the_column_key_opens(clinic: Installation) -> None:
    cipher = AesGcm(Keyring.parse(Secret(clinic.secrets.keyring)))
    rows = clinic.database.execute("SELECT id, totp_secret FROM users WHERE totp_secret IS NOT NULL ORDER BY id")
    assert len(rows) == len(clinic.secrets.seeds)
    for (number, stored), seed in zip(rows, clinic.secrets.seeds, strict=True):
        assert not BASE32.search(bytes(stored))
        assert seed.encode() not in bytes(stored)
        assert cipher.decrypt(Cell("users", "totp_secret", str(number)), stored) == Secret(seed)


def test_a_restart_reloads_the_key_and_codes_still_verify(clinic: Installation) -> None:
    for number, seed in enumerate(clinic.secrets.seeds[:3], 1):
        assert login(clinic, clinic.database.dsn, number, phone(seed)) == "in"
        assert login(clinic, clinic.database.dsn, number, wrong(seed)) == "out"


def test_a_dump_holds_no_secret_and_the_search_finds_one_that_is_planted(clinic: Installation) -> None:
    dumped = sql_of(clinic)
    assert b"COPY public.users" in dumped
    assert not BASE32.search(dumped)
    assert not any(seed.encode() in dumped for seed in clinic.secrets.seeds)
    clinic.database.execute("CREATE TABLE leaked AS SELECT %s AS note", (f"secret {clinic.secrets.seeds[0]}",))
    found = BASE32.search(sql_of(clinic))
    assert found is not None
    assert found[0].decode() == clinic.secrets.seeds[0]


def test_the_drill_says_the_same_of_the_backup_itself(clinic: Installation) -> None:
    """It reads the decompressed dump out of the sealed backup, with a planted marker as its control."""
    clinic.back_up()
    assert clinic.run("restore-test", SOURCE, "--json").ok().json["verdict"] == "PASS"
    clinic.database.execute("CREATE TABLE leaked AS SELECT %s AS note", (f"secret {clinic.secrets.seeds[0]}",))
    clinic.back_up()
    drilled = clinic.run("restore-test", SOURCE, "--json")
    outcomes = {check["name"]: check["outcome"] for check in drilled.json["checks"]}
    assert drilled.code == 1
    assert drilled.json["verdict"] == "FAIL"
    assert outcomes["leaks"] == "FAIL"
    assert outcomes["totp"] == "PASS"


def test_a_sealed_backup_is_no_sql_and_restores_to_working_second_factors(clinic: Installation) -> None:
    made = clinic.back_up()
    assert clinic.store is not None
    sealed = (clinic.store / SOURCE / made / "database.dump.gpg").read_bytes()
    assert not any(word in sealed for word in (b"PGDMP", b"CREATE TABLE", b"COPY", b"users"))
    with Home() as home:
        home.import_secret(clinic.secrets.operations.secret)
        assert b":encrypted data packet:" in home.call("--list-packets", stdin=sealed).stdout
    with clinic.empty_database() as restored:
        clinic.run(*clinic.restore_arguments(restored), env=clinic.superuser).ok()
        for number, seed in enumerate(clinic.secrets.seeds, 1):
            codes_verify(clinic, restored, number, seed)


def codes_verify(clinic: Installation, restored: Database, number: int, seed: str) -> None:
    """In the restored database, with the key from its own custodian."""
    cipher = AesGcm(Keyring.parse(Secret((clinic.custody / "keyring.json").read_bytes())))
    [(stored,)] = restored.execute("SELECT totp_secret FROM users WHERE id = %s", (number,))
    opened = totp.decode_seed(cipher.decrypt(Cell("users", "totp_secret", str(number)), stored))
    assert totp.verify(opened.key, phone(seed), NOW)
    assert not totp.verify(opened.key, wrong(seed), NOW)
