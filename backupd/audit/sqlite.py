"""The trail in one SQLite file: the default of a single installation. Never changes a record, never makes a directory.

Durable on return: a rollback journal with `synchronous=EXTRA`, which also syncs the directory once the journal is gone; with
FULL a power cut may take back the last commit (sqlite.org/pragma.html#pragma_synchronous). WAL would need a second file to be
readable, and a writable directory to be read in. The triggers keep honest tools from editing, and stop nobody else. Whoever can
write the file can also give it triggers or views of their own, so a file that holds anything but our schema is not used at all.

Whoever can write the directory can also leave a journal there that names a file, which SQLite would delete with the rights of
whoever opens the trail. No trail is opened beside such a journal. That closes the plain way: one that is put there after the
look and before SQLite's own works still, for who wins that race as the account that the directory belongs to.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

from backupd.audit import Stored, TrailError
from backupd.audit.records import digest
from backupd.errors import BackupdError, Interrupted, Tampered

APPLICATION_ID = 0x62_6B_70_64  # "bkpd", so that file(1) and we know the file
SCHEMA_VERSION = 1
_PAGE = 500
_LARGEST = 32 << 20  # bytes of one record: four times what a check writes that finds as much as a record holds
_STEPS = 100_000  # of SQLite's machine, some milliseconds, between two looks at whether a signal came
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
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")  # sqlite.org/fileformat2.html#the_rollback_journal


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
            if _stored(connection.execute(_HEAD).fetchone()) != stored:
                raise Tampered(f"the trail {self.path} does not keep what is written to it", _CHANGED_HINT)
            connection.execute("COMMIT")
            return stored

    def read(self, start: int = 1) -> Iterator[Stored]:
        # By pages, so that no lock is held while the caller works.
        page = self._page(start - 1)
        while page:
            yield from page
            page = self._page(page[-1].seq)

    def head(self) -> Stored | None:
        if self._is_absent():
            return None
        with self._open() as connection:
            connection.execute("BEGIN")  # what is read is of the schema that was looked at
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
            remedy = "run this as the user whose trail it is, or as one who may enter its directory"
            hint = remedy if isinstance(error, PermissionError) else "correct [audit] url"
            raise TrailError(f"the trail {self.path} cannot be looked at: {error.strerror}", hint) from error

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

    def _page(self, after: int) -> list[Stored]:
        if self._is_absent():
            return []
        with self._open() as connection:
            connection.execute("BEGIN")
            if not self._has_schema(connection):
                return []
            rows = connection.execute(
                "SELECT seq, data, sha256 FROM record WHERE seq > ? ORDER BY seq LIMIT ?", (after, _PAGE)
            ).fetchall()
        page = [_present(row) for row in rows]
        numbers = [after, *(each.seq for each in page)]
        if any(one >= next_one for one, next_one in pairwise(numbers)):  # pages that point at each other have no end
            raise Tampered(f"the trail {self.path} is damaged: its numbers do not rise", _DAMAGED_HINT)
        return page

    def _has_schema(self, connection: sqlite3.Connection) -> bool:
        """Whether it is a trail; False for an empty file. Raises TrailError for a database of something else.

        Raises Tampered when it holds anything but our schema: a trigger can swallow records, a view can invent them or have no
        end, and neither shows in what is read.
        """
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application == APPLICATION_ID and version > SCHEMA_VERSION:
            raise TrailError(f"the trail {self.path} is of version {version}, newer than this backupd", "update backupd")
        if application == APPLICATION_ID:
            if _objects(connection) != _ours():
                raise Tampered(f"the trail {self.path} holds other tables, triggers or views than backupd made", _CHANGED_HINT)
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
            self._look_at_journal()
            with closing(sqlite3.connect(uri, uri=True, timeout=self.busy_timeout_s, isolation_level=None)) as connection:
                connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST)
                # Python runs its handlers of signals when Python runs; what one raises ends the statement.
                connection.set_progress_handler(lambda: 0, _STEPS)
                connection.execute("PRAGMA synchronous = EXTRA")
                connection.execute("PRAGMA trusted_schema = OFF")  # a forged schema runs no functions of ours
                yield connection  # closing without COMMIT rolls back
        except (sqlite3.Error, OverflowError) as error:
            if _code(error) == sqlite3.SQLITE_INTERRUPT:  # by a signal, whose own exception SQLite has swallowed
                raise Interrupted("interrupted while the trail was used") from error
            raise self._explained(error) from error

    def _look_at_journal(self) -> None:
        """Raises TrailError for a journal that makes SQLite delete another file than itself, or that is no file.

        Such a journal ends in the name of a super-journal and the magic number. SQLite writes none for us, who attach no second
        database. A journal without that is one that a killed run left: it is rolled back, as it must be.
        """
        journal = f"{os.path.realpath(self.path)}-journal"  # where SQLite looks, also when the trail is a link
        try:
            if not stat.S_ISREG(os.lstat(journal).st_mode):
                raise TrailError(f"{journal} is no file, and SQLite would use it with the trail", _JOURNAL_HINT)
            descriptor = os.open(journal, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                size = os.fstat(descriptor).st_size
                end = os.pread(descriptor, len(_JOURNAL_MAGIC), max(0, size - len(_JOURNAL_MAGIC)))
            finally:
                os.close(descriptor)
        except (FileNotFoundError, NotADirectoryError):  # nothing to roll back; or its writer is done with it
            return
        except OSError as error:
            hint = "run this as the user whose trail it is"
            raise TrailError(f"the trail's journal {journal} cannot be looked at: {error.strerror}", hint) from error
        if size > 2 * len(_JOURNAL_MAGIC) and end == _JOURNAL_MAGIC:  # a shorter one has no room for a name
            raise TrailError(f"{journal} would have SQLite delete another file", _JOURNAL_HINT)

    def _explained(self, error: Exception) -> BackupdError:
        reason = _REASONS.get(_code(error))
        if reason is not None:
            return TrailError(f"the trail {self.path} {reason[0]}", reason[1])
        return Tampered(f"the trail {self.path} is damaged: {error}", _DAMAGED_HINT)


_DAMAGED_HINT = "keep the file as it is, and find out what wrote to it"
_JOURNAL_HINT = "find out who made it, and move it away: backupd never makes one like it"
_CHANGED_HINT = "keep the file as it is, find out who changed it, and name another in [audit] url"
_REASONS = {
    sqlite3.SQLITE_BUSY: ("is locked by another process", "look for one that hangs, with fuser(1)"),
    sqlite3.SQLITE_LOCKED: ("is locked by this process", "this is a fault in backupd: report it"),
    sqlite3.SQLITE_READONLY: ("may not be written by this user", "make this user the owner of the file and of its directory"),
    sqlite3.SQLITE_PERM: ("may not be used by this user", "make this user the owner of the file"),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "this user must be able to read and write it and its directory"),
    sqlite3.SQLITE_AUTH: ("may not be used by this user", "make this user the owner of the file"),
    sqlite3.SQLITE_FULL: ("cannot be written: the disk is full", "make room"),
    sqlite3.SQLITE_IOERR: (
        "cannot be read or written: the disk is full, or failing",
        "make room, and look into the kernel's log",
    ),
    sqlite3.SQLITE_NOMEM: ("cannot be used: there is no memory left", "give this host more"),
}


def _stored(row: Any) -> Stored | None:
    return None if row is None else _present(row)


def _present(row: Any) -> Stored:
    """A row as it is, however it was forged; its number is one, for it is the table's key."""
    seq, data, sha256 = row
    data = data if isinstance(data, bytes) else str(data).encode("utf-8", "surrogateescape")
    return Stored(seq, data, sha256 if isinstance(sha256, str) else "")


def _code(error: Exception) -> int:
    """SQLite's primary code of an error, 0 when it is none of SQLite's; the upper bits only refine it."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _objects(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    """What the database holds, by name, as it was made; blanks do not count."""
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name LIMIT 10").fetchall()
    return [tuple(" ".join(str(each).split()) for each in row) for row in rows]


@cache
def _ours() -> list[tuple[str, ...]]:
    """What a trail holds, and nothing else."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(_SCHEMA)
        return _objects(connection)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: executescript() would commit before the first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
