"""docs/training.md, typed from its first command to its last in one shell, which shows what the page says; and that shell."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.installation import CHECKOUT
from tests.parts.postgres import postgres_bin

PAGE = (CHECKOUT / "docs" / "training.md").read_text()
OPENS = "backupd demo --shell\n"
MARK = "---------- next"


def blocks() -> list[tuple[str, tuple[str, ...]]]:
    """Each command block, and the pieces of what one must see after it."""
    found = re.findall(r"(?ms)^```sh\n(.*?)^```$\s*(?:You see: (.*?)\.(?:\s|$))?", PAGE)
    return [(body, tuple(re.findall(r"`([^`]+)`", seen))) for body, seen in found]


def in_the_clinic(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a script as the shell that the demo opens."""
    shell = directory / "shell"
    shell.write_text(f"#!/bin/sh\nexec 2>&1\nset -eu\n{script}")
    shell.chmod(0o755)
    path = f"{Path(sys.executable).parent}:{postgres_bin(17)}:/usr/local/bin:/usr/bin:/bin"
    environment = {"PATH": path, "HOME": str(directory), "SHELL": str(shell), "LC_ALL": "C.UTF-8", "PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(
        [sys.executable, "-m", "backupd", "demo", "--shell"],
        env=environment | {"COLUMNS": "240"},  # so that no table breaks what is looked for
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_page_can_be_typed_as_it_stands(tmp_path: Path) -> None:
    (first, _), *rest = blocks()
    assert first == OPENS
    assert rest[-1][0] == "exit\n"
    done = in_the_clinic("".join(f"{body}echo '{MARK}'\n" for body, _ in rest), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = done.stdout.split(MARK)
    assert len(shown) == len(rest)
    for (body, seen), output in zip(rest, shown, strict=True):
        missing = [each for each in seen if each not in " ".join(output.split())]
        assert not missing, f"{body}\nshows no {missing}:\n{output}"


def test_it_takes_an_hour() -> None:
    planned = re.findall(r"(?m)^\| (\d+) \| \[(\d\. [^\]]+)\]", PAGE)
    assert sum(int(minutes) for minutes, _ in planned) == 60
    assert [title for _, title in planned] == re.findall(r"(?m)^## (\d\. .*)$", PAGE)


@pytest.mark.parametrize("end", ["exit 0", "exit 7", f"kill -{int(signal.SIGKILL)} $$"])
def test_nothing_is_left_of_the_clinic_however_its_shell_ends(end: str, tmp_path: Path) -> None:
    done = in_the_clinic(f'echo "$PWD $PGHOST"\n{end}\n', tmp_path)
    assert done.returncode == (0 if end == "exit 0" else 1)
    places = [Path(each) for each in done.stdout.splitlines()[-1].split()]
    assert len(places) == 2
    assert not any(os.path.lexists(place) for place in places)
