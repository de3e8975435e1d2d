"""Age of the data and time of the recovery are measured against what was promised."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from backupd.checks import Drilled, Objectives, Outcome, Sealed
from backupd.checks.objectives import ObjectivesKept
from backupd.checks.table import run
from backupd.postgres.session import Connection
from tests.checks.clinic import TAKEN_AT, Clinic, drilled

CHECK = ObjectivesKept()


@pytest.fixture
def clinic(untouched: Clinic) -> Clinic:
    """Nothing here changes the database."""
    return untouched


@pytest.fixture
def whole(clinic: Clinic, connection: Connection, sealed: Sealed) -> Drilled:
    """A day-old backup whose recovery took half an hour."""
    return drilled(clinic, connection, sealed, started_at=TAKEN_AT + timedelta(hours=24), elapsed_s=lambda: 1800.0)


def test_what_is_kept_passes_and_what_is_not_fails(whole: Drilled) -> None:
    cases = [
        (Objectives(26, 60), Outcome.PASS, "the newest data is 24.0 hours old, recovery took 30 minutes"),
        (Objectives(24, 30), Outcome.PASS, "the newest data is 24.0 hours old, recovery took 30 minutes"),
        (Objectives(12, 60), Outcome.FAIL, "the newest data is 24.0 hours old, and 12 hours are promised"),
        (Objectives(26, 15), Outcome.FAIL, "recovery took 30 minutes, and 15 minutes are promised"),
        (Objectives(), Outcome.PASS, "the newest data is 24.0 hours old, recovery took 30 minutes; nothing is promised"),
    ]
    for promised, outcome, said in cases:
        finding = run(CHECK, replace(whole, objectives=promised))
        assert (finding.outcome, finding.detail) == (outcome, said)
        assert (finding.figures["rpo_s"], finding.figures["rto_s"], finding.figures["restore_s"]) == (86400, 1800, 1)


def test_short_spans_are_told_in_seconds(whole: Drilled) -> None:
    quick = replace(whole, started_at=TAKEN_AT + timedelta(seconds=12), elapsed_s=lambda: 3.4)
    assert run(CHECK, quick).detail == "the newest data is 12 seconds old, recovery took 3 seconds; nothing is promised"


def test_a_backup_of_the_future_proves_nothing(whole: Drilled) -> None:
    """A wrong clock would hide an old backup; a minute's difference between two hosts is none."""
    early = replace(whole, objectives=Objectives(26, 60), started_at=TAKEN_AT - timedelta(hours=1))
    assert run(CHECK, early).outcome is Outcome.COULD_NOT_VERIFY
    assert run(CHECK, replace(early, started_at=TAKEN_AT - timedelta(seconds=30))).outcome is Outcome.PASS
