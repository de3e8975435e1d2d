"""`backupd list`: the committed backups of a store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from backupd.cli.session import Row, Session, options, size, table

if TYPE_CHECKING:
    from backupd.catalog import Entry


@click.command("list", short_help="List the backups in the store.")
@click.argument("source", required=False)
@options
def command(session: Session, source: str | None) -> int:
    """List the backups of SOURCE, or of all sources, oldest first.

    A backup whose manifest cannot be believed, that is not all there, or that does not follow the one before it, is listed with
    what is wrong with it, and the exit code is 1.

    \b
    backupd list
    backupd list clinic --json
    """
    from backupd.catalog import by_source, chain_problems

    with session.service() as service:
        entries = service.catalog.list(source)
        if source is not None and not entries:
            if not service.config.sources:  # a host that only restores knows the store's names alone
                raise service.no_backup(source)
            service.source(source)
    order = {backup_id: text for each in by_source(entries).values() for backup_id, text in chain_problems(each).items()}
    session.result([_to_json(each, order) for each in entries], lambda: _table(entries, order))
    return int(any(_state(each, order)[1] for each in entries))


def _state(entry: Entry, order: dict[str, str]) -> tuple[str, str]:
    """The state in a word, and what is wrong."""
    if entry.manifest is None:
        return "damaged", entry.problem.message if entry.problem is not None else "it has no manifest"
    if entry.loss:
        return "damaged", "; ".join(each for each in (entry.loss, order.get(entry.backup_id)) if each)
    if entry.backup_id in order:
        return "out of order", order[entry.backup_id]
    return "committed", ""


def _to_json(entry: Entry, order: dict[str, str]) -> dict[str, Any]:
    from backupd.cli.backup import to_json

    state, problem = _state(entry, order)
    known: dict[str, Any] = {"backup_id": entry.backup_id, "source": entry.source, "artifacts": []}
    if entry.manifest is not None:
        known = to_json(entry.manifest)
    locked = None if entry.locked_until is None else entry.locked_until.isoformat()
    return {**known, "state": state, "problem": problem or None, "locked_until": locked}


def _table(entries: list[Entry], order: dict[str, str]) -> None:
    if not entries:
        click.echo("no backups")
        return
    table(("source", "backup", "snapshot", "sealed", "tables", "state"), list(_rows(entries, order)))
    for entry in entries:
        _, problem = _state(entry, order)
        if problem:
            click.echo(f"{entry.source}/{entry.backup_id}: {problem}", err=True)


def _rows(entries: list[Entry], order: dict[str, str]) -> Iterator[Row]:
    for entry in entries:
        state, _ = _state(entry, order)
        style = {"committed": "green", "damaged": "bold red"}.get(state, "yellow")
        if entry.manifest is None:
            yield (entry.source, entry.backup_id, "-", "-", "-", (state, style))
            continue
        manifest = entry.manifest
        yield (
            entry.source,
            entry.backup_id,
            f"{manifest.snapshot.taken_at:%Y-%m-%d %H:%M}Z",
            size(sum(artifact.size for artifact in manifest.artifacts)),
            str(len(manifest.expect.tables)),
            (state, style),
        )
