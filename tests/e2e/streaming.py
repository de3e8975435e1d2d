"""A program of the tests: it sends or fetches a stream of any length by backupd's own code, and prints how much memory it took.

    python -m tests.e2e.streaming send|fetch BYTES
    python -m tests.e2e.streaming backupd ARGUMENTS

The stream comes out of a pipe, and the store keeps nothing, or makes up what it gives: what is measured is what lies between,
in a process that has loaded what a real run loads. In a short stream, too, as many parts as there may be at once are seen to be
there at once, so that one stream's luck is not compared with another's.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE

from backupd import transfer
from backupd.manifest import Artifact, Kind, Part
from backupd.pipeline import Command, Pipeline
from backupd.redact import Secret
from backupd.stores import Limits, S3Keys, StoredObject, open_store

CONCURRENCY = 2
DEADLINE_S = 120.0
S3 = Limits(parts=10_000, smallest=5 << 20, largest=5 << 30)


class Swallowing:
    """An upload that keeps nothing, and counts."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}

    def part(self, number: int, data: bytes | bytearray | memoryview, sha256: bytes) -> None:
        self.sizes[number] = len(data)

    def commit(self, parts: int, size: int) -> None:
        assert (len(self.sizes), sum(self.sizes.values())) == (parts, size)

    def abort(self) -> None:
        """There is nothing to give up."""


class Bottomless:
    """A store with the limits of S3 that takes everything, and gives objects of ones that are `size` bytes long."""

    url = "bottomless:"
    limits = S3

    def __init__(self, size: int) -> None:
        self._size = size
        self._given = 0
        self._more = threading.Condition()

    def begin(self, name: str) -> Swallowing:
        return Swallowing()

    def create(self, name: str, data: bytes) -> None:
        raise NotImplementedError("no stream is sent this way")  # a part of Store that this measurement must not reach

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        rest = max(0, self._size - start)
        data = b"\1" * (rest if length is None else min(length, rest))
        with self._more:
            self._given += len(data)
            self._more.notify_all()
        return data

    def wait_until_given(self, size: int) -> None:
        """Return once so many bytes were given, or all there are."""
        with self._more:
            assert self._more.wait_for(lambda: self._given >= min(size, self._size), DEADLINE_S)

    def sweep(self, prefix: str) -> list[str]:
        return []

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        return iter(())


def send(size: int) -> int:
    """How many bytes of a stream of `size` bytes were sent."""
    source = Command("head", ("head", "-c", str(size), "/dev/zero"), {"PATH": "/usr/bin:/bin"})
    with Pipeline([source], stdin=DEVNULL, stdout=PIPE) as pipeline:
        sent = transfer.send(pipeline, Bottomless(0), "stream", expected=size, concurrency=CONCURRENCY)
        pipeline.finish()
        sent.commit()
    return sent.size


def fetch(size: int) -> int:
    """How many bytes of an object of `size` bytes were fetched and proved."""
    sizes: list[int] = []
    for each in transfer.part_sizes(S3, size):
        sizes.append(min(each, size - sum(sizes)))
        if sum(sizes) == size:
            break
    digests = {each: hashlib.sha256(b"\1" * each).hexdigest() for each in set(sizes)}
    artifact = Artifact("stream", Kind.DATABASE, size, "", tuple(Part(each, digests[each]) for each in sizes))
    store, fetched = Bottomless(size), 0
    for part in transfer.fetch(store, "", artifact, concurrency=CONCURRENCY):
        fetched += len(part)
        store.wait_until_given(fetched + CONCURRENCY * len(part))
        del part  # or whether it is still there when the next is made would be luck
    return fetched


def peak_bytes() -> int:
    """The most memory that this process ever had resident (VmHWM of proc_pid_status(5))."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def main(what: str, *arguments: str) -> None:
    """Do one thing; the last line on stdout is the peak in bytes."""
    atexit.register(lambda: print(peak_bytes()))  # noqa: T201  it is what this program is for
    if what == "backupd":
        from backupd import cli

        cli.main(arguments)
    importlib.import_module("backupd.backup")
    open_store("s3://bucket/prefix", region="us-east-1", keys=S3Keys("nobody", Secret("nothing at all")))  # loads the SDK
    size = int(arguments[0])
    assert {"send": send, "fetch": fetch}[what](size) == size


if __name__ == "__main__":
    main(*sys.argv[1:])
