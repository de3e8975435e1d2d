"""The committed backups in a store: a backup is there when its signed manifest is, and nothing else makes it so.

Owns the layout of names, `<source>/<backup_id>/<artifact>` and `manifest.asc` beside them, and the reading and publishing of
manifests. Never reads artifacts' contents, and never believes a manifest whose signature, place or form is wrong.
Of artifacts it knows what a listing tells: whether they are there, and how large they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from backupd import manifest as manifests
from backupd.errors import BackupdError, ObjectMissing, StoreError, Tampered
from backupd.manifest import ARTIFACTS, BACKUP_ID, SOURCE_NAME, Artifact, Manifest, Predecessor
from backupd.openpgp.cleartext import TEXT_BYTES, Verified
from backupd.redact import printable
from backupd.stores import Store, StoredObject

MANIFEST = "manifest.asc"
LARGEST = TEXT_BYTES  # of a stored manifest; more is not one of ours
READERS = 4  # at once, but for manifests of more than LARGE bytes, which are read and verified one at a time
LARGE = 2 << 20
LOOK = "`backupd list` shows what there is"
CHANGED = "restore another backup with --backup ID, and find out who changed this one"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in the catalogue. Exactly one of `manifest` and `problem` is there.

    `loss` says which artifacts of a good manifest are not all there. Only `Catalog.list` looks: whoever reads them finds out.
    """

    source: str
    backup_id: str
    digest: str = ""
    manifest: Manifest | None = None
    problem: BackupdError | None = None
    locked_until: datetime | None = None
    loss: str = ""

    def proved(self) -> Manifest:
        """The manifest, or the error that kept it from being believed."""
        if self.manifest is None:
            raise self.problem or Tampered(f"{self.backup_id} has no manifest")
        return self.manifest


@dataclass(frozen=True, slots=True)
class _Found:
    """A manifest in a listing, and by name the sizes of the artifacts beside it that were listed before it."""

    stored: StoredObject
    sizes: Mapping[str, int]


class Catalog:
    """Reads and adds backups. `verify` takes a manifest's stored bytes and gives gpg's text of it, or raises Tampered."""

    def __init__(
        self, store: Store, verify: Callable[[bytes], Verified], now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store = store
        self._verify = verify
        self._now = now
        self._known: dict[str, Manifest] = {}
        self._large = threading.Lock()

    @property
    def store(self) -> Store:
        """The store that holds them."""
        return self._store

    def list(self, source: str | None = None) -> list[Entry]:
        """Every backup, or every one of a source, oldest first; one that cannot be believed is there with its problem.

        One whose artifacts are not all there, with the sizes that its manifest says, is there with its loss.
        """
        found = list(self._manifests(source))
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(self._with_loss, found))

    def get(self, source: str, backup_id: str) -> Entry:
        """One backup. Raises ObjectMissing when there is none of this id, StoreError when the store does not answer."""
        if not BACKUP_ID.fullmatch(backup_id) or not SOURCE_NAME.fullmatch(source):
            raise ObjectMissing(f"there is no backup {printable(backup_id)!r} of {printable(source)!r}", LOOK)
        name = name_of(source, backup_id, MANIFEST)
        for each in self._store.list(name):
            if each.name == name:
                return self._entry(each)
        raise ObjectMissing(f"there is no backup {backup_id} of {source}", LOOK)

    def newest(self, source: str) -> Entry | None:
        """The backup of the highest id, believed or not: a damaged newest one must not pass for an older one unseen."""
        return next(self.newest_first(source), None)

    def newest_first(self, source: str) -> Iterator[Entry]:
        """The backups of a source from the highest id down, each read when it is asked for.

        Without those that lie in the future: they need no key to be put there, and would be the newest for ever.
        """
        for each in reversed(list(self._manifests(source))):
            if not self._ahead(each.stored.name.split("/")[1]):
                yield self._entry(each.stored)

    def ids(self, source: str) -> set[str]:
        """Of all backups of a source that are there, believed or not; nothing is read."""
        return {each.stored.name.split("/")[1] for each in self._manifests(source)}

    def publish(self, manifest: Manifest, signed: bytes) -> str:
        """Write the signed manifest, create-only: from now on the backup exists. Returns the digest of the stored bytes."""
        name = name_of(manifest.source.name, manifest.backup_id, MANIFEST)
        self._store.create(name, signed)
        if self._store.read(name) != signed:
            raise StoreError(f"the store gives back other bytes for {name} than were written", "do not trust this store")
        return hashlib.sha256(signed).hexdigest()

    def _manifests(self, source: str | None) -> Iterator[_Found]:
        """Manifests by name, which is by source and then by time. Names that are not ours are passed over.

        In a directory as a store, another directory may stand in a manifest's place: that one is here, and cannot be read.
        """
        last, beside = "", ""
        sizes: dict[str, int] = {}
        for each in self._store.list("" if source is None else f"{source}/"):
            match each.name.split("/"):
                case [_, _, artifact] if artifact in ARTIFACTS.values():
                    place = each.name.removesuffix(artifact)
                    sizes = {**(sizes if place == beside else {}), artifact: each.size}
                    beside = place
                case [where, backup_id, "manifest.asc", *_] if SOURCE_NAME.fullmatch(where) and BACKUP_ID.fullmatch(backup_id):
                    name = name_of(where, backup_id, MANIFEST)
                    if name != last:
                        stored = each if each.name == name else StoredObject(name, 0, each.modified_at)
                        yield _Found(stored, sizes if beside == name_of(where, backup_id, "") else {})
                    last = name

    def _ahead(self, backup_id: str) -> bool:
        """Whether an id lies more than a day in the future: clocks differ, but not so much."""
        return backup_id > f"{self._now() + timedelta(days=1):%Y%m%dT%H%M%SZ}~"

    def _with_loss(self, found: _Found) -> Entry:
        """The entry, with what was lost of the backup."""
        entry = self._entry(found.stored)
        if entry.manifest is None or not _loss(entry.manifest, found.sizes):
            return entry
        # It may have been made while the store was listed, page by page, and its artifacts come before its manifest.
        beside = name_of(entry.source, entry.backup_id, "")
        try:
            sizes = {each.name.removeprefix(beside): each.size for each in self._store.list(beside)}
        except StoreError as error:
            return Entry(entry.source, entry.backup_id, problem=_alone(error), locked_until=entry.locked_until)
        return dataclasses.replace(entry, loss=_loss(entry.manifest, sizes))

    def _entry(self, found: StoredObject) -> Entry:
        source, backup_id, _ = found.name.split("/")
        try:
            with self._large if found.size > LARGE else contextlib.nullcontext():
                digest, manifest = self._read(found, source, backup_id)
        except BackupdError as error:
            return Entry(source, backup_id, problem=_alone(error), locked_until=found.locked_until)
        return Entry(source, backup_id, digest, manifest, locked_until=found.locked_until)

    def _read(self, found: StoredObject, source: str, backup_id: str) -> tuple[str, Manifest]:
        if self._ahead(backup_id):
            raise Tampered(
                f"the id of {backup_id} of {source} lies in the future", "is this host's clock right? Who put it there?"
            )
        if found.size > LARGEST:
            raise Tampered(
                f"the manifest of {backup_id} has {found.size} bytes, and none of ours has more than {LARGEST}", CHANGED
            )
        signed = self._store.read(found.name, 0, LARGEST + 1)
        digest = hashlib.sha256(signed).hexdigest()
        manifest = self._known.get(digest)
        if manifest is None:  # one gpg for each manifest ever seen, not for each look at it
            try:
                manifest = manifests.parse(self._verify(signed).text)
            except Tampered as error:  # gpg's room knows what is wrong with a text, not whose it is
                raise Tampered(f"the manifest of {backup_id} of {source}: {error.message}", error.hint or CHANGED) from error
            self._known[digest] = manifest
        if (manifest.source.name, manifest.backup_id) != (source, backup_id):
            raise Tampered(
                f"the manifest of {backup_id} of {source} is that of {manifest.backup_id} of {manifest.source.name}",
                "somebody copied it there: restore another backup with --backup ID, and find out who",
            )
        return digest, manifest


def _loss(manifest: Manifest, sizes: Mapping[str, int]) -> str:
    """Which artifacts are not all there, by the sizes of those that are; "" when none is lacking."""
    return ", ".join(_lacking(each, sizes.get(each.name)) for each in manifest.artifacts if sizes.get(each.name) != each.size)


def _lacking(artifact: Artifact, size: int | None) -> str:
    if size is None:
        return f"{artifact.name} is not in the store"
    return f"{artifact.name} has {size} bytes, and its manifest says {artifact.size}"


def _alone(error: BackupdError) -> BackupdError:
    """An error without where it comes from: frames and causes hold the bytes that were read, and entries live long."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def name_of(source: str, backup_id: str, artifact: str) -> str:
    """Where an object of a backup is, relative to the store."""
    return f"{source}/{backup_id}/{artifact}"


def by_source(entries: Collection[Entry]) -> dict[str, list[Entry]]:
    """The entries of each source, in the order given."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.source, []).append(entry)
    return found


def predecessor(entry: Entry | None) -> Predecessor | None:
    """What the next backup's manifest says of this one."""
    return None if entry is None or entry.manifest is None else Predecessor(entry.backup_id, entry.digest)


def chain_problems(entries: Collection[Entry]) -> dict[str, str]:
    """By backup id: what is wrong with the order of one source's backups, given oldest first.

    The first is not held against a predecessor that is gone: retention removes the oldest. A backup whose predecessor was
    removed, replaced or put elsewhere shows here. What cannot be believed is passed over, or anyone who can write could part
    the chain with it; a backup may follow it, for it may have been good then.
    """
    problems: dict[str, str] = {}
    before: Entry | None = None
    damaged: set[str] = set()  # since `before`
    for entry in entries:
        if entry.manifest is None:
            damaged.add(entry.backup_id)
            continue
        said = entry.manifest.previous
        if before is not None and said is None:
            problems[entry.backup_id] = f"says that it is the first, but {before.backup_id} is older"
        elif before is not None and said is not None and said.backup_id not in damaged and said != predecessor(before):
            problems[entry.backup_id] = f"follows {said.backup_id}, which is not the one stored before it, {before.backup_id}"
        before = entry
        damaged.clear()
    return problems
