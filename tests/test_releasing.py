"""The commands of docs/releasing-a-session-key.md, as they stand: a backup is opened, and the key that opens all stays away."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.installation import CHECKOUT, Installation, Secrets, installed, keep, plant
from tests.leak_watch import Planted
from tests.parts.postgres import PostgresServer
from tests.parts.process import short_directory

DOCUMENT = (CHECKOUT / "docs" / "releasing-a-session-key.md").read_text()
TROUBLES = DOCUMENT.partition("\n## If something is wrong\n")[2].partition("\n## ")[0]


def blocks(heading: str) -> list[str]:
    """The commands below a heading, up to the next one."""
    _, found, rest = DOCUMENT.partition(f"\n{heading}\n")
    assert found, f"there is no heading {heading}"
    return re.findall(r"^```sh\n(.*?)^```$", re.split(r"(?m)^#+ [^\n]*$", rest)[0], re.MULTILINE | re.DOTALL)


@pytest.fixture
def places() -> Iterator[dict[str, Path]]:
    """Where the document's directories are here, in memory."""
    with short_directory("bd-release-") as unique:
        root = Path("/dev/shm") / unique.name
        ours = {"/dev/shm": root / "memory", "/media/usb": root / "usb", "/srv/safe": root / "safe"}
        try:
            for path in ours.values():
                path.mkdir(parents=True, mode=0o700)
            yield ours
        finally:
            shutil.rmtree(root)


def run(script: str, places: dict[str, Path], environment: dict[str, str], planted: Planted) -> str:
    """Type a block as somebody does who stops at the first command that fails."""
    for theirs, ours in places.items():
        script = script.replace(theirs, str(ours))
    done = subprocess.run(
        ["sh", "-eu", "-c", script],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    planted.assert_absent(done.stdout + done.stderr, "what the commands print")
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def secrets(planted: Planted) -> Secrets:
    return plant(planted)


@pytest.fixture
def clinic(postgres17: PostgresServer, secrets: Secrets, tmp_path: Path) -> Iterator[Installation]:
    """An installation on a host that has no key that opens backups."""
    with installed(tmp_path, postgres17, secrets) as clinic:
        clinic.configure(drill=None)
        clinic.back_up()
        for name in ("operations", "escrow"):
            (clinic.custody / f"{name}.sec.asc").unlink()
        yield clinic


def test_the_three_steps(clinic: Installation, secrets: Secrets, places: dict[str, Path], tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "backupd").write_text(f'#!/bin/sh\nexec {sys.executable} -m backupd "$@"\n')
    (programs / "backupd").chmod(0o755)
    here = clinic.environment() | clinic.superuser
    here["PATH"] = f"{programs}:{here['PATH']}"
    there = {name: value for name, value in here.items() if name not in {"BACKUPD_CONFIG", "PGPASSWORD"}}
    (places["/srv/safe"] / "signing.pub.asc").write_bytes(secrets.signing.public)
    keep(places["/srv/safe"] / "escrow.sec.asc", secrets.escrow.secret.reveal())

    [asking] = blocks("## 1. Ask, on the host that restores")
    asked = run(asking, places, here, secrets.planted)
    shutil.copy(places["/dev/shm"] / "clinic.request", places["/media/usb"])
    look, release = blocks("## 2. Look and release, at the custodian's")
    looked = run(look, places, there, secrets.planted)
    code = re.findall(r"[0-9a-f]{4}(?:-[0-9a-f]{4}){4}", asked)
    assert 2 * code == re.findall(r"[0-9a-f]{4}(?:-[0-9a-f]{4}){4}", looked), "above the tables and below them"
    assert "the disk of db1 was lost" in looked
    assert not (places["/media/usb"] / "clinic.release").exists()
    assert "Keep this record" in run(release, places, there, secrets.planted)
    use, afterwards = blocks("## 3. Use it, on the host that restores")
    with clinic.empty_database() as target:
        address = f"@{target.server.host}:{target.server.port}/{target.name}"
        used = run(use.replace("@db.example/clinic_restored", address), places, here, secrets.planted)
        assert target.execute("SELECT count(*) FROM users") == clinic.database.execute("SELECT count(*) FROM users")
    assert "PASS" in used
    assert "all that was expected is there" in used
    run(afterwards, places, here, secrets.planted)
    assert not list(places["/dev/shm"].glob("*.key"))


def test_the_escrow_key_comes_back_from_two_of_three_shares(secrets: Secrets, places: dict[str, Path], tmp_path: Path) -> None:
    made, ceremony = places["/dev/shm"] / "backupd-keys", places["/dev/shm"] / "ceremony"
    made.mkdir()
    ceremony.mkdir()
    keep(made / "escrow.sec.asc", secrets.escrow.secret.reveal())
    split, combine = blocks("### In shares (Shamir)")
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    run(split, places, environment, secrets.planted)
    shares = sorted(made.glob("escrow.[0-9][0-9][0-9]"))
    assert len(shares) == 3
    assert {share.stat().st_mode & 0o777 for share in shares} == {0o600}
    for share in shares:
        secrets.planted.assert_absent(share.read_bytes(), "one share")
    for path in (*shares[1:], made / "escrow.sha256"):
        shutil.copy(path, ceremony)
    assert "OK" in run(combine, places, environment, secrets.planted)
    assert (ceremony / "escrow.sec.asc").read_bytes() == secrets.escrow.secret.reveal()


def test_every_message_that_it_explains_is_one_that_backupd_says() -> None:
    code = "".join(path.read_text() for path in (CHECKOUT / "backupd").rglob("*.py"))
    said = re.sub(r'"\s*\n\s*f?"', "", code)
    told = re.findall(r"(?m)^\| `([^`]+)`", TROUBLES)
    assert len(told) >= 10
    assert [each for each in told if each not in said] == []
