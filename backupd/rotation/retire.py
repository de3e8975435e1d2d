"""A key that nothing is encrypted with any more leaves the applications' keyring, and goes to the archive. None is destroyed.

Old backups name it for as long as they live, and a drill of one reads the keyring and the archive. Applications read the
keyring alone. So a key that a row still names stays, whatever the archive: its owner could not log in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from backupd.audit.records import Operation
from backupd.audit.trail import Trail
from backupd.catalog import Catalog
from backupd.columns.forms import Form
from backupd.errors import ConfigError, Refused, Tampered
from backupd.postgres import column_rows, column_state
from backupd.postgres.column_rows import Table
from backupd.postgres.dsn import Dsn
from backupd.postgres.session import Connection
from backupd.redact import printable
from backupd.rotation import Report, SecretColumn, cells, keyrings
from backupd.rotation.keyrings import BEGIN, Kept
from backupd.rotation.naming import naming_key
from backupd.rotation.status import counts


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
    Nobody else works on one of them by way of backupd meanwhile. Raises Refused while a row names the key, and for a column
    without an archive; Busy, Tampered, ConfigError, and what custodians, store and server raise.
    """
    with (
        trail.recording(
            Operation.COLUMNS, source=column.source, action="retire", column=column.name, key_id=key_id, applied=apply
        ) as run,
        ExitStack() as held,
    ):
        places = _held(held, sharing, dsns)
        kept = keyrings.fetched(column.keys)
        if key_id == kept.keyring.current:
            raise Refused(f"{key_id!r} is the keyring's current key", "rotate to another one first: `backupd columns rotate`")
        for each in places:
            each.require_unused(key_id, kept.keyring.current)
        naming, unread = naming_key(catalog, sharing, key_id)
        run.note(backups_naming_it=len(naming), backups_not_read=unread)
        archives = _archives(column, sharing, key_id, naming, unread)
        if not any(key_id in each.keyring.keys for each in (kept, *archives)):
            raise ConfigError(f"there is no key {key_id!r} in the keyring, nor in the archive", "see `backupd columns status`")
        if apply:
            for each in places:  # the store may have taken its time
                each.require_unused(key_id, kept.keyring.current)
            _move(kept, archives, key_id)
    figures = {"backups_naming_it": len(naming), "backups_not_read": unread}
    following = "keep the archive for as long as the oldest backup lives" if apply else "--apply"
    return Report(column, "retire", "archive", apply, figures, key_id=key_id, next=following)


@dataclass(frozen=True, slots=True)
class _Place:
    """A column's rows, while nobody else works on them by way of backupd."""

    connection: Connection
    table: Table
    column: SecretColumn

    def require_unused(self, key_id: str, current: str) -> None:
        """Raises Refused while a row names the key, one too that is being written now; Busy when that does not end."""
        column_state.wait_for_writers(self.connection, self.table)
        found = counts(self.connection, self.table, self.column.column)
        rows = sum(each.rows for each in found if each.form is Form.AES_256_GCM and each.key_id == key_id)
        if rows:
            raise Refused(
                f"{rows} row{'s'[: rows > 1]} of {printable(self.column.name)} name the key {key_id!r}",
                f"rewrite them first: `backupd columns rotate {self.column.source} --to {current} --stage rows --apply`",
            )


def _held(held: ExitStack, columns: Sequence[SecretColumn], dsns: Mapping[str, Dsn]) -> list[_Place]:
    """Each column with its lock, in one order for everybody. Two sources may be one database, and then have one lock."""
    sessions: dict[Dsn, Connection] = {}
    places: list[_Place] = []
    for column in sorted(columns, key=lambda each: (each.name, each.source)):
        dsn = dsns[column.source]
        if dsn not in sessions:
            sessions[dsn] = held.enter_context(cells.primary(dsn))
        place = _Place(sessions[dsn], cells.table(sessions[dsn], column), column)
        if not any(
            each.table.oid == place.table.oid
            and each.column.column == column.column
            and dsns[each.column.source].same_target(dsn)
            for each in places
        ):
            held.enter_context(column_rows.exclusive(place.connection, place.table, column.column))
        places.append(place)
    return places


def _move(kept: Kept, archives: Sequence[Kept], key_id: str) -> None:
    """First into the archives, and only when it is seen there out of the keyring: killed in between, the key is in both.

    Then the archives are read once more: one that is the keyring by another name has lost the key with it, which comes back.
    """
    has_it = next(each.keyring for each in (kept, *archives) if key_id in each.keyring.keys)
    key = has_it.key(key_id)
    archives = [keyrings.following(keyrings.archived(each, has_it, key_id), kept.keyring) for each in archives]
    if key_id not in kept.keyring.keys:
        return
    without = kept.replace(
        kept.keyring.without(key_id), f"there, remove {key_id!r} from `keys` and `created`, and add it to `retired`"
    )
    try:
        for each in archives:
            if keyrings.fetched(each.custodian).keyring.keys.get(key_id) != key:
                raise Tampered(
                    f"{each.custodian.locator} lost the key {key_id!r} when the keyring did: they are one place",
                    "the keyring has it again; keep the archive in another place",
                )
    except BaseException:
        without.replace(kept.keyring, "put the keyring of before back")
        raise


def _archives(column: SecretColumn, sharing: Sequence[SecretColumn], key_id: str, naming: list[str], unread: int) -> list[Kept]:
    """The archive of this column, and those of all others with its keyring: each column's backups are read with its own."""
    if column.archive is None:
        raise Refused("; ".join(_why(key_id, naming, unread)), f"set `archive` of this column; {BEGIN}")
    found = [keyrings.archive(column, column.archive)]
    for each in sharing:
        if each.archive is None:
            raise Refused(
                f"{printable(each.name)} of {printable(each.source)} has the same keyring, and no archive for {key_id!r}",
                f"set `archive` of that column; it may be the same one; {BEGIN}",
            )
        if not any(keyrings.one_place(each.archive, known.custodian) for known in found):
            found.append(keyrings.archive(each, each.archive))
    return found


def _why(key_id: str, naming: list[str], unread: int) -> Iterator[str]:
    yield f"there is no archive for the key {key_id!r}, and a key is never destroyed"
    if naming:
        yield f"{len(naming)} living backup{'s'[: len(naming) > 1]} name it, the oldest {min(naming)}"
    if unread:
        yield f"{unread} backup{'s'[: unread > 1]} cannot be read and may name it"
