"""`backupd check`: whether everything that backups, restores and drills need is in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backupd.cli.session import Row, Session, options, table
from backupd.redact import printable

if TYPE_CHECKING:
    from backupd.check import Line

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@click.command("check", short_help="Look whether everything a backup needs is in order.")
@options
def command(session: Session) -> int:
    """Look at the configuration, custodians, keys, store, trail, sources and this host, by using them as a backup does.

    Nothing is changed but for the record of the check, and a store in a directory is made where it is missing. The exit code
    is 1 when there is a problem, and 0 when there is none: what could not be looked at is a problem, for a backup could not
    use it either. Warnings do not change it.

    \b
    backupd check -c /etc/backupd/backupd.toml
    backupd check --json
    """
    with session.service() as service:
        lines = service.check()
    problems = sum(line.state == "problem" for line in lines)
    result = {
        "ok": not problems,
        "lines": [{"area": each.area, "state": each.state.value, "text": each.text, "hint": each.hint} for each in lines],
    }
    session.result(result, lambda: _table(lines, problems))
    return int(problems > 0)


def _table(lines: list[Line], problems: int) -> None:
    rows: list[Row] = [(line.area, (line.state.value, STYLES[line.state.value]), line.text) for line in lines]
    table(("area", "state", "what was seen"), rows)
    for line in lines:
        if line.hint:
            click.echo(printable(f"{line.state.value}: {line.area}: {line.text}"))
            click.echo(printable(f"  hint: {line.hint}"))
    warnings = sum(line.state == "warning" for line in lines)
    plural = [f"{count} {what}{'s'[: count != 1]}" for count, what in ((problems, "problem"), (warnings, "warning"))]
    click.echo(f"{len(lines)} looked at, {', '.join(plural)}")
