"""Objects as files under one directory, the root.

An upload lives in `root/.unfinished/<token>/` (a file `name`, a file `data`), is synced to disk, and becomes visible by a hard
link: unlike a rename, a link never replaces what is there. Nothing outside the root is ever touched: every directory below it
is opened without following symlinks. Nothing is ever deleted but unfinished uploads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from backupd.errors import ObjectExists, ObjectMissing, StoreDenied, StoreError, StoreFull
from backupd.stores import UNFINISHED, Limits, StoredObject, check_name
from backupd.stores.file_upload import Assembly, sync, write_whole

_LIMITS = Limits(parts=100_000, smallest=1, largest=2**36)
_NAMELESS_S = 86_400  # an upload directory that after a day still has no name is a dead run's
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


class FileStore:
    """A store in the directory `root`, which is made if its parent exists."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        return self._root.absolute().as_uri()

    @property
    def limits(self) -> Limits:
        return _LIMITS

    def begin(self, name: str) -> FileUpload:
        check_name(name)
        with _told(name, self._root):
            self._ensure_root()
            with self._directory(name, make=False) as directory:
                if directory is not None:
                    _refuse_taken(directory, name)
            return FileUpload(self, name, self._stage(name))

    def create(self, name: str, data: bytes) -> None:
        upload = self.begin(name)
        try:
            upload.part(1, data, b"")
            upload.commit(1, len(data))
        finally:
            upload.abort()

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        with _told(name, self._root), self._directory(name, make=False) as directory:
            if directory is None:
                raise ObjectMissing(f"there is no object {name}")
            try:
                # O_NONBLOCK: a FIFO put there by someone else must not hang us before we can see that it is no file.
                fd = os.open(_leaf(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            except FileNotFoundError as error:
                raise ObjectMissing(f"there is no object {name}") from error
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise ObjectMissing(f"{name} is not an object: no regular file")
                rest = max(0, status.st_size - start)
                return _exactly(fd, start, rest if length is None else min(length, rest), name)
            finally:
                os.close(fd)

    def sweep(self, prefix: str) -> list[str]:
        under = prefix.rstrip("/") + "/" if prefix else ""
        swept = []
        with _told(prefix or "the store", self._root):
            for upload in sorted(self._uploads()):
                name = _name_of(upload)
                if name is not None and name.startswith(under):
                    _remove(upload)
                    swept.append(name)
            self._drop_unfinished()
        return sorted(swept)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        with _told(prefix or "the store", self._root):
            root = self._open_root()
            if root is None:
                return
            try:
                yield from _walk(root, "", prefix)
            finally:
                os.close(root)

    def publish(self, name: str, data: Path) -> None:
        """Link the finished file `data` to `name`, and sync the directory that holds it."""
        with _told(name, self._root), self._directory(name, make=True) as directory:
            if directory is None:
                raise StoreError(f"the store's directory {self._root} has gone", "was the disk unmounted?")
            try:
                os.link(data, _leaf(name), dst_dir_fd=directory, follow_symlinks=False)
            except FileExistsError:
                _refuse_taken(directory, name)
                raise  # taken for a moment only: somebody deletes files here
            except OSError as error:
                if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                    hint = "use a file system with hard links (not FAT or some network shares)"
                    raise StoreError(
                        f"{self.url} cannot make objects without replacing others: {error.strerror}", hint
                    ) from error
                raise
            os.fsync(directory)

    def discard(self, staging: Path) -> None:
        """Remove what `begin` made. Errors are left to `sweep`."""
        with contextlib.suppress(OSError):
            _remove(staging)
        self._drop_unfinished()

    def _stage(self, name: str) -> Path:
        """A directory of its own for one upload; its file `name` is there and whole from the first moment it has this path."""
        unfinished = self._unfinished()
        token = secrets.token_hex(8)
        preparing = unfinished / f"{token}.new"
        for _ in range(100):
            with contextlib.suppress(FileExistsError):
                unfinished.mkdir(mode=0o700)
            try:
                preparing.mkdir(mode=0o700)
                break
            except FileNotFoundError:  # another upload ended and took the empty directory away in between
                continue
        try:
            write_whole(preparing / "name", name.encode())
            return preparing.rename(unfinished / token)
        except BaseException:
            shutil.rmtree(preparing, ignore_errors=True)
            raise

    def _uploads(self) -> Iterator[Path]:
        root = self._open_root()
        if root is not None:
            os.close(root)
            with contextlib.suppress(FileNotFoundError):
                yield from self._unfinished().iterdir()

    def _unfinished(self) -> Path:
        path = self._root / UNFINISHED
        if path.is_symlink():
            raise StoreError(f"{path} is a symbolic link", "remove it: uploads are never written outside the store")
        return path

    def _drop_unfinished(self) -> None:
        with contextlib.suppress(OSError):  # not empty: other uploads live
            (self._root / UNFINISHED).rmdir()

    def _ensure_root(self) -> None:
        root = self._open_root()
        if root is None:
            with contextlib.suppress(FileExistsError):
                self._root.mkdir(mode=0o700)
            sync(self._root.parent)
        else:
            os.close(root)

    def _open_root(self) -> int | None:
        """The open root, or None when only it is missing: a store that was never written to. Above it nothing is ever made."""
        try:
            return os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if self._root.parent.is_dir():
                return None
            hint = "is the disk mounted? Otherwise make that directory"
            raise StoreError(f"there is no directory {self._root.parent} for the store", hint) from error

    @contextmanager
    def _directory(self, name: str, *, make: bool) -> Iterator[int | None]:
        """The open directory that holds, or will hold, object `name`; None when it is missing and not to be made."""
        at = self._open_root()
        if at is None:
            yield None
            return
        try:
            for segment in name.split("/")[:-1]:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(segment, mode=0o700, dir_fd=at)
                        os.fsync(at)
                try:
                    below = os.open(segment, _DIRECTORY, dir_fd=at)
                except FileNotFoundError:
                    yield None
                    return
                os.close(at)
                at = below
            yield at
        finally:
            os.close(at)


class FileUpload:
    """An upload into a directory: parts go straight to their place in one file, in any order and from several threads."""

    def __init__(self, store: FileStore, name: str, staging: Path) -> None:
        self._store = store
        self._name = name
        self._staging = staging
        self._done = False
        self._data = Assembly(staging)

    def part(self, number: int, data: bytes | bytearray | memoryview, sha256: bytes) -> None:
        # The kernel and the disk keep their own checksums: reading back would double the work and come from the cache.
        with _told(self._name, self._staging):
            self._data.write(number, memoryview(data).cast("B"))

    def commit(self, parts: int, size: int) -> None:
        try:
            with _told(self._name, self._staging):
                whole = self._data.finish(parts)
            if whole != size:
                raise StoreError(f"{self._name}: {whole} bytes arrived, {size} were sent", "this run is lost, start another")
            self._store.publish(self._name, self._data.path)
        finally:
            # Done or failed: the link is all that remains of a commit.
            self.abort()

    def abort(self) -> None:
        if not self._done:
            self._done = True
            self._data.close()
            self._store.discard(self._staging)


def _name_of(upload: Path) -> str | None:
    """Which object a directory below `.unfinished` was to become; None when that cannot be told.

    Removes what nobody can still be at work on: directories that have been nameless for a day, or whose removal was cut short.
    """
    if upload.suffix == ".new":
        if time.time() - upload.stat().st_mtime > _NAMELESS_S:
            shutil.rmtree(upload)
        return None
    try:
        return (upload / "name").read_text()
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            upload.rmdir()
        return None
    except NotADirectoryError:
        return None


def _remove(upload: Path) -> None:
    """Remove an upload's directory, its name last: until then, whoever dies in between leaves something that can be swept."""
    for path in upload.iterdir():
        if path.name != "name":
            path.unlink()
    (upload / "name").unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):  # another run's sweep found it empty
        upload.rmdir()


def _walk(directory: int, path: str, prefix: str) -> Iterator[StoredObject]:
    """Objects below an open directory in order of their whole names, without following symlinks."""
    with os.scandir(directory) as scan:
        entries = [(e.name + "/" if e.is_dir(follow_symlinks=False) else e.name, e) for e in scan if e.name.isprintable()]
    for name, entry in sorted(entries, key=lambda pair: pair[0]):
        full = path + name
        if full == UNFINISHED + "/" or not (full.startswith(prefix) or (name.endswith("/") and prefix.startswith(full))):
            continue
        if name.endswith("/"):
            try:
                below = os.open(entry.name, _DIRECTORY, dir_fd=directory)
            except FileNotFoundError:
                continue
            try:
                yield from _walk(below, full, prefix)
            finally:
                os.close(below)
        elif entry.is_file(follow_symlinks=False):
            try:
                status = os.stat(entry.name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield StoredObject(full, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))


def _exactly(fd: int, start: int, length: int, name: str) -> bytes:
    """`length` bytes from `start`: one pread gives at most 2 GiB, and a shrinking file is an error, not a short answer."""
    found = os.pread(fd, length, start)
    if len(found) == length:
        return found
    pieces = [found]
    while (missing := length - sum(map(len, pieces))) > 0:
        pieces.append(os.pread(fd, missing, start + length - missing))
        if not pieces[-1]:
            raise StoreError(f"{name} ended {missing} bytes early", "something else writes to the store's directory")
    return b"".join(pieces)


def _refuse_taken(directory: int, name: str) -> None:
    try:
        found = os.stat(_leaf(name), dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found.st_mode):
        raise StoreError(f"{name} is a directory in this store, so no object can have that name")
    raise ObjectExists(f"{name} exists already, and objects are never replaced")


def _leaf(name: str) -> str:
    return name.rsplit("/", 1)[-1]


@contextmanager
def _told(what: str, where: Path) -> Iterator[None]:
    """Turn the system's errors into the store's."""
    try:
        yield
    except OSError as error:
        reason = f"{what}: {error.strerror or error}"
        if error.errno in _FULL:
            hint = f"free space on the file system of {where}, or raise the quota or file size limit"
            raise StoreFull(f"no room for {reason}", hint) from error
        if error.errno in _DENIED:
            raise StoreDenied(f"no right to {reason}", f"see the owner and mode of {error.filename or where}") from error
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            hint = "a file or a symbolic link stands where the store needs a directory"
            raise StoreError(f"no way to {reason}", hint) from error
        raise StoreError(reason, f"see the file system of {where}") from error
