"""The systemd units, judged by systemd itself: every line is understood, and little of the machine is left within reach."""

import re
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parent.parent / "systemd"
SERVICES = ["backupd-backup@.service", "backupd-drill@.service"]
TIMERS = ["backupd-backup@.timer", "backupd-drill@.timer"]
PROGRAM = "/opt/backupd/bin/backupd"


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as they are, except that the program is one that every machine has: systemd looks whether it is there."""
    for unit in UNITS.iterdir():
        (tmp_path / unit.name).write_text(unit.read_text(encoding="utf-8").replace(PROGRAM, "/bin/true"), encoding="utf-8")
    return tmp_path


def complaints(units: Path, name: str) -> list[str]:
    """What `systemd-analyze verify` says about our units; a machine's other units may be odd and are none of our business."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"./{name}"], cwd=units, check=False, capture_output=True, text=True
    )
    lines = [line for line in done.stderr.splitlines() if "backupd" in line]
    return lines if done.returncode == 0 else [*lines, f"exit {done.returncode}"]


@pytest.mark.parametrize("name", SERVICES + TIMERS)
def test_systemd_understands_every_line(units: Path, name: str) -> None:
    assert complaints(units, name) == []


def test_a_line_that_systemd_does_not_understand_would_be_noticed(units: Path) -> None:
    """An unknown setting is only a warning to systemd, with exit code 0: the hardening would be gone without a word."""
    service = units / SERVICES[0]
    service.write_text(service.read_text(encoding="utf-8").replace("ProtectSystem=", "ProtectSystems="), encoding="utf-8")
    assert any("ProtectSystems" in line for line in complaints(units, SERVICES[0]))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_reaches_little_of_the_machine(units: Path, name: str) -> None:
    """systemd's own measure of exposure, from 0 (none) to 10; an ordinary service without hardening has 9.6."""
    command = ["systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=20", f"./{name}"]
    done = subprocess.run(command, cwd=units, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_each_hardening_line_is_explained(name: str) -> None:
    """Whoever has to loosen a setting must be able to read what it was for: a comment stands above it, or above its twin."""
    lines = (UNITS / name).read_text(encoding="utf-8").splitlines()
    above, unexplained = "", []
    for line in lines[lines.index("[Service]") + 1 :]:
        twin = line.partition("=")[0] == above.partition("=")[0]
        if line and not line.startswith("#") and not above.startswith("#") and not twin:
            unexplained.append(line)
        above = line
    assert [line for line in unexplained if not line.startswith("ExecStart=")] == []


@pytest.mark.parametrize("name", TIMERS)
def test_a_timer_catches_up_and_names_its_time_zone(name: str) -> None:
    text = (UNITS / name).read_text(encoding="utf-8")
    assert "Persistent=yes" in text
    calendar = re.findall(r"^OnCalendar=(.*)$", text, re.MULTILINE)
    assert len(calendar) == 1
    assert calendar[0].endswith(" UTC")


def test_the_user_of_the_services_is_made_by_the_sysusers_file(tmp_path: Path) -> None:
    """By systemd-sysusers itself, in a tree of its own."""
    (tmp_path / "etc").mkdir()
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", UNITS / "backupd.sysusers"], check=True, capture_output=True)
    name, *_, home, shell = (tmp_path / "etc/passwd").read_text(encoding="utf-8").strip().split(":")
    assert (name, home, shell) == ("backupd", "/var/lib/backupd", "/usr/sbin/nologin")
    assert all(f"\nUser={name}\n" in (UNITS / service).read_text(encoding="utf-8") for service in SERVICES)


def test_a_backup_gets_no_key_that_opens_anything() -> None:
    """The unit that runs every night signs; only the drill's unit holds secret keys."""
    loaded = {
        name: re.findall(r"^LoadCredential=([^:]+):", (UNITS / name).read_text(encoding="utf-8"), re.MULTILINE)
        for name in SERVICES
    }
    assert loaded["backupd-backup@.service"] == ["signing-key.asc"]
    assert "operations-secret-key.asc" in loaded["backupd-drill@.service"]
