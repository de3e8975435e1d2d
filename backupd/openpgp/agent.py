"""The gpg-agent of a private home: gpg starts it, and it holds keys in memory until it is ended. Asked here, and ended.

It is looked for in /proc and not asked for its number: one that is stuck, or still being started, would not answer.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

from backupd.errors import ProcessFailed
from backupd.pipeline import Command, run

END_TIMEOUT_S = 15.0  # of each step of its end, which no signal interrupts


def environment(gpg: str, home: Path) -> dict[str, str]:
    """All that gpg and its helpers get: nothing of the user's leaks in, and messages are English."""
    return {"PATH": f"{Path(gpg).parent}:/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "HOME": str(home)}


def ask(gpg: str, home: Path, question: str, timeout_s: float) -> str:
    """What it answers; started if it does not run. Raises ProcessFailed."""
    return _connect(gpg, home, question, timeout_s=timeout_s)


def running(home: Path) -> list[int]:
    """The process ids of this home's agent, and of a gpg that is just starting it."""
    return [int(process.name) for process in os.scandir("/proc") if process.name.isdigit() and _is_of(process.path, home)]


def end(gpg: str, home: Path) -> None:
    """Ask it to end, and see to it that it has. Raises ProcessFailed or OSError when that could not be tried."""
    found: list[int] = []
    try:
        for pid in running(home):
            with contextlib.suppress(ProcessLookupError):
                found.append(os.pidfd_open(pid))
        if found:
            with contextlib.suppress(ProcessFailed):
                _connect(gpg, home, "--no-autostart", "KILLAGENT", timeout_s=END_TIMEOUT_S)
        for process in found:
            if not select.select([process], [], [], END_TIMEOUT_S)[0]:
                signal.pidfd_send_signal(process, signal.SIGKILL)
                select.select([process], [], [], END_TIMEOUT_S)
    finally:
        for process in found:
            with contextlib.suppress(ChildProcessError):  # it is our child only where we are a container's first process
                os.waitid(os.P_PIDFD, process, os.WEXITED | os.WNOHANG)
            os.close(process)
    # The directory of its sockets is outside the home where /run/user/UID exists.
    argv = ("gpgconf", "--homedir", str(home), "--remove-socketdir")  # PATH begins with gpg's own directory
    run(Command("gpgconf", argv, environment(gpg, home)), timeout_s=END_TIMEOUT_S)


def _is_of(process: str, home: Path) -> bool:
    """Whether it was called as `gpg… --homedir HOME …`, proc_pid_cmdline(5). Nobody else knows this name."""
    try:
        program, *arguments = Path(process, "cmdline").read_bytes().split(b"\0")
    except OSError:  # it has ended meanwhile
        return False
    return program.rpartition(b"/")[2].startswith(b"gpg") and os.fsencode(home) in arguments


def _connect(gpg: str, home: Path, *args: str, timeout_s: float) -> str:
    argv = ("gpg-connect-agent", "--homedir", str(home), *args, "/bye")
    return run(Command("gpg-connect-agent", argv, environment(gpg, home)), timeout_s=timeout_s).stdout.decode(errors="replace")
