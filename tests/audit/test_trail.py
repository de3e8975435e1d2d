"""What operations use: intents, outcomes, events; and an export that a stranger can check."""

import hashlib
import io
import json
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from backupd.audit import TrailError, open_trail_store
from backupd.audit.postgres import PostgresStore
from backupd.audit.records import Actor, Operation, Phase, Via, digest
from backupd.audit.sqlite import SqliteStore
from backupd.audit.trail import Trail
from backupd.errors import BackupdError, ConfigError, Refused, Tampered
from backupd.redact import Secret
from tests.audit.examples import ACTOR, SEED, START, ticking
from tests.audit.test_sqlite import forge, rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


@pytest.fixture
def trail(path: Path) -> Trail:
    return Trail(SqliteStore(str(path)), ACTOR, ticking())


def test_an_intent_is_stored_before_the_operation_begins(trail: Trail, path: Path) -> None:
    run = trail.intent(Operation.BACKUP, "clinic", {"store": "file:///backups", "recipients": ("AB", "CD")})
    (row,) = rows(path)
    stored = json.loads(row.data)
    assert (stored["phase"], stored["operation"], stored["source"]) == ("intent", "backup", "clinic")
    assert stored["details"] == {"store": "file:///backups", "recipients": ["AB", "CD"]}
    assert stored["run_id"] == run.run_id
    assert stored["actor"] == {
        "user": "backupd",
        "host": "backup1",
        "via": "cli",
        "operator": "on call",
        "reason": "drill of the quarter",
    }
    assert stored["at"] == "2026-11-24T02:00:00.000000Z"


def test_each_outcome_is_stored_with_its_run(trail: Trail) -> None:
    trail.intent(Operation.BACKUP, "clinic").done(backup_id="20261124T020000Z-5f3c9a", parts=12)
    trail.intent(Operation.RESTORE, "clinic", backup_id="20261124T020000Z-5f3c9a").failed(BackupdError("the target\nis gone"))
    trail.intent(Operation.PRUNE).refused(Refused("it is the last backup"), kept=1)
    trail.intent(Operation.RESTORE_TEST, "clinic").interrupted("SIGTERM")
    outcomes = [record for record in trail.records() if record.phase is not Phase.INTENT]
    intents = [record for record in trail.records() if record.phase is Phase.INTENT]
    assert [(record.phase, record.error, record.backup_id) for record in outcomes] == [
        (Phase.DONE, None, "20261124T020000Z-5f3c9a"),
        (Phase.FAILED, "the target is gone", "20261124T020000Z-5f3c9a"),
        (Phase.REFUSED, "it is the last backup", None),
        (Phase.INTERRUPTED, "SIGTERM", None),
    ]
    assert [record.details for record in outcomes] == [{"parts": 12}, {}, {"kept": 1}, {}]
    assert [record.run_id for record in outcomes] == [record.run_id for record in intents]
    assert len({record.run_id for record in intents}) == 4
    assert trail.verify().findings == ()


def test_an_error_of_another_library_is_recorded_with_its_type(trail: Trail) -> None:
    assert trail.intent(Operation.CHECK).failed(KeyError("x")).error == "KeyError: 'x'"


def test_a_run_ends_once(trail: Trail) -> None:
    run = trail.intent(Operation.BACKUP, "clinic")
    run.done()
    with pytest.raises(RuntimeError, match="ended already"):
        run.failed("late")
    assert trail.verify().findings == ()


def test_an_outcome_that_could_not_be_written_may_be_tried_again(tmp_path: Path) -> None:
    directory = tmp_path / "trail"
    directory.mkdir()
    trail = Trail(SqliteStore(str(directory / "audit.db")), ACTOR)
    run = trail.intent(Operation.BACKUP, "clinic")
    directory.rename(tmp_path / "away")
    with pytest.raises(TrailError):
        run.done()
    (tmp_path / "away").rename(directory)
    run.done()
    assert trail.verify().findings == ()


def test_what_was_done_and_cannot_be_recorded_is_said_to_be_done(tmp_path: Path) -> None:
    """Whoever reads it must not believe that nothing happened; an operation that failed keeps its own error."""
    directory = tmp_path / "trail"
    directory.mkdir()
    trail = Trail(SqliteStore(str(directory / "audit.db")), ACTOR)
    with (
        pytest.raises(TrailError, match=r"^backup 20261124T020000Z-5f3c9a was done, and its outcome could not be") as caught,
        trail.recording(Operation.BACKUP, source="clinic", backup_id="20261124T020000Z-5f3c9a"),
    ):
        directory.rename(tmp_path / "away")
    assert "`backupd audit verify`" in str(caught.value.hint)
    assert "nothing was done" not in str(caught.value.hint)
    (tmp_path / "away").rename(directory)
    assert [finding.kind.value for finding in trail.verify().findings] == ["orphan"]

    def refused() -> None:
        directory.rename(tmp_path / "away")
        raise Refused("it is the last backup")

    with pytest.raises(Refused, match="it is the last"), trail.recording(Operation.PRUNE, source="clinic"):
        refused()


def test_what_cannot_be_recorded_is_not_begun(tmp_path: Path) -> None:
    trail = Trail(SqliteStore(str(tmp_path / "missing" / "audit.db")), ACTOR)
    with pytest.raises(TrailError, match="restore was not begun, because it cannot be recorded") as caught:
        trail.intent(Operation.RESTORE, "clinic")
    assert caught.value.hint
    assert caught.value.exit_code == 1


def test_a_damaged_trail_begins_nothing_either(path: Path, trail: Trail) -> None:
    path.write_bytes(b"x" * 5000)
    with pytest.raises(TrailError, match="was not begun"):
        trail.intent(Operation.BACKUP, "clinic")


def test_events_stand_alone_or_in_a_run(trail: Trail) -> None:
    alone = trail.event(Operation.CONFIGURATION, details={"sha256": "ab" * 32})
    run = trail.intent(Operation.BACKUP, "clinic")
    within = trail.event(Operation.BACKUP, "clinic", {"backend_pid": 4711}, run=run, error=Refused("no"))
    run.done()
    assert alone.run_id != run.run_id == within.run_id
    assert (within.phase, within.error) == (Phase.EVENT, "no")
    assert trail.verify().findings == ()


def test_a_killed_run_is_an_orphan_unless_it_is_known_to_live(trail: Trail) -> None:
    run = trail.intent(Operation.BACKUP, "clinic")
    assert [finding.kind.value for finding in trail.verify().findings] == ["orphan"]
    assert trail.verify(living=[run.run_id]).findings == ()


def test_no_secret_of_any_argument_is_stored(path: Path) -> None:
    passphrase = Secret("correct horse battery staple")
    actor = Actor("backupd", "backup1", Via.CLI, operator=SEED, reason=f"typed {passphrase.text()}")
    trail = Trail(SqliteStore(str(path)), actor)
    run = trail.intent(Operation.RESTORE, SEED, {"note": SEED, SEED: 1, "list": (SEED, passphrase.text())}, backup_id=SEED)
    trail.event(Operation.KEYS, SEED, {"api_key": "abcdefgh"}, run=run, error=f"wrong: {SEED}")
    run.failed(ValueError(f"bad passphrase {passphrase.text()}"), backup_id=passphrase.text(), password=SEED)
    everything = path.read_bytes()
    assert not any(each in everything for each in (SEED.encode(), passphrase.reveal(), b"abcdefgh"))
    assert trail.verify().ok


def test_backups_are_those_that_the_trail_saw_of_a_source(trail: Trail) -> None:
    trail.intent(Operation.BACKUP, "clinic").done(backup_id="a")
    trail.intent(Operation.BACKUP, "clinic", backup_id="b").failed("no", parts=1)
    trail.intent(Operation.BACKUP, "clinic", backup_id="c")
    trail.intent(Operation.BACKUP, "clinic", backup_id="d").done()
    trail.intent(Operation.BACKUP, "other").done(backup_id="e")
    trail.intent(Operation.RESTORE, "clinic", backup_id="f").done()
    trail.intent(Operation.BACKUP, "clinic").failed("no id yet")
    assert trail.backups("clinic") == {"a": True, "b": False, "c": False, "d": True}
    assert trail.backups("nobody") == {}


def test_the_head_is_a_checkpoint_that_the_trail_is_held_against(trail: Trail, path: Path) -> None:
    assert trail.head() is None
    trail.event(Operation.KEYS)
    trail.event(Operation.KEYS)
    head = trail.head()
    assert head is not None
    assert (head.seq, head.head, head.at) == (2, digest(rows(path)[1].data), START + timedelta(seconds=1))
    assert trail.verify(head).ok
    forge(path, rows(path)[:1])
    assert [finding.kind.value for finding in trail.verify(head).findings] == ["truncated"]


def test_records_stop_at_the_first_that_is_none_and_say_which(trail: Trail, path: Path) -> None:
    for _ in range(3):
        trail.event(Operation.KEYS)
    stored = rows(path)
    forge(path, [stored[0], type(stored[1])(2, b"{}", digest(b"{}")), stored[2]])
    records = trail.records()
    assert next(records).seq == 1
    with pytest.raises(Tampered, match="record 2 of the trail") as caught:
        next(records)
    assert "audit verify" in str(caught.value.hint)
    assert [record.seq for record in trail.records(3)] == [3]


def test_writing_goes_on_after_tampering_and_does_not_hide_it(trail: Trail, path: Path) -> None:
    for _ in range(3):
        trail.event(Operation.KEYS, "clinic")
    stored = rows(path)
    forge(path, [*stored[:2], type(stored[2])(3, stored[2].data.replace(b"clinic", b"clinik"), stored[2].sha256)])
    assert trail.event(Operation.KEYS).seq == 4
    assert [(finding.kind.value, finding.seq) for finding in trail.verify().findings] == [("changed", 3)]


# --------------------------------------------------------------------------------------------------------------- export


def test_an_export_can_be_checked_with_nothing_but_a_shell(trail: Trail, tmp_path: Path) -> None:
    """Runs the command of `export`'s documentation as it stands there."""
    trail.intent(Operation.BACKUP, 'cli"nic', {"note": '"record":{}} and € and \\'}).done(backup_id="a", parts=1)
    trail.event(Operation.KEYS)
    with (tmp_path / "trail.jsonl").open("wb") as file:
        head = trail.export(file)
    command = next(line.strip() for line in str(Trail.export.__doc__).splitlines() if "sha256sum" in line)
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    hashes = [line.split()[0] for line in done.stdout.splitlines()]
    lines = [json.loads(line) for line in (tmp_path / "trail.jsonl").read_text().splitlines()]
    assert hashes == [line["sha256"] for line in lines]
    assert [line["record"]["previous"] for line in lines] == ["0" * 64, *hashes[:-1]]
    assert [line["seq"] for line in lines] == [1, 2, 3]
    assert head is not None
    assert (head.seq, head.head) == (3, hashes[-1])


def test_an_export_of_a_damaged_trail_is_still_json_lines_and_hides_nothing(trail: Trail, path: Path) -> None:
    trail.event(Operation.KEYS)
    stored = rows(path)
    for data in (b"\xff\nnonsense", b'{"a":1}', b""):
        forge(path, [*stored, type(stored[0])(2, data, 'not "a" hash')])
        to = io.BytesIO()
        assert trail.export(to) is None
        first, second = (json.loads(line) for line in to.getvalue().splitlines())
        assert hashlib.sha256(stored[0].data).hexdigest() == first["sha256"]
        assert second.keys() == {"seq", "sha256", "damaged"}
        assert second["sha256"] == 'not "a" hash'


def test_an_export_of_an_empty_trail_is_empty(trail: Trail) -> None:
    to = io.BytesIO()
    assert trail.export(to) is None
    assert to.getvalue() == b""


# --------------------------------------------------------------------------------------------------------- where it lies


def test_a_url_names_the_store() -> None:
    store = open_trail_store("sqlite:////var/lib/backupd/audit%20log.db")
    assert isinstance(store, SqliteStore)
    assert store.path == "/var/lib/backupd/audit log.db"
    assert store.where == "sqlite:////var/lib/backupd/audit%20log.db"


def test_a_url_of_a_server_is_shown_without_its_credentials() -> None:
    store = open_trail_store("postgresql://u:p%40ss@db.example:5433/audit?password=p2&sslmode=require", connect=unreachable)
    assert isinstance(store, PostgresStore)
    assert store.where == "postgresql://db.example:5433/audit"


@pytest.mark.parametrize(
    "url", ["", "audit.db", "sqlite://audit.db", "sqlite:///audit.db", "sqlite://host/x.db", "mysql://h/d"]
)
def test_other_urls_are_refused_with_an_example(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_trail_store(url, connect=unreachable)
    assert "sqlite:////" in str(caught.value.hint)


def unreachable() -> NoReturn:
    raise AssertionError("opening a store connects to nothing")
