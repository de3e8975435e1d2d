"""What restored code leaves running: a process whose parent has ended, and that nobody would end with the server.

Such a one becomes a child of ours while `ended` is in force, and is ended at its close. Linux only: PR_SET_CHILD_SUBREAPER of
prctl(2). When we are killed ourselves they go on, unless a unit's control group holds them.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

_SET_CHILD_SUBREAPER, _GET_CHILD_SUBREAPER = 36, 37  # linux/prctl.h
_END_S = 15.0
_POLL_S = 0.02

log = logging.getLogger(__name__)


@contextlib.contextmanager
def ended(account: int) -> Iterator[None]:
    """At the close of the block, end what has become our child in it and runs as the user id `account`, and what that leaves.

    What ran before is spared. The block must have ended what it started itself.
    """
    spared = set(_children(account))
    before = ctypes.c_int()
    _prctl(_GET_CHILD_SUBREAPER, ctypes.byref(before))
    _prctl(_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))
    try:
        yield
    finally:
        until = time.monotonic() + _END_S
        while found := [pid for pid in _children(account) if pid not in spared]:
            if time.monotonic() > until:
                log.warning("processes that the restored database left could not be ended: %s", found)
                break
            for pid in found:  # its number is nobody else's for as long as we have not waited for it
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
            time.sleep(_POLL_S)
        _prctl(_SET_CHILD_SUBREAPER, ctypes.c_ulong(before.value))


def _children(account: int) -> list[int]:
    """Our children that run as `account`, proc_pid_status(5). The owner of /proc/PID would not tell: a process can hide it."""
    found = []
    for process in os.scandir("/proc"):
        if process.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                lines = Path(process.path, "status").read_text(errors="replace").splitlines()
                said = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
                if int(said["PPid"]) == os.getpid() and account in map(int, said["Uid"].split()):
                    found.append(int(process.name))
    return found


def _prctl(option: int, argument: object) -> None:
    nothing = ctypes.c_ulong(0)
    if ctypes.CDLL(None, use_errno=True).prctl(option, argument, nothing, nothing, nothing) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
