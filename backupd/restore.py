"""One restore: no byte is used before it is proved.

    manifest, its signature ─ parts, each its SHA-256 ─ gpg ─kernel pipe─ pg_restore ─ an empty database

Owns the order of these steps. Never writes over anything: the target must be empty, and must not be the source. Plaintext is
only ever in the pipe between gpg and pg_restore.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backupd import opening
from backupd.audit.records import Operation
from backupd.audit.trail import Trail
from backupd.errors import ProcessFailed, Tampered
from backupd.manifest import Kind, Manifest
from backupd.opening import Opening
from backupd.postgres import archive, clients, expectations, roles, session
from backupd.postgres.roles import RolesReport
from backupd.postgres.session import Connection, Dsn, Server
from backupd.stores import Store
from backupd.transfer import Progress

GLOBALS_BYTES = 64 << 20  # of SQL text: a hundred thousand roles; more is not one of ours


@dataclass(frozen=True, slots=True)
class Target:
    """Where to: an empty database, reached by a role that may create what the backup holds. `deadline_s` is for its data."""

    dsn: Dsn
    client_directories: tuple[Path, ...] = ()
    deadline_s: float | None = None


def restore(
    manifest: Manifest, store: Store, key: Opening, target: Target, trail: Trail, progress: Progress = lambda _: None
) -> RolesReport | None:
    """Restore a backup, whose manifest is proved, into the empty database `target`, and compare what came back.

    Returns what became of the roles; None when the backup holds none.

    One transaction where the target allows it: when it fails the database is as empty as it was. Roles come first and are the
    cluster's: those that exist are left as they are. Raises Refused for a target that is not empty or is the source, Tampered
    for anything in the store that is not what the manifest says, CouldNotVerify without a key that opens it, SourceError and
    ProcessFailed.
    """
    with trail.recording(
        Operation.RESTORE, source=manifest.source.name, backup_id=manifest.backup_id, target=target.dsn.describe()
    ) as run:
        made = restore_into(manifest, store, key, target, progress)
        with session.connect(target.dsn, application_name="backupd restore", autocommit=True) as connection:
            differences = expectations.compare(manifest.expect, expectations.found(connection, manifest.expect))
        run.note(differences=tuple(differences[:20]))
        if differences:
            more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
            message = f"the restored database is not what was backed up: {differences[0]}{more}"
            raise Tampered(message, "do not use it; restore another backup")
    return made


def restore_into(
    manifest: Manifest, store: Store, key: Opening, target: Target, progress: Progress = lambda _: None
) -> RolesReport | None:
    """The same without a record and a comparison of its own: a drill's restore is part of the drill, and so is its check."""
    with session.connect(target.dsn, application_name="backupd restore", autocommit=True) as connection:
        server = session.server(connection)
        archive.require_not_source(server, manifest.source)
        archive.require_empty(connection)
        made = _roles(manifest, store, key, connection)
    _database(manifest, store, key, target, server, progress)
    return made


def _roles(manifest: Manifest, store: Store, key: Opening, connection: Connection) -> RolesReport | None:
    if not any(artifact.kind is Kind.GLOBALS for artifact in manifest.artifacts):
        return None
    text = bytearray()
    for chunk in opening.read(manifest, manifest.artifact(Kind.GLOBALS), store, key):
        text += chunk
        if len(text) > GLOBALS_BYTES:
            raise Tampered("the roles file is larger than any of ours", "restore another backup")
    try:
        return roles.apply(connection, text.decode())
    except UnicodeDecodeError as error:
        raise Tampered("the roles file is not UTF-8", "restore another backup") from error


def _database(manifest: Manifest, store: Store, key: Opening, target: Target, server: Server, progress: Progress) -> None:
    made_by = int(manifest.tools.pg_dump.partition(".")[0])
    chosen = clients.choose_restorer(clients.find(target.client_directories), made_by, server.major)
    whole = archive.one_transaction_fits(chosen, server)
    command = archive.restore(chosen, target.dsn, single_transaction=whole)
    artifact = manifest.artifact(Kind.DATABASE)

    def forgiven(error: ProcessFailed) -> bool:
        return not whole and error.status == 1 and archive.forgiven(error.stderr)

    try:
        opening.feed(
            manifest, artifact, store, key, command, forgiven=forgiven, deadline_s=target.deadline_s, progress=progress
        )
    except ProcessFailed as error:
        if error.program != command.name or error.status is None or error.status < 0:
            raise
        raise archive.explained(error) from None  # its own text holds statements, and so rows
