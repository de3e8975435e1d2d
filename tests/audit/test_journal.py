"""What whoever can write the directory of a SQLite trail leaves beside it, for the one who opens the trail next."""

import os
import stat
import struct
from pathlib import Path

import pytest

from backupd.audit import TrailError
from backupd.audit.records import Operation
from backupd.audit.sqlite import SqliteStore
from backupd.audit.trail import Trail
from tests.audit.examples import ACTOR

MAGIC = bytes.fromhex("d9d505f920a163d7")
SECTOR = 512


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A trail of one record."""
    path = tmp_path / "trail" / "audit.db"
    path.parent.mkdir()
    trail(path).event(Operation.KEYS)
    return path


def trail(path: Path) -> Trail:
    return Trail(SqliteStore(str(path)), ACTOR)


def journal_of(database: Path, *, naming: Path) -> bytes:
    """A hot journal of no page that ends in the name of a super-journal, as SQLite's file format has it."""
    data, name = database.read_bytes(), os.fsencode(naming)
    size = int.from_bytes(data[16:18], "big")
    head = MAGIC + struct.pack(">5I", 0, 0, len(data) // size, SECTOR, size)
    checksum = sum(byte - 256 * (byte > 127) for byte in name) & 0xFFFFFFFF
    end = struct.pack(">I", 2**30 // size + 1) + name + struct.pack(">2I", len(name), checksum) + MAGIC
    return head.ljust(SECTOR, b"\0") + end


@pytest.mark.parametrize("linked", [False, True])
def test_a_journal_that_would_have_a_file_deleted_is_not_rolled_back(path: Path, tmp_path: Path, linked: bool) -> None:
    """SQLite looks for it beside the file that a link leads to."""
    victim = tmp_path / "victim"
    victim.write_text("of another")
    journal = Path(f"{path}-journal")
    journal.write_bytes(journal_of(path, naming=victim))
    named = path
    if linked:
        named = tmp_path / "link.db"
        named.symlink_to(path)
    for use in (trail(named).head, trail(named).verify, lambda: trail(named).event(Operation.KEYS)):
        with pytest.raises(TrailError, match="would have SQLite delete another file") as caught:
            use()
        assert "find out who made it" in str(caught.value.hint)
    with pytest.raises(TrailError, match="was not begun"):
        trail(named).intent(Operation.BACKUP, "clinic")
    assert victim.read_text() == "of another"
    journal.unlink()
    assert trail(named).verify().records == 1


@pytest.mark.parametrize("kind", ["link", "link to nothing", "directory", "socket", "pipe"])
def test_a_journal_that_is_no_file_is_refused(path: Path, tmp_path: Path, kind: str) -> None:
    """A pipe would be waited for without end."""
    journal = Path(f"{path}-journal")
    match kind:
        case "directory":
            journal.mkdir()
        case "socket" | "pipe":
            os.mknod(journal, 0o600 | (stat.S_IFSOCK if kind == "socket" else stat.S_IFIFO))
        case _:
            if kind == "link":
                (tmp_path / "other").touch()
            journal.symlink_to(tmp_path / "other")
    for use in (trail(path).head, lambda: trail(path).event(Operation.KEYS)):
        with pytest.raises(TrailError, match="-journal is no file"):
            use()


@pytest.mark.parametrize("data", [b"", MAGIC, MAGIC * 2])
def test_a_journal_too_short_to_name_a_file_is_removed_as_ever(path: Path, data: bytes) -> None:
    journal = Path(f"{path}-journal")
    journal.write_bytes(data)
    assert trail(path).event(Operation.KEYS).seq == 2
    assert not journal.exists()
