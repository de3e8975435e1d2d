"""The trail in one SQLite file: the default of a single installation. Never changes a record, never makes a directory.

Durable on return: a rollback journal with `synchronous=EXTRA`, which also syncs the directory once the journal is gone; with
FULL a power cut may take back the last commit (sqlite.org/pragma.html#pragma_synchronous). WAL would need a second file to be
readable, and a writable directory to be read in. The triggers keep honest tools from editing, and stop nobody else.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from backupd.audit import Stored, TrailError
from backupd.audit.records import digest
from backupd.errors import BackupdError, Tampered

APPLICATION_ID = 0x62_6B_70_64  # "bkpd", so that file(1) and we know the file
SCHEMA_VERSION = 1
_PAGE = 500
_SCHEMA = f"""
CREATE TABLE record (
    seq INTEGER PRIMARY KEY CHECK (seq > 0),
    data BLOB NOT NULL CHECK (typeof(data) = 'blob'),
    sha256 TEXT NOT NULL CHECK (typeof(sha256) = 'text')
);
CREATE TRIGGER record_is_not_updated BEFORE UPDATE ON record BEGIN SELECT RAISE(ABORT, 'the trail is only appended to'); END;
CREATE TRIGGER record_is_not_deleted BEFORE DELETE ON record BEGIN SELECT RAISE(ABORT, 'the trail is only appended to'); END;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""
_HEAD = "SELECT seq, data, sha256 FROM record ORDER BY seq DESC LIMIT 1"


@dataclass(frozen=True, slots=True)
class SqliteStore:
    """Records in the file at `path`, which is made, 0600, by the first append. `busy_timeout_s` is how long to wait for others.

    Each call opens the file anew: safe over forks and threads, and a file that was put in place of another is noticed.
    """

    path: str
    busy_timeout_s: float = 30.0

    @property
    def where(self) -> str:
        return f"sqlite://{quote('/' + self.path)}"

    def append(self, make: Callable[[Stored | None], bytes]) -> Stored:
        self._create_file()
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")  # takes the write lock before the head is read
            if not self._has_schema(connection):
                for statement in _statements(_SCHEMA):
                    connection.execute(statement)
            head = _stored(connection.execute(_HEAD).fetchone())
            data = make(head)
            stored = Stored(1 if head is None else head.seq + 1, data, digest(data))
            connection.execute("INSERT INTO record (seq, data, sha256) VALUES (?, ?, ?)", (stored.seq, data, stored.sha256))
            connection.execute("COMMIT")
            return stored

    def read(self, start: int = 1) -> Iterator[Stored]:
        # By pages, so that no lock is held while the caller works; by rowid too, for a forged table may hold a number twice.
        page = self._page((start - 1, 2**63 - 1))
        while page:
            for _, stored in page:
                yield stored
            rowid, stored = page[-1]
            page = self._page((stored.seq, rowid))

    def head(self) -> Stored | None:
        if self._is_absent():
            return None
        with self._open() as connection:
            return _stored(connection.execute(_HEAD).fetchone()) if self._has_schema(connection) else None

    def excess_rights(self) -> list[str]:
        found = []
        for path, what in ((Path(self.path), "the trail's file"), (Path(self.path).parent, "the trail's directory")):
            try:
                status = path.stat()
            except OSError:
                continue
            mode = stat.S_IMODE(status.st_mode)
            if mode & 0o022 and not mode & stat.S_ISVTX:
                found.append(f"{what} {path} may be written by others: its mode is {mode:04o}")
            elif what.endswith("file") and mode & 0o044:
                found.append(f"{what} {path} may be read by others: its mode is {mode:04o}")
            if status.st_uid not in (0, os.geteuid()):
                found.append(f"{what} {path} belongs to another user, id {status.st_uid}")
        return found

    def _is_absent(self) -> bool:
        try:
            return Path(self.path).stat().st_size == 0
        except FileNotFoundError:
            return True
        except OSError as error:
            raise TrailError(f"the trail {self.path} cannot be looked at: {error.strerror}", "correct [audit] url") from error

    def _create_file(self) -> None:
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return
        except FileNotFoundError as error:
            raise TrailError(
                f"the directory of the trail {self.path} does not exist", "create it, 0700, for the user that runs backupd"
            ) from error
        except OSError as error:
            raise TrailError(
                f"the trail {self.path} cannot be created: {error.strerror}", "its directory must be writable by this user"
            ) from error

    def _page(self, after: tuple[int, int]) -> list[tuple[int, Stored]]:
        if self._is_absent():
            return []
        with self._open() as connection:
            if not self._has_schema(connection):
                return []
            rows = connection.execute(
                "SELECT rowid, seq, data, sha256 FROM record WHERE (seq, rowid) > (?, ?) ORDER BY seq, rowid LIMIT ?",
                (*after, _PAGE),
            ).fetchall()
        return [(rowid, _present(row)) for rowid, *row in rows]

    def _has_schema(self, connection: sqlite3.Connection) -> bool:
        """Whether it is a trail; False for an empty file. Raises TrailError for a database of something else."""
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application == APPLICATION_ID and version > SCHEMA_VERSION:
            raise TrailError(f"the trail {self.path} is of version {version}, newer than this backupd", "update backupd")
        if application == APPLICATION_ID:
            return True
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise TrailError(f"{self.path} is a database of something else, no trail", "correct [audit] url")
        return False

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            # Never created here. Also for reading: what a killed writer left is rolled back by the next one who opens, and
            # SQLite itself falls back to reading only when the file is write-protected.
            uri = f"file:{quote(str(Path(self.path).absolute()))}?mode=rw"
            with closing(sqlite3.connect(uri, uri=True, timeout=self.busy_timeout_s, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous = EXTRA")
                connection.execute("PRAGMA trusted_schema = OFF")  # a forged schema runs no functions of ours
                yield connection  # closing without COMMIT rolls back
        except (sqlite3.Error, OverflowError) as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> BackupdError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code; the upper bits only refine it
        reason = _REASONS.get(code)
        if reason is not None:
            return TrailError(f"the trail {self.path} {reason[0]}", reason[1])
        return Tampered(f"the trail {self.path} is damaged: {error}", "keep the file as it is, and find out what wrote to it")


_REASONS = {
    sqlite3.SQLITE_BUSY: ("is locked by another process", "look for one that hangs, with fuser(1)"),
    sqlite3.SQLITE_LOCKED: ("is locked by this process", "this is a fault in backupd: report it"),
    sqlite3.SQLITE_READONLY: ("may not be written by this user", "make this user the owner of the file and of its directory"),
    sqlite3.SQLITE_PERM: ("may not be used by this user", "make this user the owner of the file"),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "this user must be able to read and write it and its directory"),
    sqlite3.SQLITE_AUTH: ("may not be used by this user", "make this user the owner of the file"),
    sqlite3.SQLITE_FULL: ("cannot be written: the disk is full", "make room; nothing was done that is not recorded"),
    sqlite3.SQLITE_IOERR: (
        "cannot be read or written: the disk is full, or failing",
        "make room, and look into the kernel's log",
    ),
    sqlite3.SQLITE_NOMEM: ("cannot be used: there is no memory left", "give this host more"),
}


def _stored(row: Any) -> Stored | None:
    return None if row is None else _present(row)


def _present(row: Any) -> Stored:
    """A row as it is, however it was forged; only its number must be one."""
    seq, data, sha256 = row
    if not isinstance(seq, int):
        raise Tampered(
            "the trail's table holds something that is no number of a record", "keep the file, and find out who wrote it"
        )
    data = data if isinstance(data, bytes) else str(data).encode("utf-8", "surrogateescape")
    return Stored(seq, data, sha256 if isinstance(sha256, str) else "")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: executescript() would commit before the first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
