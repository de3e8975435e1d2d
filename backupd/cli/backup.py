"""`backupd backup`: one backup of each source that is named, or of all."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from backupd.cli import show
from backupd.cli.session import Session, duration, options, size, table
from backupd.errors import BackupdError

if TYPE_CHECKING:
    from backupd.manifest import Manifest


@click.command("backup", short_help="Back up one, some or all sources.")
@click.argument("sources", nargs=-1)
@options
def command(session: Session, sources: tuple[str, ...]) -> int:
    """Back up SOURCES, or every configured source, one after another.

    A source that fails does not keep the others from being backed up; the exit code is then the first failure's.

    \b
    backupd backup                    every source
    backupd backup clinic --json      one of them, the result as JSON
    """
    made: list[Manifest] = []
    code = 0
    with session.service() as service:
        for name in service.names(sources):
            try:
                with session.progress(name) as progress:
                    made.append(service.back_up(name, progress))
            except BackupdError as error:
                code = code or show(error, sys.argv)
    session.result([to_json(manifest) for manifest in made], lambda: _table(made))
    return code


def to_json(manifest: Manifest) -> dict[str, Any]:
    """A backup for machines."""
    return {
        "backup_id": manifest.backup_id,
        "source": manifest.source.name,
        "recipients": list(manifest.recipients),
        "artifacts": [{"name": each.name, "size": each.size, "sha256": each.sha256} for each in manifest.artifacts],
        "started_at": manifest.started_at.isoformat(),
        "finished_at": manifest.finished_at.isoformat(),
        "notes": list(manifest.notes),
    }


def _table(made: list[Manifest]) -> None:
    if not made:
        return
    rows = [
        (
            each.source.name,
            each.backup_id,
            size(sum(artifact.size for artifact in each.artifacts)),
            str(sum(found.rows for found in each.expect.tables.values())),
            duration((each.finished_at - each.started_at).total_seconds()),
        )
        for each in made
    ]
    table(("source", "backup", "sealed", "rows", "took"), rows)
    for each in made:
        for note in each.notes:
            click.echo(f"note: {each.source.name}: {note}", err=True)
