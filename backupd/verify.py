"""Whether a stored backup is what its manifest says, without restoring it anywhere.

The signature and the place of the manifest are the catalogue's to prove; here every part is fetched and its digest held against
the manifest's, and `deep` opens the backup too and reads the archive to its end. Writes nothing, to no disk.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from backupd import opening, transfer
from backupd.audit.records import Operation
from backupd.audit.trail import Trail
from backupd.catalog import name_of
from backupd.errors import Tampered
from backupd.manifest import Kind, Manifest
from backupd.opening import Opening
from backupd.postgres import archive, clients
from backupd.stores import Store
from backupd.transfer import Progress


@dataclass(frozen=True, slots=True)
class Proof:
    """What was proved of a backup: `bytes_read` bytes in `parts` parts; `deep` when it was opened and read, too."""

    backup_id: str
    parts: int
    bytes_read: int
    deep: bool


def verify(
    manifest: Manifest,
    store: Store,
    trail: Trail,
    *,
    deep: Opening | None = None,
    client_directories: tuple[Path, ...] = (),
    progress: Progress = lambda _: None,
) -> Proof:
    """Prove a backup whose manifest the catalogue has proved, with `deep` also that it opens and is a whole archive.

    Raises Tampered for what is not what the manifest says, SecretUnavailable without a key that opens it, ProcessFailed for an
    archive that pg_restore cannot read to its end, StoreError when the store does not give the bytes.
    """
    with trail.recording(Operation.VERIFY, source=manifest.source.name, backup_id=manifest.backup_id, deep=deep is not None):
        if deep is None:
            _parts(manifest, store, progress)
        else:
            _open(manifest, store, deep, client_directories, progress)
    parts = sum(len(artifact.parts) for artifact in manifest.artifacts)
    return Proof(manifest.backup_id, parts, sum(artifact.size for artifact in manifest.artifacts), deep is not None)


def _parts(manifest: Manifest, store: Store, progress: Progress) -> None:
    for artifact in manifest.artifacts:
        whole = hashlib.sha256()
        where = name_of(manifest.source.name, manifest.backup_id, "")
        for part in transfer.fetch(store, where, artifact, progress=progress):
            whole.update(part)
        if whole.hexdigest() != artifact.sha256:
            raise Tampered(f"{artifact.name} is not what the manifest says, though each part is", transfer.HINT)


def _open(manifest: Manifest, store: Store, deep: Opening, directories: tuple[Path, ...], progress: Progress) -> None:
    """The database's archive is read to its end by pg_restore: a listing would not notice that it is cut off."""
    for artifact in manifest.artifacts:
        if artifact.kind is Kind.DATABASE:
            chosen = clients.choose_reader(clients.find(directories), int(manifest.tools.pg_dump.partition(".")[0]))
            opening.feed(manifest, artifact, store, deep, archive.read_to_end(chosen), progress=progress)
        else:
            for chunk in opening.read(manifest, artifact, store, deep):
                progress(len(chunk))
