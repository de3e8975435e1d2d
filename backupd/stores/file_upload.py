"""One file that is put together from numbered parts of any size, which arrive in any order and from several threads.

Where a part belongs is known once the sizes of all before it are known. In the usual case they are: parts are announced in
order, so each is written once, straight to its place, several at a time. A part that comes too early is put aside in a file of
its own and moved in by `finish`, within the kernel.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from backupd.errors import StoreError

# How long a part waits for its predecessors to be announced before it is put aside. It decides cost alone, never the result:
# threads of one pool start their parts in order but may overtake each other by microseconds.
_OVERTAKING_S = 0.25


class Assembly:
    """The file `data` in `directory`, being written."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "data"
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._known = threading.Condition()  # guards all below
        self._sizes: dict[int, int] = {}
        self._offsets: dict[int, int] = {}  # of every part whose predecessors are all announced
        self._end = 0  # where the next of these will begin
        self._aside: set[int] = set()
        self._written: set[int] = set()
        self._writing = 0

    def write(self, number: int, data: memoryview) -> None:
        """Write one part. Raises OSError; ValueError for a number that was given before or an ended upload."""
        with self._known:
            if number in self._sizes or number < 1 or self._fd < 0:
                raise ValueError(f"part {number} was sent before, or the upload has ended")
            self._writing += 1
            self._announce(number, len(data))
            if not self._known.wait_for(lambda: number in self._offsets, _OVERTAKING_S):
                self._aside.add(number)
        try:
            if number in self._aside:
                write_whole(self._spill(number), data)
            else:
                _write_at(self._fd, data, self._offsets[number])
            with self._known:
                self._written.add(number)
        finally:
            with self._known:
                self._writing -= 1
                self._known.notify_all()

    def finish(self, parts: int) -> int:
        """Sync a file of exactly parts 1 to `parts`, and return its size in bytes as the file system tells it."""
        expected = set(range(1, parts + 1))
        if self._written != expected or set(self._sizes) != expected:
            raise StoreError(f"{len(self._written)} parts were written, {parts} announced", "this run is lost, start another")
        for number in sorted(self._aside):
            _move_in(self._spill(number), self._fd, self._offsets[number])
        self._aside.clear()
        os.fsync(self._fd)
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        """Let go of the file once nobody writes to it any more: its number may be another file's next. May be called twice."""
        with self._known:
            self._known.wait_for(lambda: self._writing == 0)
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _announce(self, number: int, size: int) -> None:
        self._sizes[number] = size
        while (following := len(self._offsets) + 1) in self._sizes:
            self._offsets[following] = self._end
            self._end += self._sizes[following]
        self._known.notify_all()

    def _spill(self, number: int) -> Path:
        return self.path.with_name(f"part-{number}")


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Make the file `path` of mode 0600 with these bytes, on disk when this returns. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _write_at(fd, memoryview(data), 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def sync(directory: Path) -> None:
    """Put a directory's entries on disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def _move_in(source: Path, fd: int, offset: int) -> None:
    with source.open("rb", buffering=0) as spilled:
        size = os.fstat(spilled.fileno()).st_size
        os.lseek(fd, offset, os.SEEK_SET)
        done = 0
        while done < size:
            done += os.sendfile(fd, spilled.fileno(), done, size - done)
    source.unlink()
