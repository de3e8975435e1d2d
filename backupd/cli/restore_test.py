"""`backupd restore-test`: a drill, by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from backupd.audit.records import Operation
from backupd.checks import Outcome
from backupd.cli import show
from backupd.cli.release import Released, released_by, released_options
from backupd.cli.session import SECRET_FILE, VERDICT_STYLES, Row, Session, duration, options, table
from backupd.errors import BackupdError, CouldNotVerify

if TYPE_CHECKING:
    from backupd.drill import DrillReport

EXIT_CODES = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.COULD_NOT_VERIFY: CouldNotVerify.exit_code}


@click.command("restore-test", short_help="Restore a backup into a scratch database and prove it.")
@click.argument("sources", nargs=-1)
@click.option("--backup", "backup_id", help="The backup's id; for one source. Default: the newest, or the released one.")
@click.option("--secret-key", type=SECRET_FILE, help="A recipient's secret key. Default: the drill's custodian.")
@released_options
@options
def command(
    session: Session, sources: tuple[str, ...], backup_id: str | None, secret_key: Path | None, released: Released | None
) -> int:
    """Drill SOURCES, or every source: restore the newest backup into a scratch cluster and show that it is good.

    Rows, digests, every second factor, leaks of secrets, separation of keys, questions of your own, and recovery objectives.
    The scratch cluster is private and always destroyed. Exit codes: 0 PASS, 1 FAIL, 3 COULD NOT VERIFY.

    \b
    backupd restore-test clinic
    backupd restore-test clinic --backup 20261124T020000Z-5f3c9a --json
    """
    if backup_id is not None and len(sources) != 1:
        raise click.UsageError("--backup needs exactly one source")
    if released is not None and len(sources) != 1:
        raise click.UsageError("--session-key needs exactly one source")
    reports: list[DrillReport] = []
    failed = 0
    with session.service() as service:
        for name in service.names(sources):
            try:
                keys = released_by(service, Operation.RESTORE_TEST, name, released)
                wanted = backup_id or (keys.backup_id if keys else None)
                opener = secret_key if released is None else released.request_key
                with session.progress(name) as progress:
                    reports.append(service.drill(name, wanted, opener, progress, released=keys))
            except BackupdError as error:
                failed = failed or show(error, sys.argv)
    # One source, one object: what a monitor reads. Several: an array of the same.
    shown = [report.to_json() for report in reports]
    session.result(shown[0] if len(sources) == 1 and shown else shown, lambda: _tables(reports))
    codes = [EXIT_CODES[report.verdict] for report in reports]
    return 1 if 1 in codes else failed or max(codes, default=0)


def _tables(reports: list[DrillReport]) -> None:
    for report in reports:
        rows: list[Row] = [
            (finding.name, (finding.outcome.value, VERDICT_STYLES[finding.outcome.value]), finding.detail)
            for finding in report.findings
        ]
        table(("check", "outcome", "what was seen"), rows, title=f"drill of {report.backup_id}")
        styled = click.style(
            report.verdict.value, fg={"PASS": "green", "FAIL": "red"}.get(report.verdict.value, "yellow"), bold=True
        )
        click.echo(f"{styled}  data loss if needed now: {duration(report.rpo_s)}, recovered in: {duration(report.rto_s)}")
