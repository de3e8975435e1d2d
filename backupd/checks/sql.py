"""The user's own questions to a restored database, and the answers they expect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from backupd.checks import Drilled, Figure, Finding, Outcome, Question
from backupd.errors import BackupdError
from backupd.postgres.session import Connection, translated
from backupd.redact import printable, scrub

NAME = "sql"
TIMEOUT_S = 600
_LONGEST_VALUE = 40
_SETTINGS = {
    "transaction_read_only": "on",
    "statement_timeout": f"{TIMEOUT_S}s",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "search_path": "public",  # not "$user": the drill's own role is known, and a schema of its name could be made for it
}
Rows = tuple[tuple[str | None, ...], ...]


@dataclass(frozen=True, slots=True)
class Sql:
    """The check `sql`. Each question is one statement in a read-only transaction; values compare as PostgreSQL writes them."""

    name: str = NAME

    def run(self, drilled: Drilled) -> Finding:
        wrong = [problem for question in drilled.questions if (problem := _ask(drilled.connection, question)) is not None]
        asked = len(drilled.questions)
        figures: dict[str, Figure] = {"questions": asked, "answered_as_expected": asked - len(wrong)}
        if wrong:
            return Finding(NAME, Outcome.FAIL, "; ".join(wrong), figures)
        detail = f"{asked} questions were answered as expected" if asked else "no questions are configured"
        return Finding(NAME, Outcome.PASS, detail, figures)


def _ask(connection: Connection, question: Question) -> str | None:
    """What is wrong with the answer, or None."""
    try:
        rows = answer(connection, question)
    except BackupdError as error:
        return error.message
    return next((f"{printable(question.name)}: {each}" for each in _differences(question.expected, rows)), None)


def answer(connection: Connection, question: Question) -> Rows:
    """The rows that come back, each value as PostgreSQL writes it. Raises SourceError."""
    with translated(f"answer {printable(question.name)}"), connection.transaction(force_rollback=True):
        connection.execute(
            "SELECT set_config(name, value, true) FROM unnest(%s::text[], %s::text[]) AS wanted (name, value)",
            (list(_SETTINGS), list(_SETTINGS.values())),
        )
        # Prepared, for then the server takes one statement only: no COMMIT and a second one behind it.
        result = connection.execute(question.sql.encode(), prepare=True).pgresult
        if result is None:
            return ()
        values = [[result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)]
    return tuple(tuple(None if value is None else bytes(value).decode(errors="replace") for value in row) for row in values)


def _differences(expected: Rows, shown: Rows) -> Iterator[str]:
    if len(expected) != len(shown):
        yield f"{len(shown)} rows, expected {len(expected)}"
        return
    for number, (wanted, row) in enumerate(zip(expected, shown, strict=True), 1):
        if len(wanted) != len(row):
            yield f"{len(row)} columns, expected {len(wanted)}"
        elif wanted != row:
            column = next(index for index, pair in enumerate(zip(wanted, row, strict=True), 1) if pair[0] != pair[1])
            yield f"row {number}, column {column} is {_shown(row[column - 1])}, expected {_shown(wanted[column - 1])}"


def _shown(value: str | None) -> str:
    """A value for a report that strangers read: not one that `scrub` knows to be a secret, and not a long one."""
    if value is None:
        return "NULL"
    if len(value) > _LONGEST_VALUE or scrub(value) != value:
        return f"a value of {len(value)} characters"
    return f"'{printable(value)}'"
