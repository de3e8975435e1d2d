"""`backupd verify`: stored backups against their signed manifests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from backupd.audit.records import Operation
from backupd.cli import show
from backupd.cli.release import Released, released_by, released_options
from backupd.cli.session import SECRET_FILE, Row, Session, options, size, table
from backupd.errors import BackupdError, ConfigError, CouldNotVerify

if TYPE_CHECKING:
    from backupd.opening import Opening
    from backupd.service import Service
    from backupd.verify import Proof


@click.command("verify", short_help="Prove that stored backups are what was written.")
@click.argument("source", required=False)
@click.option("--backup", "backup_id", help="The backup's id. Default: the newest, or the released one.")
@click.option("--all", "everything", is_flag=True, help="Every backup, of SOURCE or of all sources.")
@click.option("--deep", is_flag=True, help="Also open it and read the archive to its end; needs a secret key.")
@click.option("--secret-key", type=SECRET_FILE, help="The secret key for --deep. Default: the drill's.")
@released_options
@options
def command(
    session: Session,
    source: str | None,
    backup_id: str | None,
    everything: bool,
    deep: bool,
    secret_key: Path | None,
    released: Released | None,
) -> int:
    """Fetch every part of a backup and hold it against the signed manifest.

    \b
    backupd verify clinic                                   the newest backup of clinic
    backupd verify --all                                    everything there is
    backupd verify clinic --deep --secret-key ops.sec.asc   also decrypt it and read it to its end
    """
    if everything and backup_id is not None:
        raise ConfigError("--all and --backup exclude each other", "leave one of them out")
    if released is not None and (everything or not deep or source is None):
        raise ConfigError("--session-key needs --deep and one source", "it opens one backup: name its source")
    proofs: list[tuple[str, Proof]] = []
    code = 0
    with session.service() as service, key(service, source, deep, secret_key, released) as opening:
        if everything:
            entries = service.catalog.list(source)
            if not entries:
                raise CouldNotVerify("there is no backup to verify", "run `backupd backup`")
        else:
            if opening is not None and opening.session_keys is not None:
                backup_id = backup_id or opening.session_keys.backup_id
            entries = [service.entry(name, backup_id) for name in service.names((source,) if source else ())]
        for entry in entries:
            try:
                with session.progress(entry.backup_id) as progress:
                    proofs.append((entry.source, service.verify(entry, opening, progress)))
            except BackupdError as error:
                code = code or show(error, sys.argv)
    session.result([_to_json(name, proof) for name, proof in proofs], lambda: _table(proofs))
    return code


@contextmanager
def key(
    service: Service, source: str | None, wanted: bool, secret_key: Path | None, released: Released | None
) -> Iterator[Opening | None]:
    """What opens backups, from a file, the drill's custodian or a release, for the length of the block; None if not wanted."""
    if not wanted:
        yield None
        return
    keys = None if source is None else released_by(service, Operation.VERIFY, source, released)
    with service.opening(Operation.VERIFY, source, secret_key, keys) as opening:
        yield opening


def _to_json(source: str, proof: Proof) -> dict[str, object]:
    return {
        "backup_id": proof.backup_id,
        "source": source,
        "state": "verified",
        "parts": proof.parts,
        "bytes": proof.bytes_read,
        "deep": proof.deep,
    }


def _table(proofs: list[tuple[str, Proof]]) -> None:
    rows: list[Row] = [
        (
            source,
            each.backup_id,
            size(each.bytes_read),
            str(each.parts),
            ("opened and read" if each.deep else "every part", "green"),
        )
        for source, each in proofs
    ]
    if rows:
        table(("source", "backup", "read", "parts", "proved"), rows)
