"""`backupd backup` and `backupd list`, as processes."""

from __future__ import annotations

import time

from tests.installation import SOURCE, Installation

DEADLINE_S = 120.0


def wait_for_a_blocked_dump(clinic: Installation) -> None:
    """Until a session in the clinic's database waits for a table's lock."""
    deadline = time.monotonic() + DEADLINE_S
    question = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'relation' AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    while clinic.database.execute(question) == [(0,)]:
        assert time.monotonic() < deadline, "pg_dump never came to wait for the lock"
        time.sleep(0.05)


def test_a_backup_is_made_and_listed(clinic: Installation) -> None:
    """The JSON has the documented shape, and the list then shows that very backup."""
    [made] = clinic.run("backup", "--json").ok().json
    assert made["source"] == SOURCE
    assert {each["name"] for each in made["artifacts"]} == {"database.dump.gpg", "globals.sql.gpg"}
    assert all(each["size"] > 0 and len(each["sha256"]) == 64 for each in made["artifacts"])
    assert made["started_at"] <= made["finished_at"]
    [listed] = clinic.run("list", "--json").ok().json
    assert {**made, "state": "committed", "problem": None, "locked_until": None} == listed


def test_a_second_run_is_refused_and_a_stopped_one_leaves_nothing(clinic: Installation) -> None:
    """While one backup waits for a migration's lock, another is refused (4); the first, told to stop, ends with 130."""
    config = clinic.configure("patient.toml", source=clinic.tables["source"] + "lock_timeout_s = 600\n")
    with clinic.database.connect() as migration, migration.transaction():
        migration.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        with clinic.running("backup", "--json", config=config) as first:
            wait_for_a_blocked_dump(clinic)
            second = clinic.run("backup", "--json", config=config)
            assert (second.code, second.error["exit_code"]) == (4, 4)
            assert "another run holds" in second.error["error"]
            first.terminate()
            _, said = first.communicate(timeout=DEADLINE_S)
            assert first.returncode == 130
            clinic.secrets.planted.assert_absent(said, "the errors of a stopped backup")
            assert b"interrupted by SIGTERM" in said
    assert [record["phase"] for record in clinic.records()] == ["intent", "intent", "refused", "interrupted"]
    assert clinic.store is not None
    assert [path for path in clinic.store.rglob("*") if path.is_file()] == []
    clinic.run("backup", config=config).ok()


def test_a_backup_that_was_removed_shows_in_the_list_and_its_exit_code(clinic: Installation) -> None:
    made = [clinic.back_up() for _ in range(3)]
    assert clinic.store is not None
    (clinic.store / SOURCE / made[1] / "manifest.asc").unlink()
    done = clinic.run("list", "--json")
    assert done.code == 1
    assert [(each["backup_id"], each["state"]) for each in done.json] == [(made[0], "committed"), (made[2], "out of order")]


def test_an_empty_place_is_not_taken_for_the_store_that_is_known(clinic: Installation) -> None:
    """Its disk is not mounted: the directory is missing, or the bare mount point is there. Nothing is written to either."""
    clinic.back_up()
    assert clinic.store is not None
    away = clinic.store.rename(clinic.directory / "away")
    for _ in range(2):
        done = clinic.run("backup")
        assert done.code == 4
        assert f"{clinic.store} is empty, and the trail knows 1 backup in it" in done.stderr
        assert "is its disk mounted?" in done.stderr
        assert not clinic.store.exists() or list(clinic.store.iterdir()) == []
        clinic.store.mkdir(exist_ok=True)
    clinic.run(
        "backup", config=clinic.configure("elsewhere.toml", store=f'[store]\nurl = "{(clinic.directory / "new").as_uri()}"\n')
    ).ok()
    clinic.store.rmdir()
    away.rename(clinic.store)
    clinic.run("backup").ok()
    assert len(clinic.run("list", "--json").ok().json) == 2
