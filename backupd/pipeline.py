"""Programs side by side, joined by kernel pipes: the bulk bytes never pass through Python between two of them.

Owns the life of child processes: each is an argv list with an environment of its own, its stderr is kept, its exit code is
read, and its death is the death of its peers. Knows nothing of gpg or PostgreSQL. Linux only (pipe sizes, pidfds, memfds).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Self

from backupd.errors import ProcessFailed
from backupd.redact import printable, scrub

PIPE_BYTES = 1 << 20  # the largest an unprivileged process may ask for (fs.pipe-max-size's default)
STDERR_BYTES = 64 << 10  # of the end of a program's stderr: enough for its last 25 lines
PAUSE_S = 0.002  # lets a pipe fill: at 400 MB/s it then holds 800 KiB
GRACE_S = 5.0  # between a polite and a certain end


@dataclass(frozen=True, slots=True)
class Command:
    """One program and everything it gets: `env` is its whole environment, secrets included, so it is kept out of the repr.

    `user` is the account to run as when this process is root's; it is not looked at otherwise.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    pass_fds: tuple[int, ...] = ()
    user: str | None = None

    def __repr__(self) -> str:
        return f"Command({self.name!r}, {self.argv!r})"


@dataclass(frozen=True, slots=True)
class Completed:
    """What a program that ended with exit code 0 wrote."""

    stdout: bytes
    stderr: str


class Pipeline:
    """Several commands, each one's stdout the next one's stdin. A context manager: leaving it ends whatever still runs.

    `stdin` of the first and `stdout` of the last are `subprocess.PIPE`, `subprocess.DEVNULL` or a file descriptor. After
    `deadline_s` seconds everything is killed, and `finish` says so.
    """

    def __init__(self, commands: Sequence[Command], *, stdin: int, stdout: int, deadline_s: float | None = None) -> None:
        self._commands = tuple(commands)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stderr = [os.memfd_create(command.name, os.MFD_CLOEXEC) for command in self._commands]
        self._expired = False
        self._timer = threading.Timer(deadline_s, self._expire) if deadline_s is not None else None
        try:
            self._start(stdin, stdout)
        except BaseException:
            self.close()
            raise
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()

    def _start(self, stdin: int, stdout: int) -> None:
        source: int = stdin
        last = len(self._commands) - 1
        for index, command in enumerate(self._commands):
            sink = stdout if index == last else subprocess.PIPE
            try:
                process = _spawn(command, source, sink, self._stderr[index])
            finally:
                if index:
                    os.close(source)  # the reader has it now: were we to keep it, a dead reader would never be noticed
            self._processes.append(process)
            for end in (process.stdin, process.stdout):
                if end is not None:
                    _widen(end.fileno())
            if index != last:
                with _pipe(process.stdout) as stream:
                    source = os.dup(stream.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def read_into(self, buffer: memoryview) -> int:
        """Fill `buffer` from the last program's stdout; fewer bytes than it holds only at the stream's end."""
        return _fill(_pipe(self._processes[-1].stdout).fileno(), buffer)

    def write(self, data: bytes | memoryview) -> None:
        """Hand `data` to the first program. Raises BrokenPipeError when it is gone: `finish` then says why."""
        stream = _pipe(self._processes[0].stdin)
        view = memoryview(data).cast("B")
        while view:
            view = view[os.write(stream.fileno(), view) :]

    def close_stdin(self) -> None:
        """No more input: the first program reads its end."""
        stream = self._processes[0].stdin
        if stream is not None:
            stream.close()

    def finish(self, timeout_s: float | None = None) -> None:
        """Wait for every program. Raises ProcessFailed of the one that failed first, after ending its peers.

        Also raises ProcessFailed when the deadline, or `timeout_s` from now, passes before all have ended.
        """
        self.close_stdin()
        limit = None if timeout_s is None else time.monotonic() + timeout_s
        failed = self._wait(limit)
        self.require_in_time()
        if failed is not None:
            raise self._failure(failed)

    def require_in_time(self) -> None:
        """For who works beside it: raises ProcessFailed when the deadline has passed."""
        if self._expired:
            raise ProcessFailed(
                f"{self._names()} ran past the deadline and was ended", "raise the deadline, or find what is slow"
            )

    def _wait(self, limit: float | None) -> int | None:
        """The index of the culprit, or None when all ended with 0. Kills peers of a culprit, and everything at the limit."""
        waiting = {os.pidfd_open(process.pid): index for index, process in enumerate(self._processes) if process.poll() is None}
        poll = select.poll()
        for fd in waiting:
            poll.register(fd, select.POLLIN)
        try:
            while waiting and not any(process.poll() for process in self._processes):
                left = None if limit is None else max(0.0, limit - time.monotonic()) * 1000
                ended = poll.poll(left)
                if not ended:
                    self._expire()
                    limit = None
                for fd, _ in ended:
                    self._processes[waiting.pop(fd)].wait()
                    poll.unregister(fd)
                    os.close(fd)
        finally:
            for fd in waiting:
                os.close(fd)
        culprit = None if self._expired else self._culprit()
        if culprit is not None:
            self.kill()
        return culprit

    def _culprit(self) -> int | None:
        """Of those that have failed: the last one, unless it may just have missed its input because an earlier one failed.

        A reader's death breaks its writer's pipe, and the writer then fails for that alone; a writer's death cuts its
        reader's input short, and the reader then complains of that.
        """
        failed = [index for index, process in enumerate(self._processes) if process.poll()]
        for index in failed:
            broken = self._processes[index].returncode == -signal.SIGPIPE or "roken pipe" in self.stderr_of(index)
            if not broken or index == failed[-1]:
                return index
        return None

    def _failure(self, index: int) -> ProcessFailed:
        command, code = self._commands[index], self._processes[index].returncode
        how = f"ended with exit code {code}" if code >= 0 else f"was ended by {_signal_name(-code)}"
        lines = self.stderr_of(index)
        said = next((line.strip() for line in reversed(lines.splitlines()) if line.strip()), "")
        hint = "who ended it? The kernel's log tells when memory ran out" if code < 0 else None
        return ProcessFailed(
            f"{command.name} {how}" + (f": {said}" if said else ""), hint, program=command.name, status=code, stderr=lines
        )

    def stderr(self, name: str) -> str:
        """The last lines that the program of this name wrote to stderr, free of secrets."""
        return self.stderr_of([command.name for command in self._commands].index(name))

    def stderr_of(self, index: int) -> str:
        """The same by the program's place."""
        fd = self._stderr[index]
        size = os.fstat(fd).st_size
        tail = os.pread(fd, STDERR_BYTES, max(0, size - STDERR_BYTES)).decode(errors="replace")
        return "\n".join(printable(line) for line in scrub(tail).splitlines()[-25:])

    def running(self, name: str) -> bool:
        """Whether the program of this name has not ended yet."""
        return self._processes[[command.name for command in self._commands].index(name)].poll() is None

    def pids(self) -> list[int]:
        """The process ids, in order."""
        return [process.pid for process in self._processes]

    def kill(self) -> None:
        """End every program that still runs: SIGTERM, and SIGKILL for those that have not ended after a few seconds."""
        for process in reversed(self._processes):  # readers first, so that none takes its writer's end for the end of the input
            if process.poll() is None:
                process.terminate()
        limit = time.monotonic() + GRACE_S
        for process in self._processes:
            try:
                process.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def close(self) -> None:
        """End what still runs and give back every descriptor. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()
        self.kill()
        for process in self._processes:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        while self._stderr:
            os.close(self._stderr.pop())

    def _expire(self) -> None:
        self._expired = True
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def _names(self) -> str:
        return " | ".join(command.name for command in self._commands)


def run(command: Command, stdin: bytes = b"", *, timeout_s: float) -> Completed:
    """One program to its end, with a small input and output held in memory.

    Raises ProcessFailed: another exit code than 0, a signal, or no end within `timeout_s` seconds.
    """
    with Pipeline([command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, deadline_s=timeout_s) as pipeline:
        feeder = threading.Thread(target=_feed, args=(pipeline, stdin), daemon=True)
        feeder.start()
        chunks = bytearray()
        buffer = memoryview(bytearray(64 << 10))
        while count := pipeline.read_into(buffer):
            chunks += buffer[:count]
        feeder.join()
        pipeline.finish()
        return Completed(bytes(chunks), pipeline.stderr_of(0))


def _feed(pipeline: Pipeline, data: bytes) -> None:
    with contextlib.suppress(OSError):  # a program may end without reading all; its exit code says whether that was well
        pipeline.write(data)
    with contextlib.suppress(OSError):
        pipeline.close_stdin()


def _spawn(command: Command, stdin: int, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    account = command.user if command.user is not None and os.geteuid() == 0 else None
    try:
        return subprocess.Popen(
            command.argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=dict(command.env),
            pass_fds=command.pass_fds,
            bufsize=0,
            process_group=0,  # a terminal's Ctrl-C is for us: we end our children ourselves
            user=account,
            group=_group(account),
            extra_groups=None if account is None else [],
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise ProcessFailed(f"{command.name} could not be started: {reason}", f"is {command.argv[0]} installed?") from error


def _group(account: str | None) -> int | None:
    if account is None:
        return None
    import pwd

    return pwd.getpwnam(account).pw_gid


def _widen(fd: int) -> None:
    with contextlib.suppress(
        OSError
    ):  # a hint: past the user's soft limit of pipe pages the kernel refuses, and 64 KiB will do
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _fill(fd: int, buffer: memoryview) -> int:
    """Programs write a few KiB at a time, and a reader that is woken for each costs more than the reading: so when a wide pipe
    held little, it is given a moment to fill. It never gets full in that time, so its writer never waits."""
    patient = len(buffer) >= PIPE_BYTES and fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) >= PIPE_BYTES
    filled = 0
    while filled < len(buffer):
        count = os.readv(fd, [buffer[filled:]])
        if not count:
            break
        filled += count
        if patient and count < PIPE_BYTES // 4:
            time.sleep(PAUSE_S)
    return filled


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise TypeError("this end of the pipeline is not a pipe")
    return stream


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
