"""What dead runs left below `.unfinished`: a directory for each upload, told by its file `name`, which is removed last.

Anyone who may write into the store may put anything there. What does not look like an upload of ours is told in the log and
left alone: it is never followed, waited for or read at length, and keeps no run from its work.
"""

from __future__ import annotations

import contextlib
import os
import time

from backupd import logs
from backupd.errors import StoreError
from backupd.redact import printable
from backupd.stores import NAME_BYTES, check_name, file_open

log = logs.get(__name__)

_NAMELESS_S = 86_400  # an upload directory that after a day still has no name is a dead run's


def sweep(unfinished: int, under: str) -> list[str]:
    """Remove the uploads below the open directory `unfinished` whose names start with `under`, and return their names."""
    swept = []
    for entry in sorted(os.listdir(unfinished)):
        try:
            name = _sweep_one(unfinished, entry, under)
        except (OSError, ValueError, StoreError) as error:
            reason = printable(str(error))[:200]
            log.warning("left alone what is no upload of ours", entry=printable(entry), reason=reason)
            continue
        if name is not None:
            swept.append(name)
    return swept


def remove(unfinished: int, entry: str) -> None:
    """Remove an upload's directory, its name last: until then, whoever dies in between leaves something that can be swept.

    Raises OSError, also when the directory holds another.
    """
    upload = file_open.directory(entry, unfinished)
    try:
        files = os.listdir(upload)  # noqa: PTH208  # of a descriptor, not of a path that another could stand at by now
        for file in sorted(files, key=lambda file: file == "name"):
            with contextlib.suppress(FileNotFoundError):  # another run's sweep was quicker
                os.unlink(file, dir_fd=upload)
    finally:
        os.close(upload)
    _drop(unfinished, entry)


def _sweep_one(unfinished: int, entry: str, under: str) -> str | None:
    """The name of the upload that was removed; None when it is another's, or has no name yet or any more."""
    try:
        upload = file_open.directory(entry, unfinished)
    except FileNotFoundError:  # it ended in between
        return None
    try:
        if entry.endswith(".new"):
            name = None
            dead = time.time() - os.fstat(upload).st_mtime > _NAMELESS_S
        else:
            name = _name(upload)
            dead = name is None or name.startswith(under)
    finally:
        os.close(upload)
    if dead and name is None and not entry.endswith(".new"):
        _drop(unfinished, entry)  # its removal was cut short
    elif dead:
        remove(unfinished, entry)
    return name if dead else None


def _name(upload: int) -> str | None:
    """Which object an upload was to become; None without a file that says so. Raises ValueError for what is no name."""
    try:
        fd = file_open.regular("name", upload, "its name")
    except FileNotFoundError:
        return None
    try:
        return check_name(os.read(fd, NAME_BYTES + 1).decode(errors="surrogateescape"))
    finally:
        os.close(fd)


def _drop(unfinished: int, entry: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # another run's sweep found it empty
        os.rmdir(entry, dir_fd=unfinished)
