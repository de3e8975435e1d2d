"""The store, by use: an upload is begun and given up, a read is refused for the right reason, and the backups are listed."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from datetime import datetime, timedelta

from backupd.catalog import Entry, by_source, chain_problems
from backupd.check.lines import Line, Parts, guarded, ok, problem, warning
from backupd.errors import ObjectMissing, StoreError

AREA = "store"
CLOCKS = timedelta(minutes=5)  # that the clocks of this host and of a server may differ


def look(parts: Parts, now: datetime) -> Iterator[Line]:
    """Lines on the store and on the backups in it."""
    yield from guarded(AREA, _takes(parts))
    yield from guarded(AREA, _gives(parts))
    yield from guarded(AREA, _holds(parts, now))


def _takes(parts: Parts) -> Iterator[Line]:
    """One part of an upload that is then given up: what a backup does, and nothing stays."""
    store = parts.store()
    data = secrets.token_bytes(1024)
    upload = store.begin(f"check/probe-{secrets.token_hex(8)}")
    try:
        upload.part(1, data, hashlib.sha256(data).digest())
    finally:
        upload.abort()
    yield ok(AREA, f"{store.url} takes uploads")


def _gives(parts: Parts) -> Iterator[Line]:
    name = f"check/absent-{secrets.token_hex(8)}"
    try:
        parts.store().read(name)
    except ObjectMissing:
        yield ok(AREA, "it answers reads")
    else:
        raise StoreError(f"the store gives bytes for {name}, which was never written", "do not trust this store")


def _holds(parts: Parts, now: datetime) -> Iterator[Line]:
    entries = by_source(parts.entries)
    for name in parts.config.sources:
        yield from _backups(parts, now, name, entries.get(name, []))
    for name in entries.keys() - parts.config.sources.keys():
        yield warning(AREA, f"it holds backups of {name}, which is not configured", "was a source renamed?")


def _backups(parts: Parts, now: datetime, name: str, entries: list[Entry]) -> Iterator[Line]:
    area = f"backups {name}"
    for each in entries:
        if each.problem is not None:
            yield problem(area, each.problem.message, each.problem.hint or "find out who changed it")
        if each.loss:
            yield problem(
                area, f"{each.backup_id} is not all there: {each.loss}", "it cannot be restored: find out who removed it"
            )
    for backup_id, text in chain_problems(entries).items():
        yield warning(area, f"{backup_id} {text}", "find out who removed or added a backup")
    good = [each.manifest for each in entries if each.manifest is not None and not each.loss]
    if not good:
        yield warning(area, "there is no good backup" if entries else "there is no backup yet", f"run `backupd backup {name}`")
        return
    newest = good[-1]
    age, promised = now - newest.snapshot.taken_at, parts.config.drill.rpo_hours
    text = f"the newest of {len(good)}, {newest.backup_id}, is {age / timedelta(hours=1):.1f} hours old"
    if age < -CLOCKS:
        yield problem(
            area,
            f"the newest of {len(good)}, {newest.backup_id}, says that it is of {newest.snapshot.taken_at:%Y-%m-%d %H:%M:%SZ},"
            " which is still to come",
            "look at the clocks of this host and of the server, and find out who made it",
        )
    elif age > timedelta(hours=promised):
        yield problem(area, f"{text}, and {promised} hours are promised", f"run `backupd backup {name}`; see its schedule")
    else:
        yield ok(area, text)
    lock = parts.config.store.lock
    unlocked = [each for each in entries if each.locked_until is None or each.locked_until <= now] if lock else []
    if lock and entries[-1] in unlocked:
        yield problem(
            area, f"the newest backup is not locked, and {lock.mode} is configured", "the bucket must be made with Object Lock"
        )
