"""`backupd restore-test`, as a process: three verdicts, three exit codes, and what `check` says of them afterwards."""

from __future__ import annotations

from typing import Any

from tests.installation import SOURCE, Completed, Installation

CHECKS = {"contents", "totp", "leaks", "separation", "sql", "objectives"}


def outcomes(done: Completed) -> dict[str, str]:
    """The outcome of each check, by its name."""
    return {each["name"]: each["outcome"] for each in done.json["checks"]}


def drill_lines(clinic: Installation) -> list[tuple[str, str]]:
    """State and text of what `check` says of drills."""
    lines: list[dict[str, Any]] = clinic.run("check", "--json").json["lines"]
    return [(each["state"], each["text"]) for each in lines if each["area"] == f"drill {SOURCE}"]


def test_a_good_backup_passes(clinic: Installation) -> None:
    """Exit code 0, the documented members, recorded, and from then on `check` is content."""
    backup_id = clinic.back_up()
    assert drill_lines(clinic) == [("warning", "no restore was ever tested")]
    done = clinic.run("restore-test", SOURCE, "--json").ok()
    assert {"verdict", "backup_id", "checks", "rpo_s", "rto_s"} <= done.json.keys()
    assert (done.json["verdict"], done.json["backup_id"]) == ("PASS", backup_id)
    assert set(outcomes(done)) >= CHECKS - {"sql"}
    assert set(outcomes(done).values()) == {"PASS"}
    assert all({"name", "outcome", "detail", "figures"} <= each.keys() for each in done.json["checks"])
    last = clinic.records()[-1]
    assert (last["operation"], last["phase"], last["backup_id"]) == ("restore-test", "done", backup_id)
    assert drill_lines(clinic) == [("ok", "the last drill that passed is 0 days old")]


def test_a_second_factor_in_clear_fails(clinic: Installation) -> None:
    """Exit code 1: both the column and the dump tell, without repeating the secret; `check` calls it a problem."""
    clinic.database.execute("UPDATE users SET totp_secret = %s WHERE id = 3", (clinic.secrets.seeds[2].encode(),))
    clinic.back_up()
    done = clinic.run("restore-test", SOURCE, "--json")
    assert (done.code, done.json["verdict"]) == (1, "FAIL")
    assert outcomes(done)["totp"] == "FAIL"
    assert clinic.records()[-1]["phase"] == "failed"
    assert any(state == "problem" and "did not pass" in text for state, text in drill_lines(clinic))


def test_a_drill_of_an_older_backup_says_nothing_of_the_newest(clinic: Installation) -> None:
    """Neither does its pass end the alarm of the newest, nor does its failure raise one."""
    older = clinic.back_up()
    clinic.database.execute("UPDATE users SET totp_secret = %s WHERE id = 3", (clinic.secrets.seeds[2].encode(),))
    newer = clinic.back_up()
    assert clinic.run("restore-test", SOURCE).code == 1
    clinic.run("restore-test", SOURCE, "--backup", older).ok()
    assert any(state == "problem" and "did not pass" in text for state, text in drill_lines(clinic))
    clinic.database.execute("UPDATE users SET totp_secret = NULL, is_totp_enabled = false WHERE id = 3")
    clinic.back_up()
    clinic.run("restore-test", SOURCE).ok()
    assert drill_lines(clinic) == [
        ("warning", f"the last drill of {newer}, an older backup, did not pass"),
        ("ok", "the last drill that passed is 0 days old"),
    ]


def test_without_a_key_nothing_is_proved(clinic: Installation) -> None:
    """Exit code 3, and not a pass: the custodian of the secret key is away, and the trail tells that a drill was wanted."""
    clinic.back_up()
    clinic.secret_key.unlink()
    done = clinic.run("restore-test", SOURCE, "--json")
    assert (done.code, done.error["exit_code"]) == (3, 3)
    assert "operations.sec.asc does not exist" in done.error["error"]
    last = clinic.records()[-1]
    assert (last["operation"], last["error"]) == ("restore-test", done.error["error"])
