"""One backup is opened by session keys that a custodian on another machine released, from end to end, as processes.

The host that restores has no secret key that opens backups; the custodian's machine has no configuration.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from backupd.openpgp.home import SHARED_MEMORY, in_memory
from backupd.redact import Secret
from backupd.release import accept, read
from backupd.release.request import code_of, render
from tests.installation import SOURCE, Completed, Installation, Secrets, installed, keep
from tests.parts.postgres import Database, PostgresServer, postgres_bin
from tests.parts.process import short_directory

# Notes how it was called, and with a session key also which secret keys its home has, then is the real one.
GPG = """\
#!/bin/sh
echo "$*" >>{log}
case $* in
    *--override-session-key-fd*)
        for each in "$@"; do
            if [ "$before" = --homedir ]; then home=$each; fi
            before=$each
        done
        echo "looked into $home" >>{secret}
        {gpg} --no-options --batch --homedir "$home" --with-colons --list-secret-keys </dev/null >>{secret} 2>&1
        ;;
esac
exec {gpg} "$@"
"""
PG_RESTORE = '#!/bin/sh\necho "$*" >>{log}\nexec {real} "$@"\n'


@dataclass(frozen=True, slots=True)
class Night:
    """An installation without a key that opens backups, the backups `a` and `b`, and a custodian's machine with the keys.

    `key` is the one-time key of the request for `a`, `release` the answer to it. `ears` logs the calls of gpg and pg_restore.
    """

    clinic: Installation
    safe: Path
    a: str
    b: str
    asked: dict[str, Any]
    answered: dict[str, Any]
    release: Path
    key: Path
    ears: Path

    @property
    def means(self) -> tuple[str, ...]:
        """The options that open `a`."""
        return ("--session-key", str(self.release), "--request-key", str(self.key))

    def heard(self, name: str) -> str:
        """What an ear has heard since it was last asked."""
        path = self.ears / f"{name}.log"
        text = path.read_text() if path.exists() else ""
        path.unlink(missing_ok=True)
        return text

    def listen(self, *arguments: str, env: dict[str, str] | None = None) -> Completed:
        """Run backupd with the ears in the way."""
        for log in self.ears.glob("*.log"):
            log.unlink()
        path = f"{self.ears}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        return self.clinic.run(*arguments, env={"PATH": path, **(env or {})})


def offline(clinic: Installation, *arguments: str) -> Completed:
    """backupd on a machine without a configuration."""
    return clinic.run(*arguments, env={"BACKUPD_CONFIG": ""})


def restoring(night: Night, to: Database, *more: str) -> tuple[str, ...]:
    address = f"postgresql://postgres@{to.server.host}:{to.server.port}/{to.name}"
    return ("restore", SOURCE, "--to", address, *night.means, *more, "--json")


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, postgres17: PostgresServer, secrets: Secrets) -> Iterator[Night]:
    directory = tmp_path_factory.mktemp("night")
    safe, place = directory / "safe", directory / "clinic"
    safe.mkdir(mode=0o700)
    place.mkdir()
    with installed(place, postgres17, secrets) as clinic:
        for name in ("operations", "escrow"):
            shutil.move(clinic.custody / f"{name}.sec.asc", safe / f"{name}.sec.asc")
        shutil.copy(clinic.keys / "signing.pub.asc", safe)
        ears = directory / "ears"
        _ears(ears)
        clinic.configure(drill=None, source=clinic.tables["source"] + f'clients = "{ears}"\n')
        a = clinic.back_up()
        clinic.database.execute("INSERT INTO appointments (user_id, \"when\", note) VALUES (1, now(), 'after a')")
        b = clinic.back_up()
        who = ("--operator", "the asker", "--reason", "a disk was lost")
        asked = (
            clinic.run("keys", "request", SOURCE, "--backup", a, "--out", str(place / "a.request"), *who, "--json").ok().json
        )
        for line in Path(asked["request_key"]).read_bytes().splitlines():
            if len(line) == 64:
                secrets.planted.register(line, "one-time key")
        shutil.copy(asked["request"], safe / "a.request")
        what = (str(safe / "a.request"), "--signer", str(safe / "signing.pub.asc"), "--code", asked["code"])
        means = ("--secret-key", str(safe / "escrow.sec.asc"), "--out", str(safe / "a.release"))
        answered = offline(clinic, "keys", "release", *what, *means, "--operator", "the custodian", "--json").ok().json
        release = Path(shutil.copy(safe / "a.release", place))
        for key in accept(release.read_bytes(), Secret(Path(asked["request_key"]).read_bytes()))[0].by_head.values():
            secrets.planted.register(key.text()[2:], "session key")
            secrets.planted.register(bytes.fromhex(key.text()[2:]), "session key")
        yield Night(clinic, safe, a, b, asked, answered, release, Path(asked["request_key"]), ears)


def _ears(directory: Path) -> None:
    directory.mkdir()
    real = shutil.which("gpg")
    assert real is not None
    program = directory / "gpg"
    program.write_text(GPG.format(log=directory / "gpg.log", secret=directory / "secret.log", gpg=real))
    program.chmod(0o755)
    for name in ("pg_dump", "pg_dumpall", "pg_restore"):
        if name != "pg_restore":
            (directory / name).symlink_to(postgres_bin(17) / name)
            continue
        program = directory / name
        program.write_text(PG_RESTORE.format(log=directory / "pg_restore.log", real=postgres_bin(17) / name))
        program.chmod(0o755)


def test_a_restores_and_no_secret_key_is_on_this_host(night: Night) -> None:
    """Looked at: gpg's home when the data is opened, and every file of the installation."""
    with night.clinic.empty_database() as target:
        done = night.listen(*restoring(night, target), env=night.clinic.superuser).ok().json
        assert done["backup_id"] == night.a
        assert target.execute("SELECT count(*) FROM appointments WHERE note = 'after a'") == [(0,)]
        assert target.execute("SELECT count(*) FROM appointments") == [(300,)]
    assert night.heard("gpg").count("--override-session-key-fd") == 2
    assert night.heard("pg_restore").count("--format=custom") == 1
    looked = night.heard("secret")
    assert looked.count("looked into") == 2
    assert not [line for line in looked.splitlines() if line.startswith(("sec", "ssb"))]
    for path in night.clinic.directory.rglob("*"):
        if path.is_file() and path not in {night.key, night.clinic.custody / "signing.sec.asc"}:
            assert b"PRIVATE KEY" not in path.read_bytes(), path
    for pair in (night.clinic.secrets.operations, night.clinic.secrets.escrow):
        line = next(each for each in pair.secret.reveal().splitlines() if len(each) == 64)
        assert not [path for path in night.clinic.directory.rglob("*") if path.is_file() and line in path.read_bytes()]


def test_a_passes_its_drill_and_a_deep_verification(night: Night) -> None:
    drilled = night.clinic.run("restore-test", SOURCE, *night.means, "--json").ok().json
    assert (drilled["verdict"], drilled["backup_id"]) == ("PASS", night.a)
    assert {each["outcome"] for each in drilled["checks"]} == {"PASS"}
    [deep] = night.clinic.run("verify", SOURCE, "--deep", *night.means, "--json").ok().json
    assert (deep["backup_id"], deep["deep"]) == (night.a, True)
    used = [each for each in night.clinic.records() if each["details"].get("action") == "use released session keys"]
    assert {each["details"]["for"] for each in used} >= {"restore-test", "verify"}
    assert {each["backup_id"] for each in used} == {night.a}


@pytest.mark.parametrize("command", ["restore", "restore-test", "verify"])
def test_b_is_refused_before_a_byte_reaches_gpg_or_pg_restore(night: Night, command: str) -> None:
    """Exit code 4, told in two lines, and recorded."""
    with night.clinic.empty_database() as target:
        arguments = {
            "restore": restoring(night, target, "--backup", night.b),
            "restore-test": ("restore-test", SOURCE, *night.means, "--backup", night.b, "--json"),
            "verify": ("verify", SOURCE, "--deep", *night.means, "--backup", night.b, "--json"),
        }[command]
        done = night.listen(*arguments, env=night.clinic.superuser)
        assert (done.code, done.error["exit_code"]) == (4, 4)
        assert f"is not what the session keys were released for, which is {night.a} of clinic" in done.error["error"]
        assert done.error["hint"] == "have them released for this backup: `backupd keys request`"
        assert target.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    assert "--override-session-key-fd" not in night.heard("gpg")
    assert "--format=custom" not in night.heard("pg_restore")
    last = night.clinic.records()[-1]
    assert (last["operation"], last["backup_id"], last["error"]) == (command, night.b, done.error["error"])


def test_request_and_release_are_recorded(night: Night) -> None:
    """The request in the trail; the release, on a machine that has none, in what is printed."""
    [intent, outcome] = [
        each for each in night.clinic.records() if each["operation"] == "keys" and each["actor"]["operator"] == "the asker"
    ]
    assert (intent["source"], intent["backup_id"], intent["phase"], outcome["phase"]) == (SOURCE, night.a, "intent", "done")
    assert intent["actor"]["reason"] == "a disk was lost"
    assert outcome["details"]["request_code"] == night.asked["code"]
    record = night.answered
    assert record["released"] is True
    assert (record["backup_id"], record["source"], record["code"]) == (night.a, SOURCE, night.asked["code"])
    assert record["asked_by"]["operator"] == "the asker"
    assert record["released_by"]["operator"] == "the custodian"
    assert record["keys_used"] == [night.clinic.secrets.escrow.fingerprint]


def test_a_release_where_there_is_a_trail_is_recorded_there(night: Night, tmp_path: Path) -> None:
    """And so is one that was refused."""
    where = ("keys", "release", night.asked["request"], "--signer", str(night.safe / "signing.pub.asc"))
    key = ("--secret-key", str(night.safe / "operations.sec.asc"))
    night.clinic.run(*where, *key, "--out", str(tmp_path / "release"), "--json").ok()
    intent, outcome = night.clinic.records()[-2:]
    assert (intent["operation"], intent["source"], intent["backup_id"]) == ("keys", SOURCE, night.a)
    assert intent["details"]["asked_by"].startswith("the asker, as ")
    assert outcome["details"]["fingerprints"] == [night.clinic.secrets.operations.fingerprint]
    other = night.clinic.run(*where, *key, "--code", "0000-0000-0000-0000-0000", "--out", str(tmp_path / "no"), "--json")
    assert other.code == 4
    assert night.clinic.records()[-1]["error"] == other.error["error"]
    assert not (tmp_path / "no").exists()


def test_people_are_shown_what_is_proved_and_what_is_not(night: Night, tmp_path: Path) -> None:
    """Without --out nothing is released; with it, and without a trail, a record is printed to be kept."""
    where = ("keys", "release", night.asked["request"], "--signer", str(night.safe / "signing.pub.asc"))
    looked = offline(night.clinic, *where).ok().stdout
    for expected in (
        night.a,
        night.clinic.secrets.escrow.fingerprint,
        "the asker",
        "a disk was lost",
        night.asked["code"],
        "not proved: who asks",
        "nothing was released",
    ):
        assert expected in looked
    key = ("--secret-key", str(night.safe / "operations.sec.asc"), "--out", str(tmp_path / "release"))
    released = offline(night.clinic, *where, *key).ok().stdout
    record = json.loads(released.splitlines()[-1])
    assert record["backup_id"] == night.a
    assert "Keep this record" in released
    assert (tmp_path / "release").stat().st_mode & 0o777 == 0o600


def test_no_word_of_a_request_takes_a_line_of_its_own(night: Night, tmp_path: Path) -> None:
    """Blanks up to the terminal's edge would put a false code above the real one."""
    false = f"the code of this request: {night.asked['code']}"
    reason = "".join(each.ljust(57) for each in ("lost", "", "\u3164" * 9, false))[:200]
    request = read(Path(night.asked["request"]).read_bytes())
    (tmp_path / "evil").write_bytes(render(replace(request, by=replace(request.by, reason=reason))))
    where = ("keys", "release", str(tmp_path / "evil"), "--signer", str(night.safe / "signing.pub.asc"))
    for width in ("60", "80", "200"):
        looked = night.clinic.run(*where, env={"BACKUPD_CONFIG": "", "COLUMNS": width}).ok().stdout
        real = f"the code of this request: {code_of((tmp_path / 'evil').read_bytes())}\n"
        assert looked.startswith(real)
        assert looked.count(real) == 2, "above the tables, and where a long one ends"
        looked = looked.replace(real, "")
        assert " ".join(looked.split()).count(false[:20]) == 1
        assert not re.search(r"(?m)^ {0,9}the code", looked)  # in the column of what is said, and no label
        assert '"lost ' + r"\u3164" * 9 + f" {false[:20]}" in looked or width != "200"


def test_a_custodians_own_gpg_releases_too(night: Night, tmp_path: Path) -> None:
    """Where the key is in a keyring, or on a card: no file holds it, and backupd does not see it."""
    with short_directory("bd-keyring-") as keyring:
        environment = {**os.environ, "GNUPGHOME": str(keyring)}
        gpg = ("gpg", "--batch", "--quiet", "--no-tty")
        try:
            subprocess.run(
                [*gpg, "--import"], input=night.clinic.secrets.escrow.secret.reveal(), env=environment, check=True, timeout=120
            )
            where = ("keys", "release", night.asked["request"], "--signer", str(night.safe / "signing.pub.asc"))
            own = ("--gpg-home", str(keyring), "--out", str(tmp_path / "release"))
            done = offline(night.clinic, *where, *own, "--json").ok().json
            assert done["keys_used"] == [night.clinic.secrets.escrow.fingerprint]
            keys, _ = accept((tmp_path / "release").read_bytes(), Secret(night.key.read_bytes()))
            assert keys.backup_id == night.a
            both = ("--secret-key", str(night.safe / "escrow.sec.asc"), *own)
            assert offline(night.clinic, *where, *both).code == 2
            _a_gpg_with_several_keys(night, (*where, "--gpg-home", str(keyring)), tmp_path, gpg, environment)
        finally:
            subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=True, timeout=120)


def _a_gpg_with_several_keys(
    night: Night, where: tuple[str, ...], out: Path, gpg: tuple[str, ...], environment: dict[str, str]
) -> None:
    """The custodian has to say which of them backups are sealed to."""
    subprocess.run(
        [*gpg, "--passphrase", "", "--quick-gen-key", "Private letters", "default", "default", "never"],
        env=environment,
        check=True,
        timeout=120,
    )
    escrow = night.clinic.secrets.escrow.fingerprint
    release = out / "several"
    unsaid = offline(night.clinic, *where, "--out", str(release), "--json")
    assert (unsaid.code, unsaid.error["exit_code"]) == (4, 4)
    assert "2 keys that open messages" in unsaid.error["error"]
    assert escrow in unsaid.error["error"]
    assert "--recipient" in unsaid.error["hint"]
    other = offline(night.clinic, *where, "--recipient", "A" * 40, "--out", str(release), "--json")
    assert other.code == 4
    assert "the backup is not sealed to" in other.error["error"]
    assert not release.exists()
    done = offline(night.clinic, *where, "--recipient", escrow.lower(), "--out", str(release), "--json").ok().json
    assert done["keys_used"] == [escrow]


def test_a_one_time_key_on_a_disk_is_told(night: Night, tmp_path: Path) -> None:
    """As on the stick that goes to the custodian; in memory there is nothing to tell."""
    request = ("keys", "request", SOURCE, "--out")
    if not in_memory(tmp_path):
        done = night.clinic.run(*request, str(tmp_path / "x.request")).ok()
        assert f"note: {tmp_path / 'x.request.key'} is not in memory" in done.stderr
        assert "--key-out" in done.stderr
        assert night.asked["on_disk"] is True
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as memory:
        quiet = night.clinic.run(*request, str(tmp_path / "y.request"), "--key-out", f"{memory}/y.key").ok()
        assert "note:" not in quiet.stderr


def test_files_are_private_and_never_written_over(night: Night) -> None:
    for path in (Path(night.asked["request"]), night.key, night.safe / "a.release"):
        assert path.stat().st_mode & 0o777 == 0o600
    again = night.clinic.run("keys", "request", SOURCE, "--out", night.asked["request"], "--json")
    assert again.code == 2
    assert "File exists" in again.error["error"]
    half = night.clinic.directory / "half.request"
    done = night.clinic.run("keys", "request", SOURCE, "--out", night.asked["request"], "--key-out", str(half), "--json")
    assert done.code == 2
    assert not half.exists()  # a key without its request is of no use to anybody


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda data: data[:-40], 1, "no request for session keys"),
        (lambda data: data.replace(b'"format": 1', b'"format": 7'), 1, "a request of format 7"),
        (lambda data: data.replace(b'"reason": "a disk was lost"', b'"reason": null'), 4, "not the one that was told"),
    ],
)
def test_a_changed_request_is_refused(night: Night, tmp_path: Path, change: Any, code: int, message: str) -> None:
    """In two lines, with a hint, and nothing is written."""
    request = tmp_path / "request"
    request.write_bytes(change(Path(night.asked["request"]).read_bytes()))
    told = ("--code", night.asked["code"]) if code == 4 else ()
    done = releasing(night, request, tmp_path / "out", *told)
    assert (done.code, done.error["exit_code"]) == (code, code)
    assert message in done.error["error"]
    assert done.error["hint"]
    assert not (tmp_path / "out").exists()


def releasing(
    night: Night, request: Path, out: Path, *more: str, signer: str = "signing", key: Path | None = None
) -> Completed:
    return offline(
        night.clinic,
        *("keys", "release", str(request), "--signer", str(night.clinic.keys / f"{signer}.pub.asc"), "--out", str(out)),
        *("--secret-key", str(key or night.safe / "escrow.sec.asc"), *more, "--json"),
    )


def test_other_bad_input_at_the_custodians(night: Night, tmp_path: Path) -> None:
    request, out = Path(night.asked["request"]), tmp_path / "out"
    wrong_signer = releasing(night, request, out, signer="escrow")
    assert wrong_signer.code == 1
    assert "signed by another key" in wrong_signer.error["error"]
    wrong_key = releasing(night, request, out, key=night.clinic.custody / "signing.sec.asc")
    assert wrong_key.code == 3
    assert "no secret key here opens this" in wrong_key.error["error"]
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        os.truncate(file.fileno(), 1 << 30)
    large = releasing(night, huge, out)
    assert large.code == 2
    assert "larger than any" in large.error["error"]
    missing = releasing(night, tmp_path / "missing", out)
    assert missing.code == 2
    neither = offline(
        night.clinic, "keys", "release", str(request), "--signer", str(night.safe / "signing.pub.asc"), "--out", str(out)
    )
    assert neither.code == 2
    assert "--gpg-home" in neither.stderr
    assert not out.exists()


def test_bad_input_at_the_restoring_host(night: Night, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(night.release.read_bytes()[:-20])
    another = (
        night.clinic.run("keys", "request", SOURCE, "--out", str(tmp_path / "b.request"), "--json").ok().json["request_key"]
    )
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        os.truncate(file.fileno(), 1 << 30)
    loose = keep(tmp_path / "loose.key", night.key.read_bytes())
    loose.chmod(0o644)
    cases = [
        (damaged, night.key, 1, "the release is damaged"),
        (night.release, Path(another), 3, "answers another request"),
        (night.release, night.clinic.keys / "escrow.pub.asc", 2, "not a secret key"),
        (night.release, loose, 3, "is open to others"),
        (huge, night.key, 2, "larger than any"),
        (tmp_path / "missing", night.key, 2, "cannot be read: No such file"),
    ]
    (night.clinic.keys / "escrow.pub.asc").chmod(0o600)
    for release, key, code, message in cases:
        done = night.clinic.run("restore-test", SOURCE, "--session-key", str(release), "--request-key", str(key), "--json")
        assert done.code == code, message
        assert message in done.error["error"]
        assert done.error["hint"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("restore-test", SOURCE, "--session-key", "x"), "belong together"),
        (("restore-test", SOURCE, "--request-key", "x"), "belong together"),
        (("restore-test", SOURCE, "--session-key", "x", "--request-key", "y", "--secret-key", "z"), "exclude each other"),
        (("restore-test", "--session-key", "x", "--request-key", "y"), "exactly one source"),
        (("verify", SOURCE, "--session-key", "x", "--request-key", "y"), "--deep and one source"),
        (("verify", "--all", "--deep", "--session-key", "x", "--request-key", "y"), "--deep and one source"),
    ],
)
def test_options_that_do_not_fit_are_usage_errors(night: Night, arguments: tuple[str, ...], message: str) -> None:
    done = night.clinic.run(*arguments, "--json")
    assert done.code == 2
    assert message in done.error["error"]


@pytest.mark.parametrize("what", ["pipe", "device", "directory"])
def test_what_is_no_regular_file_is_neither_request_nor_release(clinic: Installation, tmp_path: Path, what: str) -> None:
    """A pipe would be waited for, and a device may never end."""
    place = {"pipe": tmp_path / "pipe", "device": Path("/dev/zero"), "directory": tmp_path}[what]
    if what == "pipe":
        os.mkfifo(place)
    signer = str(clinic.keys / "signing.pub.asc")
    looked = clinic.run("keys", "release", str(place), "--signer", signer)
    used = clinic.run("restore-test", SOURCE, "--session-key", str(place), "--request-key", str(clinic.secret_key))
    for done in (looked, used):
        assert done.code == 2
        assert f"{place} is no regular file" in done.stderr or f"{place} cannot be read: Is a directory" in done.stderr
