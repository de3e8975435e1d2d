"""`backupd columns` as a person uses it: status, encrypt, rotate, retire, and the drills of backups from before."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest

from backupd.columns.keyring import Keyring
from backupd.redact import Secret
from tests.installation import KEY_ID, PATIENTS, SOURCE, Completed, Installation, Secrets, installed, keep
from tests.parts.postgres import PostgresServer

NEW = "2027-1"
TOTP = f"""\
[[sources.{SOURCE}.totp]]
table = "users"
id_column = "id"
column = "totp_secret"
enrolled = "is_totp_enabled"
cipher = "aes-256-gcm"
keys = {{ file = "custody/keyring.json" }}
"""
ARCHIVE = 'archive = { file = "custody/archive.json" }\n'


@pytest.fixture
def clinic(tmp_path: Path, postgres17: PostgresServer, secrets: Secrets) -> Iterator[Installation]:
    """An installation with a role that may write the users, and nothing else."""
    with installed(tmp_path, postgres17, secrets) as made:
        role, password = postgres17.create_role()
        made.database.execute(f"GRANT SELECT, UPDATE ON users TO {role}")
        keep(made.custody / "columns", secrets.planted.register(password, "password").encode())
        made.tables["source"] += (
            f'columns_dsn = "{postgres17.dsn(made.database.name, role)}"\ncolumns_password = {{ file = "custody/columns" }}\n'
        )
        made.tables["totp"] = TOTP
        made.configure()
        yield made
        made.database.execute(f"REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}; DROP ROLE {role}")


def keyring(clinic: Installation, name: str = "keyring.json") -> Keyring:
    return Keyring.parse(Secret((clinic.custody / name).read_bytes()))


def rotate(clinic: Installation, *arguments: str) -> Completed:
    """None of the keyring's keys, the new one among them, may be printed."""
    done = clinic.run("columns", "rotate", SOURCE, "--to", NEW, *arguments)
    for key in keyring(clinic).keys.values():
        assert key.reveal().hex() not in done.stdout + done.stderr
    kept = json.loads((clinic.custody / "keyring.json").read_bytes())
    assert not any(text in done.stdout + done.stderr for text in kept["keys"].values())
    return done


def drill(clinic: Installation, backup_id: str) -> Completed:
    return clinic.run("restore-test", SOURCE, "--backup", backup_id, "--json")


def test_status_counts_by_key_and_form_and_clear_text_fails(clinic: Installation) -> None:
    [status] = clinic.run("columns", "status", "--json").ok().json
    assert status["key_ids"] == [KEY_ID]
    assert status["counts"] == [
        {"column": "totp_secret", "form": "aes-256-gcm", "key_id": KEY_ID, "rows": PATIENTS, "hazard": False}
    ]
    clinic.database.execute("UPDATE users SET totp_secret = 'JBSWY3DPEHPK3PXP' WHERE id = 1")
    failed = clinic.run("columns", "status")
    assert failed.code == 1
    assert "HAZARD: in clear, of all values: 1" in failed.stderr
    assert "JBSWY3DPEHPK3PXP" not in failed.stdout + failed.stderr
    assert clinic.run("columns", "status", "--json").json[0]["hazards"] == 1


def test_a_backup_from_before_a_rotation_drills_pass_for_as_long_as_the_archive_has_its_key(clinic: Installation) -> None:
    before = clinic.back_up()
    assert rotate(clinic).ok().stdout.splitlines()[-1] == "next: --stage add --apply"
    for stage in ("add", "promote", "rows"):
        rotate(clinic, "--stage", stage, "--apply").ok()
    assert clinic.run("columns", "status", "--json").ok().json[0]["key_ids"] == [NEW]
    after = clinic.back_up()

    refused = clinic.run("columns", "retire", SOURCE, "--key", KEY_ID, "--apply", "--json")
    assert refused.code == 4
    assert f"1 living backup name it, the oldest {before}" in refused.error["error"]
    assert "archive" in refused.error["hint"]

    keep(clinic.custody / "archive.json", (clinic.custody / "keyring.json").read_bytes())
    clinic.configure(totp=TOTP + ARCHIVE)
    planned = clinic.run("columns", "retire", SOURCE, "--key", KEY_ID, "--json").ok().json
    assert (planned["applied"], planned["figures"]["backups_naming_it"]) == (False, 1)
    assert KEY_ID in keyring(clinic).keys
    clinic.run("columns", "retire", SOURCE, "--key", KEY_ID, "--apply").ok()
    assert set(keyring(clinic).keys) == {NEW}
    assert KEY_ID in keyring(clinic, "archive.json").keys

    def told() -> list[str]:
        lines = clinic.run("check", "--json").json["lines"]
        return [line["text"] for line in lines if line["state"] == "problem" and "nor an archive has" in line["text"]]

    for backup_id in (before, after):
        assert drill(clinic, backup_id).ok().json["verdict"] == "PASS"
    assert told() == []

    keep(clinic.custody / "archive.json", (clinic.custody / "keyring.json").read_bytes())
    lost = drill(clinic, before)
    assert lost.code == 1
    [totp] = [check for check in lost.json["checks"] if check["name"] == "totp"]
    assert f"the key '{KEY_ID}' is missing from the keyring and the archive" in totp["detail"]
    assert drill(clinic, after).ok().json["verdict"] == "PASS"
    [line] = told()
    assert line.startswith(f"1 backup of users.totp_secret names the key {KEY_ID}, which")
    assert before in line
    clinic.run("audit", "verify").ok()


def test_a_key_that_a_column_with_a_link_to_the_keyring_names_is_not_retired(clinic: Installation) -> None:
    rotate(clinic, "--stage", "all", "--apply").ok()
    keep(clinic.custody / "archive.json", (clinic.custody / "keyring.json").read_bytes())
    (clinic.custody / "link.json").symlink_to(clinic.custody / "keyring.json")
    clinic.database.execute("ALTER TABLE users ADD recovery bytea")
    second = TOTP.replace('column = "totp_secret"', 'column = "recovery"').replace("keyring.json", "link.json")
    clinic.configure(totp=TOTP + ARCHIVE + second)
    retired = ("columns", "retire", SOURCE, "--column", "users.totp_secret", "--key", KEY_ID, "--apply", "--json")
    refused = clinic.run(*retired)
    assert refused.code == 4
    assert "users.recovery of clinic has the same keyring, and no archive" in refused.error["error"]
    clinic.configure(totp=TOTP + ARCHIVE + second + ARCHIVE)
    value = clinic.database.execute("SELECT totp_secret FROM users WHERE id = 1")[0][0].replace(NEW.encode(), KEY_ID.encode())
    clinic.database.execute("UPDATE users SET recovery = %s WHERE id = 1", (value,))
    refused = clinic.run(*retired)
    assert refused.code == 4
    assert "1 row of users.recovery name the key" in refused.error["error"]
    assert KEY_ID in keyring(clinic).keys


def test_an_old_backup_that_was_restored_is_told_of_everywhere_and_brought_under_the_current_key(
    clinic: Installation,
) -> None:
    """Its rows name a key that only the archive has: no application could read them."""
    before = clinic.back_up()
    rows = clinic.database.execute("SELECT id, totp_secret FROM users")
    keep(clinic.custody / "archive.json", (clinic.custody / "keyring.json").read_bytes())
    clinic.configure(totp=TOTP + ARCHIVE)
    rotate(clinic, "--stage", "all", "--apply").ok()
    clinic.run("columns", "retire", SOURCE, "--key", KEY_ID, "--apply").ok()

    [totp] = [check for check in drill(clinic, before).ok().json["checks"] if check["name"] == "totp"]
    assert f"users.totp_secret needs the archived key {KEY_ID}: after a restore, bring its rows under" in totp["detail"]

    with clinic.empty_database() as target:
        restored = clinic.run(*clinic.restore_arguments(target, "--backup", before), env=clinic.superuser).ok()
        assert f"users.totp_secret needs the keys {KEY_ID}: if one was retired" in restored.stdout
    for number, value in rows:
        clinic.database.execute("UPDATE users SET totp_secret = %s WHERE id = %s", (value, number))

    told = clinic.run("columns", "status")
    assert told.code == 1
    assert f"no application reads what names {KEY_ID} in users.totp_secret" in told.stderr
    assert f"`backupd columns rotate {SOURCE} --to ID --stage rows --apply`" in told.stderr
    lines = clinic.run("check", "--json").json["lines"]
    [lacking] = [line for line in lines if f"users.totp_secret name {KEY_ID}, and the keyring has no such key" in line["text"]]
    assert lacking["state"] == "problem"
    assert lacking["hint"].endswith(f"`backupd columns rotate {SOURCE} --to {NEW} --stage rows --apply`")

    assert rotate(clinic, "--stage", "rows", "--apply", "--json").ok().json["figures"]["rows_rewritten"] == PATIENTS
    [status] = clinic.run("columns", "status", "--json").ok().json
    assert (status["key_ids"], status["keys_lacking"]) == ([NEW], [])


def test_check_says_that_an_archive_is_the_keyring(clinic: Installation) -> None:
    (clinic.custody / "archive.json").symlink_to(clinic.custody / "keyring.json")
    clinic.configure(totp=TOTP + ARCHIVE)
    [line] = [each for each in clinic.run("check", "--json").json["lines"] if "is its keyring" in each["text"]]
    assert line["state"] == "problem"


def test_a_rotation_in_one_go(clinic: Installation) -> None:
    report = rotate(clinic, "--stage", "all", "--apply", "--json").ok().json
    assert f"rotate users.totp_secret all {NEW}" in clinic.run("audit", "list", env={"COLUMNS": "200"}).ok().stdout
    assert report["figures"] == {"rows_rewritten": PATIENTS, "overtaken": 0}
    assert report["applied"]
    assert rotate(clinic, "--json").ok().json["stage"] == "done"
    recorded = [record for record in clinic.records() if record["operation"] == "columns"]
    assert [record["phase"] for record in recorded] == ["intent", "done"] * 2
    assert recorded[0]["details"]["stage"] == "all"


def test_rows_that_cannot_be_read_are_named_and_the_exit_code_is_1(clinic: Installation) -> None:
    clinic.database.execute("UPDATE users SET totp_secret = '\\x01' WHERE id = 3")
    done = rotate(clinic, "--stage", "all", "--apply", "--json")
    assert done.code == 1
    assert done.json["left"][0]["row"] == "3"
    assert done.error["exit_code"] == 1
    assert "1 of the rows of users.totp_secret were left" in done.error["error"]
    assert done.json["figures"]["rows_rewritten"] == PATIENTS - 1


def test_a_column_in_clear_becomes_an_encrypted_one(clinic: Installation) -> None:
    role = clinic.database.execute(
        "SELECT grantee::text FROM information_schema.role_table_grants"
        " WHERE table_name = 'users' AND privilege_type = 'UPDATE' AND grantee LIKE 'r%'"
    )[0][0]
    clinic.database.execute(
        "ALTER TABLE users DROP totp_secret, ADD totp_secret varchar(64);"
        + "".join(f"UPDATE users SET totp_secret = '{seed}' WHERE id = {n};" for n, seed in enumerate(clinic.secrets.seeds, 1))
        + f"GRANT USAGE, CREATE ON SCHEMA public TO {role}; ALTER TABLE users OWNER TO {role}"
    )
    former = f'[sources.{SOURCE}.totp.former]\ncolumn = "totp_secret"\ncipher = "plaintext"\n'
    clinic.configure(totp=TOTP.replace('column = "totp_secret"', 'column = "totp_secret_sealed"') + former)
    assert clinic.run("columns", "status", "--json").json[0]["hazards"] == PATIENTS

    def lines_on_it() -> list[str]:
        lines = clinic.run("check", "--json").json["lines"]
        return [
            f"{each['state']}: {each['text']}"
            for each in lines
            if each["text"].split(" is ")[0] == "users.totp_secret" or each["text"].endswith(" in clear")
        ]

    for stage, then in (("column", "new version"), ("rows", "--stage finish"), ("finish", "remove `former`")):
        told = {
            "column": f"problem: {PATIENTS} second factors are still in users.totp_secret, in clear",
            "rows": f"problem: {PATIENTS} second factors are still in users.totp_secret, in clear",
            "finish": "warning: users.totp_secret is empty and still there",
        }
        assert lines_on_it() == [told[stage]]
        planned = clinic.run("columns", "encrypt", SOURCE).ok()
        assert f"--stage {stage} --apply" in planned.stdout
        done = clinic.run("columns", "encrypt", SOURCE, "--stage", stage, "--apply").ok()
        assert then in done.stdout
    clinic.configure(totp=TOTP.replace('column = "totp_secret"', 'column = "totp_secret_sealed"'))
    [status] = clinic.run("columns", "status", "--json").ok().json
    assert (status["hazards"], status["key_ids"], status["rows"]) == (0, [KEY_ID], PATIENTS)
    assert drill(clinic, clinic.back_up()).ok().json["verdict"] == "PASS"


def test_check_sounds_the_alarm_when_a_key_is_too_old(clinic: Installation) -> None:
    def lines() -> list[str]:
        found = clinic.run("check", "--json").json["lines"]
        return [
            f"{line['state']}: {line['text']}"
            for line in found
            if "key of users.totp_secret" in line["text"] or f"key {KEY_ID} of users" in line["text"]
        ]

    assert lines() == ["warning: nobody noted when the current key of users.totp_secret was made"]
    clinic.back_up()
    [line] = lines()
    assert line == f"ok: the current key {KEY_ID} of users.totp_secret is at least 0 days old; 365 are allowed"
    kept = json.loads((clinic.custody / "keyring.json").read_bytes())
    keep(clinic.custody / "keyring.json", json.dumps(kept | {"created": {KEY_ID: "2020-01-01"}}).encode())
    [line] = lines()
    assert line.startswith("problem: the current key")
    assert "and 365 are allowed" in line
    keep(clinic.custody / "keyring.json", json.dumps(kept | {"created": {KEY_ID: "2999-01-01"}}).encode())
    [line] = lines()
    assert line.endswith(f"the current key {KEY_ID} of users.totp_secret was made on a day that has not come")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("rotate", SOURCE, "--to", NEW, "--apply"), 2, "--apply needs a --stage"),
        (("rotate", SOURCE, "--to", NEW, "--pause", "nan"), 2, "nan is no number of seconds"),
        (("rotate", SOURCE, "--to", NEW, "--column", "users.name"), 2, "has no column users.name"),
        (("rotate", "nobody", "--to", NEW), 2, "no source is called 'nobody'"),
        (("rotate", SOURCE, "--to", "a key", "--stage", "add", "--apply"), 2, "not the id of a key"),
        (("rotate", SOURCE, "--to", NEW, "--stage", "rows", "--apply"), 2, "is not the keyring's current key"),
        (("encrypt", SOURCE), 2, "has no former column"),
        (("retire", SOURCE, "--key", KEY_ID), 4, "is the keyring's current key"),
        (("retire", SOURCE, "--key", "2019-1"), 4, "there is no archive"),
    ],
)
def test_what_cannot_be_done_is_one_line_a_hint_and_its_exit_code(
    clinic: Installation, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = clinic.run("columns", *arguments)
    error, hint = done.stderr.splitlines()
    assert done.code == code
    assert error.startswith("error: ")
    assert said in error
    assert hint.startswith("hint: ")


def test_without_a_role_that_writes_nothing_is_written(clinic: Installation) -> None:
    clinic.configure(source=clinic.tables["source"].partition("columns_dsn")[0])
    done = rotate(clinic, "--stage", "all", "--apply", "--json")
    assert done.code == 2
    assert "columns_dsn" in done.error["hint"]
    assert clinic.records()[-1]["operation"] == "columns"
    assert set(keyring(clinic).keys) == {KEY_ID}


def test_the_new_key_is_32_bytes_and_dated(clinic: Installation) -> None:
    rotate(clinic, "--stage", "add", "--apply").ok()
    kept = json.loads((clinic.custody / "keyring.json").read_bytes())
    assert len(b64decode(kept["keys"][NEW])) == 32
    assert set(kept["created"]) == {NEW}
    assert kept["current"] == KEY_ID
