"""Secrets in files: what is used, and what is refused because others could read or write it."""

import fcntl
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from backupd.custody import SecretRef, file_of, open_custodian
from backupd.custody.file import LARGEST, PrivateFile
from backupd.errors import Busy, ConfigError, CustodyError, SecretChanged, SecretUnavailable
from backupd.redact import Secret
from tests.custody.contract import KeeperContract, Place, TextPlaceContract
from tests.parts.mounts import with_mounts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "secret"


def keep(path: Path, data: bytes = b"value", mode: int = 0o600) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)
    path.chmod(mode)


@pytest.fixture
def place(path: Path) -> Place:
    return Place(
        keep=lambda data: keep(path, data),
        lose=lambda: path.unlink(missing_ok=True),
        open=lambda field: open_custodian(SecretRef("file", str(path), field), {}),
    )


class TestPrivateFile(TextPlaceContract):
    """A file keeps the contract."""


class TestWritingPrivateFile(KeeperContract):
    """A file keeps that of places that are written, too."""


def test_a_path_has_one_spelling_and_a_file_is_the_same_by_every_name(tmp_path: Path) -> None:
    target, link, hard = tmp_path / "target", tmp_path / "link", tmp_path / "hard"
    keep(target)
    link.symlink_to(target)
    hard.hardlink_to(target)
    spellings = [f"/{target}", f"//{target}", f"{tmp_path}/./x/..//target"]
    assert {PrivateFile(each).locator for each in spellings} == {f"file:{target}"}
    assert {file_of(PrivateFile(str(each))) for each in (target, link, hard)} == {file_of(PrivateFile(str(target)))}
    keep(tmp_path / "other")
    assert file_of(PrivateFile(str(tmp_path / "other"))) not in (file_of(PrivateFile(str(target))), None)
    assert file_of(PrivateFile(str(tmp_path / "missing"))) is None
    assert file_of(open_custodian(SecretRef("file", str(link), "member"), {})) == file_of(PrivateFile(str(target)))


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640])
def test_a_replaced_file_has_the_mode_and_owner_of_the_old_one(path: Path, mode: int) -> None:
    keep(path, mode=mode)
    group = os.getgroups()[0] if os.getgroups() else os.getegid()
    os.chown(path, -1, group)
    PrivateFile(str(path)).replace(Secret("new"), Secret("value"))
    status = path.stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (mode, os.geteuid(), group)
    assert path.read_text() == "new"


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    keep(target)
    link.symlink_to(target)
    PrivateFile(str(link)).replace(Secret("new"), Secret("value"))
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_what_a_killed_run_left_beside_a_file_is_no_obstacle_and_nothing_stays_there(path: Path) -> None:
    keep(path)
    (path.parent / f".{path.name}.new").write_text("half of a val")
    PrivateFile(str(path)).replace(Secret("new"), Secret("value"))
    assert path.read_text() == "new"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_file_whose_directory_takes_nothing_stays_as_it_is(tmp_path: Path) -> None:
    directory = tmp_path / "secrets"
    directory.mkdir()
    keep(directory / "key")
    os.chown(directory / "key", 65534 if os.geteuid() == 0 else -1, -1)
    directory.chmod(0o555)
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:3]:
        if parent != Path("/tmp") and parent.stat().st_uid == os.geteuid():
            parent.chmod(0o755)
    with unprivileged(), pytest.raises(CustodyError, match="cannot be replaced: Permission denied") as caught:
        PrivateFile(str(directory / "key")).replace(Secret("new"), Secret("value"))
    assert "by hand" in str(caught.value.hint)
    assert (directory / "key").read_text() == "value"


def test_a_file_whose_lock_somebody_keeps_is_given_up(path: Path) -> None:
    keep(path)
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        with pytest.raises(Busy, match="another program holds the lock of file:") as caught:
            PrivateFile(str(path)).replace(Secret("new"), Secret("value"))
        assert "lslocks" in str(caught.value.hint)
        assert path.read_text() == "value"
    PrivateFile(str(path)).replace(Secret("new"), Secret("value"))
    assert path.read_text() == "new"


FULL = 'mount -t tmpfs -o size=8k none "$1"; echo -n value >"$1/secret"; head -c 4096 /dev/zero >"$1/filling"'
READ_ONLY = 'mount -t tmpfs none "$1"; echo -n value >"$1/secret"; chmod 600 "$1/secret"; mount -o remount,ro "$1"'
MOUNTED = 'echo -n value >"$1/secret"; mount --bind "$1/secret" "$1/secret"'
REPLACE = """
import json, os, sys
from pathlib import Path
from backupd.custody.file import PrivateFile
from backupd.errors import CustodyError
from backupd.redact import Secret

path = Path(sys.argv[1], "secret")
before = sorted(os.listdir(path.parent))
try:
    PrivateFile(str(path)).replace(Secret("new"), Secret("value"))
except CustodyError as error:
    assert sorted(os.listdir(path.parent)) == before
    print(json.dumps([error.message, error.hint, path.read_text()]))
"""


@pytest.mark.parametrize(
    ("made", "why", "what_to_do"),
    [
        (FULL, "No space left on device", "make room"),
        (READ_ONLY, "Read-only file system", "read-only"),
        (MOUNTED, "Device or resource busy", "mount its directory"),
    ],
    ids=["a full disk", "a read-only one", "a file that is a mount itself"],
)
def test_what_keeps_a_file_from_being_replaced_is_told_with_what_to_do(
    tmp_path: Path, made: str, why: str, what_to_do: str
) -> None:
    message, hint, value = json.loads(with_mounts(f"umask 077; {made}", REPLACE, [str(tmp_path)]))
    assert message.endswith(f"cannot be replaced: {why}")
    assert what_to_do in hint
    assert value == "value"


def test_of_many_writers_that_saw_the_same_value_one_wins(path: Path) -> None:
    keep(path)
    seen = PrivateFile(str(path)).fetch()

    def write(number: int) -> str:
        try:
            PrivateFile(str(path)).replace(Secret(f"value {number}"), seen)
        except SecretChanged:
            return ""
        return f"value {number}"

    with ThreadPoolExecutor(8) as pool:
        written = [each for each in pool.map(write, range(24)) if each]
    assert [path.read_text()] == written


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o440, 0o640, 0o700])
def test_a_file_for_its_owner_and_a_reading_group_is_used(path: Path, mode: int) -> None:
    keep(path, mode=mode)
    assert PrivateFile(str(path)).fetch().text() == "value"


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o620, 0o660, 0o644, 0o666, 0o777])
def test_a_file_that_others_may_read_or_the_group_may_write_is_refused(path: Path, mode: int) -> None:
    keep(path, mode=mode)
    with pytest.raises(SecretUnavailable, match=f"its mode is {mode:04o}") as caught:
        PrivateFile(str(path)).fetch()
    assert "chmod 0600" in str(caught.value.hint)


def test_a_link_to_a_private_file_is_followed_and_a_link_to_an_open_one_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    keep(tmp_path / "target", b"value")
    link.symlink_to(tmp_path / "target")
    assert PrivateFile(str(link)).fetch().text() == "value"
    (tmp_path / "target").chmod(0o644)
    with pytest.raises(SecretUnavailable, match="its mode is 0644"):
        PrivateFile(str(link)).fetch()


def test_a_link_in_a_circle_is_an_answer_and_no_endless_search(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "link")
    with pytest.raises(SecretUnavailable, match="cannot be opened"):
        PrivateFile(str(tmp_path / "link")).fetch()


def test_a_directory_a_fifo_and_a_device_are_not_files(tmp_path: Path) -> None:
    """A FIFO nobody writes to would keep a careless reader waiting for ever, and /dev/zero would keep it reading."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    for path in (tmp_path, fifo, Path("/dev/zero")):
        with pytest.raises(SecretUnavailable, match="not a regular file"):
            PrivateFile(str(path)).fetch()


def test_a_file_of_one_mebibyte_is_read_and_a_larger_one_refused(path: Path) -> None:
    keep(path, b"x" * LARGEST)
    assert len(PrivateFile(str(path)).fetch().reveal()) == LARGEST
    keep(path, b"x" * (LARGEST + 1))
    with pytest.raises(SecretUnavailable, match="larger than 1 MiB"):
        PrivateFile(str(path)).fetch()


def test_a_file_that_this_user_may_not_read_says_so(path: Path) -> None:
    keep(path, mode=0o000)
    with unprivileged(), pytest.raises(SecretUnavailable, match="may not be read by this user"):
        PrivateFile(str(path)).fetch()


def test_a_path_through_a_file_cannot_be_opened(path: Path) -> None:
    keep(path)
    with pytest.raises(SecretUnavailable, match="cannot be opened"):
        PrivateFile(str(path / "below")).fetch()


@pytest.mark.parametrize("path", ["", "secrets/key", "~/key", "/etc/key\0"])
def test_a_path_that_is_not_absolute_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="not absolute"):
        PrivateFile(path)


def test_two_spellings_of_one_path_have_one_locator() -> None:
    assert PrivateFile("/etc//backupd/./x/../key").locator == PrivateFile("/etc/backupd/key").locator == "file:/etc/backupd/key"


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user whom modes bind; root reads everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)
