"""A signal ends a run, and no clean-up: what may not stay behind is gone, at whatever moment the signal comes.

The moments are made, not hit: a trace function sends the signal at the n-th step of Python. Nothing here depends on timing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backupd.openpgp import Home, agent, keys
from tests.parts.mounts import with_mounts

# How many steps lie between two trials, and the signals.
ENDINGS = {
    "one signal": (5, signal.SIGTERM),
    "a hang-up": (11, signal.SIGHUP),
    "two signals": (9, signal.SIGTERM, signal.SIGHUP),
    "the same signal twice": (13, signal.SIGTERM, signal.SIGTERM),
}

# Ends two homes with keys in them again and again, and has a signal sent at a later step of their end each time. Where there is
# a second one, it ends the block that they are open in.
END_AT_EACH_STEP = """
import os, sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from backupd import interrupts
from backupd.errors import Interrupted
from backupd.openpgp import Home

base, stride, numbers = Path(sys.argv[1]), int(sys.argv[2]), [int(each) for each in sys.argv[3:]]
traced = ("contextlib.py", "interrupts.py", "openpgp/home.py")

def ended(at):
    steps, interrupted = 0, False
    def trace(frame, event, argument):
        nonlocal steps
        if not frame.f_code.co_filename.endswith(traced):
            return None
        steps += 1
        if steps == at:
            os.kill(os.getpid(), numbers[0])
        return trace
    interrupts.over = False
    try:
        with ExitStack() as held:
            for _ in range(2):
                home = held.enter_context(Home(directory=base))
                (home.path / "private-keys-v1.d").mkdir()
                (home.path / "private-keys-v1.d" / "secret.key").write_bytes(b"key")
            sys.settrace(trace)
            for each in numbers[1:]:
                os.kill(os.getpid(), each)
    except Interrupted:
        interrupted = True
    finally:
        interrupts.over = True
        interrupts.settle()
        sys.settrace(None)
    left = list(base.iterdir())
    assert not left, (at, left)
    return steps >= at, interrupted

interrupts.listen()
at, tried, seen, more = 1, 0, 0, True
while more:
    more, interrupted = ended(at)
    at, tried, seen = at + stride, tried + 1, seen + interrupted
print(tried, seen)
"""


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in shared memory that no other test's homes are in."""
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


def run(program: str, *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], input=stdin, capture_output=True, timeout=240, check=False
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_homes_are_gone_whenever_signals_come_during_their_end(ending: str, memory: Path) -> None:
    stride, *numbers = ENDINGS[ending]
    done = run(END_AT_EACH_STEP, memory, stride, *numbers)
    assert done.returncode == 0, done.stderr.decode()
    tried, interrupted = map(int, done.stdout.split())
    assert tried > 5, "it was meant to be tried at many steps"
    assert interrupted > 5, "a signal was meant to be raised, if not at once"


def test_a_home_is_gone_when_a_signal_comes_while_it_is_made(memory: Path) -> None:
    """Nobody has it in a `with` block yet."""
    program = END_AT_EACH_STEP.replace("            sys.settrace(trace)\n", "").replace(
        "        with ExitStack() as held:\n", "        sys.settrace(trace)\n        with ExitStack() as held:\n"
    )
    done = run(program, memory, 11, signal.SIGTERM)
    assert done.returncode == 0, done.stderr.decode()
    tried, interrupted = map(int, done.stdout.split())
    assert tried > 5
    assert interrupted > 5


HOLD = """
import os, signal, threading
from backupd import interrupts
from backupd.errors import Interrupted

interrupts.listen()
try:
    with interrupts.held():
        with interrupts.held():
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        print("still here")
    print("not here")
except Interrupted as error:
    print(error)
with interrupts.held():
    print("raised once")

def elsewhere():
    with interrupts.held():
        inside.set()
        done.wait()

inside, done = threading.Event(), threading.Event()
thread = threading.Thread(target=elsewhere)
thread.start()
inside.wait()
try:
    os.kill(os.getpid(), signal.SIGTERM)
except Interrupted:
    print("another thread holds nothing back")
done.set()
thread.join()
"""


def test_a_signal_that_was_held_back_is_raised_once_when_the_last_block_ends() -> None:
    done = run(HOLD)
    assert done.stdout.decode().splitlines() == [
        "still here",
        "interrupted by SIGHUP",
        "raised once",
        "another thread holds nothing back",
    ], done.stderr.decode()


def test_what_fails_while_it_is_cleared_up_keeps_nothing_else_from_it() -> None:
    program = """
from backupd import interrupts
from backupd.errors import BackupdError

def fail():
    raise BackupdError("it stays")

interrupts.owe(lambda: print("cleared up"))
interrupts.owe(fail)
interrupts.owe(gone := lambda: print("never"))
interrupts.paid(gone)
try:
    interrupts.settle()
except BackupdError as error:
    print(error)
"""
    assert run(program).stdout.decode().splitlines() == ["cleared up", "it stays"]


def test_a_home_that_cannot_be_removed_is_not_closed(memory: Path) -> None:
    """And may be closed again. Something is mounted in it, which keeps it there."""
    program = """
import subprocess, sys
from pathlib import Path
from backupd.errors import BackupdError
from backupd.openpgp import Home

home = Home(directory=Path(sys.argv[1]))
place = home.path / "mounted"
place.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
try:
    home.close()
except BackupdError as error:
    print(error)
print(home.path.exists())
subprocess.run(["umount", place], check=True)
home.close()
print(home.path.exists())
"""
    refused, stays, left = with_mounts("", program, [str(memory)]).splitlines()
    assert "could not be removed" in refused
    assert (stays, left) == ("True", "False")


def test_an_agent_that_is_stuck_is_ended_and_waited_for_only_so_long(memory: Path) -> None:
    pair = keys.generate("Stuck", purpose="encrypt", expires_days=None)
    home = Home(directory=memory)
    home.import_secret(pair.secret)
    [pid] = agent.running(home.path)
    os.kill(pid, signal.SIGSTOP)
    before = time.monotonic()
    home.close()
    assert time.monotonic() - before < 3 * agent.END_TIMEOUT_S
    assert not home.path.exists()
    assert agent.running(home.path) == []


def test_a_home_whose_process_was_killed_while_it_removed_it_is_removed_by_the_next(memory: Path) -> None:
    left = memory / "backupd-gpg-01234567"
    (left / "private-keys-v1.d").mkdir(parents=True)
    (left / "private-keys-v1.d" / "secret.key").write_bytes(b"key")
    with Home(directory=memory):
        assert not left.exists()


# `backupd ARGUMENTS`, which gets the signal at the n-th step after a secret key has come into a home.
COMMAND = """
import os, sys
from pathlib import Path
from backupd.cli import main
from backupd.openpgp.home import Home

base, number, at, arguments = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
Home.__init__.__kwdefaults__["shared_memory"] = base
traced = ("contextlib.py", "interrupts.py", "openpgp/home.py")
steps, has_key = 0, False

def trace(frame, event, argument):
    global steps, has_key
    if not frame.f_code.co_filename.endswith(traced):
        return None
    has_key = has_key or (frame.f_code.co_name == "call" and any(base.glob("*/private-keys-v1.d/*.key")))
    steps += has_key
    if has_key and steps == at:
        os.kill(os.getpid(), number)
    return trace

sys.settrace(trace)
main(arguments)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_no_secret_key_stays_when_a_command_is_interrupted(number: signal.Signals, memory: Path, tmp_path: Path) -> None:
    codes = []
    for at in range(1, 2000, 67):
        new = tmp_path / str(at)
        done = run(COMMAND, memory, number, at, "keys", "generate", "--directory", new, "--name", "Clinic", "--only", "signing")
        assert list(memory.iterdir()) == [], (at, done.stderr.decode())
        codes.append(done.returncode)
        if done.returncode != 130:
            break
        assert done.stderr.decode().splitlines()[-1] == f"error: interrupted by {number.name}"
    assert codes[-1] == 0
    assert len(codes) > 3
