"""File systems of a program's own, mounted where nobody else sees them: a disk that is full, or may only be read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2]
_TIMEOUT_S = 60.0


def with_mounts(made: str, program: str, arguments: Sequence[str] = ()) -> str:
    """What a Python program prints that runs in a mount namespace of its own, after the shell commands `made` in it."""
    as_root = () if os.geteuid() == 0 else ("--map-root-user",)
    script = f'set -e\n{made}\nexec "$0" -c "$PROGRAM" "$@"'
    done = subprocess.run(
        ["unshare", *as_root, "--mount", "sh", "-c", script, sys.executable, *arguments],
        cwd=_CHECKOUT,
        env={**os.environ, "PROGRAM": program},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
