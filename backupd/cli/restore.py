"""`backupd restore`: a backup into an empty database."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from backupd.audit.records import Operation
from backupd.cli.release import Released, released_by, released_options
from backupd.cli.session import SECRET_FILE, Session, duration, options
from backupd.redact import printable

if TYPE_CHECKING:
    from backupd.postgres.roles import RolesReport


@click.command("restore", short_help="Restore a backup into an empty database.")
@click.argument("source")
@click.option("--to", "target", required=True, help="The empty database, as postgresql://role@host/name, without a password.")
@click.option("--backup", "backup_id", help="The backup's id. Default: the newest, or the one that was released.")
@click.option("--secret-key", type=SECRET_FILE, help="A recipient's secret key. Default: the drill's custodian.")
@click.option("--password-file", type=SECRET_FILE, help="Holds the password of the target's role. Or PGPASSWORD.")
@released_options
@options
def command(
    session: Session,
    source: str,
    target: str,
    backup_id: str | None,
    secret_key: Path | None,
    password_file: Path | None,
    released: Released | None,
) -> int:
    """Restore a backup of SOURCE into an empty database, and compare what came back with what was backed up.

    Every part is proved before a byte of it is used. Roles that the target's cluster lacks are made; those it has are kept.

    \b
    createdb -T template0 clinic_restored
    backupd restore clinic --to postgresql://postgres@db/clinic_restored --secret-key operations.sec.asc
    """
    import time

    started = time.monotonic()
    with session.service() as service:
        dsn = service.target(target, password_file)
        keys = released_by(service, Operation.RESTORE, source, released)
        entry = service.entry(source, backup_id or (keys.backup_id if keys else None))
        with (
            service.opening(Operation.RESTORE, source, secret_key, keys) as opening,
            session.progress(entry.backup_id) as progress,
        ):
            made = service.restore(entry, opening, dsn, progress)
    took = time.monotonic() - started
    noted = entry.proved().column_keys
    keys_named = {f"{each.table}.{each.column}": each.key_ids for each in noted if each.key_ids}
    result = {
        "backup_id": entry.backup_id,
        "source": source,
        "target": dsn.describe(),
        "roles": None if made is None else {"created": made.created, "kept": made.kept, "skipped": made.skipped},
        "column_keys": {name: list(key_ids) for name, key_ids in keys_named.items()},
        "seconds": round(took, 1),
    }
    session.result(result, lambda: _tell(entry.backup_id, dsn.describe(), made, keys_named, took))
    return 0


def _tell(
    backup_id: str, target: str, made: RolesReport | None, keys_named: Mapping[str, tuple[str, ...]], took: float
) -> None:
    click.echo(f"restored {backup_id} into {target} in {duration(took)}: all that was expected is there")
    for name, key_ids in keys_named.items():
        click.echo(
            printable(
                f"{name} needs the keys {', '.join(key_ids)}: if one was retired since and is in the archive alone, bring the"
                " rows under the current key before the application starts, with `backupd columns rotate`"
            )
        )
    if made is None:
        click.echo("the backup holds no roles")
        return
    for what, names in (("created", made.created), ("kept as they were", made.kept)):
        if names:
            click.echo(printable(f"roles {what}: {', '.join(names)}"))
    for line in made.skipped:
        click.echo(printable(f"not restored: {line}"), err=True)
