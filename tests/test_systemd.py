"""The systemd units, judged by systemd itself: every line is understood, and little of the machine is left within reach."""

import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest

from backupd.postgres.scratch import ACCOUNTS, unprivileged_user

UNITS = Path(__file__).resolve().parent.parent / "systemd"
SERVICES = ["backupd-backup@.service", "backupd-drill@.service"]
TIMERS = ["backupd-backup@.timer", "backupd-drill@.timer"]
PROGRAM = "/opt/backupd/bin/backupd"
CLUSTER = """
from pathlib import Path
from backupd.postgres import clients
from backupd.postgres.scratch import ScratchCluster
with ScratchCluster(clients.choose_server(clients.find(), 17)) as cluster:
    cluster.create_database("drill")
    print(Path(f"/proc/{cluster.pid}").stat().st_uid, cluster.directory)
"""


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


@pytest.mark.parametrize(("name", "tenths"), [*zip(SERVICES, [20, 30], strict=True)])
def test_a_service_reaches_little_of_the_machine(units: Path, name: str, tenths: int) -> None:
    """systemd's own measure of exposure, from 0 (none) to 10; an ordinary service without hardening has 9.6.

    A drill is root with five rights, which counts for more, so that the server it starts can be an account that has nothing.
    """
    command = ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={tenths}", f"./{name}"]
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


def test_the_users_of_the_services_are_made_by_the_sysusers_file(tmp_path: Path) -> None:
    """By systemd-sysusers itself, in a tree of its own."""
    (tmp_path / "etc").mkdir()
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", UNITS / "backupd.sysusers"], check=True, capture_output=True)
    made = [line.split(":") for line in (tmp_path / "etc/passwd").read_text(encoding="utf-8").splitlines()]
    assert sorted((name, home, shell) for name, *_, home, shell in made) == [
        ("backupd", "/var/lib/backupd", "/usr/sbin/nologin"),
        (ACCOUNTS[0], "/", "/usr/sbin/nologin"),
    ]
    assert "\nUser=backupd\n" in (UNITS / SERVICES[0]).read_text(encoding="utf-8")


def test_a_drill_is_root_so_that_its_server_can_be_somebody_else() -> None:
    """With the keys and the server in one account, a function of the database could read the keys."""
    text = (UNITS / SERVICES[1]).read_text(encoding="utf-8")
    assert not re.findall("^(?:User|Group|DynamicUser|PrivateUsers)=", text, re.MULTILINE)


def test_the_rights_of_a_drill_suffice_for_a_server_of_another_account() -> None:
    """A scratch cluster is made, used and removed with the unit's capabilities and no other."""
    text = (UNITS / SERVICES[1]).read_text(encoding="utf-8")
    rights = " ".join(re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)).lower().split()
    assert len(rights) == 5
    bounded = ",".join(["-all", *(right.replace("cap_", "+") for right in rights)])
    # Who is not root has no right to give up, and cannot have a server of another account either.
    limits = ["setpriv", "--no-new-privs", f"--bounding-set={bounded}", "--inh-caps=-all"] if os.geteuid() == 0 else []
    done = subprocess.run([*limits, sys.executable, "-c", CLUSTER], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    owner, directory = done.stdout.split()
    assert int(owner) == (os.geteuid() or pwd.getpwnam(unprivileged_user(0) or "").pw_uid)
    assert not Path(directory).exists()


def test_a_backup_gets_no_key_that_opens_anything() -> None:
    """The unit that runs every night signs; only the drill's unit holds secret keys."""
    loaded = {
        name: re.findall(r"^LoadCredential=([^:]+):", (UNITS / name).read_text(encoding="utf-8"), re.MULTILINE)
        for name in SERVICES
    }
    assert loaded["backupd-backup@.service"] == ["signing-key.asc"]
    assert "operations-secret-key.asc" in loaded["backupd-drill@.service"]
