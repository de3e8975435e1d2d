"""Where sealed bytes are kept: one small interface over a directory, S3 and Azure Blob.

A store knows names and bytes. It knows nothing of manifests, keys or PostgreSQL. Objects are written once and never changed.
Names are relative to the store's URL: segments of `A-Z a-z 0-9 . _ -` and other printable characters, joined by `/`, with no
empty segment and none that ends with a dot (`check_name` says so for all stores alike).

Every method may raise a `StoreError`; `StoreUnavailable` is the only one worth another try, and the store has already tried
(`retries` with exponential backoff and jitter) before it raises that.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from backupd.errors import ConfigError
from backupd.stores.access import AzureLogin, Checksum, Lock, S3Access, S3Keys
from backupd.stores.retries import Patience

__all__ = [
    "AzureLogin",
    "Checksum",
    "Limits",
    "Lock",
    "Patience",
    "S3Access",
    "S3Keys",
    "Store",
    "StoredObject",
    "Upload",
    "check_name",
    "open_store",
]

SCHEMES = ("file", "s3", "azure")
UNFINISHED = ".unfinished"
NAME_BYTES = 900  # of the longest name, in UTF-8
NAME_SEGMENTS = 32
_FORMS = "file:///directory, s3://bucket/prefix or azure://container/prefix"


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
        """Send part `number` (from 1, each once), whose digest is `sha256`: the store's own check is used where it has one.

        May be called from several threads at once, for different numbers and in any order; in order is cheapest for a
        directory. The data is not kept after the return.
        """

    def commit(self, parts: int, size: int) -> None:
        """Make the object of parts 1 to `parts` visible, create-only, after the store has confirmed that `size` bytes arrived.

        Raises ObjectExists when the name was taken meanwhile, StoreError when sizes disagree; then nothing is visible. After
        StoreUnavailable the object may be there whole, if the store took the request and never answered.
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

    def sweep(self, prefix: str) -> list[str]:
        """Abort the unfinished uploads below the directory `prefix` that no living run owns, and return their names.

        `a/b` means `a/b/…` and never `a/bc`; "" means all. The caller holds the lock of what lies there, so every upload
        there is a dead run's.
        """

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """All objects whose name starts with `prefix`, in order of name (code points), each once.

        `locked_until` is filled in only when the store was opened with a lock: on S3 it costs a request per object.
        """


def check_name(name: str) -> str:
    """`name`, or a ValueError: names are made by backupd, so a bad one is a bug, or comes from a manifest that was not checked.

    What one kind of store cannot keep, no store takes: a backslash (S3-compatible servers and Azure may turn it into a slash),
    a segment that ends with a dot (Azure drops it), and `.unfinished`, where a directory keeps uploads in the making. A name
    has at most 900 bytes and 32 segments: a directory is listed no deeper than that.
    """
    segments = name.split("/")
    bad = any(not segment or segment.endswith(".") for segment in segments) or segments[0] == UNFINISHED or "\\" in name
    if bad or not name.isprintable() or len(segments) > NAME_SEGMENTS or len(name.encode()) > NAME_BYTES:
        raise ValueError(f"not the name of an object: {name!r}")
    return name


def open_store(
    url: str,
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    profile: str | None = None,
    keys: S3Keys | None = None,
    login: AzureLogin | None = None,
    checksum: Checksum = "when_supported",
    lock: Lock | None = None,
    patience: Patience | None = None,
) -> Store:
    """The store that `url` names: `file:///directory`, `s3://bucket/prefix` or `azure://container/prefix`.

    `endpoint_url` is for S3-compatible servers, and names the storage account for Azure. Without `keys`, S3 finds credentials
    as the AWS SDK does (`profile`, environment, instance or pod role); without `login`, Azure as DefaultAzureCredential does.
    Opening asks the server nothing. Raises ConfigError, also when the SDK is not installed.
    """
    patience = patience or Patience()
    scheme, bucket, path = _split(url)
    foreign = {"endpoint_url": endpoint_url, "region": region, "profile": profile, "keys": keys, "login": login, "lock": lock}
    match scheme:
        case "file":
            _refuse(scheme, foreign)
            from backupd.stores.file import FileStore

            return FileStore(Path(path))
        case "s3":
            _refuse(scheme, {"login": login})
            from backupd.stores.s3 import open_s3

            return open_s3(bucket, path, S3Access(endpoint_url, region, profile, keys, checksum), lock, patience)
        case _:
            _refuse(scheme, {"region": region, "profile": profile, "keys": keys})
            from backupd.stores.azure import open_azure

            return open_azure(bucket, path, endpoint_url, login, lock, patience)


def _split(url: str) -> tuple[str, str, str]:
    """Scheme, bucket or container, and path without slashes at its ends (a directory: absolute). Messages never echo a URL."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError("the store's url is not a URL", f"write {_FORMS}") from error
    if parts.scheme not in SCHEMES:
        near = difflib.get_close_matches(parts.scheme, SCHEMES, 1, 0.0)[0]
        raise ConfigError(f"no store is called {parts.scheme!r}", f"did you mean {near}://? There are {', '.join(SCHEMES)}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError("the store's url holds more than a place", "credentials are configured apart, never in the url")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise ConfigError(
                "a file store's url names no absolute directory", "write it with three slashes: file:///var/lib/backupd/store"
            )
        return "file", "", unquote(parts.path)
    prefix = parts.path.strip("/")
    if not parts.netloc:
        raise ConfigError("the store's url names no bucket or container", f"write {parts.scheme}://name/prefix")
    try:
        return parts.scheme, parts.netloc, check_name(prefix) if prefix else ""
    except ValueError as error:
        hint = "use letters, digits, - _ . and single slashes"
        raise ConfigError(f"the prefix in the store's url cannot be used: {prefix!r}", hint) from error


def _refuse(scheme: str, foreign: Mapping[str, object]) -> None:
    """ConfigError for the first option that means nothing to this kind of store: silently ignored, it would seem to protect."""
    for name, value in foreign.items():
        if value is not None:
            raise ConfigError(f"{name} means nothing to a {scheme} store", f"remove {name}, or use another store")
