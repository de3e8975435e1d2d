"""A key that nothing is encrypted with any more leaves the applications' keyring, and goes to the archive. None is destroyed.

Old backups name it for as long as they live, and a drill of one reads the keyring and the archive. Applications read the
keyring alone. So a key that a row still names stays, whatever the archive: its owner could not log in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

from backupd.audit.records import Operation
from backupd.audit.trail import Trail
from backupd.catalog import Catalog
from backupd.columns.forms import Form
from backupd.columns.keyring import Keyring
from backupd.errors import ConfigError, Refused, SecretUnavailable, Tampered
from backupd.postgres import column_rows
from backupd.postgres.session import Dsn
from backupd.redact import printable
from backupd.rotation import Report, SecretColumn, cells, keyrings
from backupd.rotation.keyrings import Kept
from backupd.rotation.status import counts

_BEGIN = "an archive begins as a copy of the keyring, in a place that no application reads: copy it there once"


def retire(
    column: SecretColumn,
    key_id: str,
    sharing: Sequence[SecretColumn],
    dsns: Mapping[str, Dsn],
    catalog: Catalog,
    trail: Trail,
    *,
    apply: bool,
) -> Report:
    """Move a key of this column's keyring to its archive, or without `apply` say whether that could be done.

    `sharing` are all columns of all sources that have the same keyring, this one too; `dsns` are the sources', for reading.
    Raises Refused while a row names the key, and without an archive; ConfigError, and what custodians, store and server raise.
    """
    with trail.recording(
        Operation.COLUMNS, source=column.source, action="retire", column=column.name, key_id=key_id, applied=apply
    ) as run:
        kept = keyrings.fetched(column.keys)
        if key_id == kept.keyring.current:
            raise Refused(f"{key_id!r} is the keyring's current key", "rotate to another one first: `backupd columns rotate`")
        for each in sharing:
            _require_unused(each, key_id, dsns[each.source])
        naming, unread = _backups(catalog, sharing, key_id)
        run.note(backups_naming_it=len(naming), backups_not_read=unread)
        archive = _archive(column, key_id, naming, unread)
        if key_id not in kept.keyring.keys and key_id not in archive.keyring.keys:
            raise ConfigError(f"there is no key {key_id!r} in the keyring, nor in the archive", "see `backupd columns status`")
        if apply:
            _move(kept, archive, key_id)
    figures = {"backups_naming_it": len(naming), "backups_not_read": unread}
    following = "keep the archive for as long as the oldest backup lives" if apply else "--apply"
    return Report(column, "retire", "archive", apply, figures, key_id=key_id, next=following)


def _move(kept: Kept, archive: Kept, key_id: str) -> None:
    """First into the archive, and only when it is seen there out of the keyring: killed in between, the key is in both."""
    if key_id not in kept.keyring.keys:
        return
    key = kept.keyring.key(key_id)
    created = {key_id: kept.keyring.created[key_id]} if key_id in kept.keyring.created else {}
    archived = archive.keyring.together(Keyring(key_id, {key_id: key}, created=created))
    if archived != archive.keyring:
        archive = archive.replace(archived, f"there, add the key {key_id!r} as it stands in the keyring; then run this again")
    if archive.keyring.key(key_id) != key:
        raise Tampered(f"the archive does not give back the key {key_id!r}", "nothing was taken from the keyring")
    kept.replace(kept.keyring.without(key_id), f"there, remove {key_id!r} from `keys` and `created`, and add it to `retired`")


def _require_unused(column: SecretColumn, key_id: str, dsn: Dsn) -> None:
    with closing(column_rows.connect(dsn)) as connection:
        found = counts(connection, cells.table(connection, column), column.column)
    rows = sum(each.rows for each in found if each.form is Form.AES_256_GCM and each.key_id == key_id)
    if rows:
        raise Refused(
            f"{rows} row{'s'[: rows > 1]} of {printable(column.name)} name the key {key_id!r}",
            f"rewrite them first: `backupd columns rotate {column.source}`",
        )


def _backups(catalog: Catalog, sharing: Sequence[SecretColumn], key_id: str) -> tuple[list[str], int]:
    """The living backups whose manifests name the key, and how many there are whose manifest cannot be read."""
    columns = {(each.source, each.table, each.column) for each in sharing}
    naming, unread = [], 0
    for entry in catalog.list():
        if entry.manifest is None:
            unread += 1
            continue
        if any(
            (entry.source, noted.table, noted.column) in columns and key_id in noted.key_ids
            for noted in entry.manifest.column_keys
        ):
            naming.append(entry.backup_id)
    return naming, unread


def _archive(column: SecretColumn, key_id: str, naming: list[str], unread: int) -> Kept:
    if column.archive is None:
        raise Refused("; ".join(_why(key_id, naming, unread)), f"set `archive` of this column; {_BEGIN}")
    if column.archive.locator == column.keys.locator:
        raise ConfigError(f"the archive of {printable(column.name)} is its keyring", "keep it in another place")
    try:
        return keyrings.fetched(column.archive)
    except SecretUnavailable as error:
        raise SecretUnavailable(error.message, f"{error.hint}; {_BEGIN}" if error.hint else _BEGIN) from error


def _why(key_id: str, naming: list[str], unread: int) -> Iterator[str]:
    yield f"there is no archive for the key {key_id!r}, and a key is never destroyed"
    if naming:
        yield f"{len(naming)} living backup{'s'[: len(naming) > 1]} name it, the oldest {min(naming)}"
    if unread:
        yield f"{unread} backup{'s'[: unread > 1]} cannot be read and may name it"
