"""Opening what may be anything: whoever may write into a store's directory may put a link, a pipe or a device there.

Every open here is relative to a directory that is open already, follows no symbolic link and waits for nobody.
"""

from __future__ import annotations

import errno
import os
import stat

from backupd.errors import StoreError

# The system looks whether it is a directory before it opens it, so this neither waits for a pipe's writer nor wakes a device.
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_IRREGULAR = {errno.ELOOP, errno.ENXIO, errno.ENODEV}  # a symbolic link, a socket, a device that nobody drives


def directory(name: str, within: int) -> int:
    """A descriptor of a real directory. Raises OSError: FileNotFoundError, or NotADirectoryError for all else that is there."""
    return os.open(name, _DIRECTORY, dir_fd=within)


def regular(name: str, within: int, what: str) -> int:
    """A descriptor of a regular file. Raises OSError, and StoreError that calls it `what` when it is something else."""
    try:
        fd = os.open(name, _FILE, dir_fd=within)
    except OSError as error:
        if error.errno in _IRREGULAR:
            raise _irregular(what) from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _irregular(what)
    return fd


def _irregular(what: str) -> StoreError:
    return StoreError(f"{what} is no regular file", "backupd did not put it there: find out who did")
