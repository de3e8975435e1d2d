"""The trail: who did what, on which source and backup, and how it ended; only ever appended to, and hashed into a chain.

What the chain shows by itself: a record that was changed, taken out, put in or moved. What it cannot show by itself: that its
end was cut off, or that all of it was written anew by someone who can write the store. For that a `Checkpoint` has to be kept
elsewhere; `Trail.verify(expected=…)` holds the trail against one.

    records.py    one record and its bytes        chain.py       verification, pure
    trail.py      what operations use             sqlite.py, postgres.py    where records lie
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

from backupd.errors import BackupdError, ConfigError

if TYPE_CHECKING:
    import psycopg

    Connect = Callable[[], psycopg.Connection[Any]]


class TrailError(BackupdError):
    """The trail cannot be written or read. What cannot be recorded must not be done."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One record as it lies in a store: its place, its bytes, and the hash (hex) that was stored beside them."""

    seq: int
    data: bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The trail's end at one moment: kept elsewhere, it accuses whoever cuts or rewrites the trail up to `seq`.

    `head` is the SHA-256 (hex) of record `seq`'s bytes, which hold that of the record before, and so of all before; `at` is
    when that record was made.
    """

    seq: int
    head: str
    at: datetime


class TrailStore(Protocol):
    """Where records lie. `tests/audit/contract.py` says what each store owes. Several processes may use one at once."""

    @property
    def where(self) -> str:
        """The place, without credentials: for messages."""

    def append(self, make: Callable[[Stored | None], bytes]) -> Stored:
        """Store what `make(head)` returns as the record after `head`, durable on return; no other writer comes in between.

        `make` may be called again when a connection was lost. Raises TrailError, and then nothing was stored that is not
        reported: a lost answer has been looked up. What `make` raises goes through, and nothing was stored.
        """

    def read(self, start: int = 1) -> Iterator[Stored]:
        """All records from number `start` on in order, as they are stored, damaged ones too. Appending meanwhile is allowed.

        A trail that was never written to has none. Raises TrailError, or Tampered when the store itself is damaged.
        """

    def head(self) -> Stored | None:
        """The last record. Raises as `read` does."""

    def excess_rights(self) -> list[str]:
        """What we, or others, could do to the trail beyond reading and appending; one line each."""


def open_trail_store(url: str, connect: Connect | None = None) -> TrailStore:
    """The store of this URL: `sqlite:////var/lib/backupd/audit.db`, or `postgresql://…`, for which `connect` opens connections.

    Nothing is opened yet. Raises ConfigError.
    """
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        from backupd.audit.sqlite import SqliteStore

        path = unquote(parts.path.removeprefix("/"))
        if parts.netloc or not path.startswith("/"):
            raise ConfigError("the trail's SQLite URL has no absolute path", "write sqlite:////var/lib/backupd/audit.db")
        return SqliteStore(path)
    if parts.scheme in ("postgresql", "postgres") and connect is not None:
        from backupd.audit.postgres import PostgresStore

        host = parts.netloc.rpartition("@")[2]
        return PostgresStore(connect, where=f"postgresql://{host}{parts.path}")
    raise ConfigError(f"there is no trail of the kind {parts.scheme!r}", "use sqlite:////path or postgresql://…")
