"""This machine: its gpg, memory for private keys, and room for a drill."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from backupd import openpgp
from backupd.check.lines import Line, Parts, guarded, ok, problem, warning
from backupd.openpgp.home import SHARED_MEMORY, in_memory
from backupd.postgres.scratch import OWN_ACCOUNT, unprivileged_user

AREA = "host"
HOME_BYTES = 16 << 20
SCRATCH_BYTES = 1 << 30


def look(parts: Parts) -> Iterator[Line]:
    """Lines on the host."""
    yield from guarded(AREA, _gpg())
    yield from _memory()
    yield from _scratch(parts)
    yield from guarded(AREA, account_of_drills(os.geteuid()))


def _gpg() -> Iterator[Line]:
    yield ok(AREA, f"gpg {openpgp.version()}")


def _memory() -> Iterator[Line]:
    if not SHARED_MEMORY.is_dir() or not in_memory(SHARED_MEMORY):
        yield problem(AREA, f"{SHARED_MEMORY} is no tmpfs: secret keys would lie on a disk", "mount a tmpfs there")
        return
    free = _free(SHARED_MEMORY)
    if free < HOME_BYTES:
        yield problem(AREA, f"{SHARED_MEMORY} has {free >> 20} MiB left", "free it, or mount it with a larger size")
    else:
        yield ok(AREA, f"{SHARED_MEMORY} is a tmpfs with {free >> 20} MiB left")


def _scratch(parts: Parts) -> Iterator[Line]:
    directory = parts.config.drill.directory or Path(tempfile.gettempdir())
    if not directory.is_dir():
        yield problem(AREA, f"there is no directory {directory} for drills", "make it, or change [drill] directory")
        return
    free = _free(directory)
    text = f"{directory} has {free >> 20} MiB left for the scratch clusters of drills"
    if free < SCRATCH_BYTES:
        yield warning(AREA, text, "name a directory with room for the largest source in [drill] directory")
    else:
        yield ok(AREA, text)


def account_of_drills(ours: int) -> Iterator[Line]:
    """Whose account the server of a drill has when backupd's user id is `ours`. Raises CouldNotVerify: there is none for it."""
    account = unprivileged_user(ours)
    if account is None:
        yield warning(
            AREA,
            "a drill run from here shares its account with the scratch server: code of the database could read backupd's keys",
            "run drills as root, as systemd/backupd-drill@.service does: the server is then another account's",
        )
    elif account != OWN_ACCOUNT:
        yield warning(
            AREA,
            f"the scratch server of a drill runs as {account}, as other services may: code of the database can reach theirs",
            f"create the account {OWN_ACCOUNT}: useradd --system --no-create-home --shell /usr/sbin/nologin {OWN_ACCOUNT}",
        )
    else:
        yield ok(AREA, f"the scratch server of a drill runs as {account}, apart from backupd's keys")


def _free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
