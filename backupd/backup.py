"""One backup of one source: data passes once, in one direction, and exists only when all of it was proved.

    exported snapshot ─ pg_dump ─kernel pipe─ gpg ─ parts ─ object store
          └ expectations ───────────────────────────┐
                                                 manifest, signed, written last

Owns the order of these steps. Never sees plaintext: pg_dump writes straight into gpg.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
from collections.abc import Callable, Iterator, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE

from backupd import __version__, logs, openpgp, transfer
from backupd import manifest as manifests
from backupd.audit.records import Operation
from backupd.audit.trail import Trail
from backupd.catalog import Catalog, Entry, name_of, predecessor
from backupd.columns import ciphers
from backupd.errors import Interrupted, KeyUnusable, ProcessFailed, Refused
from backupd.manifest import (
    ARTIFACTS,
    Artifact,
    ColumnKeys,
    Expectations,
    Head,
    Kind,
    Level,
    Manifest,
    Predecessor,
    Source,
    Tools,
)
from backupd.openpgp import Home, cleartext, keys, messages, packets
from backupd.openpgp.keys import PublicKey
from backupd.pipeline import Command, Pipeline
from backupd.postgres import clients, column_keys, dump, expectations, roles
from backupd.postgres.clients import Clients
from backupd.postgres.dsn import Dsn
from backupd.postgres.snapshot import Snapshot
from backupd.redact import printable
from backupd.transfer import Progress, Sent, Stream

log = logs.get(__name__)

_MISSING_NAMED = 3  # of the backups that a manifest notes as missing: `check` names all
_LOOKED_AT = 100  # backups, for one to follow: whoever can write the store can put any number there, and each costs a gpg


@dataclass(frozen=True, slots=True)
class SecondFactors:
    """A column of second-factor secrets: its rows' key ids are noted in the manifest, and its table is always digested."""

    table: str
    column: str
    cipher: str


@dataclass(frozen=True, slots=True)
class Protected:
    """A source as this operation needs it. Times are seconds; no deadline when `deadline_s` is None."""

    name: str
    dsn: Dsn
    level: Level = Level.ROWS
    second_factors: tuple[SecondFactors, ...] = ()
    compression: str = "auto"
    lock_timeout_s: float = 30
    deadline_s: float | None = None
    client_directories: tuple[Path, ...] = ()
    with_globals: bool = True
    concurrency: int = 2


@dataclass(frozen=True, slots=True)
class Sealing:
    """Whom backups are sealed to, and who signs their manifests: `home` holds the signing key, and no other secret key."""

    home: Home
    recipients: tuple[PublicKey, ...]
    signer: str


def back_up(
    source: Protected, open_catalog: Callable[[], Catalog], sealing: Sealing, trail: Trail, progress: Progress = lambda _: None
) -> Manifest:
    """Make one backup of `source`, and say in the trail what is to be done and what came of it.

    `open_catalog` is called when pg_dump runs, for some SDKs take as long to load as it takes to begin. `progress` is called
    with each number of further bytes that have reached the store. Raises a BackupdError, having left nothing that looks like a
    backup; Refused when a key or another run stands against it.
    """
    started_at = datetime.now(UTC)
    backup_id = _new_id(started_at)
    left = _NO_BACKUP
    try:
        with trail.recording(Operation.BACKUP, source=source.name, backup_id=backup_id) as run:
            notes = usable(sealing)
            patience_s = min(source.lock_timeout_s, source.deadline_s or source.lock_timeout_s)  # no deadline ends its waiting
            with Snapshot(source.dsn, application_name=f"backupd {backup_id}", lock_timeout_s=patience_s) as held:
                making = _Making(
                    source, open_catalog, sealing, trail, held, progress, backup_id, started_at, notes=[*notes, *held.notes]
                )
                making.dump()
                left = _PERHAPS_A_BACKUP
                manifest = making.commit()
            size = sum(each.size for each in manifest.artifacts)
            kept_in = making.catalog.store.url
            run.note(size=size, session=making.session, store=kept_in, manifest_sha256=making.published, notes=manifest.notes)
    except Interrupted as error:
        error.hint = left
        raise
    return manifest


# What an interruption leaves. The manifest, which makes it a backup, may have been written when it came.
_NO_BACKUP = "no backup was made, and what is stored of this one counts for nothing: run it again"
_PERHAPS_A_BACKUP = "it was being committed: `backupd list` shows whether there is a backup; if not, run it again"


def _new_id(at: datetime) -> str:
    """An id that sorts by time also within one second, to its 4096th part; the other half of the suffix is random."""
    return f"{at:%Y%m%dT%H%M%SZ}-{at.microsecond * 4096 // 1_000_000:03x}{secrets.randbelow(4096):03x}"


def _release(version: str) -> str:
    """`17.10`, and of a preview such as `18beta2` the major."""
    return "".join(itertools.takewhile("0123456789.".__contains__, version))


def _head(sent: Sent) -> Head:
    head = packets.sealed_head(sent.head)
    return Head(len(head), hashlib.sha256(head).hexdigest())


def usable(sealing: Sealing) -> list[str]:
    """Warnings about the recipients' keys. Raises KeyUnusable for one that cannot do its work, before anything is dumped."""
    warnings = []
    for key in sealing.recipients:
        for problem in keys.problems(key, datetime.now(UTC), purpose="encrypt"):
            if problem.fatal:
                raise KeyUnusable(problem.message, problem.hint)
            warnings.append(problem.message)
    return warnings


@dataclass(slots=True)
class _Making:
    """One backup in the making: `dump` collects and proves everything, `commit` makes it a backup."""

    source: Protected
    open_catalog: Callable[[], Catalog]
    sealing: Sealing
    trail: Trail
    held: Snapshot
    progress: Progress
    backup_id: str
    started_at: datetime
    notes: list[str]
    catalog: Catalog = field(init=False)
    clients: Clients = field(init=False)
    compression: str = field(init=False)
    expect: Expectations = field(init=False)
    previous: Predecessor | None = None
    session: str = ""
    published: str = ""
    keys: list[ColumnKeys] = field(default_factory=list)
    sent: dict[Kind, Sent] = field(default_factory=dict)

    def dump(self) -> None:
        """Send the database and the roles, while the expectations are read from the same snapshot beside it."""
        expectations.require_readable(self.held.connection)  # before pg_dump stumbles over it with less to say
        self.clients = clients.choose(clients.find(self.source.client_directories), self.held.server.release)
        if behind := self.clients.behind(self.held.server.release):
            self.notes.append(behind)
        self.compression = dump.compression(self.clients, self.source.compression)
        try:
            self._dump_both()
        except BaseException:
            self.abort()
            raise

    def commit(self) -> Manifest:
        """Make the artifacts visible, then the manifest, which makes them a backup."""
        try:
            for each in self.sent.values():
                each.commit()
        except BaseException:
            self.abort()
            raise
        manifest = self._manifest()
        signed = cleartext.sign(self.sealing.home, manifests.render(manifest), self.sealing.signer)
        self.published = self.catalog.publish(manifest, signed)
        return manifest

    def abort(self) -> None:
        """Give up what is not committed."""
        for each in self.sent.values():
            each.upload.abort()

    def _dump_both(self) -> None:
        """pg_dump, and beside it pg_dumpall, into gpg into the store; all exit codes are read before anything is committed."""
        dumping = dump.dump(
            self.clients, self.source.dsn, self.held.id, self.compression, self.source.lock_timeout_s, self.backup_id
        )
        with (
            self._sealed(dumping) as database,
            self._globals() as globals_,
            ThreadPoolExecutor(3, thread_name_prefix="beside") as beside,
        ):
            others: list[Future[None]] = []

            def start(work: Callable[[Pipeline], None], pipeline: Pipeline) -> None:
                others.append(beside.submit(work, pipeline))
                others[-1].add_done_callback(lambda done: database.kill() if done.exception() else None)

            start(self._expect, database)
            ahead = transfer.Ahead(database, beside)
            try:
                self._prepare(database)
                if globals_ is not None:
                    start(lambda pipeline: self._send(Kind.GLOBALS, pipeline), globals_)
                self._send(Kind.DATABASE, database, ahead, expected=self.held.server.database_size)
                for each in others:
                    each.result(self.source.deadline_s)
            except BaseException:
                reason = next((each.exception() for each in others if each.done() and each.exception() is not None), None)
                self.held.cut()  # or the threads would read on from a source that is of no use to us now
                database.kill()
                if globals_ is not None:
                    globals_.kill()
                if reason is not None:
                    raise reason from None
                raise

    def _sealed(self, dumping: Command) -> Pipeline:
        sealing = messages.seal(self.sealing.home, self.sealing.recipients)
        return Pipeline([dumping, sealing], stdin=DEVNULL, stdout=PIPE, deadline_s=self.source.deadline_s)

    @contextmanager
    def _globals(self) -> Iterator[Pipeline | None]:
        """The roles and their memberships, which no pg_dump holds; None where they are not wanted."""
        if not self.source.with_globals:
            yield None
            return
        dumped = roles.dump_globals(self.clients, self.source.dsn)
        if not dumped.passwords:
            self.notes.append("the roles are without their passwords: the backup role may not read pg_authid")
        with self._sealed(dumped.command) as pipeline:
            yield pipeline

    def _send(self, kind: Kind, pipeline: Pipeline, ahead: Stream | None = None, *, expected: int = 0) -> None:
        """Upload what the pipeline gives, or what `ahead` reads of it."""
        name = ARTIFACTS[kind]
        where = name_of(self.source.name, self.backup_id, name)
        store, concurrency = self.catalog.store, self.source.concurrency
        sent = transfer.send(
            ahead or pipeline, store, where, expected=expected, concurrency=concurrency, progress=self.progress
        )
        self.sent[kind] = sent
        try:
            pipeline.finish()
        except ProcessFailed as error:
            if error.program in dump.PROGRAMS:
                raise dump.explained(error) from None  # its own text quotes statements
            raise
        if not sent.size:
            raise ProcessFailed(f"gpg ended well and gave nothing for {name}", "nothing was stored; run it again")
        messages.assert_sealed_to(sent.head, self.sealing.recipients)

    def _prepare(self, database: Pipeline) -> None:
        """What can be done while pg_dump starts: open the store, sweep what dead runs left, find the backup before this one."""
        self.catalog = self.open_catalog()
        there = self.catalog.ids(self.source.name)
        if not there:
            self._require_never_filled()
        swept = self.catalog.store.sweep(self.source.name)
        if swept:
            log.warning("removed unfinished uploads of dead runs", source=self.source.name, objects=list(swept)[:20])
        done = {backup_id for backup_id, was_done in self.trail.backups(self.source.name).items() if was_done}
        self.previous = predecessor(self._newest_believed(database, there & done))
        missing = sorted(done - there, reverse=True)
        named = [f"an earlier backup, {each}, is in the trail and not in the store" for each in missing[:_MISSING_NAMED]]
        more = len(missing) - len(named)
        self.notes += [*named, *([f"so are {more} more that the trail knows"] if more else [])]

    def _require_never_filled(self) -> None:
        """Raises Refused for a store that holds nothing, though the trail tells of backups in it.

        Where a disk is not mounted its mount point is there, and what is written to that would be hidden under the disk.
        """
        store = self.catalog.store
        if next(iter(store.list()), None) is None and (known := self.trail.kept_in(store.url)):
            raise Refused(
                f"{printable(store.url)} is empty, and the trail knows {known} backup{'s'[: known > 1]} in it",
                "is its disk mounted? If they are lost, find out who removed them, and begin in another place: [store] url",
            )

    def _newest_believed(self, database: Pipeline, recorded: Set[str]) -> Entry | None:
        """The backup that this one follows, looked for no further than the bound and no longer than the dump's deadline.

        The newest are looked at, which anybody may have put there; then what is `recorded` in the trail and was not among them.
        """
        looked_at: set[str] = set()
        newest = itertools.islice(self.catalog.newest_first(self.source.name), _LOOKED_AT)
        # Taken from only when the newest are through, and `looked_at` holds them.
        known = itertools.islice((each for each in sorted(recorded, reverse=True) if each not in looked_at), _LOOKED_AT)
        for entry in itertools.chain(newest, (self.catalog.get(self.source.name, each) for each in known)):
            if entry.problem is None:
                return entry
            if not looked_at:
                self.notes.append(f"the backup before this one, {entry.backup_id}, cannot be believed: {entry.problem.message}")
            looked_at.add(entry.backup_id)
            database.require_in_time()
        if len(looked_at) >= _LOOKED_AT:
            self.notes.append(f"this backup follows none: the {_LOOKED_AT} newest cannot be believed, nor what the trail knows")
        return None

    def _expect(self, pipeline: Pipeline) -> None:
        """What a restore must show, read beside the dump from the same snapshot."""
        session = self.held.companion(self.backup_id, while_running=lambda: pipeline.running("pg_dump"))
        if session is not None:
            self.session = session.describe()
        self.expect = expectations.collect(self.held, self.source.level, [each.table for each in self.source.second_factors])
        for each in self.source.second_factors:
            found = column_keys.look(self.held.connection, each.table, each.column, partial(ciphers.key_id, each.cipher))
            self.keys.append(ColumnKeys(each.table, each.column, each.cipher, found.key_ids, found.rows))
            if found.foreign:
                self.notes.append(
                    f"{found.foreign} of {found.rows} values in {each.table}.{each.column} are not encrypted with {each.cipher}"
                )
        self.held.alive()

    def _manifest(self) -> Manifest:
        server = self.held.server
        return Manifest(
            backup_id=self.backup_id,
            source=Source(self.source.name, server.database, server.system_identifier, _release(server.version)),
            snapshot=self.held.moment,
            started_at=self.started_at,
            finished_at=datetime.now(UTC),
            tools=Tools(__version__, self.clients.release, openpgp.version(), self.compression),
            recipients=tuple(key.fingerprint for key in self.sealing.recipients),
            artifacts=tuple(
                Artifact(ARTIFACTS[kind], kind, sent.size, sent.sha256, sent.parts, _head(sent))
                for kind, sent in sorted(self.sent.items())
            ),
            expect=self.expect,
            column_keys=tuple(self.keys),
            previous=self.previous,
            notes=tuple(printable(note) for note in self.notes),
        )
