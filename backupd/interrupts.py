"""Signals that ask a run to end: each is raised as `Interrupted` in the main thread, but never in the middle of a clean-up.

A clean-up that must come to its end runs inside `held`: a signal waits for it. That is not enough for what may never stay
behind, as a directory with keys: a signal can also come between the end of a `with` block and the clean-up's first step. So it
is `owed` from its first moment on, and `settle` clears up what still is when the run is over.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from backupd.errors import BackupdError, Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# Set to True by whoever ends the run, by an assignment: Python calls no handler between that and the statement before it.
over = False

_depth = 0
_waiting: int | None = None
_owed: list[Callable[[], None]] = []


def listen() -> None:
    """From now on each of `SIGNALS` is raised as `Interrupted`."""
    for number in SIGNALS:
        signal.signal(number, _receive)


@contextmanager
def held() -> Iterator[None]:
    """Signals that come during the block are raised at its end, as one. What the block does must have a deadline."""
    global _depth, _waiting
    if threading.current_thread() is not threading.main_thread():
        yield  # Python calls handlers in the main thread alone
        return
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _waiting is not None and not _depth and not over:
            number, _waiting = _waiting, None
            raise _interrupted(number)


def owe(clean_up: Callable[[], None]) -> None:
    """Have `clean_up` called by `settle`, unless `paid` is called with it before."""
    _owed.append(clean_up)


def paid(clean_up: Callable[[], None]) -> None:
    """It is done; also when it never was owed."""
    if clean_up in _owed:
        _owed.remove(clean_up)


def settle() -> None:
    """Do what is still owed, the newest first. Raises the first BackupdError when all is tried."""
    failed: BackupdError | None = None
    with held():
        for clean_up in reversed(_owed.copy()):
            try:
                clean_up()
            except BackupdError as error:
                failed = failed or error
    if failed is not None:
        raise failed


def _receive(number: int, frame: FrameType | None) -> None:
    global _waiting
    if _depth or over:
        _waiting = number
        return
    raise _interrupted(number)


def _interrupted(number: int) -> Interrupted:
    return Interrupted(f"interrupted by {signal.Signals(number).name}")  # what it left is known to the operation alone
