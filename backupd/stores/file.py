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
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from backupd.errors import ObjectExists, ObjectMissing, StoreDenied, StoreError, StoreFull
from backupd.stores import NAME_SEGMENTS, UNFINISHED, Limits, StoredObject, check_name, file_open, file_sweep
from backupd.stores.file_upload import Assembly, sync, write_whole

_LIMITS = Limits(parts=100_000, smallest=1, largest=5 * 2**30)
_LAST_S = 253_402_300_799  # the end of the year 9999
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
                fd = file_open.regular(_leaf(name), directory, name)
            except FileNotFoundError as error:
                raise ObjectMissing(f"there is no object {name}") from error
            try:
                rest = max(0, os.fstat(fd).st_size - start)
                return _exactly(fd, start, rest if length is None else min(length, rest), name)
            finally:
                os.close(fd)

    def sweep(self, prefix: str) -> list[str]:
        under = prefix.rstrip("/") + "/" if prefix else ""
        with _told(prefix or "the store", self._root), self._open_unfinished() as unfinished:
            swept = [] if unfinished is None else file_sweep.sweep(unfinished, under)
            self._drop_unfinished()
        return sorted(swept)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        # What anybody put there may be as deep as it likes: no recursion, and no directory is open when another is looked into.
        waiting: list[tuple[str, StoredObject | None]] = [("", None)]  # in reverse order; a directory has no object
        with _told(prefix or "the store", self._root):
            while waiting:
                path, found = waiting.pop()
                if found is not None:
                    yield found
                    continue
                with self._directory(path, make=False) as directory:
                    below = [] if directory is None else list(_entries(directory, path, prefix))
                    if directory is not None and path and not below and path.startswith(prefix):
                        below = [(path, _object(path.removesuffix("/"), os.fstat(directory), 0))]
                waiting += sorted(below, key=lambda each: each[0], reverse=True)

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
        with contextlib.suppress(OSError, StoreError), self._open_unfinished() as unfinished:
            if unfinished is not None:
                file_sweep.remove(unfinished, staging.name)
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

    @contextmanager
    def _open_unfinished(self) -> Iterator[int | None]:
        """The open directory of uploads in the making; None when there is none."""
        self._unfinished()
        with self._directory(f"{UNFINISHED}/", make=False) as unfinished:
            yield unfinished

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
                    below = file_open.directory(segment, at)
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


def _entries(directory: int, path: str, prefix: str) -> Iterator[tuple[str, StoredObject | None]]:
    """What `path`, an open directory, holds that may start with `prefix`: objects, and directories (their names end in `/`).

    What is neither, such as a symbolic link or a pipe, is an object of no bytes that cannot be read: so it is seen. `list` says
    the same of an empty directory, which may stand where an object was.
    """
    with os.scandir(directory) as scan:
        for entry in scan:
            inner = entry.is_dir(follow_symlinks=False)
            full = f"{path}{entry.name}/" if inner else path + entry.name
            wanted = full.startswith(prefix) or (inner and prefix.startswith(full))
            if not wanted or not entry.name.isprintable() or full == UNFINISHED + "/" or full.count("/") >= NAME_SEGMENTS:
                continue
            if inner:
                yield full, None
                continue
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(entry.name, dir_fd=directory, follow_symlinks=False)
                yield full, _object(full, status, status.st_size if stat.S_ISREG(status.st_mode) else 0)


def _object(name: str, status: os.stat_result, size: int) -> StoredObject:
    modified_s = min(max(status.st_mtime, 0), _LAST_S)  # anyone can set it to what is no date
    return StoredObject(name, size, datetime.fromtimestamp(modified_s, UTC))


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
