"""Every enrolled second factor of a restored database is shown to work, and each way in which one can fail is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backupd.checks import Canary, Outcome, Sealed
from backupd.checks.table import run
from backupd.checks.totp import Totp, flaw, in_clear
from backupd.columns.keyring import Keyring
from backupd.columns.totp import STANDARD, Algorithm, Parameters
from backupd.custody.file import PrivateFile
from backupd.manifest import ColumnKeys
from backupd.postgres.session import Connection
from backupd.redact import Secret
from tests.checks.clinic import Clinic, damage, drilled, manifest_of

CHECK = Totp()


def test_all_three_ciphers_pass_with_their_own_keys(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    finding = run(CHECK, drilled(untouched, steady, sealed, untouched.users, untouched.nurses, untouched.laboratory))
    assert finding.outcome is Outcome.PASS, finding.detail
    assert finding.figures == {
        "columns": 3,
        "verified": 21,
        "users.totp_secret values": 13,
        "users.totp_secret enrolled": 12,
        "users.totp_secret verified": 12,
        "users.totp_secret failed": 0,
        "users.totp_secret key 2025-1": 4,
        "users.totp_secret key 2026-1": 8,
        "nurses.totp_secret values": 5,
        "nurses.totp_secret enrolled": 5,
        "nurses.totp_secret verified": 5,
        "nurses.totp_secret failed": 0,
        "nurses.totp_secret key fernet-1": 2,
        "nurses.totp_secret key fernet-2": 3,
        '"Labor ä".totp_secret values': 4,
        '"Labor ä".totp_secret enrolled': 4,
        '"Labor ä".totp_secret verified': 4,
        '"Labor ä".totp_secret failed': 0,
        '"Labor ä".totp_secret key (not told)': 4,
    }


def test_a_column_that_is_half_moved_is_not_verified(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    """What is not moved yet is under the former cipher, and nobody opened it."""
    clinic.execute("ALTER TABLE users ADD former text")
    column = replace(clinic.users, former="former")
    assert run(CHECK, drilled(clinic, connection, sealed, column)).outcome is Outcome.PASS
    clinic.execute("UPDATE users SET former = 'gAAAAA' WHERE id IN (1, 2)")
    finding = run(CHECK, drilled(clinic, connection, sealed, column))
    assert finding.outcome is Outcome.COULD_NOT_VERIFY
    assert finding.detail == "users.totp_secret: 2 values are still in its former column, and nobody looked at them"
    clinic.execute("ALTER TABLE users DROP former")
    assert run(CHECK, drilled(clinic, connection, sealed, column)).outcome is Outcome.PASS


def test_the_finding_holds_no_seed(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    clinic.execute("UPDATE users SET totp_secret = convert_to(%s, 'UTF8') WHERE id = 3", (clinic.seeds[3],))
    shown = str(run(CHECK, drilled(clinic, connection, sealed, clinic.users)))
    assert not [seed for seed in clinic.seeds.values() if seed in shown]


def test_a_missing_key_fails_and_is_named(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    only_new = Keyring("2026-1", {"2026-1": untouched.keyring.keys["2026-1"]})
    column = replace(untouched.users, keys=untouched.keep("other", only_new.render().reveal()))
    finding = run(CHECK, drilled(untouched, steady, sealed, column))
    assert finding.outcome is Outcome.FAIL
    assert finding.detail == "users.totp_secret: the key '2025-1' is missing from the keyring in 4 rows (1, 2, 3, 4)"


def test_another_key_of_the_same_id_fails(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    wrong = Keyring("2026-1", {**untouched.keyring.keys, "2026-1": Secret(untouched.random.randbytes(32))})
    column = replace(untouched.users, keys=untouched.keep("other", wrong.render().reveal()))
    finding = run(CHECK, drilled(untouched, steady, sealed, column))
    assert finding.outcome is Outcome.FAIL
    assert "in 8 rows (5, 6, 7, 8, 9, …)" in finding.detail


@pytest.mark.parametrize("table", ["users", "Labor ä"])
def test_a_changed_value_fails(clinic: Clinic, connection: Connection, sealed: Sealed, table: str) -> None:
    """pgcrypto decrypts on the server: one bad value must not end the reading of the others."""
    damage(clinic, table)
    clinic.put(13, clinic.seeds[13])
    column = clinic.users if table == "users" else clinic.laboratory
    finding = run(CHECK, drilled(clinic, connection, sealed, column))
    assert finding.outcome is Outcome.FAIL
    assert finding.figures[f"{column.name} failed"] == (12 if table == "users" else 4)


def test_the_wrong_passphrase_and_the_wrong_fernet_key_fail(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    laboratory = replace(untouched.laboratory, keys=untouched.keep("wrong", b"another passphrase"))
    nurses = replace(untouched.nurses, keys=untouched.keep("one", untouched.fernet_keys[0]))
    finding = run(CHECK, drilled(untouched, steady, sealed, laboratory, nurses))
    assert finding.outcome is Outcome.FAIL
    assert finding.figures['"Labor ä".totp_secret failed'] == 4
    assert finding.figures["nurses.totp_secret failed"] == 3


def test_a_value_moved_to_another_row_fails(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    clinic.put(5, clinic.seeds[6], cell_row=6)
    finding = run(CHECK, drilled(clinic, connection, sealed, clinic.users))
    assert finding.outcome is Outcome.FAIL
    assert "(5)" in finding.detail


@pytest.mark.parametrize("row", [3, 13])
def test_a_seed_in_clear_is_the_hazard_even_if_not_enrolled(
    clinic: Clinic, connection: Connection, sealed: Sealed, row: int
) -> None:
    clinic.execute("UPDATE users SET totp_secret = convert_to(%s, 'UTF8') WHERE id = %s", (clinic.seeds[row], row))
    finding = run(CHECK, drilled(clinic, connection, sealed, clinic.users))
    assert finding.outcome is Outcome.FAIL
    assert finding.detail == f"users.totp_secret: HAZARD: a seed in clear in 1 row ({row})"


@pytest.mark.parametrize("value", [b"JBSWY3DPEHPK3PX1", b"hunter2", b""])
def test_a_value_that_is_not_enrolled_has_to_be_encrypted_all_the_same(
    clinic: Clinic, connection: Connection, sealed: Sealed, value: bytes
) -> None:
    """It need not look like a seed to be in clear."""
    clinic.execute("UPDATE users SET totp_secret = %s WHERE id = 13", (value,))
    finding = run(CHECK, drilled(clinic, connection, sealed, clinic.users))
    assert finding.outcome is Outcome.FAIL
    assert "not an encrypted value" in finding.detail
    assert "in 1 row (13)" in finding.detail


def test_a_value_that_is_not_enrolled_may_be_of_a_key_that_is_gone(
    clinic: Clinic, connection: Connection, sealed: Sealed
) -> None:
    gone = Keyring("2020-1", {"2020-1": Secret(clinic.random.randbytes(32))})
    clinic.put(13, clinic.seeds[13], keyring=gone)
    assert run(CHECK, drilled(clinic, connection, sealed, clinic.users)).outcome is Outcome.PASS


def test_a_whole_column_in_clear_is_counted_and_five_rows_are_named(
    clinic: Clinic, connection: Connection, sealed: Sealed
) -> None:
    clinic.execute("UPDATE nurses SET totp_secret = 'JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP'")
    clinic.execute("INSERT INTO nurses SELECT n, 'JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP' FROM generate_series(6, 3000) AS n")
    finding = run(CHECK, drilled(clinic, connection, sealed, clinic.nurses))
    assert "HAZARD: a seed in clear in 3000 rows" in finding.detail
    assert finding.detail.count(",") == 5


def test_enrolled_without_a_seed_fails(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    clinic.execute("UPDATE users SET totp_secret = NULL WHERE id = 2")
    finding = run(CHECK, drilled(clinic, connection, sealed, clinic.users))
    assert (finding.outcome, finding.detail) == (
        Outcome.FAIL,
        "users.totp_secret: enrolled without a seed in 1 row (2)",
    )


def test_a_value_that_decrypts_to_no_seed_fails(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    clinic.put(4, "not base32!")
    finding = run(CHECK, drilled(clinic, connection, sealed, clinic.users))
    assert finding.outcome is Outcome.FAIL
    assert "not a TOTP seed" in finding.detail


def test_a_column_without_enrolled_rows_proves_nothing(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    clinic.execute("UPDATE users SET enrolled = false")
    finding = run(CHECK, drilled(clinic, connection, sealed, clinic.users))
    assert finding.outcome is Outcome.COULD_NOT_VERIFY
    assert "no enrolled row" in finding.detail


def test_values_of_the_manifest_that_nobody_restored_fail(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    """An emptied table must not pass as one that was always empty."""
    noted = ColumnKeys("users", "totp_secret", "aes-256-gcm", ("2026-1",), 13)
    clinic.execute("DELETE FROM users")
    whole = drilled(clinic, connection, sealed, clinic.users)
    finding = run(CHECK, replace(whole, manifest=replace(whole.manifest, column_keys=(noted,))))
    assert finding.outcome is Outcome.FAIL
    assert "the manifest counts 13 values, the restored column 0" in finding.detail


def test_without_its_custodian_nothing_is_verified_and_the_other_column_is(
    untouched: Clinic, steady: Connection, sealed: Sealed
) -> None:
    down = replace(untouched.users, keys=PrivateFile(str(untouched.directory / "nothing")))
    finding = run(CHECK, drilled(untouched, steady, sealed, down, untouched.nurses))
    assert finding.outcome is Outcome.COULD_NOT_VERIFY
    assert "does not exist" in finding.detail
    assert finding.figures["nurses.totp_secret verified"] == 5


def test_a_failure_outweighs_a_custodian_that_is_down(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    clinic.execute("UPDATE nurses SET totp_secret = 'JBSWY3DPEHPK3PXP' WHERE id = 1")
    down = replace(clinic.users, keys=PrivateFile(str(clinic.directory / "nothing")))
    assert run(CHECK, drilled(clinic, connection, sealed, down, clinic.nurses)).outcome is Outcome.FAIL


def test_keys_of_another_kind_fail(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    column = replace(untouched.users, keys=untouched.nurses.keys)
    assert run(CHECK, drilled(untouched, steady, sealed, column)).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("change", "said"),
    [({"table": "usres"}, "no table usres"), ({"column": "seed"}, "no column seed"), ({"enrolled": "on"}, "no column on")],
)
def test_a_table_or_column_that_is_not_there_fails(
    untouched: Clinic, steady: Connection, sealed: Sealed, change: dict[str, str], said: str
) -> None:
    whole = drilled(untouched, steady, sealed, untouched.users)
    finding = run(CHECK, replace(whole, columns=(replace(untouched.users, **change),)))  # type: ignore[arg-type]  # all are text
    assert finding.outcome is Outcome.FAIL
    assert said in finding.detail


def test_a_table_is_found_in_another_schema_than_public(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    """A source's role may have a search_path of its own; a restored database has not."""
    clinic.execute("CREATE SCHEMA clinic; ALTER TABLE users SET SCHEMA clinic")
    whole = drilled(clinic, connection, sealed)
    assert run(CHECK, replace(whole, columns=(clinic.users,))).outcome is Outcome.PASS


def test_the_canary_account_gives_the_code_of_the_seed_kept_apart(
    untouched: Clinic, steady: Connection, sealed: Sealed
) -> None:
    kept = untouched.keep("canary", untouched.seeds[7].lower().encode() + b"\n")
    column = replace(untouched.users, canary=Canary("7", kept))
    assert run(CHECK, drilled(untouched, steady, sealed, column)).outcome is Outcome.PASS


def test_another_seed_than_the_one_kept_apart_fails(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    """It decrypts, it makes codes, and it is not the user's: only the canary shows that."""
    clinic.put(7, clinic.new_seed())
    column = replace(clinic.users, canary=Canary("7", clinic.keep("canary", clinic.seeds[7].encode())))
    finding = run(CHECK, drilled(clinic, connection, sealed, column))
    assert finding.outcome is Outcome.FAIL
    assert "the canary account's code is not the one" in finding.detail


def test_a_canary_account_that_is_gone_fails(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    column = replace(untouched.users, canary=Canary("99", untouched.keep("canary", untouched.seeds[7].encode())))
    assert run(CHECK, drilled(untouched, steady, sealed, column)).outcome is Outcome.FAIL


def test_a_canary_whose_custodian_is_down_verifies_nothing(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    column = replace(untouched.users, canary=Canary("7", PrivateFile(str(untouched.directory / "nothing"))))
    assert run(CHECK, drilled(untouched, steady, sealed, column)).outcome is Outcome.COULD_NOT_VERIFY


def test_a_source_that_claims_no_second_factors_passes_and_says_that_nothing_was_shown(
    untouched: Clinic, steady: Connection, sealed: Sealed
) -> None:
    finding = run(CHECK, replace(drilled(untouched, steady, sealed), none_claimed=True))
    assert finding.outcome is Outcome.PASS
    assert "no column of second factors" in finding.detail


def test_a_column_that_is_called_like_second_factors_is_not_passed_over(
    untouched: Clinic, steady: Connection, sealed: Sealed
) -> None:
    finding = run(CHECK, drilled(untouched, steady, sealed))
    assert finding.outcome is Outcome.COULD_NOT_VERIFY
    assert "public.users.totp_secret looks like second factors" in finding.detail


def test_a_column_that_fell_out_of_the_configuration_is_not_verified(
    untouched: Clinic, steady: Connection, sealed: Sealed
) -> None:
    whole = drilled(untouched, steady, sealed)
    noted = ColumnKeys("users", "totp_secret", "aes-256-gcm", ("2026-1",), 13)
    finding = run(CHECK, replace(whole, manifest=manifest_of(whole.manifest.expect, (noted,))))
    assert finding.outcome is Outcome.COULD_NOT_VERIFY
    assert "users.totp_secret" in finding.detail


def test_pgcrypto_is_there_for_the_check_and_gone_after_it(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    """The application may have used pgcrypto elsewhere; the restored database is left as it was."""
    clinic.execute("DROP EXTENSION pgcrypto")
    before = clinic.execute("SELECT count(*) FROM pg_depend")
    assert run(CHECK, drilled(clinic, connection, sealed, clinic.laboratory)).outcome is Outcome.PASS
    assert clinic.execute("SELECT extname::text FROM pg_extension") == [("plpgsql",)]
    assert clinic.execute("SELECT count(*) FROM pg_depend") == before


@pytest.mark.parametrize("parameters", [STANDARD, Parameters(8, 60, Algorithm.SHA256)])
def test_a_good_seed_has_no_flaw(parameters: Parameters) -> None:
    assert flaw(Secret("JBSWY3DPEHPK3PXP"), parameters) is None


def test_what_is_no_base32_has_a_flaw() -> None:
    assert flaw(Secret("JBSWY3DPEHPK3PX1"), STANDARD) is not None
    assert flaw(Secret(b"\xff\x00"), STANDARD) is not None


@pytest.mark.parametrize("value", [b"JBSWY3DPEHPK3PXP", b"jbsw y3dp ehpk 3pxp", b"JBSWY3DPEHPK3PXPJBSWY3DPEI======"])
def test_a_seed_in_a_column_is_known_to_be_in_clear(value: bytes) -> None:
    assert in_clear(value)


@pytest.mark.parametrize(
    "value", [b"", b"\x01\x062026-1 and so on", b"gAAAAABhJBSWYbcdefghijklmnopq", b"JBSWY3DP", b"\xc3\x0d\x04\x07\x03\x02"]
)
def test_ciphertext_is_not_taken_for_a_seed_in_clear(value: bytes) -> None:
    assert not in_clear(value)
