"""The processes of a run of backupd, watched from outside: who is whose child, who lives, and how to kill exactly that one."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

DEADLINE_S = 120.0
HOME = "/dev/shm/backupd-gpg-"
WORK = {"pg_dump": ("--snapshot=", "--globals-only"), "gpg": ("--encrypt",)}  # an argument that tells it from short calls

_POLL_S = 0.006  # not less: what a probe costs, it takes from who is watched

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Process:
    """A process and a descriptor of it (pidfd), which stays its own when its number is another's."""

    pid: int
    fd: int


@dataclass(frozen=True, slots=True)
class Left:
    """What a process has when it dies: its children and its private homes."""

    children: list[Process]
    homes: list[str]


def wait_for(probe: Callable[[], T], process: subprocess.Popen[bytes] | None = None) -> T | None:
    """What `probe` gives once that is true; None when the process ended before."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        found = probe()
        if found:
            return found
        if process is not None and process.poll() is not None:
            return None
        if time.monotonic() > deadline:
            raise AssertionError("waited in vain")
        time.sleep(_POLL_S)


def ended(processes: Collection[Process]) -> None:
    """Return once these have ended, by themselves."""
    for each in processes:
        assert select.select([each.fd], [], [], DEADLINE_S)[0], f"process {each.pid} does not end"
        os.close(each.fd)


def child(process: subprocess.Popen[bytes], program: str) -> Process | None:
    """The pg_dump or pg_dumpall that dumps, or the gpg that seals."""
    for found in _children(process.pid):
        argv = _argv(found.pid)
        name = Path(argv[0]).name
        if name.startswith(program) and any(word.startswith(WORK[program]) for word in argv):
            return found
        os.close(found.fd)
    return None


def stop_and_list(process: subprocess.Popen[bytes]) -> Left | None:
    """Stop a child of ours, and say what it has; None when it has ended."""
    process.send_signal(signal.SIGSTOP)
    if process.returncode is not None:
        return None
    came = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    if came is None or came.si_code != os.CLD_STOPPED:
        return None
    links = [str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
    homes = [str(Path(link).parent) for link in links if link.startswith(HOME) and link.endswith("/lock")]
    return Left(list(_children(process.pid)), homes)


def stop_and_kill(process: Process) -> bool:
    """SIGKILL for a process that is not ours, once it is known to be alive; False when it has ended."""
    try:
        signal.pidfd_send_signal(process.fd, signal.SIGSTOP)
        if not wait_for(lambda: _state(process.pid) in "TZX" or None) or _state(process.pid) != "T":
            return False
        signal.pidfd_send_signal(process.fd, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def command_lines() -> Iterator[str]:
    """Of every process there is."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            yield " ".join(_argv(int(path.name)))


def _children(pid: int) -> Iterator[Process]:
    for task in _tasks(pid):
        try:
            numbers = (task / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for number in map(int, numbers):
            try:
                yield Process(number, os.pidfd_open(number))
            except ProcessLookupError:
                continue


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []


def _argv(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return [""]


def _state(pid: int) -> str:
    """As proc_pid_stat(5) has it: T stopped, Z ended and not yet waited for; X when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
