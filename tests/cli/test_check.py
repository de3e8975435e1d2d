"""`backupd check`: what is wrong with an installation, told before a backup fails on it."""

from __future__ import annotations

import dataclasses
import os
import pwd
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest

from backupd import manifest as manifests
from backupd.audit.records import Operation
from backupd.audit.sqlite import SqliteStore
from backupd.audit.trail import Trail
from backupd.check.host import account_of_drills
from backupd.check.lines import State
from backupd.config import load
from backupd.manifest import Manifest
from backupd.openpgp import Home, cleartext
from backupd.openpgp.keys import generate
from backupd.postgres.scratch import OWN_ACCOUNT
from backupd.service import Service
from tests.audit.examples import ACTOR
from tests.installation import SOURCE, Completed, Installation, Secrets, installed, keep
from tests.parts.postgres import PostgresServer
from tests.parts.proxy import FaultProxy
from tests.parts.s3 import S3Server


def lines(done: Completed, state: str) -> list[str]:
    """What was said in this state, as `area: text`; each of them with a hint."""
    found: list[dict[str, Any]] = [each for each in done.json["lines"] if each["state"] == state]
    assert all(bool(each["hint"]) == (state != "ok") for each in found)
    return [f"{each['area']}: {each['text']}" for each in found]


def only(done: Completed, state: str) -> str:
    """The one line of this state."""
    found = lines(done, state)
    assert len(found) == 1, found
    return found[0]


def signed_anew(installation: Installation, backup_id: str, change: Callable[[Manifest], Manifest]) -> None:
    """What a thief of the signing key who can write the store does: put a changed manifest in the place of a backup's own."""
    assert installation.store is not None
    path = installation.store / SOURCE / backup_id / "manifest.asc"
    with Home() as den:
        thief = den.import_secret(installation.secrets.signing.secret)
        manifest = manifests.parse(cleartext.verify(den, path.read_bytes(), {thief}).text)
        signed = cleartext.sign(den, manifests.render(change(manifest)), thief)
    path.unlink()
    path.write_bytes(signed)


def test_a_sound_installation_passes(lived_in: Installation) -> None:
    """Everything is looked at, nothing is a problem, and the check stands in the trail."""
    done = lived_in.run("check", "--json").ok()
    assert done.json["ok"] is True
    assert lines(done, "problem") == []
    seen = "\n".join(lines(done, "ok"))
    for part in (
        "configuration: ",
        "custody: the signing key is in file:",
        "keys: recipient ",
        "keys: a text was sealed to the 2 recipients",
        "keys: a text was signed, and its signature verified",
        "keys: the drill's secret key ",
        "store: file://",
        "backups clinic: the newest of 2, ",
        "backups clinic: the trail and the store name the same backups",
        "trail: its ",
        "source clinic: its clock and ours agree",
        "source clinic: every table and sequence may be read",
        "source clinic: all 12 second factors in users.totp_secret are encrypted, with the keys 2026-1",
        "source clinic: roles are backed up with their passwords' hashes",
        "source clinic: pg_dump 17",
        "host: /dev/shm is a tmpfs",
    ):
        assert part in seen
    assert any("no restore was ever tested" in each for each in lines(done, "warning"))
    record = lived_in.records()[-1]
    assert (record["operation"], record["phase"], record["details"]["problems"]) == ("check", "done", [])


def test_nothing_of_a_check_stays_in_the_store(clinic: Installation) -> None:
    """The store's round trip is an upload that is given up: not a file is left of it."""
    clinic.run("check").ok()
    assert clinic.store is not None
    assert [path for path in clinic.store.rglob("*") if path.is_file()] == []


def test_a_check_makes_the_store_and_the_trail_and_nothing_else(clinic: Installation) -> None:
    """As its help and the README say."""
    before = set(clinic.directory.rglob("*"))
    clinic.run("check").ok()
    assert clinic.store is not None
    assert set(clinic.directory.rglob("*")) - before == {clinic.store, clinic.trail}


def test_people_get_a_table_and_a_hint_for_each_line(clinic: Installation) -> None:
    """Without --json, what is wrong stands again below the table, with what to do."""
    done = clinic.run("check").ok()
    assert "there is no backup yet" in done.stdout
    assert "hint: run `backupd backup clinic`" in done.stdout


def test_a_plaintext_second_factor_is_a_problem(clinic: Installation) -> None:
    """The hazard itself: it is counted, and never printed."""
    clinic.database.execute("UPDATE users SET totp_secret = %s WHERE id = 3", (clinic.secrets.seeds[2].encode(),))
    done = clinic.run("check", "--json")
    assert done.code == 1
    assert only(done, "problem") == (
        "source clinic: 1 of 12 second factors in users.totp_secret are not encrypted with aes-256-gcm"
    )


def test_an_enrolled_column_that_is_not_boolean_is_refused_and_none_of_its_values_shown(clinic: Installation) -> None:
    """By the check before the first backup, and by the drill of one."""
    clinic.back_up()
    mistaken = clinic.tables["totp"].replace("is_totp_enabled", "email")
    config = clinic.configure("mistaken.toml", totp=mistaken)
    done = clinic.run("check", "--json", config=config)
    assert only(done, "problem") == "source clinic: the column users.email is not boolean"
    drilled = clinic.run("restore-test", SOURCE, "--json", config=config)
    assert drilled.code != 0
    assert "is not boolean" in drilled.stdout
    assert "@clinic.example" not in drilled.stdout + drilled.stderr


def test_a_store_that_is_not_there_is_told_once(clinic: Installation) -> None:
    """Four looks end at it: three of the store and one of the trail's at the store."""
    store = f'[store]\nurl = "file://{clinic.directory}/missing/prod"\n'
    done = clinic.run("check", config=clinic.configure("missing.toml", store=store))
    assert done.code == 1
    assert done.stdout.count("problem: ") == 1
    assert ", 1 problem, " in done.stdout
    assert "holds 1 source," in done.stdout


def test_a_table_that_may_not_be_read_is_named(clinic: Installation) -> None:
    """One missing right is told with the GRANT that mends it."""
    clinic.database.execute(f"REVOKE pg_read_all_data FROM {clinic.role}; GRANT SELECT ON users TO {clinic.role}")
    done = clinic.run("check", "--json")
    assert done.code == 1
    assert 'may not read table "public"."appointments"' in only(done, "problem")
    assert any("roles are backed up without passwords" in each for each in lines(done, "warning"))


def test_a_superuser_is_warned_about(clinic: Installation) -> None:
    """A backup needs none of a superuser's rights."""
    clinic.database.execute(f"ALTER ROLE {clinic.role} SUPERUSER")
    assert any("is a superuser" in each for each in lines(clinic.run("check", "--json").ok(), "warning"))


def test_everything_is_looked_at_though_the_server_is_gone(clinic: Installation) -> None:
    """An unreachable source is one problem, and keys, store and trail are still told."""
    at = clinic.tables["source"].replace(f":{clinic.database.server.port}/", ":1/")
    done = clinic.run("check", "--json", config=clinic.configure("gone.toml", source=at))
    assert done.code == 1
    assert "there is no server at this address" in only(done, "problem")
    assert any("takes uploads" in each for each in lines(done, "ok"))
    assert any("signature verified" in each for each in lines(done, "ok"))


def test_a_missing_secret_and_one_in_the_environment_are_told(clinic: Installation) -> None:
    """Every custodian is asked."""
    (clinic.custody / "canary").unlink()
    at = clinic.tables["source"].replace('file = "custody/password"', 'env = "CLINIC_PASSWORD"')
    config = clinic.configure("env.toml", source=at)
    done = clinic.run("check", "--json", config=config, env={"CLINIC_PASSWORD": clinic.secrets.password})
    assert done.code == 1
    assert "custody/canary does not exist" in only(done, "problem")
    assert any("is in the environment, env:CLINIC_PASSWORD" in each for each in lines(done, "warning"))


def test_keys_that_soon_expire_or_open_nothing_are_told(clinic: Installation) -> None:
    """A recipient with ten days left is a warning; a drill's key that is no recipient's is a problem."""
    soon = generate("Clinic backups, soon", purpose="encrypt", expires_days=10)
    (clinic.keys / "operations.pub.asc").write_bytes(soon.public)
    done = clinic.run("check", "--json")
    assert done.code == 1
    assert "opens nothing: it is no recipient's" in only(done, "problem")
    assert any(f"{soon.fingerprint} (Clinic backups, soon) expires on" in each for each in lines(done, "warning"))


def test_column_keys_beside_backup_keys_are_a_problem(clinic: Installation) -> None:
    """Who finds the one must not have the other."""
    keep(clinic.custody / "keyring.json", clinic.secrets.signing.secret.reveal())
    totp = clinic.tables["totp"].replace("custody/keyring.json", "custody/signing.sec.asc")
    done = clinic.run("check", "--json", config=clinic.configure("mixed.toml", totp=totp))
    assert done.code == 1
    assert "are in one place" in only(done, "problem")


def test_a_backup_that_vanished_and_one_that_nobody_recorded(clinic: Installation) -> None:
    """The trail and the store accuse each other."""
    gone, moved = clinic.back_up(), clinic.back_up()
    assert clinic.store is not None
    shutil.rmtree(clinic.store / SOURCE / gone)
    done = clinic.run("check", "--json")
    assert done.code == 1
    assert only(done, "problem") == f"backups clinic: {gone} is in the trail and not in the store"

    clinic.trail.rename(clinic.directory / "hidden.db")
    done = clinic.run("check", "--json")
    assert done.code == 1
    assert only(done, "problem") == f"backups clinic: {moved} is in the store and not in the trail"


def test_no_record_excuses_a_backup_that_vanished(clinic: Installation) -> None:
    """Backupd removes none yet: who says so in the trail has forged the record, and is told with what it was to hide."""
    gone, _ = clinic.back_up(), clinic.back_up()
    assert clinic.store is not None
    shutil.rmtree(clinic.store / SOURCE / gone)
    forger = Trail(SqliteStore(str(clinic.trail)), ACTOR)
    forger.event(Operation.PRUNE, SOURCE, backup_id=gone)
    forger.intent(Operation.PRUNE, SOURCE, backup_id=gone).done()
    done = clinic.run("check", "--json")
    assert done.code == 1
    assert lines(done, "problem") == [
        "trail: record 5, and 2 more, tells of backups being removed, which this version of backupd never does",
        f"backups clinic: {gone} is in the trail and not in the store",
    ]
    listed = clinic.run("audit", "list", "--operation", "prune", "--json").ok().json
    assert [each["seq"] for each in listed] == [5, 6, 7]


def test_backups_whose_data_is_gone_are_told(clinic: Installation) -> None:
    """Their manifests are there and good, and nobody could restore them."""
    whole = clinic.back_up()
    clinic.run("list").ok()
    assert clinic.store is not None
    for path in (clinic.store / SOURCE).glob("*/*.gpg"):
        path.unlink()
    loss = "database.dump.gpg is not in the store, globals.sql.gpg is not in the store"
    listed = clinic.run("list", "--json")
    assert listed.code == 1
    assert [(each["backup_id"], each["state"], each["problem"]) for each in listed.json] == [(whole, "damaged", loss)]
    assert f"{SOURCE}/{whole}: {loss}" in clinic.run("list").stderr
    done = clinic.run("check", "--json")
    assert done.code == 1
    assert only(done, "problem") == f"backups clinic: {whole} is not all there: {loss}"
    assert "backups clinic: there is no good backup" in lines(done, "warning")

    made = clinic.back_up()
    assert any(
        each.startswith(f"backups clinic: the newest of 1, {made}, is ") for each in lines(clinic.run("check", "--json"), "ok")
    )


def test_a_store_that_lost_everything_is_told_once(clinic: Installation) -> None:
    """As when its disk is not mounted."""
    clinic.back_up()
    newest = clinic.back_up()
    assert clinic.store is not None
    clinic.store.rename(clinic.directory / "away")
    said = clinic.run("check").stdout
    none = f"backups clinic: the store has none of the backups that the trail knows: {newest} was the newest of 2"
    assert said.count(none) == 1
    assert "is in the trail and not in the store" not in said
    assert "is its disk mounted?" in said


def test_a_backup_that_does_not_follow_the_one_before_it_is_named(clinic: Installation) -> None:
    """The line says which of them does not."""
    first, gone, last = (clinic.back_up() for _ in range(3))
    assert clinic.store is not None
    shutil.rmtree(clinic.store / SOURCE / gone)
    said = lines(clinic.run("check", "--json"), "warning")
    assert f"backups clinic: {last} follows {gone}, which is not the one stored before it, {first}" in said


def test_a_newest_backup_that_was_replaced_in_its_place_is_told(clinic: Installation) -> None:
    """No later manifest names its digest yet; the trail does."""
    backup_id = clinic.back_up()
    signed_anew(clinic, backup_id, lambda manifest: dataclasses.replace(manifest, notes=("nothing to see",)))
    done = clinic.run("check", "--json")
    assert done.code == 1
    assert only(done, "problem") == (f"backups clinic: {backup_id} has another manifest than the one that its run published")
    assert not any("name the same backups" in each for each in lines(done, "ok"))
    for command in ("verify", "restore-test"):
        refused = clinic.run(command, SOURCE)
        assert refused.code == 1
        assert "has another manifest than the one that its run published" in refused.stderr


def test_a_newest_backup_that_is_still_to_come_is_told(clinic: Installation) -> None:
    """It would be young enough for years."""
    backup_id = clinic.back_up()

    def years_ahead(manifest: Manifest) -> Manifest:
        at = manifest.snapshot.taken_at + timedelta(days=3650)
        return dataclasses.replace(manifest, snapshot=dataclasses.replace(manifest.snapshot, taken_at=at))

    signed_anew(clinic, backup_id, years_ahead)
    done = clinic.run("check", "--json")
    assert done.code == 1
    to_come, replaced = lines(done, "problem")
    assert to_come.startswith(f"backups clinic: the newest of 1, {backup_id}, says that it is of ")
    assert to_come.endswith("which is still to come")
    assert "another manifest" in replaced


def test_an_error_that_nobody_expected_costs_one_line_and_not_the_report(clinic: Installation) -> None:
    """A part that fails in a way that is no error of ours; its text, which may be anything, is not told."""

    class BrokenStore(Service):
        @property
        def store(self) -> NoReturn:  # it gives none
            raise ZeroDivisionError("what may be secret")

    with BrokenStore(load(clinic.config), ACTOR, os.environ) as service:
        found = service.check()
    problems = [each for each in found if each.state is State.PROBLEM]
    assert {each.text for each in problems} == {"it could not be looked at: ZeroDivisionError"}
    assert all(each.hint for each in problems)
    assert {"keys", "trail", "host", f"source {SOURCE}"} <= {each.area for each in found if each.state is State.OK}


def test_a_trail_that_cannot_be_written_is_told_and_the_rest_looked_at(clinic: Installation) -> None:
    """The check itself is the one operation that goes on without a trail."""
    audit = f'[audit]\nurl = "sqlite:///{clinic.directory}/nowhere/audit.db"\n'
    done = clinic.run("check", "--json", config=clinic.configure("nowhere.toml", audit=audit))
    assert done.code == 1
    assert only(done, "problem").startswith("trail: check was not begun, because it cannot be recorded")
    assert any("may be read, all rows" in each for each in lines(done, "ok"))


@pytest.mark.parametrize("what", ["second column", "second table"])
def test_second_factors_that_are_not_there_are_told(clinic: Installation, what: str) -> None:
    """A column or table of the configuration that the database does not have."""
    wrong = {"second column": ('"totp_secret"', '"otp"'), "second table": ('"users"', '"accounts"')}[what]
    done = clinic.run("check", "--json", config=clinic.configure("wrong.toml", totp=clinic.tables["totp"].replace(*wrong)))
    assert done.code == 1
    assert "there is no column" in only(done, "problem")


def test_a_store_that_only_lets_us_read_is_a_problem(clinic: Installation, s3_server: S3Server) -> None:
    """The upload is refused in the check, not at two in the morning."""
    keep(clinic.custody / "s3", clinic.secrets.planted.register(s3_server.reader.secret_key, "S3 key").encode())
    store = (
        f'[store]\nurl = "s3://{s3_server.new_bucket()}/prod"\nendpoint_url = "{s3_server.endpoint}"\nregion = "us-east-1"\n'
        f'access_key_id = "{s3_server.reader.access_key}"\nsecret_access_key = {{ file = "custody/s3" }}\n'
    )
    done = clinic.run("check", "--json", config=clinic.configure("reader.toml", store=store))
    assert done.code == 1
    assert only(done, "problem").startswith("store: ")
    assert any(each == "store: it answers reads" for each in lines(done, "ok"))


def test_a_lock_that_the_bucket_does_not_keep_is_a_problem(
    tmp_path: Path, postgres17: PostgresServer, secrets: Secrets, s3_server: S3Server
) -> None:
    """A lock is configured, and the bucket was made without: nobody shall believe that backups are protected."""
    with installed(tmp_path, postgres17, secrets, s3_server) as clinic:
        clinic.run("check").ok()
        clinic.back_up()
        locked = clinic.tables["store"] + 'lock = { mode = "compliance", days = 1 }\n'
        done = clinic.run("check", "--json", config=clinic.configure("locked.toml", store=locked))
        assert done.code == 1
        upload, newest = lines(done, "problem")
        assert "written with a lock" in upload
        assert newest == "backups clinic: the newest backup is not locked, and compliance is configured"


def test_a_host_that_only_makes_backups_lacks_nothing(clinic: Installation) -> None:
    """None of the secrets that open anything is there. Some and not others is a problem, see above."""
    for name in ("keyring.json", "canary", "operations.sec.asc"):
        (clinic.custody / name).unlink()
    done = clinic.run("check", "--json").ok()
    [said] = [line for line in lines(done, "warning") if line.startswith("custody")]
    assert said.startswith("custody: this host opens neither backups nor columns: ")


def test_a_drill_that_would_share_its_account_with_the_scratch_server_is_a_warning(clinic: Installation) -> None:
    """The check says it of the account it runs as: root can give the server another one, nobody else can."""
    [shared] = account_of_drills(10001)
    [apart] = account_of_drills(0)
    assert shared.state is State.WARNING
    assert "could read backupd's keys" in shared.text
    its_own = any(each.pw_name == OWN_ACCOUNT for each in pwd.getpwall())
    assert apart.state is (State.OK if its_own else State.WARNING)
    assert its_own or f"create the account {OWN_ACCOUNT}" in (apart.hint or "")
    said = shared if os.geteuid() != 0 else apart
    assert f"{said.area}: {said.text}" in lines(clinic.run("check", "--json").ok(), said.state.value)


def test_the_store_is_listed_once_and_a_backup_made_meanwhile_is_not_missed(
    tmp_path: Path,
    postgres17: PostgresServer,
    secrets: Secrets,
    s3_server: S3Server,
    make_proxy: Callable[..., FaultProxy],
) -> None:
    """Anybody may have put manifests there, and each of them is read when they are listed."""
    proxy = make_proxy("127.0.0.1", s3_server.port)
    with installed(tmp_path, postgres17, secrets, s3_server) as clinic:
        manifest = f"{clinic.back_up()}/manifest.asc"
        slow = clinic.configure("slow.toml", store=clinic.tables["store"].replace(s3_server.endpoint, proxy.url))
        proxy.stall_next(method="GET", path=manifest)
        with ThreadPoolExecutor(1) as pool:
            checking = pool.submit(clinic.run, "check", "--json", config=slow)
            proxy.wait_until_stalled()
            clinic.back_up()
            proxy.release()
            done = checking.result().ok()
    assert lines(done, "problem") == []
    assert "backups clinic: the trail and the store name the same backups" in lines(done, "ok")
    assert proxy.count("GET", manifest) == 1
