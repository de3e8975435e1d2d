"""`backupd audit`: the trail of everything done, listed, shown, verified and exported. It never writes to the trail."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from backupd.cli.session import Cell, Row, Session, options, table
from backupd.errors import BackupdError, ConfigError

if TYPE_CHECKING:
    from backupd.audit import Checkpoint
    from backupd.audit.chain import Finding, Report
    from backupd.audit.records import Record
    from backupd.audit.trail import Trail

# What this version's commands record. Records of the other operations are read, too: a later version may write to the trail.
RECORDED = ("backup", "restore", "restore-test", "verify", "check", "keys", "columns")
_OF_COLUMNS = ("action", "column", "stage", "key_id")  # of an intent's details, those that say what was to be done
PHASE_STYLES = {"done": "green", "failed": "bold red", "refused": "yellow", "interrupted": "yellow"}
MOMENTS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"]
NOT_SEEN = "without --expect a cut-off end, or a trail written anew, cannot be seen: keep a head somewhere else, and give it"


@click.group("audit", short_help="Look into the trail of everything done.")
def command() -> None:
    """The trail says who did what, on which source and backup, and how it ended; it is only ever appended to.

    \b
    backupd audit list --source clinic --limit 20
    backupd audit verify --expect 1042:9f86d081…
    """


@command.command("list", short_help="List records, newest last.")
@click.option("--source", help="Only records of this source.")
@click.option("--operation", help=f"Only records of this operation: {', '.join(RECORDED)}.")
@click.option("--since", type=click.DateTime(MOMENTS), help="Only records of this time (UTC) and later.")
@click.option("--limit", type=click.IntRange(1), help="Only so many, the newest.")
@options
def list_records(session: Session, source: str | None, operation: str | None, since: datetime | None, limit: int | None) -> int:
    """List the records of the trail, newest last.

    \b
    backupd audit list --operation backup --since 2026-11-01
    backupd audit list --limit 10 --json
    """
    from backupd.audit.records import Operation

    if operation is not None and operation not in set(Operation):
        raise ConfigError(f"there is no operation {operation!r}", f"there are: {', '.join(RECORDED)}")
    start = None if since is None else since.replace(tzinfo=UTC)
    with session.service() as service:
        found = deque(
            (
                record
                for record in service.trail.records()
                if (source is None or record.source == source)
                and (operation is None or record.operation == operation)
                and (start is None or record.at >= start)
            ),
            maxlen=limit,
        )
    session.result([_to_json(record) for record in found], lambda: _list(found))
    return 0


@command.command("show", short_help="Show one record whole.")
@click.argument("seq", type=click.IntRange(1))
@options
def show_record(session: Session, seq: int) -> int:
    """Show record SEQ with all its details, and the hash that the next record holds of it.

    \b
    backupd audit show 1042
    """
    with session.service() as service:
        record = next(service.trail.records(seq), None)
    if record is None or record.seq != seq:
        raise BackupdError(f"there is no record {seq} in the trail", "`backupd audit list` shows what there is")
    session.result(_to_json(record), lambda: _show(record))
    return 0


@command.command("verify", short_help="Check the whole chain of records.")
@click.option("--expect", metavar="SEQ:HEAD", help="A head that an earlier verify or export told, kept elsewhere since.")
@options
def verify(session: Session, expect: str | None) -> int:
    """Check that no record was changed, removed, inserted or moved.

    The exit code is 0 when the trail is whole, 1 when it is not, 3 when there is no trail. `head` names its end: with --expect
    a later run also shows that nothing was cut off, and that the trail was not written anew.

    \b
    backupd audit verify
    backupd audit verify --expect 1042:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    """
    expected = None if expect is None else _checkpoint(expect)
    with session.service() as service:
        report = service.trail.verify(expected)
    result = {
        "ok": report.ok,
        "records": report.records,
        "head": _head(report.head),
        "findings": [{"kind": each.kind.value, "seq": each.seq, "detail": each.detail} for each in report.findings],
    }
    session.result(result, lambda: _tell(report, expected is not None))
    if not report.ok:
        return 1
    return 0 if report.records else 3


@command.command("export", short_help="Write the trail as JSON lines that anyone can check.")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@options
def export(session: Session, file: Path) -> int:
    """Write the trail to FILE, which must not exist yet, or to the standard output for `-`.

    Each line holds a record as it is stored and its SHA-256, which is also in the next line's `previous`. The head that is
    told (on the standard error for `-`) can be given to `audit verify --expect`.

    \b
    backupd audit export trail.jsonl
    backupd audit export - | jq .record.operation
    """
    with session.service() as service:
        if str(file) == "-":
            head = service.trail.export(sys.stdout.buffer)
            sys.stdout.buffer.flush()
            click.echo(f"head: {_head(head) or 'the trail has no end that can be believed'}", err=True)
            return 0
        head = _export(service.trail, file)
    session.result(
        {"file": str(file), "head": _head(head)},
        lambda: click.echo(f"wrote {file}; head: {_head(head) or 'there is none, see `backupd audit verify`'}"),
    )
    return 0


@command.command("install-sql", short_help="Print what an administrator runs for a trail in PostgreSQL.")
@click.option("--role", help="The role that will write the trail. Default: the one in [audit] url.")
@options
def install_sql(session: Session, role: str | None) -> int:
    """Print the SQL that makes a trail in PostgreSQL, to be run once by another role than the one that will write it.

    \b
    backupd audit install-sql --role backupd | psql -h db -U postgres audit
    """
    from backupd.audit import postgres

    text = postgres.install_sql(role or _role_of(session))
    session.result({"sql": text}, lambda: click.echo(text, nl=False))
    return 0


def _role_of(session: Session) -> str:
    at = session.load().audit
    if at.is_sqlite:
        raise ConfigError("the configured trail is a file, and needs no SQL", "give --role for one in PostgreSQL")
    from backupd.postgres.dsn import Dsn

    return Dsn.parse(at.url).user


def _checkpoint(text: str) -> Checkpoint:
    from backupd.audit import Checkpoint

    found = re.fullmatch(r"([1-9]\d{0,17}):([0-9a-f]{64})", text)
    if found is None:
        raise ConfigError("--expect takes SEQ:HEAD", "give what `backupd audit verify` called the head, as it is")
    return Checkpoint(int(found[1]), found[2], datetime.min.replace(tzinfo=UTC))  # its time is not looked at


def _head(head: Checkpoint | None) -> str | None:
    return None if head is None else f"{head.seq}:{head.head}"


def _export(trail: Trail, path: Path) -> Checkpoint | None:
    with _new_file(path) as file:
        head = trail.export(file)
        file.flush()
        os.fsync(file.fileno())
    return head


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that was not there, readable for its owner alone; gone again when the block fails."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ConfigError(f"there is a {path} already", "an export replaces nothing: name another file") from error
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", "check the path and who may write there") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
    except OSError as error:
        path.unlink(missing_ok=True)
        raise BackupdError(f"cannot write {path}: {error.strerror}", "is the disk full?") from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _to_json(record: Record) -> dict[str, Any]:
    from backupd.audit.records import digest, render

    stored = render(record)
    return {**json.loads(stored), "sha256": digest(stored)}


def _who(record: Record) -> str:
    return f"{record.actor.operator or record.actor.user}@{record.actor.host}"


def _list(found: deque[Record]) -> None:
    if not found:
        click.echo("no records")
        return
    rows: list[Row] = []
    for record in found:
        phase: Cell = (record.phase.value, PHASE_STYLES.get(record.phase.value, "dim"))
        details = record.details
        what = record.error or record.backup_id or " ".join(str(details[name]) for name in _OF_COLUMNS if name in details)
        at = f"{record.at:%Y-%m-%d %H:%M:%S}Z"
        rows.append((str(record.seq), at, record.operation.value, phase, record.source or "-", _who(record), what))
    table(("seq", "at", "operation", "phase", "source", "who", "what"), rows)


def _show(record: Record) -> None:
    from backupd.redact import printable

    for name, value in _to_json(record).items():
        if value is None or value == {}:
            continue
        if isinstance(value, dict):
            click.echo(f"{name}:")
            for inner, text in value.items():
                if text is not None:
                    click.echo(printable(f"  {inner}: {', '.join(text) if isinstance(text, list) else text}"))
        else:
            click.echo(printable(f"{name}: {value}"))


def _tell(report: Report, expected: bool) -> None:
    if report.findings:
        table(("seq", "found", "detail"), [_finding(each) for each in report.findings])
    if not report.records:
        click.echo("there is no trail yet")
    elif report.ok:
        click.echo(click.style("the trail is whole", fg="green") + f": {report.records} records")
    else:
        click.echo(click.style("the trail was changed", fg="red", bold=True) + f": {report.records} records")
    if report.head is not None:
        click.echo(f"head: {_head(report.head)}")
    if not expected:
        click.echo(f"note: {NOT_SEEN}", err=True)


def _finding(finding: Finding) -> Row:
    style = "yellow" if finding.kind.is_warning else "bold red"
    return (str(finding.seq) if finding.seq else "-", (finding.kind.value, style), finding.detail)
