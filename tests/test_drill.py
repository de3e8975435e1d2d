"""Drills from end to end: a clinic is backed up, its backup drilled; then each way in which that must not pass."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backupd.audit.records import Operation, Phase
from backupd.checks import Canary, Objectives, Outcome, Question
from backupd.custody.file import PrivateFile
from backupd.drill import DrillPlan, DrillReport, drill
from backupd.errors import Interrupted
from backupd.manifest import Level, Manifest
from backupd.opening import Opening
from backupd.openpgp import Home
from backupd.postgres.scratch import MEMORY
from tests.checks.clinic import Clinic, build
from tests.e2e.rig import Pairs, Rig, file_store, rigged
from tests.parts.postgres import Database, PostgresServer

CHECKS = ["restore", "contents", "totp", "leaks", "separation", "sql", "objectives"]


@dataclass(frozen=True, slots=True)
class Place:
    """A clinic that was backed up once, and a plan that all of it passes."""

    clinic: Clinic
    rig: Rig
    manifest: Manifest
    plan: DrillPlan
    directory: Path

    def drill(self, plan: DrillPlan | None = None) -> DrillReport:
        return drill(self.manifest, self.rig.store, self.rig.reading, plan or self.plan, self.rig.trail)

    def artifact(self) -> Path:
        """The file of the sealed database."""
        name = next(each.name for each in self.manifest.artifacts if each.kind.value == "database")
        return self.directory / "store" / "clinic" / self.manifest.backup_id / name


@pytest.fixture(scope="module")
def place(postgres17: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Shared: tests change the plan, never the clinic or what lies in the store."""
    directory = tmp_path_factory.mktemp("drills")
    yield from _place(postgres17, directory, leaking=False)


@pytest.fixture
def changed_place(postgres17: PostgresServer, tmp_path: Path) -> Iterator[Place]:
    """One of a test's own, with a seed in clear in its notes."""
    yield from _place(postgres17, tmp_path, leaking=True)


def _place(server: PostgresServer, directory: Path, *, leaking: bool) -> Iterator[Place]:
    pairs = Pairs.generate()
    name = server.create_database()
    clinic = build(Database(server, name), directory)
    if leaking:
        clinic.execute("UPDATE notes SET note = %s WHERE id = 9", (f"paper copy: {clinic.seeds[3].lower()}",))
    with rigged(file_store(directory), pairs, directory) as rig:
        manifest = rig.back_up(clinic.database.dsn, level=Level.DIGESTS)
        users = replace(clinic.users, canary=Canary("7", clinic.keep("canary", clinic.seeds[7].encode())))
        plan = DrillPlan(
            key=clinic.keep("operations.asc", pairs.operations.secret.reveal()),
            columns=(users, clinic.nurses, clinic.laboratory),
            questions=(Question.expecting("notes", "SELECT count(*) FROM notes", [[500]]),),
            objectives=Objectives(rpo_hours=26, rto_minutes=60),
        )
        yield Place(clinic, rig, manifest, plan, directory)
    server.drop_database(name)


def outcomes(report: DrillReport) -> dict[str, Outcome]:
    return {finding.name: finding.outcome for finding in report.findings}


def own_clusters() -> set[Path]:
    """The scratch clusters whose server is a child of this process; other runs on this host have theirs."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            directory = (process / "cwd").readlink()
            parent = re.search(r"^PPid:\s*(\d+)$", (process / "status").read_text(), re.MULTILINE)
        except OSError:
            continue  # it has just ended
        if parent is not None and int(parent[1]) == os.getpid() and MEMORY in directory.parents:
            found.add(directory if directory.parent == MEMORY else directory.parent)
    return found


def test_a_good_backup_passes_every_check(place: Place) -> None:
    report = place.drill()
    assert report.verdict is Outcome.PASS, report.findings
    assert [finding.name for finding in report.findings] == CHECKS
    assert report.rto_s is not None
    assert report.rto_s >= 0
    assert report.finished_at >= report.started_at > place.manifest.snapshot.taken_at


def test_its_report_for_machines_has_counts_and_key_ids_and_no_secret(place: Place) -> None:
    report = place.drill().to_json()
    text = json.dumps(report)
    assert {"verdict", "backup_id", "checks", "rpo_s", "rto_s"} <= set(report)
    assert [check["name"] for check in report["checks"]] == CHECKS
    assert all(set(check) == {"name", "outcome", "detail", "figures"} for check in report["checks"])
    assert report["checks"][2]["figures"]["users.totp_secret key 2025-1"] == 4
    assert not [seed for seed in place.clinic.seeds.values() if seed.lower() in text.lower()]


def test_the_trail_tells_the_drill_and_its_verdict(place: Place) -> None:
    place.drill()
    begun, ended = list(place.rig.trail.records())[-2:]
    assert (begun.operation, begun.phase) == (Operation.RESTORE_TEST, Phase.INTENT)
    assert (ended.operation, ended.phase, ended.error) == (Operation.RESTORE_TEST, Phase.DONE, None)
    assert (ended.source, ended.backup_id) == ("clinic", place.manifest.backup_id)
    assert ended.details["verdict"] == "PASS"


def test_a_seed_in_clear_fails_and_the_trail_says_so(changed_place: Place) -> None:
    """Everything else about that backup is good."""
    report = changed_place.drill()
    assert report.verdict is Outcome.FAIL
    assert [name for name, outcome in outcomes(report).items() if outcome is not Outcome.PASS] == ["leaks"]
    ended = list(changed_place.rig.trail.records())[-1]
    assert (ended.phase, ended.error) == (Phase.FAILED, "FAIL: leaks")


def test_a_copy_in_a_schema_of_the_drills_own_role_deceives_no_check(changed_place: Place) -> None:
    """Whoever may create a schema gives it that name, and PostgreSQL itself would look there first."""
    place = changed_place
    schema = "backupd_scratch"
    place.clinic.execute(f"CREATE SCHEMA {schema}")
    place.clinic.execute(f"CREATE TABLE {schema}.users AS SELECT * FROM public.users")
    place.clinic.execute(f"CREATE TABLE {schema}.notes AS SELECT * FROM public.notes LIMIT 1")
    manifest = place.rig.back_up(place.clinic.database.dsn, level=Level.DIGESTS)
    report = drill(manifest, place.rig.store, place.rig.reading, place.plan, place.rig.trail)
    found = outcomes(report)
    assert found["totp"] is found["separation"] is Outcome.FAIL
    assert found["contents"] is found["sql"] is Outcome.PASS  # of `public`, all 500 notes
    assert "the table users is ambiguous" in next(each.detail for each in report.findings if each.name == "totp")


def test_a_changed_byte_fails_before_anything_is_restored(changed_place: Place) -> None:
    path = changed_place.artifact()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    report = changed_place.drill()
    assert report.verdict is Outcome.FAIL
    assert outcomes(report) == {"restore": Outcome.FAIL}
    assert "is not what its manifest says" in report.findings[0].detail
    assert report.rto_s is None


def test_a_missing_artifact_fails(changed_place: Place) -> None:
    changed_place.artifact().unlink()
    report = changed_place.drill()
    assert outcomes(report) == {"restore": Outcome.FAIL}
    assert "not in the store" in report.findings[0].detail


def test_the_wrong_key_verifies_nothing(place: Place) -> None:
    with Home() as empty:
        report = drill(place.manifest, place.rig.store, Opening(empty), place.plan, place.rig.trail)
    assert report.verdict is Outcome.COULD_NOT_VERIFY
    assert outcomes(report) == {"restore": Outcome.COULD_NOT_VERIFY}


def test_a_custodian_that_is_down_verifies_nothing(place: Place) -> None:
    """The restore was good, and what could be checked was; it is no pass all the same."""
    down = replace(place.plan.columns[0], keys=PrivateFile(str(place.directory / "nothing")), canary=None)
    report = place.drill(replace(place.plan, columns=(down, *place.plan.columns[1:])))
    assert report.verdict is Outcome.COULD_NOT_VERIFY
    assert outcomes(report)["contents"] is Outcome.PASS
    assert {outcomes(report)[name] for name in ("totp", "leaks", "separation")} == {Outcome.COULD_NOT_VERIFY}


def test_a_host_without_a_fitting_server_verifies_nothing(place: Place) -> None:
    newer = replace(place.manifest, source=replace(place.manifest.source, server_version="99.1"))
    report = drill(newer, place.rig.store, place.rig.reading, place.plan, place.rig.trail)
    assert outcomes(report) == {"restore": Outcome.COULD_NOT_VERIFY}
    assert "99" in report.findings[0].detail


def test_a_deadline_ends_the_restore_and_passes_nothing(place: Place) -> None:
    report = place.drill(replace(place.plan, deadline_s=0.001))
    assert outcomes(report) == {"restore": Outcome.COULD_NOT_VERIFY}
    assert "deadline" in report.findings[0].detail


def test_an_old_backup_is_not_held_against_a_newer_one(place: Place) -> None:
    """Whoever drills last year's backup by its id still has yesterday's."""
    aged = replace(place.manifest, snapshot=replace(place.manifest.snapshot, taken_at=datetime(2025, 1, 1, tzinfo=UTC)))
    plan = replace(place.plan, newest_at=place.manifest.snapshot.taken_at)
    report = drill(aged, place.rig.store, place.rig.reading, plan, place.rig.trail)
    assert outcomes(report)["objectives"] is Outcome.PASS
    assert 0 <= report.rpo_s < 26 * 3600
    alone = drill(aged, place.rig.store, place.rig.reading, place.plan, place.rig.trail)
    assert outcomes(alone)["objectives"] is Outcome.FAIL


def test_missed_objectives_fail(place: Place) -> None:
    report = place.drill(replace(place.plan, objectives=Objectives(rpo_hours=0.0, rto_minutes=0.0)))
    assert outcomes(report)["objectives"] is Outcome.FAIL


def test_an_interruption_passes_on_and_leaves_no_cluster(place: Place) -> None:
    """A signal in the middle of the restore: the cluster is there, and then it is not."""
    seen: set[Path] = set()

    def interrupt(_: int) -> None:
        seen.update(own_clusters())
        raise Interrupted("a signal asked the run to end")

    with pytest.raises(Interrupted):
        drill(place.manifest, place.rig.store, place.rig.reading, place.plan, place.rig.trail, interrupt)
    assert len(seen) == 1
    assert not any(path.exists() for path in seen)
    assert own_clusters() == set()
    ended = list(place.rig.trail.records())[-1]
    assert (ended.operation, ended.phase) == (Operation.RESTORE_TEST, Phase.INTERRUPTED)


def test_a_failed_restore_leaves_no_cluster_either(changed_place: Place) -> None:
    changed_place.artifact().unlink()
    changed_place.drill()
    assert own_clusters() == set()


def test_a_bug_passes_on_and_leaves_no_cluster(place: Place) -> None:
    """What is no error of backupd's is not made a finding."""

    def stumble(_: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        drill(place.manifest, place.rig.store, place.rig.reading, place.plan, place.rig.trail, stumble)
    assert own_clusters() == set()
    assert list(place.rig.trail.records())[-1].phase is Phase.FAILED


def test_a_backup_of_an_older_server_passes_too(postgres15: PostgresServer, tmp_path: Path) -> None:
    for place in _place(postgres15, tmp_path, leaking=False):
        report = place.drill()
        assert report.verdict is Outcome.PASS, report.findings
