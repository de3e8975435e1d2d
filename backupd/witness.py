"""The trail as a witness: what it says against a backup that is about to be taken from the store.

A trail that is damaged or silent stops no restore, which may be needed in just that hour. But nobody shall take its silence for
its consent: what was not compared is warned about.
"""

from __future__ import annotations

from collections.abc import Callable

from backupd import logs
from backupd.audit.trail import Trail
from backupd.catalog import Catalog, Entry
from backupd.errors import BackupdError, Tampered
from backupd.manifest import Manifest
from backupd.redact import printable

log = logs.get(__name__)

_NAMED = 3  # of the backups that are gone: `check` names all
_LOOK = "run `backupd check`, and find out who changed it"


def warn(source: str, newest: Entry | None, catalog: Catalog, open_trail: Callable[[], Trail]) -> None:
    """Log what there is to say against taking `newest` for the newest backup of its source."""
    for each in doubts(source, newest, catalog, open_trail):
        log.warning("the newest backup in the store", source=source, finding=each, hint=_LOOK)


def doubts(source: str, newest: Entry | None, catalog: Catalog, open_trail: Callable[[], Trail]) -> tuple[str, ...]:
    """The same, one line each: newer backups that the trail knows as done and the store does not have, or no answer to that."""
    try:
        told = open_trail().backups(source)
    except BackupdError as error:
        return (printable(f"the trail was not asked whether there was a newer backup: {error.message}"),)
    gone = {backup_id for backup_id, done in told.items() if done and (newest is None or backup_id > newest.backup_id)}
    if gone:  # or made since the newest was looked for
        gone -= catalog.ids(source)
    if not gone:
        return ()
    named = ", ".join(sorted(gone, reverse=True)[:_NAMED]) + (f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else "")
    kind = "backup" if newest is None else "newer backup"
    known = f"a {kind} that is" if len(gone) == 1 else f"{len(gone)} {kind}s that are"
    return (printable(f"the trail knows {known} not in the store: {named}"),)


def proved(entry: Entry, trail: Trail) -> Manifest:
    """The manifest, unless the trail knows that another one was published. Raises Tampered."""
    manifest = entry.proved()
    try:
        published = trail.published(entry.backup_id)
    except Tampered as error:
        published = None
        log.warning(
            "the manifest was not compared with the one that was published",
            source=entry.source,
            backup_id=entry.backup_id,
            reason=error.message,
            hint=_LOOK,
        )
    if published not in (None, entry.digest):
        raise Tampered(
            f"{entry.backup_id} has another manifest than the one that its run published",
            "somebody has the signing key: restore another backup with --backup ID, and find out who",
        )
    return manifest
