"""A backup that is killed, and everything that is then due: no half a backup, an honest trail, and a next run that cleans up.

A killed process is first stopped, so that it is known to have been alive, and which children and directories it leaves behind.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from backupd.audit import open_trail_store
from backupd.audit.chain import FindingKind
from backupd.audit.records import Operation, Phase, Record, Via, parse
from backupd.audit.trail import Trail
from backupd.catalog import MANIFEST, chain_problems
from backupd.config import load
from backupd.errors import Busy
from backupd.manifest import Manifest
from backupd.service import Service, actor
from backupd.stores import UNFINISHED
from tests.e2e.processes import WORK, child, command_lines, ended, stop_and_kill, stop_and_list, wait_for
from tests.installation import SOURCE, Installation

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

DEADLINE_S = 120.0
TRIES = 20  # to kill something before it ends by itself
GROWTH = 1.05  # of what is known of a life, after each that was cut
SOONER = 0.7  # how much of its time each try leaves to it that the one before left

# 10 MB that do not compress: two parts, and the roles.
FILL = """
CREATE TABLE scans (id integer PRIMARY KEY, scan bytea NOT NULL);
ALTER TABLE scans ALTER scan SET STORAGE EXTERNAL;
INSERT INTO scans SELECT n, (SELECT string_agg(sha256(int4send(n * 1000 + m)), '') FROM generate_series(1, 1000) AS m)
  FROM generate_series(1, 300) AS n;
"""


class View(Protocol):
    """A store as its administrator sees it, past backupd."""

    def objects(self) -> set[str]:
        """Names of what is visible."""

    def unfinished(self) -> set[str]:
        """Uploads in the making that hold something, or could be completed."""

    def has_part(self) -> bool:
        """Whether an upload in the making holds a whole part, or some of one."""

    def remove(self, name: str) -> None:
        """Delete a visible object."""


@dataclass(frozen=True, slots=True)
class DirectoryView:
    """Of a directory. What an upload leaves that died before it had a name is empty, and stays for a day."""

    root: Path

    def objects(self) -> set[str]:
        found = (str(Path(place, name).relative_to(self.root)) for place, _, names in os.walk(self.root) for name in names)
        return {name for name in found if not name.startswith(UNFINISHED)}

    def unfinished(self) -> set[str]:
        place = self.root / UNFINISHED
        found = {path.name for path in place.iterdir()} if place.exists() else set()
        return {name for name in found if not name.endswith(".new") or (place / name / "data").exists()}

    def has_part(self) -> bool:
        try:
            return any(path.stat().st_size for path in (self.root / UNFINISHED).glob("*/data"))
        except FileNotFoundError:
            return False

    def remove(self, name: str) -> None:
        path = self.root / name
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()


@dataclass(frozen=True, slots=True)
class BucketView:
    """Of a bucket and a prefix in it."""

    client: S3Client
    bucket: str
    prefix: str

    def objects(self) -> set[str]:
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix).get("Contents", [])
        return {each["Key"].removeprefix(self.prefix) for each in found}

    def unfinished(self) -> set[str]:
        return {each["UploadId"] for each in self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])}

    def has_part(self) -> bool:
        from botocore.exceptions import ClientError

        for each in self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", []):
            try:
                if self.client.list_parts(Bucket=self.bucket, Key=each["Key"], UploadId=each["UploadId"]).get("Parts"):
                    return True
            except ClientError:  # it was completed meanwhile
                continue
        return False

    def remove(self, name: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=self.prefix + name)


@dataclass(slots=True)
class Scene:
    """An installation in which backups die. `orphans` are the runs that were killed between intent and outcome.

    `run_s` and `lives` are how long a whole run took, and each program of one since it was seen, when one last came to its end:
    for choosing moments, not for judging them. A moment that is too late costs a run and all that is due after it.
    """

    clinic: Installation
    view: View
    ordered: bool  # whether a request that a killed process had sent can no longer come into effect afterwards
    run_s: float = 0.0
    lives: dict[str, float] = field(default_factory=dict)
    orphans: set[str] = field(default_factory=set)
    proved: set[str] = field(default_factory=set)

    # ------------------------------------------------------------------------------------------------------- runs of backupd

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """`backupd backup` in a process of its own; it is not left behind."""
        process = subprocess.Popen(
            [sys.executable, "-m", "backupd", "backup", SOURCE],
            cwd=self.clinic.directory,
            env=self.clinic.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def measure(self) -> None:
        """Two runs as they are here and now, the first to have everything ready that a run needs."""
        for _ in range(2):
            start = time.monotonic()
            with self.running() as process:
                dump = wait_for(lambda: child(process, "pg_dump"), process)
                assert dump is not None
                began = time.monotonic()
                ended([dump])
                self.lives = dict.fromkeys(WORK, time.monotonic() - began)
                output = process.communicate(timeout=DEADLINE_S)[0]
                assert process.returncode == 0, output
            self.run_s = time.monotonic() - start

    def records(self, start: int = 1) -> list[Record]:
        """What the trail says, from record number `start` on."""
        trail = open_trail_store(f"sqlite:///{self.clinic.trail}")
        return [parse(stored.data) for stored in trail.read(start)]

    def recorded(self) -> int:
        """How many records the trail has: the number of its last."""
        head = open_trail_store(f"sqlite:///{self.clinic.trail}").head()
        return 0 if head is None else head.seq

    def service(self) -> Service:
        """What the configuration wires, in this process."""
        return Service(load(self.clinic.config), actor({}, Via.CLI), {})

    # ------------------------------------------------------------------------------------------------------------------ deaths

    def kill_backupd(self, moment: Moment) -> bool:
        """SIGKILL for backupd at a moment, and all that is due after it. Returns whether it leaves an orphan in the trail."""
        for attempt in range(TRIES):
            before, start = self.recorded(), time.monotonic()
            with self.running() as process:
                probe = moment(self, process, SOONER**attempt)
                left = stop_and_list(process) if wait_for(probe, process) else None
                process.kill()
                output = process.communicate(timeout=DEADLINE_S)[0]
            if left is not None:
                assert process.returncode == -signal.SIGKILL
                break
            assert process.returncode == 0, output
            self.run_s = time.monotonic() - start
            self._after(())
        else:
            raise AssertionError("it always ended before it could be killed")
        ended(left.children)
        fresh = self.records(before + 1)
        dead = {record.run_id for record in fresh if record.phase is Phase.INTENT}
        dead -= {record.run_id for record in fresh if record.phase.is_outcome}
        assert len(dead) <= 1
        self.orphans |= dead
        self._after(left.homes)
        return bool(dead)

    def kill_child(self, program: str, rng: random.Random) -> None:
        """SIGKILL for the pg_dump or the gpg of a run at a random moment of its life: the run fails, and says so."""
        part = rng.random()
        for attempt in range(TRIES):
            before = self.recorded()
            with self.running() as process:
                victim = wait_for(lambda: child(process, program), process)
                assert victim is not None
                start = time.monotonic()
                select.select([victim.fd], [], [], self.lives[program] * part * SOONER**attempt)
                landed = stop_and_kill(victim)
                # A life that was cut says only that it is as long as this, and may have become longer.
                self.lives[program] = self.lives[program] * GROWTH if landed else time.monotonic() - start
                output = process.communicate(timeout=DEADLINE_S)[0].decode()
            ended([victim])
            if landed:
                break
            assert process.returncode == 0, output
            self._after(())
        else:
            raise AssertionError("it always ended before it could be killed")
        assert process.returncode == 1, output
        error, hint = output.splitlines()[-2:]
        assert error.startswith("error: ")
        assert "SIGKILL" in error
        assert hint.startswith("hint: ")
        intent, outcome = self.records(before + 1)
        assert (intent.phase, outcome.phase) == (Phase.INTENT, Phase.FAILED)
        assert intent.run_id == outcome.run_id
        assert not self.view.unfinished()
        self._after(())

    # ----------------------------------------------------------------------------------------------------------- what is due

    def _after(self, homes: Collection[str]) -> None:
        """What is listed is whole; the trail is, too, and names the dead; the next run succeeds and leaves nothing stale."""
        stale = self.view.unfinished()
        with self.service() as service:
            self._prove_all(service)
            made = self._next(service)
            self._prove_all(service)
            assert made.backup_id in self.proved
            self._assert_trail(service.trail)
        left = self.view.unfinished()
        assert not left if self.ordered else not left & stale
        for home in homes:
            wait_for(lambda: not Path(home).exists() and not any(home in line for line in command_lines()))  # noqa: B023  called at once
        for name in self.view.objects():
            if not name.startswith(f"{SOURCE}/{made.backup_id}/"):
                self.view.remove(name)

    def _prove_all(self, service: Service) -> None:
        entries = service.catalog.list()
        for entry in entries:
            manifest = entry.proved()
            if entry.backup_id not in self.proved:
                proof = service.verify(entry)
                assert proof.parts == sum(len(artifact.parts) for artifact in manifest.artifacts) >= 3
                self.proved.add(entry.backup_id)
        assert not self.ordered or chain_problems(entries) == {}

    def _next(self, service: Service) -> Manifest:
        """The server may take a moment to notice that the holder of the lock has gone."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                return service.back_up(SOURCE)
            except Busy:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _assert_trail(self, trail: Trail) -> None:
        report = trail.verify()
        assert report.ok
        assert {finding.kind for finding in report.findings} <= {FindingKind.ORPHAN}
        by_seq = {record.seq: record for record in trail.records()}
        found = [by_seq[finding.seq] for finding in report.findings]
        assert {record.run_id for record in found} == self.orphans
        assert len(found) == len(self.orphans)
        assert all(record.operation is Operation.BACKUP and record.backup_id for record in found)


# --------------------------------------------------------------------------------------------------------------------- moments

# For a run that has just started: whether its moment has come. The last argument shortens a time, after a run that ended.
Moment = Callable[[Scene, "subprocess.Popen[bytes]", float], Callable[[], bool]]


def at_random(rng: random.Random) -> Moment:
    """Any time from its start to the end of a usual run."""
    part = rng.random()

    def moment(scene: Scene, process: subprocess.Popen[bytes], factor: float) -> Callable[[], bool]:
        limit = time.monotonic() + scene.run_s * part * factor
        return lambda: time.monotonic() >= limit

    return moment


def at_intent(scene: Scene, process: subprocess.Popen[bytes], factor: float) -> Callable[[], bool]:
    """Once the trail says what is to be done."""
    known = scene.recorded()
    return lambda: scene.recorded() > known


def at_dump(scene: Scene, process: subprocess.Popen[bytes], factor: float) -> Callable[[], bool]:
    """Once pg_dump runs."""

    def reached() -> bool:
        found = child(process, "pg_dump")
        if found is not None:
            os.close(found.fd)
        return found is not None

    return reached


def at_part(scene: Scene, process: subprocess.Popen[bytes], factor: float) -> Callable[[], bool]:
    """Once the store has something of the first part."""
    return scene.view.has_part


def at_artifact(scene: Scene, process: subprocess.Popen[bytes], factor: float) -> Callable[[], bool]:
    """Once an artifact is committed, and the manifest is next."""
    return _seen(scene, "database.dump.gpg")


def at_manifest(scene: Scene, process: subprocess.Popen[bytes], factor: float) -> Callable[[], bool]:
    """Once the manifest is there, and with it the backup."""
    return _seen(scene, MANIFEST)


def _seen(scene: Scene, name: str) -> Callable[[], bool]:
    known = scene.view.objects()
    return lambda: any(each.endswith(name) for each in scene.view.objects() - known)
