"""`backupd audit`, as processes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from backupd.audit import Stored
from backupd.audit.records import Actor, Operation, Phase, Record, Via, render
from backupd.audit.sqlite import SqliteStore
from backupd.audit.trail import Trail
from tests.audit.examples import ACTOR
from tests.installation import CHECKOUT, SOURCE, Installation


def edit(trail: Path, *statements: str) -> None:
    """Change a trail behind backupd's back."""
    with closing(sqlite3.connect(trail)) as connection:
        guards = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in guards:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            assert connection.execute(statement).rowcount == 1
        for _, guard in guards:
            connection.execute(guard)
        connection.commit()


def test_records_are_listed_newest_last(lived_in: Installation) -> None:
    """By source, operation and time, and no more than asked for; the person and the reason are told."""
    lived_in.run("keys", "show", "--operator", "Dr Grey", "--reason", "audit of 2026").ok()
    everything = lived_in.run("audit", "list", "--json").ok().json
    assert [each["seq"] for each in everything] == list(range(1, len(everything) + 1))
    backups = lived_in.run("audit", "list", "--source", SOURCE, "--operation", "backup", "--json").ok().json
    assert [each["phase"] for each in backups] == ["intent", "done"] * 2
    [last] = lived_in.run("audit", "list", "--limit", "1", "--since", "2000-01-01", "--json").ok().json
    assert (last["actor"]["operator"], last["actor"]["reason"]) == ("Dr Grey", "audit of 2026")
    assert lived_in.run("audit", "list", "--since", "2999-01-01", "--json").ok().json == []
    assert "Dr Grey" in lived_in.run("audit", "list", "--limit", "1").ok().stdout


def test_the_operations_that_are_offered_are_those_that_something_records(lived_in: Installation) -> None:
    """`Operation` holds words for later, too."""
    hint = lived_in.run("audit", "list", "--operation", "bakcup").stderr.splitlines()[-1]
    offered = hint.removeprefix("hint: there are: ").split(", ")
    sources = [path for path in (CHECKOUT / "backupd").rglob("*.py") if path.parent.name != "audit"]
    used = {name for path in sources for name in re.findall(r"\bOperation\.([A-Z_]+)\b", path.read_text("utf-8"))}
    assert sorted(offered) == sorted(Operation[name] for name in used - {"PRUNE"})  # which `check` alone knows of


@pytest.mark.parametrize("encoding", ["", "utf-8", "ascii"])
def test_a_forged_record_with_half_a_character_is_listed_all_the_same(clinic: Installation, encoding: str) -> None:
    """UTF-8 has no lone surrogates, and JSON has; the second is one that Python would print as a byte that is no UTF-8."""
    text = "Zoë \ud800 \udc80"
    Trail(SqliteStore(str(clinic.trail)), ACTOR).event(Operation.KEYS, SOURCE)

    def forged(head: Stored | None) -> bytes:
        assert head is not None
        actor = Actor(text, "host", Via.CLI, operator=text, reason=text)
        record = Record(2, datetime.now(UTC), uuid4().hex, Operation.KEYS, Phase.EVENT, actor, error=text, details={text: text})
        return render(dataclasses.replace(record, previous=head.sha256))

    SqliteStore(str(clinic.trail)).append(forged)
    env = {"PYTHONIOENCODING": encoding} if encoding else {}
    for arguments in (("list",), ("show", "2")):
        shown = clinic.run("audit", *arguments, "--json", env=env).ok().json
        found = shown[-1] if isinstance(shown, list) else shown
        assert (found["actor"]["operator"], found["error"], found["details"]) == (text, text, {text: text})
        clinic.run("audit", *arguments, env={"PYTHONIOENCODING": "utf-8"}).ok()


def test_one_record_is_shown_whole(lived_in: Installation) -> None:
    """With the hash that the next record holds of it."""
    first, second = (lived_in.run("audit", "show", str(seq), "--json").ok().json for seq in (1, 2))
    assert second["previous"] == first["sha256"]
    assert first["sha256"] in lived_in.run("audit", "show", "1").ok().stdout
    missing = lived_in.run("audit", "show", "99999", "--json")
    assert (missing.code, missing.error["error"]) == (1, "there is no record 99999 in the trail")


def test_a_whole_trail_verifies_and_its_head_can_be_held_against_it(lived_in: Installation) -> None:
    """The head that one run tells is what --expect of a later one takes."""
    seen = lived_in.run("audit", "verify", "--json").ok().json
    assert seen.keys() == {"ok", "records", "head", "findings"}
    assert (seen["ok"], seen["findings"]) == (True, [])
    assert lived_in.run("audit", "verify", "--expect", seen["head"], "--json").ok().json["ok"] is True
    told = lived_in.run("audit", "verify").ok()
    assert "the trail is whole" in told.stdout
    assert "without --expect" in told.stderr


def test_an_edited_record_is_found(clinic: Installation) -> None:
    """One blank more in one record."""
    clinic.back_up()
    edit(clinic.trail, "UPDATE record SET data = CAST(data || ' ' AS BLOB) WHERE seq = 2")
    done = clinic.run("audit", "verify", "--json")
    assert done.code == 1
    assert done.json["ok"] is False
    assert {each["seq"] for each in done.json["findings"]} >= {2}
    assert "the trail was changed" in clinic.run("audit", "verify").stdout


def test_a_cut_end_is_found_by_a_head_from_elsewhere(clinic: Installation) -> None:
    """Without it the rest looks whole, and that is said."""
    clinic.back_up()
    clinic.run("check").ok()
    head = clinic.run("audit", "verify", "--json").ok().json["head"]
    edit(clinic.trail, "DELETE FROM record WHERE seq = 4", "DELETE FROM record WHERE seq = 3")
    assert clinic.run("audit", "verify", "--json").ok().json["records"] == 2
    done = clinic.run("audit", "verify", "--expect", head, "--json")
    assert done.code == 1
    assert [each["kind"] for each in done.json["findings"]] == ["truncated"]


def test_no_trail_is_not_a_verified_one(clinic: Installation) -> None:
    """Exit code 3, like all that proves nothing."""
    done = clinic.run("audit", "verify", "--json")
    assert (done.code, done.json["records"], done.json["head"]) == (3, 0, None)


def test_an_export_can_be_checked_without_backupd(lived_in: Installation, tmp_path: Path) -> None:
    """Each line holds the record as it is stored, and its hash, which the next one repeats; no file is written over."""
    file = tmp_path / "trail.jsonl"
    made = lived_in.run("audit", "export", str(file), "--json").ok().json
    lines = file.read_bytes().splitlines()
    assert file.stat().st_mode & 0o777 == 0o600
    previous = "0" * 64
    for line in lines:
        stored = line[line.index(b'"record":') + len(b'"record":') : -1]
        assert json.loads(stored)["previous"] == previous
        previous = hashlib.sha256(stored).hexdigest()
        assert json.loads(line)["sha256"] == previous
    assert made["head"] == f"{len(lines)}:{previous}"
    again = lived_in.run("audit", "export", str(file), "--json")
    assert again.code == 2
    assert file.read_bytes().splitlines() == lines


def test_the_sql_of_a_trail_in_postgresql_makes_one_that_works(clinic: Installation) -> None:
    """What is printed is run as it is by the administrator; then the role records there, and may do no more."""
    made = clinic.run("audit", "install-sql", "--role", clinic.role).ok().stdout
    clinic.database.execute(made)
    server = clinic.database.server
    audit = f'[audit]\nurl = "{server.dsn(clinic.database.name, clinic.role)}"\npassword = {{ file = "custody/password" }}\n'
    config = clinic.configure("postgres.toml", audit=audit)
    clinic.run("backup", config=config).ok()
    seen = clinic.run("audit", "verify", "--json", config=config).ok().json
    assert (seen["ok"], seen["records"]) == (True, 2)
    warned = clinic.run("check", "--json", config=config).ok().json["lines"]
    assert [each for each in warned if each["area"] == "trail" and each["state"] != "ok"] == []
