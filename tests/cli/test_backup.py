"""`backupd backup` and `backupd list`, as processes."""

from __future__ import annotations

from tests.installation import SOURCE, Installation


def test_a_backup_is_made_and_listed(clinic: Installation) -> None:
    """The JSON has the documented shape, and the list then shows that very backup."""
    [made] = clinic.run("backup", "--json").ok().json
    assert made["source"] == SOURCE
    assert {each["name"] for each in made["artifacts"]} == {"database.dump.gpg", "globals.sql.gpg"}
    assert all(each["size"] > 0 and len(each["sha256"]) == 64 for each in made["artifacts"])
    assert made["started_at"] <= made["finished_at"]
    [listed] = clinic.run("list", "--json").ok().json
    assert {**made, "state": "committed", "problem": None, "locked_until": None} == listed
