"""Secrets in files: who else could read or write one decides whether it is used. Never writes, never creates.

Symbolic links are followed, for Kubernetes mounts every secret as one; all checks are made on the file that was opened, so
that no link can be turned between the check and the reading.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from backupd.errors import ConfigError, SecretUnavailable
from backupd.redact import Secret

LARGEST = 1024 * 1024  # bytes; a keyring of a thousand keys has 60 KiB
_FORBIDDEN = stat.S_IRWXO | stat.S_IWGRP  # 0640 root:backupd is how packages install secrets, so a group may read


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
        return f"file:{os.path.normpath(self.path)}"

    def fetch(self) -> Secret:
        """The file's bytes. Raises SecretUnavailable: missing, unreadable, not a file, open to others, empty, too large."""
        return read_private(self.path, self.locator)


def read_private(path: str, locator: str) -> Secret:
    """The bytes of the file at `path`, which must be private. `locator` is its name in messages."""
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError as error:
        raise SecretUnavailable(f"{locator} does not exist", "create it, or correct the reference to it") from error
    except PermissionError as error:
        raise SecretUnavailable(
            f"{locator} may not be read by this user", f"make user id {os.geteuid()} its owner, or a member of its group"
        ) from error
    except OSError as error:
        raise SecretUnavailable(f"{locator} cannot be opened: {error.strerror}", "correct the path") from error
    try:
        _check_private(os.fstat(descriptor), locator)
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


def _check_private(status: os.stat_result, locator: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SecretUnavailable(f"{locator} is not a regular file", "refer to the file itself")
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
