"""The user's questions are asked read-only, compared as text, and their answers shown only where that is harmless."""

from __future__ import annotations

import pytest

from backupd.checks import Outcome, Question, Sealed
from backupd.checks.sql import Sql
from backupd.checks.table import run
from backupd.postgres.session import Connection
from tests.checks.clinic import Clinic, drilled

CHECK = Sql()


@pytest.fixture
def clinic(untouched: Clinic) -> Clinic:
    """Nothing here changes the database."""
    return untouched


def test_questions_that_are_answered_as_expected_pass(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    questions = (
        Question.expecting("users", "SELECT count(*) FROM users", [[14]]),
        Question.expecting(
            "kinds",
            "SELECT 1.50, true, NULL, date '2026-11-24', '\\x00ff'::bytea",
            [("1.50", True, None, "2026-11-24", "\\x00ff")],
        ),
        Question.expecting("order", "SELECT id, name FROM users WHERE id < 3 ORDER BY id", [[1, "user 1"], [2, "user 2"]]),
        Question.expecting("nothing", "SELECT 1 WHERE false", []),
    )
    finding = run(CHECK, drilled(clinic, connection, sealed, questions=questions))
    assert (finding.outcome, finding.detail) == (Outcome.PASS, "4 questions were answered as expected")
    assert finding.figures == {"questions": 4, "answered_as_expected": 4}


def test_the_answer_does_not_depend_on_the_databases_settings(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    connection.execute("SET DateStyle = 'German'")
    connection.execute("SET TimeZone = 'Asia/Tokyo'")
    question = Question.expecting("time", "SELECT timestamptz '2026-11-24 02:00+00'", [["2026-11-24 02:00:00+00"]])
    assert run(CHECK, drilled(clinic, connection, sealed, questions=(question,))).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("sql", "expected", "said"),
    [
        ("SELECT count(*) FROM users", [[15]], "q: row 1, column 1 is '14', expected '15'"),
        ("SELECT id FROM users", [[1]], "q: 14 rows, expected 1"),
        ("SELECT 1, 2", [[1]], "q: 2 columns, expected 1"),
        ("SELECT NULL", [[""]], "q: row 1, column 1 is NULL, expected ''"),
        ("SELECT * FROM nowhere", [[1]], 'could not answer q: relation "nowhere" does not exist'),
        ("SELECT 'JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP'", [["x"]], "q: row 1, column 1 is a value of 32 characters, expected 'x'"),
        ("SELECT repeat('a b', 50)", [["x"]], "q: row 1, column 1 is a value of 150 characters, expected 'x'"),
        ("SELECT E'\\x1b[2J'", [["x"]], "q: row 1, column 1 is '\\x1b[2J', expected 'x'"),
    ],
)
def test_another_answer_fails(
    clinic: Clinic, connection: Connection, sealed: Sealed, sql: str, expected: list[list[str | int]], said: str
) -> None:
    finding = run(CHECK, drilled(clinic, connection, sealed, questions=(Question.expecting("q", sql, expected),)))
    assert (finding.outcome, finding.detail) == (Outcome.FAIL, said)


@pytest.mark.parametrize(
    "sql",
    ["DELETE FROM users RETURNING id", "COMMIT; DELETE FROM users", "SET transaction_read_only = off", "SELECT 1; SELECT 2"],
)
def test_a_question_changes_nothing(clinic: Clinic, connection: Connection, sealed: Sealed, sql: str) -> None:
    finding = run(CHECK, drilled(clinic, connection, sealed, questions=(Question("q", sql, ()),)))
    assert clinic.execute("SELECT count(*) FROM users") == [(14,)]
    assert finding.outcome is Outcome.FAIL


def test_one_wrong_question_does_not_stop_the_next(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    questions = (
        Question("broken", "SELECT", (("1",),)),
        Question("typo", "SELEC", ()),
        Question("good", "SELECT 1", (("1",),)),
    )
    finding = run(CHECK, drilled(clinic, connection, sealed, questions=questions))
    assert finding.outcome is Outcome.FAIL
    assert finding.figures == {"questions": 3, "answered_as_expected": 1}


def test_without_questions_it_passes_and_says_so(clinic: Clinic, connection: Connection, sealed: Sealed) -> None:
    finding = run(CHECK, drilled(clinic, connection, sealed))
    assert (finding.outcome, finding.detail) == (Outcome.PASS, "no questions are configured")
