"""One drill: a backup is restored as in an emergency, into a database that nobody else sees, and shown to be good.

    scratch cluster → the same restore as an emergency's → checks → verdict → trail → scratch destroyed, also on failure

Owns the order of these steps. Decides nothing about a backup itself: the restore and the checks do, and each says what it saw.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backupd import opening, transfer
from backupd.audit.records import Operation
from backupd.audit.trail import Trail
from backupd.catalog import name_of
from backupd.checks import Drilled, Finding, Objectives, Outcome, Question, Sealed, TotpColumn
from backupd.checks.separation import HEAD_BYTES
from backupd.checks.table import broken_off, run_all, verdict
from backupd.custody import Custodian
from backupd.errors import BackupdError, ConfigError, ProcessFailed
from backupd.manifest import Kind, Manifest
from backupd.opening import Opening
from backupd.pipeline import Command
from backupd.postgres import archive, clients, session
from backupd.postgres.dsn import Dsn
from backupd.postgres.scratch import ScratchCluster
from backupd.redact import printable, scrub
from backupd.restore import Target, restore_into
from backupd.stores import Store
from backupd.transfer import Progress

RESTORE = "restore"  # the finding of all that comes before the checks
DATABASE = "drill"
_EXPANSION = 4  # a database beside its compressed dump, in size; the scratch cluster leaves room for more


@dataclass(frozen=True, slots=True)
class DrillPlan:
    """What a drill looks at. `key` is the custodian that the backup's key comes from; `deadline_s` is for the restore's data.

    `none_claimed` says that the source has no second factors, which else is found out by the names of its columns.
    `newest_at` is the snapshot's time of the source's newest backup, by which the recovery point is measured; None when that is
    the one that is drilled. The scratch cluster lies in memory if there is room, else in `scratch_directory`. `notes` are
    warnings that were known before it, for the report.
    """

    key: Custodian
    columns: tuple[TotpColumn, ...] = ()
    none_claimed: bool = False
    questions: tuple[Question, ...] = ()
    objectives: Objectives = Objectives()  # noqa: RUF009  # a frozen value
    newest_at: datetime | None = None
    client_directories: tuple[Path, ...] = ()
    scratch_directory: Path | None = None
    deadline_s: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DrillReport:
    """What a drill came to. `rpo_s`: how old the newest data was at its start; `rto_s`: from there until all was checked.

    `rto_s` is None when nothing was restored. `scratch` says where to that was; `notes` are warnings, one line each.
    """

    verdict: Outcome
    backup_id: str
    findings: tuple[Finding, ...]
    rpo_s: float
    rto_s: float | None
    scratch: str
    started_at: datetime
    finished_at: datetime
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report for machines: `{verdict, backup_id, checks: [{name, outcome, detail, figures}], rpo_s, rto_s, …}`."""
        return {
            "verdict": self.verdict.value,
            "backup_id": self.backup_id,
            "checks": [
                {"name": each.name, "outcome": each.outcome.value, "detail": each.detail, "figures": dict(each.figures)}
                for each in self.findings
            ],
            "rpo_s": round(self.rpo_s, 3),
            "rto_s": None if self.rto_s is None else round(self.rto_s, 3),
            "scratch": self.scratch,
            "started_at": self.started_at.isoformat(timespec="seconds"),
            "finished_at": self.finished_at.isoformat(timespec="seconds"),
            "notes": list(self.notes),
        }


def drill(
    manifest: Manifest, store: Store, key: Opening, plan: DrillPlan, trail: Trail, progress: Progress = lambda _: None
) -> DrillReport:
    """Drill a backup whose manifest is proved. Whatever is wrong with it, or missing for the drill, is in the report.

    Raises TrailError, and passes on interruptions: then the scratch cluster is gone, too.
    """
    run = trail.intent(Operation.RESTORE_TEST, manifest.source.name, backup_id=manifest.backup_id)
    try:
        report = _Drill(manifest, store, key, plan, progress).report()
    except BaseException as error:
        with suppress(BackupdError):
            run.end_by(error)
        raise
    run.note(
        verdict=report.verdict.value,
        findings=tuple(f"{each.name}: {each.outcome.value}: {each.detail}" for each in report.findings),
        rpo_s=int(report.rpo_s),
        rto_s=None if report.rto_s is None else int(report.rto_s),
        notes=report.notes,
    )
    run.end_by(None if report.verdict is Outcome.PASS else _no_pass(report))
    return report


class _Drill:
    """One drill under way, and the times that it measures."""

    def __init__(self, manifest: Manifest, store: Store, key: Opening, plan: DrillPlan, progress: Progress) -> None:
        self._manifest, self._store, self._key, self._plan, self._progress = manifest, store, key, plan, progress
        self._newest_at = plan.newest_at or manifest.snapshot.taken_at
        self._started_at = datetime.now(UTC)
        self._start = time.monotonic()
        self._scratch = "none: it came to no restore"
        self._notes = plan.notes

    def report(self) -> DrillReport:
        restored = False
        try:
            with self._cluster() as cluster:
                self._notes += tuple(cluster.notes)
                self._scratch = f"a private cluster in {cluster.directory.parent}, destroyed"
                target = cluster.create_database(DATABASE)
                self._restore(target)
                restored = True
                findings = self._check(target)
        except BackupdError as error:
            findings = [self._no_restore(error)]
        return DrillReport(
            verdict=verdict(findings),
            backup_id=self._manifest.backup_id,
            findings=tuple(findings),
            rpo_s=(self._started_at - self._newest_at).total_seconds(),
            rto_s=self._elapsed_s() if restored else None,
            scratch=self._scratch,
            started_at=self._started_at,
            finished_at=datetime.now(UTC),
            notes=self._notes,
        )

    @contextmanager
    def _cluster(self) -> Iterator[ScratchCluster]:
        # A configured directory may hold client programs alone.
        found = [*clients.find(self._plan.client_directories), *clients.find()]
        server = clients.choose_server(found, _major(self._manifest.source.server_version))
        dumped = sum(artifact.size for artifact in self._manifest.artifacts)
        with ScratchCluster(server, self._plan.scratch_directory, expected_bytes=_EXPANSION * dumped) as cluster:
            cluster.require_extensions(self._manifest.expect.extensions.keys())
            yield cluster

    def _restore(self, target: Dsn) -> None:
        to = Target(target, self._plan.client_directories, self._plan.deadline_s)
        restore_into(self._manifest, self._store, self._key, to, self._progress)

    def _check(self, target: Dsn) -> list[Finding]:
        restore_s = self._elapsed_s()
        done = Finding(RESTORE, Outcome.PASS, f"restored in {restore_s:.1f} s", {"restore_s": round(restore_s, 3)})
        with closing(session.connect(target, application_name="backupd drill", autocommit=True)) as connection:
            drilled = Drilled(
                manifest=self._manifest,
                connection=connection,
                unsealed=self._unsealed,
                sealed=self._sealed(),
                columns=self._plan.columns,
                none_claimed=self._plan.none_claimed,
                questions=self._plan.questions,
                objectives=self._plan.objectives,
                newest_at=self._newest_at,
                started_at=self._started_at,
                restore_s=restore_s,
                elapsed_s=self._elapsed_s,
            )
            return [done, *run_all(drilled)]

    def _no_restore(self, error: BackupdError) -> Finding:
        """Where the configuration lacks something, nothing was shown to be wrong with the backup."""
        found = broken_off(RESTORE, error)
        outcome = Outcome.COULD_NOT_VERIFY if isinstance(error, ConfigError) else found.outcome
        return Finding(RESTORE, outcome, scrub(printable(found.detail)))

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._start

    def _sealed(self) -> Sealed:
        session_key = self._key.session_key(self._manifest, self._manifest.artifact(Kind.DATABASE))
        return Sealed(self._head(), self._key.home, self._plan.key, session_key)

    def _head(self) -> bytes:
        """The first bytes of the sealed database, of a part that was proved whole."""
        prefix = name_of(self._manifest.source.name, self._manifest.backup_id, "")
        parts = transfer.fetch(self._store, prefix, self._manifest.artifact(Kind.DATABASE), concurrency=1)
        head = bytearray()
        with closing(parts):  # type: ignore[type-var]  # an iterator by its signature, a generator in fact
            for part in parts:
                head += part[:HEAD_BYTES]
                if len(head) >= HEAD_BYTES:
                    break
        return bytes(head[:HEAD_BYTES])

    @contextmanager
    def _unsealed(self, kind: Kind) -> Iterator[Iterator[bytes]]:
        """An artifact's plaintext once more, of the database as SQL: what the restore read, on its way to nowhere."""
        artifact = self._manifest.artifact(kind)
        readers = [self._script()] if kind is Kind.DATABASE else []
        try:
            with closing(opening.read(self._manifest, artifact, self._store, self._key, readers)) as chunks:  # type: ignore[type-var]  # as above
                yield chunks
                for _ in chunks:  # it counts only when its end was reached, and found to be well
                    pass
        except ProcessFailed as error:
            raise _explained(error, readers) from None

    def _script(self) -> Command:
        """A pg_restore that writes the archive on its stdin as SQL to its stdout."""
        made_by = _major(self._manifest.tools.pg_dump)
        chosen = clients.choose_reader(clients.find(self._plan.client_directories), made_by)
        return Command("pg_restore", (chosen.program("pg_restore"), "--format=custom", "--file=-"), {"LC_ALL": "C"})


def _no_pass(report: DrillReport) -> BackupdError:
    """How the trail is told: an operation that did not do what it should."""
    names = ", ".join(each.name for each in report.findings if each.outcome is not Outcome.PASS)
    return BackupdError(f"{report.verdict.value}: {names}")


def _explained(error: ProcessFailed, readers: list[Command]) -> BackupdError:
    """Without the statements, and so the rows, that a pg_restore which failed has printed."""
    return archive.explained(error) if error.program in {reader.name for reader in readers} else error


def _major(version: str) -> int:
    return int(version.partition(".")[0])
