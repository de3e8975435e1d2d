"""`backupd columns`: what columns of second factors hold, and their move to another cipher or key. It prints no key."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from backupd.cli.session import Row, Session, options, table
from backupd.errors import ConfigError
from backupd.redact import printable

if TYPE_CHECKING:
    from backupd.rotation import Moved, Pace, Report
    from backupd.rotation.status import Status


@click.group("columns", short_help="Encrypt columns of second factors, and change their keys.")
def command() -> None:
    """Columns of second factors are counted, encrypted and brought under other keys while the application runs.

    \b
    backupd columns status
    backupd columns encrypt clinic
    backupd columns rotate clinic --to 2027-1
    backupd columns retire clinic --key 2026-1
    """


def _finite(_: click.Context, __: click.Parameter, value: float) -> float:
    if math.isnan(value):  # which compares with no bound of a range
        raise click.BadParameter("nan is no number of seconds")
    return value


def _work(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of what changes a column."""
    for option in (
        click.option(
            "--pause",
            type=click.FloatRange(0, 3600),
            default=0.0,
            show_default=True,
            callback=_finite,
            help="Seconds between batches.",
        ),
        click.option(
            "--batch", type=click.IntRange(1, 100_000), default=500, show_default=True, help="Rows in one transaction."
        ),
        click.option("--apply", is_flag=True, help="Do it. Without this, nothing is changed."),
        click.option("--column", help="TABLE.COLUMN, where the source has more than one."),
    ):
        function = option(function)
    return function


@command.command("status", short_help="Count values by cipher and key.")
@click.argument("sources", nargs=-1)
@options
def status(session: Session, sources: tuple[str, ...]) -> int:
    """Count the values of the SOURCES' columns by form and key id, all sources' without one. It needs no key.

    A value in clear text, and bytes that no cipher wrote, are hazards; with one of them, or with a value of another cipher than
    the configured one, the exit code is 1. So it is with a key that the keyring has not, where that may be read here.

    \b
    backupd columns status clinic --json
    """
    from backupd.column_service import ColumnService

    with session.service() as service:
        found = [each for name in service.names(sources) for each in ColumnService(service).status(name)]
    session.result([each.to_json() for each in found], lambda: _show_status(found))
    return int(any(each.hazards or each.foreign or each.lacking for each in found))


@command.command("encrypt", short_help="Move secrets to AES-256-GCM.")
@click.argument("source")
@click.option("--stage", type=click.Choice(["column", "rows", "finish"]), help="Which step; in this order.")
@_work
@options
def encrypt(session: Session, source: str, stage: str | None, column: str | None, apply: bool, batch: int, pause: float) -> int:
    """Move the secrets of a column in clear text, Fernet or pgcrypto into one of AES-256-GCM, while the application runs.

    Without --apply it says what is to be done next. The stages are: `column` adds the new column; `rows` encrypts and moves
    every value; `finish` drops the former column when it is empty. Between them the application is brought up to date:
    docs/rotating-column-keys.md tells how. A stage that was broken off is run again.

    \b
    backupd columns encrypt clinic
    backupd columns encrypt clinic --stage rows --batch 200 --pause 0.1 --apply
    """
    from backupd.column_service import ColumnService
    from backupd.rotation.encrypt import Stage

    chosen = _chosen(stage, apply)
    with session.service() as service, _reported(session), _bar(session, "encrypting") as moved:
        report = ColumnService(service).encrypt(
            source, column, None if chosen is None else Stage(chosen), _pace(batch, pause), moved
        )
    session.result(report.to_json(), lambda: _show_report(report))
    return 0


@command.command("rotate", short_help="Bring a column under another key.")
@click.argument("source")
@click.option("--to", "key_id", required=True, help="The key's id: a new one is made in the first stage.")
@click.option("--stage", type=click.Choice(["add", "promote", "rows", "all"]), help="Which step; in this order.")
@_work
@options
def rotate(
    session: Session,
    source: str,
    key_id: str,
    stage: str | None,
    column: str | None,
    apply: bool,
    batch: int,
    pause: float,
) -> int:
    """Bring every value of a column under another key, while the application runs.

    Without --apply it says what is to be done next. The stages are: `add` puts a new key into the keyring; `promote` makes it
    the current one; `rows` rewrites every value. After `add` and after `promote` every application has to fetch the keyring
    anew. One that does so by itself on an unknown key needs no break: for it, `all` does the three in a row.

    \b
    backupd columns rotate clinic --to 2027-1
    backupd columns rotate clinic --to 2027-1 --stage add --apply
    """
    from backupd.column_service import ColumnService
    from backupd.rotation.rotate import Stage

    chosen = _chosen(stage, apply)
    with session.service() as service, _reported(session), _bar(session, "rotating") as moved:
        wanted = None if chosen is None else Stage(chosen)
        report = ColumnService(service).rotate(source, column, key_id, wanted, _pace(batch, pause), moved)
    session.result(report.to_json(), lambda: _show_report(report))
    return 0


@command.command("retire", short_help="Move a key from the keyring to the archive.")
@click.argument("source")
@click.option("--key", "key_id", required=True, help="The key's id.")
@click.option("--column", help="TABLE.COLUMN, where the source has more than one.")
@click.option("--apply", is_flag=True, help="Do it. Without this, nothing is changed.")
@options
def retire(session: Session, source: str, key_id: str, column: str | None, apply: bool) -> int:
    """Move a key that no row names any more from the applications' keyring to the archive. No key is ever destroyed.

    Refused while a row names the key, and where no archive is configured. Backups that name it are counted: they are read with
    the archive for as long as they live.

    \b
    backupd columns retire clinic --key 2026-1
    backupd columns retire clinic --key 2026-1 --apply
    """
    from backupd.column_service import ColumnService

    with session.service() as service:
        report = ColumnService(service).retire(source, column, key_id, apply=apply)
    session.result(report.to_json(), lambda: _show_report(report))
    return 0


def _chosen(stage: str | None, apply: bool) -> str | None:
    """The stage to do; None to say only what is due. Raises ConfigError for --apply without a stage: it would be a surprise."""
    if apply and stage is None:
        raise ConfigError("--apply needs a --stage", "run it without both first: it says which stage comes next")
    return stage if apply else None


def _pace(batch: int, pause: float) -> Pace:
    from backupd.rotation import Pace

    return Pace(batch, pause)


@contextmanager
def _reported(session: Session) -> Iterator[None]:
    """Rows that were left are a result as well as an error."""
    from backupd.rotation import RowsLeft

    try:
        yield
    except RowsLeft as error:
        report = error.report
        session.result(report.to_json(), lambda: _show_report(report))
        raise


@contextmanager
def _bar(session: Session, label: str) -> Iterator[Moved]:
    """Rows done, on a terminal's stderr."""
    if session.json or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed:.0f} rows"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda rows: bar.advance(task, rows)


def _show_status(found: list[Status]) -> None:
    rows: list[Row] = []
    for each in found:
        if not each.counts:
            rows.append((each.column.source, each.column.name, "empty", "-", "0", ("good", "green")))
        for count in each.counts:
            foreign = each.foreign and count.column == each.column.column and count.form.value != each.column.cipher
            state = ("HAZARD", "bold red") if count.is_hazard else ("foreign", "bold yellow") if foreign else ("good", "green")
            if count.key_id in each.lacking:
                state = ("key not in the keyring", "bold red")
            where = f"{each.column.table}.{count.column}"
            rows.append((each.column.source, where, count.form.value, count.key_id or "-", str(count.rows), state))
    table(("source", "column", "form", "key", "rows", "state"), rows)
    hazards = sum(each.hazards for each in found)
    if hazards:
        click.echo(click.style("HAZARD: ", fg="red", bold=True) + f"in clear, of all values: {hazards}", err=True)
    for each in found:
        if each.lacking:
            click.echo(
                printable(
                    f"no application reads what names {', '.join(each.lacking)} in {each.column.name}: bring it under the"
                    " current key, whose id is ID, with the archive at hand:"
                    f" `backupd columns rotate {each.column.source} --to ID --stage rows --apply`"
                ),
                err=True,
            )


def _show_report(report: Report) -> None:
    what = report.stage if report.applied else f"{report.stage}, not applied"
    click.echo(click.style(printable(f"{report.action} {report.column.name}: {what}"), bold=True))
    for name, number in report.figures.items():
        click.echo(f"  {name.replace('_', ' ')}: {number}")
    for row_id, reason in report.left.items():
        click.echo(printable(f"  row {row_id} was left: {reason}"))
    if report.left_rows > len(report.left):
        click.echo(f"  … and {report.left_rows - len(report.left)} more")
    if report.next:
        click.echo(printable(f"next: {report.next}"))
