"""The checks in the order of a drill, and what their findings come to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import psycopg

from backupd.checks import Check, Drilled, Finding, Outcome
from backupd.checks.contents import Contents
from backupd.checks.leaks import Leaks
from backupd.checks.objectives import ObjectivesKept
from backupd.checks.separation import Separation
from backupd.checks.sql import Sql
from backupd.checks.totp import Totp
from backupd.errors import BackupdError, CouldNotVerify, ProcessFailed, SourceFull, SourceUnreachable, StoreError
from backupd.postgres.session import translate
from backupd.redact import printable, scrub

ALL: tuple[Check, ...] = (Contents(), Totp(), Leaks(), Separation(), Sql(), ObjectivesKept())


def run_all(drilled: Drilled) -> list[Finding]:
    """What every check found; one that breaks off has found that, and the next ones run all the same."""
    return [run(check, drilled) for check in ALL]


def run(check: Check, drilled: Drilled) -> Finding:
    """What one check found, also when it raised. Interruptions and programming errors pass."""
    try:
        found = check.run(drilled)
    except BackupdError as error:
        found = broken_off(check.name, error)
    except psycopg.Error as error:
        found = broken_off(check.name, translate(error, f"run the check {check.name}"))
    return replace(found, detail=scrub(printable(found.detail)))  # a second look: the checks put no secret there


def broken_off(name: str, error: BackupdError) -> Finding:
    """The finding of what ended with an error. Where only the means were missing, nothing was shown to be wrong."""
    means_missing = isinstance(error, CouldNotVerify | StoreError | SourceUnreachable | SourceFull) or _was_ended(error)
    outcome = Outcome.COULD_NOT_VERIFY if means_missing else Outcome.FAIL
    return Finding(name, outcome, error.message + (f" (hint: {error.hint})" if error.hint else ""))


def _was_ended(error: BackupdError) -> bool:
    """Whether a program did not end by itself: a signal, as when memory runs out, or a deadline. It has judged nothing."""
    return isinstance(error, ProcessFailed) and (error.status is None or error.status < 0)


def verdict(findings: Iterable[Finding]) -> Outcome:
    """PASS only when there is a finding and every one is: a FAIL outweighs what could not be verified."""
    outcomes = {finding.outcome for finding in findings}
    for worst in (Outcome.FAIL, Outcome.COULD_NOT_VERIFY):
        if worst in outcomes:
            return worst
    return Outcome.PASS if outcomes else Outcome.COULD_NOT_VERIFY
