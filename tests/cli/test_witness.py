"""What the trail says against the newest backup in the store reaches whoever is about to use it, and stops nothing."""

from __future__ import annotations

import shutil

from tests.cli.test_audit import edit
from tests.installation import SOURCE, Completed, Installation

GONE = "the trail knows a newer backup that is not in the store: "
NOT_ASKED = "the trail was not asked whether there was a newer backup: "
NOT_COMPARED = "the manifest was not compared with the one that was published"


def remove(clinic: Installation, backup_id: str) -> None:
    """As whoever can write the store."""
    assert clinic.store is not None
    shutil.rmtree(clinic.store / SOURCE / backup_id)


def restored(clinic: Installation) -> Completed:
    """The newest backup that there is, in a database of its own."""
    with clinic.empty_database() as target:
        return clinic.run(*clinic.restore_arguments(target, "--json"), env=clinic.superuser).ok()


def test_a_newest_backup_that_was_removed_is_told_to_whoever_takes_the_one_before(clinic: Installation) -> None:
    """Data of a day would be missing, and nobody would know; the report of a drill says it, too."""
    older, newest = clinic.back_up(), clinic.back_up()
    for each in (restored(clinic), clinic.run("verify", SOURCE).ok()):
        assert each.stderr.count(GONE) == 0
    remove(clinic, newest)
    taken = restored(clinic)
    assert taken.json["backup_id"] == older
    assert taken.stderr.count(f"{GONE}{newest}") == 1
    verified = clinic.run("verify", SOURCE, "--json").ok()
    assert [each["backup_id"] for each in verified.json] == [older]
    assert verified.stderr.count(f"{GONE}{newest}") == 1
    drilled = clinic.run("restore-test", SOURCE, "--json").ok()
    assert drilled.json["backup_id"] == older
    assert drilled.stderr.count(f"{GONE}{newest}") == 1
    assert f"{GONE}{newest}" in drilled.json["notes"]
    assert f"{GONE}{newest}" in clinic.records()[-1]["details"]["notes"]
    named = clinic.run("verify", SOURCE, "--backup", older).ok()
    assert GONE not in named.stderr, "who names a backup has not asked for the newest"


def test_where_no_backup_is_left_the_trail_tells_of_those_that_were(clinic: Installation) -> None:
    """The newest three by name; nothing comes of it but the error."""
    made = [clinic.back_up() for _ in range(5)]
    for each in made:
        remove(clinic, each)
    done = clinic.run("verify", SOURCE)
    assert done.code == 3
    assert f"the trail knows 5 backups that are not in the store: {', '.join(made[:1:-1])} and 2 more" in done.stderr
    assert "error: there is no backup of clinic" in done.stderr


def test_a_damaged_trail_stops_no_restore_and_is_warned_about(clinic: Installation) -> None:
    """It is told what could not be compared."""
    clinic.back_up()
    edit(clinic.trail, "UPDATE record SET data = X'78' WHERE seq = 1")
    for done in (restored(clinic), clinic.run("verify", SOURCE).ok()):
        assert done.stderr.count(f"{NOT_ASKED}record 1 of the trail: ") == 1
        assert done.stderr.count(NOT_COMPARED) == 1
    drilled = clinic.run("restore-test", SOURCE, "--json").ok()
    assert NOT_COMPARED in drilled.stderr
    assert any(note.startswith(NOT_ASKED) for note in drilled.json["notes"])


def test_a_trail_that_cannot_be_read_is_warned_about(clinic: Installation) -> None:
    """Before what is done without a record, which is nothing, ends for it."""
    clinic.back_up()
    audit = f'[audit]\nurl = "sqlite:///{clinic.config}/audit.db"\n'
    done = clinic.run("verify", SOURCE, config=clinic.configure("unreadable.toml", audit=audit))
    assert done.code == 1
    assert f"{NOT_ASKED}the trail " in done.stderr
    assert done.stderr.splitlines()[-2].startswith("error: the trail ")
