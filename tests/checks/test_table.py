"""How findings come to a verdict, and what becomes of a check that breaks off."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from backupd.checks import Drilled, Finding, Outcome, Sealed
from backupd.checks.table import ALL, run, run_all, verdict
from backupd.errors import (
    BackupdError,
    ConfigError,
    CouldNotVerify,
    Interrupted,
    ProcessFailed,
    SecretUnavailable,
    SourceDenied,
    SourceUnreachable,
    StoreUnavailable,
    Tampered,
)
from backupd.postgres.session import Connection
from backupd.redact import Secret
from tests.checks.clinic import Clinic, drilled

PASS, FAIL, UNSURE = Outcome


@dataclass(frozen=True, slots=True)
class Raises:
    """A check that ends with this error."""

    error: BaseException
    name: str = "raises"

    def run(self, drilled: Drilled) -> Finding:
        raise self.error


@dataclass(frozen=True, slots=True)
class Says:
    """A check that passes with this detail."""

    detail: str
    name: str = "says"

    def run(self, drilled: Drilled) -> Finding:
        return Finding(self.name, PASS, self.detail)


@dataclass(frozen=True, slots=True)
class Asks:
    """A check that lets what psycopg raises through."""

    name: str = "asks"

    def run(self, drilled: Drilled) -> Finding:
        drilled.connection.execute("SELECT 1/0")
        return Finding(self.name, PASS, "never")


@pytest.fixture
def clinic(untouched: Clinic) -> Clinic:
    """Nothing here changes the database."""
    return untouched


@pytest.fixture
def whole(clinic: Clinic, connection: Connection, sealed: Sealed) -> Drilled:
    return drilled(clinic, connection, sealed, clinic.users, clinic.nurses, clinic.laboratory)


def test_the_checks_have_the_names_that_reports_use() -> None:
    assert [check.name for check in ALL] == ["contents", "totp", "leaks", "separation", "sql", "objectives"]


def test_a_good_restore_passes_every_check(whole: Drilled) -> None:
    findings = run_all(whole)
    assert [finding.name for finding in findings] == [check.name for check in ALL]
    assert [finding.outcome for finding in findings] == [PASS] * 6, findings
    assert verdict(findings) is PASS


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([PASS, PASS], PASS),
        ([PASS, FAIL, UNSURE], FAIL),
        ([UNSURE, FAIL], FAIL),
        ([PASS, UNSURE, PASS], UNSURE),
        ([], UNSURE),
    ],
)
def test_the_worst_finding_is_the_verdict(outcomes: list[Outcome], expected: Outcome) -> None:
    assert verdict(Finding("a check", outcome, "") for outcome in outcomes) is expected


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (CouldNotVerify("no"), UNSURE),
        (SecretUnavailable("no"), UNSURE),
        (StoreUnavailable("no"), UNSURE),
        (SourceUnreachable("no"), UNSURE),
        (BackupdError("no"), FAIL),
        (Tampered("no"), FAIL),
        (ProcessFailed("no", status=1), FAIL),
        (ProcessFailed("no", status=-9), UNSURE),
        (ProcessFailed("no", status=None), UNSURE),
        (ConfigError("no"), FAIL),
        (SourceDenied("no"), FAIL),
    ],
)
def test_a_check_that_breaks_off_has_found_that(whole: Drilled, error: BackupdError, outcome: Outcome) -> None:
    assert run(Raises(error), whole) == Finding("raises", outcome, "no")


def test_a_hint_is_kept(whole: Drilled) -> None:
    assert run(Raises(Tampered("changed", "restore another")), whole).detail == "changed (hint: restore another)"


def test_what_psycopg_raises_is_translated(whole: Drilled) -> None:
    found = run(Asks(), whole)
    assert (found.outcome, found.detail) == (FAIL, "could not run the check asks: division by zero")


@pytest.mark.parametrize("error", [Interrupted("a signal"), KeyboardInterrupt(), TypeError("a bug")])
def test_interruptions_and_bugs_pass_through(whole: Drilled, error: BaseException) -> None:
    with pytest.raises(type(error)):
        run(Raises(error), whole)


def test_a_secret_that_came_into_a_detail_is_removed(whole: Drilled) -> None:
    secret = Secret("correct horse")
    assert run(Says(f"it is {secret.text()}\nor JBSWY3DPEHPK3PXP"), whole).detail == "it is **redacted**\\nor **redacted**"


def test_a_broken_server_breaks_no_check_but_its_own(whole: Drilled, connection: Connection) -> None:
    """Every check that needs the database says that it could not look; the objectives need none."""
    connection.close()
    outcomes = {finding.name: finding.outcome for finding in run_all(whole)}
    assert outcomes["objectives"] is PASS
    assert {outcomes[name] for name in ("contents", "totp", "leaks", "separation")} <= {FAIL, UNSURE}
    assert verdict(run_all(whole)) is not PASS
