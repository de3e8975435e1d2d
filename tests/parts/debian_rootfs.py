"""The file system of a minimal Debian, as a tar: made by `debootstrap` from this machine's own Debian mirror, as root.

It is kept in `.parts`, so that a checkout makes it once. `./dev setup` runs this file, before there are any packages of Python,
while something else keeps the other core busy; where that was not done, the first test that needs the tar makes it.
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.parts.apt_mirror import debian_mirror
from tests.parts.process import PartFailedError, clean_environment, short_directory

SUITE = "bookworm"
TOOL_DEADLINE_S = 600

_CACHE = Path(__file__).resolve().parents[2] / ".parts"


def debian_rootfs() -> Path:
    """The tar, made when `.parts` does not have it; other processes wait meanwhile."""
    _CACHE.mkdir(exist_ok=True)
    tar = _CACHE / "debian-rootfs.tar"
    with (_CACHE / "debian-rootfs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tar.exists():
            with short_directory("bd-rootfs-") as directory:
                _bootstrap(directory / "root", directory / "root.tar", clean_environment(directory, **proxies()))
                # Renamed only when complete, and within one file system: a half-made cache would fail every later run.
                unfinished = shutil.move(directory / "root.tar", tar.with_suffix(".unfinished"))
                Path(unfinished).rename(tar)
    return tar


def run(*argv: str, environment: Mapping[str, str]) -> str:
    """The standard output of a program that makes images. Raises PartFailedError with the end of what it said."""
    done = subprocess.run(
        argv,
        cwd="/",
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TOOL_DEADLINE_S,
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise PartFailedError(f"{argv[0]} {argv[1]} ended with code {done.returncode}; its output ends:\n{tail}")
    return done.stdout


def proxies() -> dict[str, str]:
    """What the environment says of proxies, which a clean one would lose."""
    return {name: value for name, value in os.environ.items() if name.lower() in {"http_proxy", "https_proxy", "no_proxy"}}


def _bootstrap(root: Path, tar: Path, environment: Mapping[str, str]) -> None:
    run("debootstrap", "--variant=minbase", SUITE, str(root), debian_mirror(SUITE), environment=environment)
    run("tar", "--numeric-owner", "-C", str(root), "-cf", str(tar), ".", environment=environment)


if __name__ == "__main__":
    debian_rootfs()
