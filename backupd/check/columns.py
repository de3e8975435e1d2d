"""Column keys: their age, for one that is older than its column allows is due to be rotated, and whether they are all there.

A keyring says when its keys were made, if backupd made them, and if it may be read here. Where not, the backups tell: the key
that the newest of them names is at least as old as the oldest that names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time

from backupd.catalog import by_source
from backupd.check.lines import Line, Parts, guarded, ok, problem, warning
from backupd.columns.keyring import Keyring
from backupd.config.models import SecretRef, Totp
from backupd.errors import BackupdError
from backupd.rotation.keyrings import one_place


@dataclass(frozen=True, slots=True)
class _Age:
    """Of the key that a column is encrypted with; `at_least` when it may be older."""

    key_id: str
    days: int
    at_least: bool


def look(parts: Parts, now: datetime) -> Iterator[Line]:
    """A line on each column whose keys have ids."""
    for name, source in parts.config.sources.items():
        for each in source.totp:
            if each.cipher == "aes-256-gcm":
                area = f"source {name}"
                yield from guarded(area, _aged(parts, name, each, now, area))
                yield from guarded(area, _archived(parts, each, area))
                yield from guarded(area, _opening_backups(parts, name, each, area))


def lacking(parts: Parts, source: str, column: Totp, key_ids: Iterable[str], area: str) -> Iterator[Line]:
    """A problem where values name keys that the keyring has not, if it may be read here."""
    keyring = _keyring(parts, column) if column.cipher == "aes-256-gcm" else None
    missing = [each for each in key_ids if keyring is not None and each not in keyring.keys]
    if keyring is not None and missing:
        yield problem(
            area,
            f"second factors in {column.table}.{column.column} name {', '.join(missing)}, and the keyring has no such key:"
            " no application reads them",
            "bring them under the current key, with the archive at hand:"
            f" `backupd columns rotate {source} --to {keyring.current} --stage rows --apply`",
        )


def _archived(parts: Parts, column: Totp, area: str) -> Iterator[Line]:
    if column.archive is not None and one_place(parts.custodian(column.archive), parts.custodian(column.keys)):
        yield problem(
            area,
            f"the archive of {column.table}.{column.column} is its keyring: a key that is retired would be lost",
            "keep the archive in another place, as a copy",
        )


def _opening_backups(parts: Parts, source: str, column: Totp, area: str) -> Iterator[Line]:
    """A problem where living backups name keys that nobody has, if keyring and archive may be read here."""
    keyring, archive = _keyring(parts, column), _parsed(parts, column.archive) if column.archive is not None else None
    if keyring is None or (column.archive is not None and archive is None):
        return
    there = {*keyring.keys, *(archive.keys if archive is not None else ())}
    naming: dict[str, list[str]] = {}
    for entry in by_source(parts.entries).get(source, []):
        for noted in entry.manifest.column_keys if entry.manifest is not None else ():
            if (noted.table, noted.column) == (column.table, column.column):
                for key_id in set(noted.key_ids) - there:
                    naming.setdefault(key_id, []).append(entry.backup_id)
    for key_id, backups in sorted(naming.items()):
        yield problem(
            area,
            f"{len(backups)} backup{'s'[: len(backups) > 1]} of {column.table}.{column.column} name{'s'[: len(backups) == 1]}"
            f" the key {key_id}, which neither the keyring nor an archive has; the newest is {max(backups)}",
            "bring back a copy of the keyring or archive that has it: without it nobody of these backups can log in",
        )


def _aged(parts: Parts, source: str, column: Totp, now: datetime, area: str) -> Iterator[Line]:
    where = f"{column.table}.{column.column}"
    age = _by_keyring(parts, column, now) or _by_backups(parts, source, column, now)
    if age is None:
        yield warning(
            area,
            f"nobody noted when the current key of {where} was made",
            'add it to the keyring: "created": {"ID": "YYYY-MM-DD"}',
        )
        return
    if age.days < 0 and not age.at_least:
        yield problem(
            area,
            f"the keyring says that the current key {age.key_id} of {where} was made on a day that has not come",
            "correct `created`, and look at this host's clock",
        )
        return
    text = f"the current key {age.key_id} of {where} is {'at least ' if age.at_least else ''}{age.days} days old"
    if age.days > column.rotate_days:
        hint = f"rotate it: `backupd columns rotate {source} --to NEW-ID`"
        yield problem(area, f"{text}, and {column.rotate_days} are allowed", hint)
    else:
        yield ok(area, f"{text}; {column.rotate_days} are allowed")


def _by_keyring(parts: Parts, column: Totp, now: datetime) -> _Age | None:
    keyring = _keyring(parts, column)
    day = keyring.created.get(keyring.current) if keyring is not None else None
    if keyring is None or day is None:
        return None
    return _Age(keyring.current, (now - datetime.combine(day, time(), UTC)).days, False)


def _keyring(parts: Parts, column: Totp) -> Keyring | None:
    return _parsed(parts, column.keys)


def _parsed(parts: Parts, ref: SecretRef) -> Keyring | None:
    try:
        return Keyring.parse(parts.custodian(ref).fetch())
    except BackupdError:  # said where custodians are looked at; and the host that makes backups should not get it
        return None


def _by_backups(parts: Parts, source: str, column: Totp, now: datetime) -> _Age | None:
    """Of several keys that the newest backup names, as in the middle of a rotation, the one that came last."""
    first: dict[str, datetime] = {}
    newest: tuple[str, ...] = ()
    for entry in by_source(parts.entries).get(source, []):
        for noted in entry.manifest.column_keys if entry.manifest is not None else ():
            if entry.manifest is not None and (noted.table, noted.column) == (column.table, column.column):
                newest = noted.key_ids
                for key_id in newest:
                    first.setdefault(key_id, entry.manifest.snapshot.taken_at)
    if not newest:
        return None
    key_id = max(newest, key=lambda each: first[each])
    return _Age(key_id, (now - first[key_id]).days, True)
