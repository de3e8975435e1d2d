"""Secrets in files: who else could read or write one decides whether it is used. Never creates one, never edits one in place.

Symbolic links are followed, for Kubernetes mounts every secret as one; all checks are made on the file that was opened, so
that no link can be turned between the check and the reading.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from backupd.errors import Busy, ConfigError, CustodyError, SecretChanged, SecretUnavailable
from backupd.redact import Secret

LARGEST = 1024 * 1024  # bytes; a keyring of a thousand keys has 60 KiB
FileId = tuple[int, int]  # device and inode: one file, whatever it is called
LOCK_WAIT_S = 10.0  # for another writer; none of ours takes longer than a moment
_LOCK_LOOK_S = 0.05
_ACCESS_LIST = "system.posix_acl_access"  # acl(5): who reads a keyring by such a list must go on reading it
_FORBIDDEN = stat.S_IRWXO | stat.S_IWGRP  # 0640 root:backupd is how packages install secrets, so a group may read
_MISSING = (
    "write it there if it was never there, or correct the reference to it; what was lost comes back from its copy:"
    " a new key in its place would open nothing"
)
_OWNER = "run this as the owner of the file and of its directory, or replace the value by hand"
_REASONS = {
    errno.ENOSPC: "make room on the disk it lies on, and run this again; the old value is still there",
    errno.EDQUOT: "the owner's quota is used up: make room, and run this again; the old value is still there",
    errno.EROFS: "it is mounted read-only: run this where it can be written, or replace the value there by hand",
    errno.EBUSY: "the file is a mount of its own, and takes no other in its place: mount its directory, or replace it by hand",
    errno.EIO: "look at the disk it lies on, and which value is there",
}


@dataclass(frozen=True, slots=True)
class PrivateFile:
    """A file that only its owner may write, and nobody but the owner and the group may read. `path` is absolute."""

    path: str

    def __post_init__(self) -> None:
        if not Path(self.path).is_absolute() or "\0" in self.path:
            raise ConfigError(f"the path of a secret is not absolute: {self.path!r}", "write it with a leading /")

    @property
    def locator(self) -> str:
        # Not resolved: where the links of a mounted secret lead to changes with every renewal of it.
        return f"file:/{os.path.normpath(self.path).lstrip('/')}"  # which leaves two slashes at the beginning as they are

    @property
    def file(self) -> FileId | None:
        """The file that the path leads to now."""
        return file_at(self.path)

    def fetch(self) -> Secret:
        """The file's bytes. Raises SecretUnavailable: missing, unreadable, not a file, open to others, empty, too large."""
        return read_private(self.path, self.locator)

    @property
    def replaceable(self) -> bool:
        return True

    def replace(self, new: Secret, seen: Secret) -> None:
        """Put `new` in the place of `seen`: a file of the same mode, owner and access list takes over its name at once.

        A reader meets the old value or the new, whole. Writers that go by this method take turns; another program's write
        between our reading and our renaming would be lost, as with any file. A link stays, and what it leads to is replaced.
        Raises SecretChanged, CustodyError, Busy while somebody holds the file's lock, and SecretUnavailable as `fetch` does.
        """
        if not new.reveal().strip() or len(new) > LARGEST:
            raise CustodyError(f"the new value for {self.locator} is empty or larger than 1 MiB", "keep what is there")
        try:
            real = Path(os.path.realpath(self.path, strict=True))
            with _locked(real, self.locator) as status:
                if read_private(str(real), self.locator) != seen:
                    raise SecretChanged(f"{self.locator} was changed by somebody else", "look at it, and try again")
                _take_over(real, new, status)
        except FileNotFoundError as error:
            raise SecretUnavailable(f"{self.locator} does not exist", _MISSING) from error
        except OSError as error:
            raise CustodyError(
                f"{self.locator} cannot be replaced: {error.strerror}", _REASONS.get(error.errno or 0, _OWNER)
            ) from error


@dataclass(frozen=True, slots=True)
class AnyFile:
    """A file whatever its mode and its owner are: to be compared with other secrets, never to be used."""

    path: str
    locator: str

    def fetch(self) -> Secret:
        """The file's bytes. Raises SecretUnavailable: missing, unreadable, not a file, empty, too large."""
        return _read(self.path, self.locator, _check_regular)


def to_others(path: str) -> bool:
    """Whether others may read or write the file there, so that no secret of it is used."""
    try:
        return bool(Path(path).stat().st_mode & _FORBIDDEN)
    except OSError:
        return False


@contextmanager
def _locked(path: Path, locator: str) -> Iterator[os.stat_result]:
    """The status of the file that has this name, while nobody else replaces it. Raises Busy."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            _lock(descriptor, deadline, locator)
            status = os.fstat(descriptor)
            # Whoever held the lock before may have given the name to another file.
            if os.path.samestat(status, path.stat()):
                yield status
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, deadline: float, locator: str) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Busy(
                    f"another program holds the lock of {locator}", "end it (lslocks shows which), and run this again"
                ) from None
        time.sleep(_LOCK_LOOK_S)


def _take_over(path: Path, new: Secret, status: os.stat_result) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)  # of a run that was killed; the lock is ours, so nobody else writes it
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _write_all(descriptor, new.reveal())
            os.fchown(descriptor, status.st_uid, status.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            if _ACCESS_LIST in os.listxattr(path):
                os.setxattr(descriptor, _ACCESS_LIST, os.getxattr(path, _ACCESS_LIST))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def file_at(path: str) -> FileId | None:
    """Which file a path leads to, through links; None where it leads to none that can be seen."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def read_private(path: str, locator: str) -> Secret:
    """The bytes of the file at `path`, which must be private. `locator` is its name in messages."""
    return _read(path, locator, _check_private)


def _read(path: str, locator: str, check: Callable[[os.stat_result, str], None]) -> Secret:
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError as error:
        raise SecretUnavailable(f"{locator} does not exist", _MISSING) from error
    except PermissionError as error:
        raise SecretUnavailable(
            f"{locator} may not be read by this user", f"make user id {os.geteuid()} its owner, or a member of its group"
        ) from error
    except OSError as error:
        raise SecretUnavailable(f"{locator} cannot be opened: {error.strerror}", "correct the path") from error
    try:
        check(os.fstat(descriptor), locator)
        data = _read_all(descriptor)
    except OSError as error:
        raise SecretUnavailable(f"{locator} cannot be read: {error.strerror}", "look at the disk it lies on") from error
    finally:
        os.close(descriptor)
    if len(data) > LARGEST:
        raise SecretUnavailable(f"{locator} is larger than 1 MiB", "a secret is small: is this the right file?")
    if not data.strip():
        raise SecretUnavailable(f"{locator} is empty", "write the secret into it")
    return Secret(data, locator)


def _check_regular(status: os.stat_result, locator: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SecretUnavailable(f"{locator} is not a regular file", "refer to the file itself")


def _check_private(status: os.stat_result, locator: str) -> None:
    _check_regular(status, locator)
    if status.st_mode & _FORBIDDEN:
        mode = stat.S_IMODE(status.st_mode)
        raise SecretUnavailable(
            f"{locator} is open to others: its mode is {mode:04o}", "chmod 0600 it, and think of it as read"
        )
    # Whoever owns a file knows what is in it, and can change it. Root may use everyone's.
    if os.geteuid() != 0 and status.st_uid not in (0, os.geteuid()):
        raise SecretUnavailable(f"{locator} belongs to another user, id {status.st_uid}", "chown it to root or to this user")


def _read_all(descriptor: int) -> bytes:
    """The whole file, or one byte more than is allowed."""
    data = b""
    while len(data) <= LARGEST and (more := os.read(descriptor, LARGEST + 1 - len(data))):
        data += more
    return data
