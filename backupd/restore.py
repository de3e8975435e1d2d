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
from backupd.errors import Interrupted, ProcessFailed, Tampered
from backupd.manifest import Kind, Manifest
from backupd.opening import Opening
from backupd.postgres import archive, clients, expectations, roles, session
from backupd.postgres.clients import Clients
from backupd.postgres.dsn import Dsn
from backupd.postgres.roles import RolesReport
from backupd.postgres.session import Connection, Server
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
    left = _NOTHING
    try:
        with trail.recording(
            Operation.RESTORE, source=manifest.source.name, backup_id=manifest.backup_id, target=target.dsn.describe()
        ) as run:
            server, made = _prepare(manifest, store, key, target)
            restorer = _restorer(manifest, target, server)
            left = _ALL_OR_NOTHING if archive.one_transaction_fits(restorer, server) else _A_PART
            _database(manifest, store, key, target, server, restorer, progress)
            left = _NOT_COMPARED
            with session.connect(target.dsn, application_name="backupd restore", autocommit=True) as connection:
                differences = expectations.compare(manifest.expect, expectations.loaded(connection, manifest.expect))
            run.note(differences=tuple(differences[:20]))
            if differences:
                more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
                message = f"the restored database is not what was backed up: {differences[0]}{more}"
                raise Tampered(message, "do not use it; restore another backup with --backup ID")
    except Interrupted as error:
        error.hint = left
        raise
    return made


# What an interruption leaves, by how far the restore had come. pg_restore may have been committing when it was ended.
_NOTHING = "no data reached the target; roles that were made already stay. Run it again"
_ALL_OR_NOTHING = (
    "the data came in one transaction: the target is empty, unless that was just being committed. Run it again;"
    " if the target is refused as not empty, drop the target database before you try again"
)
_A_PART = "the target holds a part of the data: drop the target database before you try again"
_NOT_COMPARED = "the target holds the data, but it was not compared: drop the target database before you try again"


def restore_into(
    manifest: Manifest, store: Store, key: Opening, target: Target, progress: Progress = lambda _: None
) -> RolesReport | None:
    """The same without a record and a comparison of its own: a drill's restore is part of the drill, and so is its check."""
    server, made = _prepare(manifest, store, key, target)
    _database(manifest, store, key, target, server, _restorer(manifest, target, server), progress)
    return made


def _prepare(manifest: Manifest, store: Store, key: Opening, target: Target) -> tuple[Server, RolesReport | None]:
    """Look whether the target may be filled, and make the roles."""
    with session.connect(target.dsn, application_name="backupd restore", autocommit=True) as connection:
        server = session.server(connection)
        archive.require_not_source(server, manifest.source)
        archive.require_usable(connection)
        archive.require_empty(connection)
        return server, _roles(manifest, store, key, connection)


def _roles(manifest: Manifest, store: Store, key: Opening, connection: Connection) -> RolesReport | None:
    if not any(artifact.kind is Kind.GLOBALS for artifact in manifest.artifacts):
        return None
    text = bytearray()
    for chunk in opening.read(manifest, manifest.artifact(Kind.GLOBALS), store, key):
        text += chunk
        if len(text) > GLOBALS_BYTES:
            raise Tampered("the roles file is larger than any of ours", "restore another backup with --backup ID")
    try:
        return roles.apply(connection, text.decode())
    except UnicodeDecodeError as error:
        raise Tampered("the roles file is not UTF-8", "restore another backup with --backup ID") from error


def _restorer(manifest: Manifest, target: Target, server: Server) -> Clients:
    made_by = int(manifest.tools.pg_dump.partition(".")[0])
    return clients.choose_restorer(clients.find(target.client_directories), made_by, server.major)


def _database(
    manifest: Manifest, store: Store, key: Opening, target: Target, server: Server, restorer: Clients, progress: Progress
) -> None:
    whole = archive.one_transaction_fits(restorer, server)
    command = archive.restore(restorer, target.dsn, single_transaction=whole)
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
