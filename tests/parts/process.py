"""One server process of the tests: start, wait until it is ready, stop by pid. It knows nothing of what the server serves.

A server ends with the process that started it, even when that is killed (`setpriv --pdeathsig`). It must therefore be
started from the main thread: the kernel ties the signal to the thread, not to the process.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

START_DEADLINE_S = 90.0
STOP_DEADLINE_S = 30.0
_POLL_S = 0.05


class PartFailedError(RuntimeError):
    """A real part did not do what a test needs of it; the message ends with the last lines of its log."""


def unprivileged_user() -> str | None:
    """The account for servers that refuse to run as root; None when this process is unprivileged itself."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise PartFailedError("running as root, and there is neither a `postgres` nor a `nobody` account to run servers as")


def as_user(argv: Sequence[str], user: str | None) -> list[str]:
    """The argv that runs `argv` as `user` (None: as ourselves) and ends it when the calling thread dies."""
    drop = (
        []
        if user is None
        else ["--reuid", user, "--regid", str(pwd.getpwnam(user).pw_gid), "--clear-groups", "--inh-caps=-all"]
    )
    return ["setpriv", *drop, "--pdeathsig", "QUIT", *argv]


@contextmanager
def short_directory(prefix: str, user: str | None = None) -> Iterator[Path]:
    """A fresh private directory with a short path (a unix socket's path ends at 107 bytes), owned by `user`, removed after."""
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    try:
        if user is not None:
            account = pwd.getpwnam(user)
            os.chown(directory, account.pw_uid, account.pw_gid)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def clean_environment(directory: Path, **extra: str) -> dict[str, str]:
    """An environment in which nothing of the user's (PG*, AWS*, TZ, HOME) can change how a server behaves."""
    path = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")
    return {"PATH": path, "HOME": str(directory), "TMPDIR": str(directory), "LC_ALL": "C.UTF-8", "TZ": "UTC"} | extra


class ServerProcess:
    """A child process that serves, its log file, and the ways to start and end it."""

    def __init__(
        self, argv: Sequence[str], *, directory: Path, log: Path, environment: Mapping[str, str], user: str | None = None
    ) -> None:
        self._argv = as_user(argv, user)
        self._name = Path(argv[0]).name
        self._directory = directory
        self._log = log
        self._environment = environment
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._child is None:
            raise PartFailedError(f"{self._name} is not running")
        return self._child.pid

    def start(self, ready: Callable[[], bool], deadline_s: float = START_DEADLINE_S) -> None:
        """Start, and return once `ready()` is true. An exception in `ready` means: not yet. On failure the child is ended."""
        if self._child is not None:
            raise PartFailedError(f"{self._name} runs already")
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                self._argv,
                cwd=self._directory,
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until(ready, deadline_s)
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def stop(self, how: signal.Signals = signal.SIGTERM, deadline_s: float = STOP_DEADLINE_S) -> None:
        """End the process with signal `how`, with SIGKILL when it does not go in time. Does nothing when it is not running."""
        child, self._child = self._child, None
        if child is None:
            return
        child.send_signal(how)
        try:
            child.wait(deadline_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def log_tail(self, lines: int = 25) -> str:
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _wait_until(self, ready: Callable[[], bool], deadline_s: float) -> None:
        assert self._child is not None
        end = time.monotonic() + deadline_s
        last_error = ""
        while time.monotonic() < end:
            code = self._child.poll()
            if code is not None:
                raise PartFailedError(f"{self._name} ended with code {code} while starting; its log ends:\n{self.log_tail()}")
            try:
                if ready():
                    return
            except Exception as error:  # a probe fails in as many ways as there are client libraries
                last_error = f" (last try: {type(error).__name__}: {error})"
            time.sleep(_POLL_S)
        raise PartFailedError(
            f"{self._name} was not ready after {deadline_s:.0f} s{last_error}; its log ends:\n{self.log_tail()}"
        )
