"""A restored database is compared with what its backup noted, and each difference is told."""

from __future__ import annotations

import pytest

from backupd.checks import Outcome, Sealed
from backupd.checks.contents import Contents
from backupd.checks.table import run
from backupd.manifest import Level
from backupd.postgres.session import Connection
from tests.checks.clinic import Clinic, damage, drilled

CHECK = Contents()


@pytest.mark.parametrize(("level", "digests"), [(Level.ROWS, 1), (Level.DIGESTS, 4)])
def test_what_is_as_the_manifest_says_passes(
    untouched: Clinic, steady: Connection, sealed: Sealed, level: Level, digests: int
) -> None:
    finding = run(CHECK, drilled(untouched, steady, sealed, untouched.users, level=level))
    assert finding.outcome is Outcome.PASS, finding.detail
    assert finding.figures["tables"] == 4
    assert finding.figures["rows"] == 14 + 5 + 4 + 500
    assert finding.figures["digests"] == digests
    assert finding.figures["differences"] == 0


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM notes WHERE id = 1", "table public.notes has 499 rows, expected 500"),
        ("DROP TABLE nurses", "table public.nurses is missing"),
        ("SELECT setval('notes_id_seq', 3)", "sequence public.notes_id_seq is at 3, expected 500"),
        ("CREATE TABLE more AS SELECT 1 AS id", "table public.more has 1 rows and is not in the backup"),
        ("DROP EXTENSION pgcrypto", "extension pgcrypto is missing"),
    ],
)
def test_a_difference_fails_and_is_named(
    clinic: Clinic, connection: Connection, sealed: Sealed, statement: str, said: str
) -> None:
    whole = drilled(clinic, connection, sealed, clinic.users)
    clinic.execute(statement)
    finding = run(CHECK, whole)
    assert finding.outcome is Outcome.FAIL
    assert said.replace("public.", "") in finding.detail.replace('"public".', "").replace("public.", "").replace('"', "")


def test_a_changed_second_factor_fails_though_the_counts_agree(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    """Tables with second factors are digested at every level."""
    whole = drilled(clinic, connection, sealed, clinic.users)
    damage(clinic, "users")
    finding = run(CHECK, whole)
    assert finding.outcome is Outcome.FAIL
    assert "other contents" in finding.detail


def test_many_differences_are_counted_and_three_are_shown(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    """Four tables, a sequence, and the role that owned them."""
    whole = drilled(clinic, connection, sealed)
    clinic.execute('DROP TABLE users, nurses, "Labor ä", notes')
    finding = run(CHECK, whole)
    assert finding.outcome is Outcome.FAIL
    assert finding.figures["differences"] == 6
    assert finding.detail.endswith("; and 3 more")


def test_a_backup_that_noted_nothing_is_not_verified(untouched: Clinic, steady: Connection, sealed: Sealed) -> None:
    finding = run(CHECK, drilled(untouched, steady, sealed, level=Level.OFF))
    assert finding.outcome is Outcome.COULD_NOT_VERIFY
    assert "nothing to compare" in finding.detail


def test_even_then_a_changed_second_factor_fails(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    whole = drilled(clinic, connection, sealed, clinic.users, level=Level.OFF)
    damage(clinic, "users")
    assert run(CHECK, whole).outcome is Outcome.FAIL


def test_a_lost_connection_is_no_pass(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    whole = drilled(clinic, connection, sealed)
    with clinic.database.connect() as other:
        other.execute("SELECT pg_terminate_backend(%s, 10000)", (connection.info.backend_pid,))
    assert run(CHECK, whole).outcome is Outcome.COULD_NOT_VERIFY
