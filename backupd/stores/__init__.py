"""Where sealed bytes are kept: one small interface over a directory, S3 and Azure Blob.

A store knows names and bytes. It knows nothing of manifests, keys or PostgreSQL. Objects are written once and never changed.
Names are relative to the store's URL: segments of `A-Z a-z 0-9 . _ -` and other printable characters, joined by `/`, with no
empty, `.` or `..` segment (`check_name` says so for all stores alike).

Every method may raise a `StoreError`; `StoreUnavailable` is the only one worth another try, and the store has already tried
(`retries` with exponential backoff and jitter) before it raises that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Limits:
    """What an upload may look like: number of parts, and bytes in each but the last, which may be smaller."""

    parts: int
    smallest: int
    largest: int


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object: name, size in bytes, time of its writing, and until when the store refuses to delete it."""

    name: str
    size: int
    modified_at: datetime
    locked_until: datetime | None = None


class Upload(Protocol):
    """One object in the making. Nothing of it can be listed or read before `commit` has returned."""

    def part(self, number: int, data: bytes | bytearray | memoryview, sha256: bytes) -> None:
        """Send part `number` (from 1), whose digest is `sha256`; the store's own check of it is used where it has one.

        May be called from several threads at once, for different numbers. The data is not kept after the return.
        """

    def commit(self, parts: int, size: int) -> None:
        """Make the object of parts 1 to `parts` visible, create-only, after the store has confirmed that `size` bytes arrived.

        Raises ObjectExists when the name was taken meanwhile, StoreError when sizes disagree; then nothing is visible.
        """

    def abort(self) -> None:
        """Give up and leave nothing behind. May be called at any time, also twice; after `commit` it does nothing. Never raises
        for a store that is gone: what is left then is what `sweep` finds."""


class Store(Protocol):
    """Five methods; `tests/stores/contract.py` says what each owes, and every store passes it against a real server."""

    @property
    def url(self) -> str:
        """Where this is, without credentials: for records and messages."""

    @property
    def limits(self) -> Limits: ...

    def begin(self, name: str) -> Upload:
        """Start an object of many parts. Raises ObjectExists when the name is taken already."""

    def create(self, name: str, data: bytes) -> None:
        """Write a small object whole, create-only. Raises ObjectExists and then has changed nothing."""

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """The bytes from `start`, `length` of them or to the end: fewer when the object ends before, b"" when it starts after.

        Raises ObjectMissing. A connection that is cut in the middle is an error or retried, never a short answer.
        """

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """All objects whose name starts with `prefix`, in order of name (code points), each once."""

    def sweep(self, prefix: str) -> tuple[str, ...]:
        """Abort the unfinished uploads under `prefix` that no living run owns, and return their names.

        The caller holds the lock of what lies under `prefix`, so every upload there is a dead run's.
        """


def check_name(name: str) -> str:
    """`name`, or a ValueError: names are made by backupd, so a bad one is a bug, or comes from a manifest that was not checked."""
    segments = name.split("/")
    if len(name.encode()) > 900 or not all(segments) or any(s in (".", "..") for s in segments) or not name.isprintable():
        raise ValueError(f"not the name of an object: {name!r}")
    return name


def open_store(url: str, *, endpoint_url: str | None = None, **options: object) -> Store:
    """Placeholder for the table of schemes; see the stores' own files."""
    raise NotImplementedError(url)
