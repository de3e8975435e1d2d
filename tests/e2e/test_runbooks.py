"""The runbooks, followed as they stand on a whole installation: each command runs, and shows what the page says one must see.

Only places are ours: `/etc/backupd` is a directory of the test, `/dev/shm` one in memory, `db.example` the test's server. A
block of TOML is what somebody writes into the configuration at that point.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backupd.columns.keyring import Keyring
from backupd.redact import Secret
from tests.e2e.processes import wait_for
from tests.installation import CHECKOUT, KEY_ID, SOURCE, Installation, edited, installed, keep, plant
from tests.leak_watch import Planted
from tests.parts.openbao import OpenBao, running_openbao
from tests.parts.postgres import PostgresServer, postgres_bin
from tests.parts.process import short_directory

RUNBOOKS = CHECKOUT / "docs" / "runbooks"
_WIDE = "240"  # characters, so that no table breaks what is looked for
_WHOLE_LOG = 1_000_000  # lines: what is looked for is at its beginning
_FOR_ONE_KEY = r"(?:^\*\*(Operations|Escrow) key:\*\*[^\n]*\n\n)?"
_BLOCK = rf"(?ms){_FOR_ONE_KEY}^```(\w+)\n(.*?)^```$(.*?)(?=^```|^\*\*|^#|\Z)"
PAGES = sorted(path.name for path in RUNBOOKS.glob("*.md") if path.name != "README.md")


@dataclass(frozen=True, slots=True)
class Step:
    """One block of a page: its language, and of a command what one must see and the exit code."""

    language: str
    text: str
    seen: tuple[str, ...]
    code: int
    key: str = ""  # "Operations" or "Escrow" when it is for the change of that key alone


def page(name: str) -> str:
    return (RUNBOOKS / name).read_text()


def steps(text: str, heading: str | None = None) -> list[Step]:
    """The blocks of a page, or of the part below one heading, in their order."""
    if heading is not None:
        _, found, text = text.partition(f"\n{heading}\n")
        assert found, f"there is no heading {heading}"
        text = re.split(r"(?m)^## ", text)[0]
    made = []
    for key, language, body, after in re.findall(_BLOCK, text):
        said = re.search(r"(?s)You see: (.*?)\.(?:\s|$)", after)
        code = re.search(r"Exit code (\d)", after.partition("You see")[0])
        spans = tuple(re.findall(r"`([^`]+)`", said[1])) if said else ()
        made.append(Step(language, body, spans, int(code[1]) if code else 0, key))
    return made


@dataclass
class Night:
    """Somebody who follows a page: where its places are here, what was set so far, and what was printed."""

    clinic: Installation
    places: dict[str, str]
    environment: dict[str, str]
    settings: list[str] = field(default_factory=list)

    def follow(self, found: list[Step], **values: str) -> str:
        """Do the steps in order, with these variables set before, as they stay; all that they print."""
        assert found
        self.environment |= values
        return "".join(self._do(step) for step in found)

    def ours(self, text: str) -> str:
        for theirs, here in self.places.items():
            text = text.replace(theirs, here)
        return text

    def _do(self, step: Step) -> str:
        if step.language == "toml":
            self._write(self.ours(step.text))
            return ""
        script = self.ours(step.text)
        done = subprocess.run(
            ["sh", "-eu", "-c", "\n".join([*self.settings, script])],
            cwd=self.clinic.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        shown = f"{done.stdout}{done.stderr}"
        self.clinic.secrets.planted.assert_absent(shown, "what the commands print")
        assert done.returncode == step.code, f"{script}\n{shown}"
        flat = " ".join(shown.split())
        missing = [each for each in step.seen if each not in flat]
        assert not missing, f"{script}\nshows no {missing}:\n{shown}"
        self.settings += re.findall(r"(?m)^(?:export )?[A-Z_]+=.*$", script)
        return shown

    def _write(self, fragment: str) -> None:
        """As somebody with an editor."""
        [path] = [Path(each.partition("=")[2]) for each in self.settings if each.startswith("export BACKUPD_CONFIG=")][-1:]
        there = path.read_text() if path.exists() else ""
        path.write_text(edited(there, fragment))
        tomllib.loads(path.read_text())


@pytest.fixture
def clinic(tmp_path: Path, postgres17: PostgresServer, planted: Planted) -> Iterator[Installation]:
    """An installation with one backup, laid out as the pages say, all of it on one host."""
    with installed(tmp_path, postgres17, plant(planted)) as made:
        secrets = made.directory / "secrets"
        shutil.copytree(made.custody, secrets)
        (secrets / "password").rename(secrets / "clinic.password")
        (secrets / "escrow.sec.asc").unlink()
        shutil.copy(secrets / "keyring.json", secrets / "archive.json")
        planted.register(postgres17.password, "superuser's password")
        keep(secrets / "owner.password", postgres17.password.encode())
        totp = made.tables["totp"].replace("custody/", "secrets/") + 'archive = { file = "secrets/archive.json" }\n'
        source = made.tables["source"].replace("custody/password", "secrets/clinic.password")
        address = f"{postgres17.host}:{postgres17.port}"
        source += f'columns_dsn = "postgresql://postgres@{address}/{made.database.name}"\n'
        source += 'columns_password = { file = "secrets/owner.password" }\n'
        made.tables.update(source=source, totp=totp)
        for name in ("encryption", "drill"):
            made.tables[name] = made.tables[name].replace("custody/", "secrets/")
        made.configure()
        yield made


@pytest.fixture
def night(clinic: Installation) -> Iterator[Night]:
    """Everything that the pages ask for is at hand, below directories of the test."""
    server = clinic.database.server
    with short_directory("bd-night-") as unique:
        memory = Path("/dev/shm") / unique.name
        programs, usb, safe, state = (unique / name for name in ("bin", "usb", "safe", "state"))
        try:
            for path in (memory, programs, usb, safe, state):
                path.mkdir(mode=0o700)
            (programs / "backupd").write_text(f'#!/bin/sh\nexec {sys.executable} -m backupd "$@"\n')
            (programs / "backupd").chmod(0o755)
            keep(safe / "escrow.sec.asc", clinic.secrets.escrow.secret.reveal())
            (safe / "signing.pub.asc").write_bytes(clinic.secrets.signing.public)
            places = {
                "/etc/backupd": str(clinic.directory),
                "/var/lib/backupd": str(state),
                "/dev/shm": str(memory),
                "/media/usb": str(usb),
                "/media/safe": str(safe),
                "/srv/safe": str(safe),
                "s3://clinic-backups/prod": f"file://{clinic.store}",
                "host=db.example user=postgres": f"host={server.host} port={server.port} user=postgres",
            }
            environment = clinic.environment()
            del environment["BACKUPD_CONFIG"]
            environment["PATH"] = f"{programs}:{postgres_bin(17)}:{environment['PATH']}"
            yield Night(clinic, places, environment | {"SOURCE": SOURCE, "COLUMNS": _WIDE})
        finally:
            shutil.rmtree(memory)


def states(shown: str) -> list[str]:
    """The states in what `backupd list` printed."""
    return re.findall(r"(?m)(committed|damaged|out of order)\s*$", shown)


# ------------------------------------------------------------------------------------------------------------- the form


@pytest.mark.parametrize("name", PAGES)
def test_each_begins_with_when_and_what_it_costs_and_ends_with_what_to_write_down(name: str) -> None:
    text = page(name)
    marks = ["**When:**", "**Costs:**", "**In hand:**", "**1. ", "is over when" if "is over when" in text else "Over when:"]
    found = [text.find(mark) for mark in [*marks, "## Write down"]]
    assert -1 not in found
    assert found == sorted(found)


@pytest.mark.parametrize("name", PAGES)
def test_the_steps_are_numbered_without_a_gap(name: str) -> None:
    for part in re.split(r"(?m)^## ", page(name)):
        numbers = [int(number) for number in re.findall(r"(?m)^\*\*(\d+)\. ", part)]
        assert numbers == list(range(1, len(numbers) + 1))


def test_no_command_escapes_the_tests_below() -> None:
    """A page is followed whole, or by its parts; then each part that has a command is in a test."""
    tests = Path(__file__).read_text()
    for name in PAGES:
        text = page(name)
        assert "```sh" not in text.partition("\n## ")[0]
        parts = re.findall(r"(?ms)^## ([^\n]*)\n(.*?)(?=^## |\Z)", text)
        commanding = [f'"## {heading}"' for heading, body in parts if "```" in body]
        assert f'steps(page("{name}"))' in tests or [each for each in commanding if each not in tests] == []


def test_a_variable_means_the_same_wherever_a_page_sets_it() -> None:
    """Pages and their parts are typed into one shell, and what one has set the next one takes."""
    texts = re.sub(r"(?m)^export ", "", "".join(map(page, PAGES)))
    for name in sorted(set(re.findall(r"\$\{([A-Z_]+):", texts))):
        assert len(set(re.findall(rf"(?m)^{name}=.*$", texts))) == 1, name


# ------------------------------------------------------------------------------------------------------------ rotations


def test_rotate_a_column_key(night: Night) -> None:
    found = steps(page("rotate-a-column-key.md"))
    night.follow(found[:6])
    assert KEY_ID not in night.follow(found[6:7])
    night.follow(found[7:])
    ring = json.loads((night.clinic.directory / "secrets" / "keyring.json").read_text())
    assert ring["current"] == "2027-1"
    assert KEY_ID in json.loads((night.clinic.directory / "secrets" / "archive.json").read_text())["keys"]


def test_rotate_the_backup_key(night: Night) -> None:
    before = night.clinic.back_up()
    night.follow([step for step in steps(page("rotate-the-backup-key.md")) if step.key != "Escrow"], BEFORE=before)
    told = night.clinic.run("restore-test", SOURCE, "--backup", before)
    assert told.code == 3
    assert "COULD NOT VERIFY" in told.stdout
    assert not list(Path(night.places["/dev/shm"]).iterdir())


def test_rotate_the_escrow_key(night: Night) -> None:
    before = night.clinic.back_up()
    night.follow(
        [step for step in steps(page("rotate-the-backup-key.md")) if step.key != "Operations"], BEFORE=before, KEY="escrow"
    )
    night.clinic.run("restore-test", SOURCE, "--backup", before).ok()  # the operations key is a recipient as before
    safe, apart = (sorted(path.name for path in Path(night.places[each]).iterdir()) for each in ("/media/safe", "/media/usb"))
    assert safe == ["escrow-2027.sec.asc", "escrow.sec.asc", "signing.pub.asc"]
    assert apart == ["escrow-2027.rev.asc"]
    assert not list(Path(night.places["/dev/shm"]).iterdir())


def test_rotate_the_signing_key(night: Night) -> None:
    (night.clinic.keys / "escrow.pub.asc").rename(night.clinic.keys / "escrow-2027.pub.asc")  # that key was changed before
    recipients = ["keys/operations.pub.asc", "keys/escrow-2027.pub.asc"]
    night.clinic.tables["encryption"] = night.clinic.tables["encryption"].replace("/escrow.", "/escrow-2027.")
    night.clinic.configure()
    night.clinic.back_up()
    shown = night.follow(steps(page("rotate-the-signing-key.md")))
    assert tomllib.loads(night.clinic.config.read_text())["encryption"]["recipients"] == recipients
    assert states(shown) == ["committed"] * 3  # one by the host that restores before the change, two after it
    assert "cannot be believed" not in shown
    assert not (night.clinic.directory / "secrets" / "signing.sec.asc").exists()


# ----------------------------------------------------------------------------------------------------------- bad nights


def test_key_compromise_first_and_the_signing_key(night: Night) -> None:
    before = night.clinic.back_up()
    head = night.clinic.run("audit", "verify").ok().stdout.partition("head: ")[2].split()[0]
    text, signing = page("key-compromise.md"), page("rotate-the-signing-key.md")
    night.follow(steps(text, "## First, whatever it was"), HEAD=head)
    night.follow(steps(signing)[:-1])
    last = steps(text, "## B. The signing key")
    end = night.follow(last, NEEDED=before, STORE=str(night.clinic.store))
    assert states(end) == ["damaged", "committed"]
    assert night.clinic.store is not None
    with pytest.raises(AssertionError, match="No such file"):
        night.follow(last[-1:], STORE="/mistyped")
    manifest = night.clinic.store / SOURCE / before / "manifest.asc"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    with pytest.raises(AssertionError, match="audit export"):
        night.follow(last[-1:], STORE=str(night.clinic.store))


def test_key_compromise_names_a_forged_backup_and_goes_on_when_it_is_moved_away(night: Night) -> None:
    clinic, first = night.clinic, steps(page("key-compromise.md"), "## First, whatever it was")
    clinic.back_up()
    head = clinic.run("audit", "verify").ok().stdout.partition("head: ")[2].split()[0]
    of_a_thief = clinic.configure("thief.toml", audit=f'[audit]\nurl = "sqlite:///{clinic.directory / "thief.db"}"\n')
    forged = clinic.run("backup", SOURCE, "--json", config=of_a_thief).ok().json[0]["backup_id"]
    with pytest.raises(AssertionError, match="is in the store and not in the trail"):
        night.follow(first, HEAD=head)
    clinic.back_up()
    assert clinic.store is not None
    shutil.move(clinic.store / SOURCE / forged, clinic.directory / "evidence")
    night.follow(first)
    assert f"follows {forged}" in clinic.run("list", SOURCE).stderr


@pytest.mark.parametrize("key", ["operations", "escrow"])
def test_key_compromise_of_a_backup_key(night: Night, key: str) -> None:
    with_certificate = Path(night.places["/media/usb"])
    night.clinic.run("keys", "generate", "--directory", str(with_certificate / "made")).ok()
    (with_certificate / "made" / f"{key}.rev.asc").rename(with_certificate / f"{key}.rev.asc")
    shutil.copy(with_certificate / "made" / f"{key}.pub.asc", night.clinic.keys)
    night.follow(steps(page("key-compromise.md"), "## A. A key that opens backups"), KEY=key)
    shutil.copy(with_certificate / f"{key}-revoked.pub.asc", night.clinic.keys / f"{key}.pub.asc")
    refused = night.clinic.run("backup", SOURCE)
    assert refused.code != 0
    assert "revoked" in refused.stderr


def test_key_compromise_of_the_password(night: Night) -> None:
    server, role = night.clinic.database.server, night.clinic.role
    old = night.clinic.secrets.password
    night.settings.append(f"export BACKUPD_CONFIG={night.clinic.config}")
    part = steps(page("key-compromise.md"), "## E. The password of the backup role")
    with pytest.raises(AssertionError, match="no password supplied"):
        night.follow(part, ROLE=role)
    assert (night.clinic.directory / "secrets" / "clinic.password").read_text().strip() == old
    night.clinic.run("check").ok()  # the server has the old one still
    night.follow(part, ROLE=role, PGPASSWORD=server.password)
    assert (night.clinic.directory / "secrets" / "clinic.password").read_text().strip() != old
    keep(night.clinic.directory / "secrets" / "clinic.password", old.encode())
    assert night.clinic.run("check").code == 1


def test_lost_keys(night: Night) -> None:
    night.clinic.back_up()
    keyring = night.clinic.directory / "secrets" / "keyring.json"
    text = page("lost-key.md")
    night.follow(steps(text, "## A. A key that opens backups"))
    archive = keyring.with_name("archive.json")
    assert (Path(night.places["/media/safe"]) / "escrow.sec.asc").exists()
    keyring.rename(Path(night.places["/media/usb"]) / "keyring.json")
    night.follow(steps(text, "## B. A column key of which there is a copy")[:-1], CURRENT=KEY_ID)
    other = Keyring.generate("2027-1").render().reveal()
    keep(keyring, other)
    keep(archive, other)
    assert KEY_ID in night.follow(steps(text, "## C. A column key that is gone"))
    drilled = night.clinic.run("restore-test", SOURCE)
    assert drilled.code == 1
    assert KEY_ID in drilled.stdout


def test_a_lost_archive_comes_back_and_the_keyring_beside_it_is_not_written_over(night: Night) -> None:
    night.clinic.back_up()
    keyring = night.clinic.directory / "secrets" / "keyring.json"
    archive, only_copy = keyring.with_name("archive.json"), Keyring.generate("2027-1").render().reveal()
    archive.rename(Path(night.places["/media/usb"]) / "keyring.json")
    keep(keyring, only_copy)
    found = steps(page("lost-key.md"), "## B. A column key of which there is a copy")
    with pytest.raises(AssertionError, match="test ! -e"):
        night.follow(found[:3])
    assert keyring.read_bytes() == only_copy
    assert not archive.exists()
    night.follow(found[2:4], MISSING=str(archive))
    assert keyring.read_bytes() == only_copy


def test_a_retired_key_is_not_current_again_when_the_archive_comes_back_as_the_keyring(night: Night) -> None:
    night.clinic.run("columns", "rotate", SOURCE, "--to", "2027-1", "--stage", "all", "--apply").ok()
    night.clinic.run("columns", "retire", SOURCE, "--key", KEY_ID, "--apply").ok()
    night.clinic.back_up()
    keyring = night.clinic.directory / "secrets" / "keyring.json"
    archive = json.loads(keyring.with_name("archive.json").read_text()) | {"current": KEY_ID}  # as it was begun
    keep(keyring.with_name("archive.json"), json.dumps(archive).encode())
    keyring.unlink()
    night.follow(
        steps(page("lost-key.md"), "## B. A column key of which there is a copy"),
        COPY=str(keyring.with_name("archive.json")),
        CURRENT="2027-1",
        OTHER=KEY_ID,
    )
    ring = Keyring.parse(Secret(keyring.read_bytes()))
    assert (ring.current, list(ring.keys), ring.retired) == ("2027-1", ["2027-1"], (KEY_ID,))


# ------------------------------------------------------------------------------------------------------------ custodians


@pytest.fixture
def bao(clinic: Installation, tmp_path: Path) -> Iterator[OpenBao]:
    """A Vault of its own, set up by docs/custodians.md with the installation's keys."""
    document = (CHECKOUT / "docs" / "custodians.md").read_text()
    [script] = re.findall(r"(?ms)^```sh\n(.*?)^```", document)
    with running_openbao() as server:
        subprocess.run(
            ["sh", "-eu", "-c", script],
            cwd=clinic.directory / "secrets",
            env={**clinic.environment(), "BAO_ADDR": server.address, "BAO_TOKEN": server.root_token},
            capture_output=True,
            check=True,
            timeout=60,
        )
        yield server


def served(clinic: Installation, bao: OpenBao) -> None:
    """Let the drill's key and the column's keys be asked from that Vault."""
    identities = (
        f'[vault]\naddress = "{bao.address}"\n'
        'approle = { role_id = "backups", secret_id = { file = "secrets/vault-backups" } }\n'
        '[drill]\nsecret_key = { vault = "secret/backup/operations" }\n'
        '[drill.vault]\napprole = { role_id = "drills", secret_id = { file = "secrets/vault-drills" } }\n'
    )
    totp = clinic.tables["totp"].replace(
        'keys = { file = "secrets/keyring.json" }', 'keys = { vault = "secret/clinic/totp", field = "keyring" }'
    )
    clinic.tables.update(drill=identities, totp=totp)
    clinic.configure()


def share_of(bao: OpenBao, path: Path) -> Path:
    """The one share of the unseal key, which a server in development mode prints when it has started."""
    process = bao.process
    assert process is not None
    found = wait_for(lambda: re.findall(r"Unseal Key: (\S+)", process.log_tail(_WHOLE_LOG)))
    assert found is not None
    return keep(path, found[0].encode())


def test_custodian_down(night: Night, bao: OpenBao) -> None:
    served(night.clinic, bao)
    night.clinic.back_up()
    share = share_of(bao, Path(night.places["/media/usb"]) / "share")
    bao.ask("PUT", "sys/seal", {})
    told = night.clinic.run("restore-test", SOURCE, "--secret-key", "secrets/operations.sec.asc")
    assert told.code == 3
    found = steps(page("custodian-down.md"))
    night.follow(found[:-2], BAO_ADDR=bao.address, SHARE=str(share))
    assert "did not pass" in night.clinic.run("check").stdout  # which is why the drill comes before the last look
    night.follow(found[-2:])


def test_key_compromise_of_a_login(night: Night, bao: OpenBao) -> None:
    served(night.clinic, bao)
    night.clinic.run("check").ok()
    part = steps(page("key-compromise.md"), "## D. A login to Vault")
    night.follow(part[:2], BAO_ADDR=bao.address, BAO_TOKEN=bao.root_token)
    refused = night.clinic.run("check")
    assert refused.code == 1
    night.follow(part[2:], BAO_ADDR=bao.address, BAO_TOKEN=bao.root_token)
    night.clinic.run("check").ok()
    assert not list(Path(night.places["/dev/shm"]).iterdir())


def test_key_compromise_of_a_login_says_that_a_sealed_vault_ended_none(night: Night, bao: OpenBao) -> None:
    bao.ask("PUT", "sys/seal", {})
    ending = steps(page("key-compromise.md"), "## D. A login to Vault")[:1]
    with pytest.raises(AssertionError, match="sealed") as failed:
        night.follow(ending, BAO_ADDR=bao.address, BAO_TOKEN=bao.root_token)
    assert "Traceback" not in str(failed.value)


# -------------------------------------------------------------------------------------------------------------- restores


def test_restore_without_the_daemon(night: Night) -> None:
    night.clinic.back_up()
    server = night.clinic.database.server
    fresh = Path(night.places["/var/lib/backupd"]) / "fresh"  # a host on which there is nothing yet
    night.places |= {"/etc/backupd": str(fresh / "etc"), "/var/lib/backupd": str(fresh / "lib")}
    (Path(night.places["/media/usb"]) / "signing.pub.asc").write_bytes(night.clinic.secrets.signing.public)
    name = f"{night.clinic.database.name}_restored"
    try:
        night.follow(
            steps(page("restore-without-the-daemon.md")),
            DATABASE=name,
            SERVER=server.host,
            PORT=str(server.port),
            PGPASSWORD=server.password,
        )
        assert server.execute("SELECT count(*) FROM users", database=name) == [(13,)]
    finally:
        server.drop_database(name)
    assert not list(Path(night.places["/dev/shm"]).iterdir())
    assert (Path(night.places["/media/safe"]) / "escrow.sec.asc").exists()


def test_release_a_session_key(night: Night) -> None:
    night.clinic.back_up()
    shown = night.follow(steps(page("release-a-session-key.md")))
    codes = re.findall(r"[0-9a-f]{4}(?:-[0-9a-f]{4}){4}", shown)
    assert len(set(codes)) == 1
    assert len(codes) >= 2
    assert not list(Path(night.places["/dev/shm"]).glob("*.key"))


def test_release_a_session_key_after_the_signing_key_was_changed(night: Night) -> None:
    night.clinic.back_up()
    night.follow(steps(page("rotate-the-signing-key.md")))
    shutil.copy(night.clinic.keys / "signing-2027.pub.asc", night.places["/srv/safe"])
    text = page("release-a-session-key.md")
    with pytest.raises(AssertionError, match="with one --signer for each"):
        night.follow(steps(text))
    shutil.rmtree(night.places["/dev/shm"])
    Path(night.places["/dev/shm"]).mkdir(mode=0o700)
    [added] = re.findall(r"add `(--signer \S+)`", text)
    night.follow(steps(re.sub(r"(--signer \S+) ?(?=--secret-key|\n)", rf"\1 {added} ", text)))
