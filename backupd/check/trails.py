"""The trail: whether it is whole and guarded, and whether it and the store tell the same story."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from backupd.audit.records import Detail, Operation, Phase, Record
from backupd.audit.trail import Run, Trail
from backupd.catalog import by_source
from backupd.check.lines import Line, Parts, guarded, ok, problem, warning

AREA = "trail"
VERIFY = "run `backupd audit verify`, and find out who changed it"


@dataclass(slots=True)
class Told:
    """What the trail tells of one source; of a backup that was done also the SHA-256 of its manifest, where it has one.

    A drill tells how backups are now when it is of the newest backup that was ever drilled, or of a newer one. `older_failed`
    are backups before that one whose own last drill did not pass.
    """

    done: dict[str, Detail] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    first_backup: datetime | None = None
    last_drill: Record | None = None
    last_pass: datetime | None = None
    newest_drilled: str = ""
    older_failed: set[str] = field(default_factory=set)

    def hear(self, record: Record) -> None:
        """Take in one record of this source."""
        match record.operation:
            case Operation.BACKUP if record.backup_id is not None:
                if record.phase is Phase.DONE:
                    self.done.setdefault(record.backup_id, record.details.get("manifest_sha256"))  # a later one is no proof
                else:
                    self.begun.add(record.backup_id)
                self.first_backup = self.first_backup or record.at
            case Operation.RESTORE_TEST if record.phase.is_outcome:
                self._drilled(record, record.backup_id or self.newest_drilled)
            case _:
                pass

    def _drilled(self, record: Record, backup_id: str) -> None:
        passed = record.phase is Phase.DONE
        if backup_id < self.newest_drilled:  # ids are ordered as backups are
            (self.older_failed.discard if passed else self.older_failed.add)(backup_id)
            return
        if self.last_drill is not None and self.last_drill.phase is not Phase.DONE and backup_id > self.newest_drilled:
            self.older_failed.add(self.newest_drilled)
        self.last_drill, self.newest_drilled = record, backup_id
        if passed:
            self.last_pass = record.at


def look(parts: Parts, now: datetime, run: Run) -> Iterator[Line]:
    """Lines on the trail; `run` is this check's own, which is no orphan."""
    trail = parts.trail()
    yield from guarded(AREA, _whole(trail, run))
    yield from guarded(AREA, _guarded(trail))
    yield from guarded(AREA, _agrees(parts, trail, now))


def _whole(trail: Trail, run: Run) -> Iterator[Line]:
    report = trail.verify(living={run.run_id})
    for each in report.findings:
        text = f"record {each.seq}: {each.detail}"
        if each.kind.is_warning:
            yield warning(AREA, text, "a run was killed, or is at work right now")
        else:
            yield problem(AREA, text, VERIFY)
    if report.ok:
        yield ok(AREA, f"its {report.records} records are one unbroken chain")


def _guarded(trail: Trail) -> Iterator[Line]:
    for right in trail.excess_rights():
        yield warning(AREA, right, "leave it INSERT and SELECT, or mode 0600, and keep a copy of its head elsewhere")


def _agrees(parts: Parts, trail: Trail, now: datetime) -> Iterator[Line]:
    told = {name: Told() for name in parts.config.sources}
    removals = []
    for record in trail.records():
        if record.operation is Operation.PRUNE:
            removals.append(record.seq)
        if record.source in told:
            told[record.source].hear(record)
    if removals:  # no missing backup is excused by one: this version removes none
        several = f", and {len(removals) - 1} more," if removals[1:] else ""
        text = f"record {removals[0]}{several} tells of backups being removed, which this version of backupd never does"
        yield problem(AREA, text, "find out who wrote it, with `backupd audit list --operation prune`")
    yield from guarded(AREA, _against_store(parts, told))
    for name, each in told.items():
        yield from _drilled(parts, name, each, now)


def _against_store(parts: Parts, told: dict[str, Told]) -> Iterator[Line]:
    stored = by_source(parts.entries)
    for name, each in told.items():
        area = f"backups {name}"
        there = {entry.backup_id: entry.digest for entry in stored.get(name, [])}
        missing = sorted(each.done.keys() - there.keys())
        if missing:  # or made since the store was listed
            missing = sorted(set(missing) - parts.catalog().ids(name))
        if missing and not there:
            said = f"the store has none of the backups that the trail knows: {missing[-1]} was the newest of {len(missing)}"
            yield problem(area, said, "is its disk mounted? Otherwise find out who removed them")
        else:
            for backup_id in missing:
                yield problem(area, f"{backup_id} is in the trail and not in the store", "find out who removed it")
        unknown = sorted(there.keys() - each.done.keys() - each.begun)
        for backup_id in unknown:
            yield problem(area, f"{backup_id} is in the store and not in the trail", "find out who made it")
        cut_off = sorted((there.keys() & each.begun) - each.done.keys())
        for backup_id in cut_off:
            yield warning(area, f"{backup_id} is in the store, and the trail does not say that it was done", "verify it")
        # One that cannot be read has no digest, and is a problem of the store's already.
        replaced = sorted(id_ for id_, digest in there.items() if digest and each.done.get(id_) not in (None, digest))
        for backup_id in replaced:
            yield problem(
                area,
                f"{backup_id} has another manifest than the one that its run published",
                "do not restore it; somebody has the signing key: make another, and find out who",
            )
        if not (missing or unknown or cut_off or replaced):
            yield ok(area, "the trail and the store name the same backups")


def _drilled(parts: Parts, name: str, told: Told, now: datetime) -> Iterator[Line]:
    area, allowed = f"drill {name}", parts.config.drill.max_age_days
    hint = f"run `backupd restore-test {name}`"
    if told.last_drill is not None and told.last_drill.phase is not Phase.DONE:
        yield problem(area, f"the last drill, of {told.last_drill.at:%Y-%m-%d}, did not pass", hint)
    for backup_id in sorted(told.older_failed & told.done.keys()):
        again = f"look at `backupd audit list`, and drill it again: --backup {backup_id}"
        yield warning(area, f"the last drill of {backup_id}, an older backup, did not pass", again)
    since = told.last_pass or told.first_backup
    if since is None:
        return
    days = (now - since) / timedelta(days=1)
    if told.last_pass is None:
        text = "no restore was ever tested"
        yield (problem if days > allowed else warning)(area, text, hint)
    elif days > allowed:
        yield problem(area, f"the last drill that passed is {days:.0f} days old, and {allowed} are allowed", hint)
    else:
        yield ok(area, f"the last drill that passed is {days:.0f} days old")
