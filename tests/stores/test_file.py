"""A directory as a store: the contract, and what only file systems do."""

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backupd.errors import ObjectExists, ObjectMissing, StoreDenied, StoreError
from backupd.stores import Store, open_store
from backupd.stores.file import FileStore
from tests.stores.contract import PARTS, SMALL, WHOLE, StoreContract, assert_nothing_left, names, send, send_part

CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Directory:
    root: Path

    def open(self, prefix: str = "", **options: Any) -> Store:
        return open_store((self.root / prefix).as_uri(), **options)

    def put(self, names: Iterable[str]) -> None:
        for name in names:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"1")


@pytest.fixture
def place(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "my store")


@pytest.fixture
def root(place: Directory) -> Path:
    return place.root


@pytest.fixture
def store(root: Path) -> FileStore:
    return FileStore(root)


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


class TestFileStore(StoreContract):
    """A directory keeps the contract."""


def test_only_the_owner_can_read_what_is_stored(store: FileStore, root: Path) -> None:
    previous = os.umask(0)  # the most careless user there is
    try:
        upload = store.begin("a/b/c")
        send(upload)
        unfinished = {path.stat().st_mode & 0o777 for path in (root / ".unfinished").rglob("*") if path.is_file()}
        upload.commit(len(PARTS), len(WHOLE))
    finally:
        os.umask(previous)
    assert unfinished == {0o600}
    modes = {name: (root / name).stat().st_mode & 0o777 for name in (".", "a", "a/b", "a/b/c")}
    assert modes == {".": 0o700, "a": 0o700, "a/b": 0o700, "a/b/c": 0o600}


def test_finished_and_aborted_uploads_leave_no_trace_but_the_object(store: FileStore, root: Path) -> None:
    store.create("a/b", SMALL)
    upload = store.begin("a/c/d")
    for number in (2, 1):  # 2 is put aside until 1 is known
        send_part(upload, number, SMALL)
    upload.abort()
    refused = store.begin("a/c/e")
    send_part(refused, 1, SMALL)
    with pytest.raises(StoreError):
        refused.commit(1, 5)
    assert everything(root) == {"a", "a/b"}


def test_parts_in_order_are_written_once_and_straight_to_their_place(store: FileStore, root: Path) -> None:
    upload = store.begin("x")
    send(upload)
    [data] = [path for path in (root / ".unfinished").rglob("*") if path.is_file() and path.name != "name"]
    assert data.read_bytes() == WHOLE
    upload.commit(len(PARTS), len(WHOLE))
    assert (root / "x").stat().st_nlink == 1


def test_a_part_is_sent_once(store: FileStore) -> None:
    upload = store.begin("x")
    send_part(upload, 1, SMALL)
    with pytest.raises(ValueError, match="sent before"):
        send_part(upload, 1, SMALL)
    upload.abort()
    with pytest.raises(ValueError, match="ended"):
        send_part(upload, 2, SMALL)


def test_the_root_is_made_but_nothing_above_it(tmp_path: Path) -> None:
    FileStore(tmp_path / "new").create("x", SMALL)
    assert names(FileStore(tmp_path / "new")) == ["x"]
    lost = FileStore(tmp_path / "unmounted" / "store")
    uses: list[Callable[[], object]] = [
        lambda: lost.begin("x"),
        lambda: lost.create("x", SMALL),
        lambda: lost.read("x"),
        lambda: lost.sweep(""),
        lambda: [*lost.list()],
    ]
    for use in uses:
        with pytest.raises(StoreError, match="there is no directory") as caught:
            use()
        assert caught.value.hint is not None
        assert "mounted" in caught.value.hint
    assert not (tmp_path / "unmounted").exists()


def test_reading_does_not_make_the_root(store: FileStore, root: Path) -> None:
    with pytest.raises(ObjectMissing):
        store.read("x")
    assert names(store) == []
    assert store.sweep("") == []
    assert not root.exists()


def test_a_root_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="Not a directory"):
        FileStore(tmp_path / "file").create("x", SMALL)


def test_a_directory_is_no_object(store: FileStore) -> None:
    store.create("a/b", SMALL)
    with pytest.raises(StoreError, match="a is no regular file"):
        store.read("a")
    for use in (store.begin, lambda name: store.create(name, SMALL)):
        with pytest.raises(StoreError, match="directory") as caught:
            use("a")
        assert not isinstance(caught.value, ObjectExists)


def test_an_object_is_no_directory(store: FileStore) -> None:
    store.create("a", SMALL)
    with pytest.raises(StoreError, match="Not a directory"):
        store.create("a/b", SMALL)
    with pytest.raises(StoreError):
        store.read("a/b")
    assert names(store) == ["a"]
    assert store.sweep("") == []


def test_symbolic_links_lead_nowhere(store: FileStore, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    store.create("x", SMALL)
    (root / "directory").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    (root / "dangling").symlink_to(outside / "new")
    for name in ("directory/secret", "file", "dangling"):
        with pytest.raises(StoreError):
            store.read(name)
    for name in ("directory/new", "file", "dangling"):
        with pytest.raises(StoreError):
            store.create(name, b"planted")
    assert [(found.name, found.size) for found in store.list()] == [
        ("dangling", 0),
        ("directory", 0),
        ("file", 0),
        ("x", len(SMALL)),
    ]
    (root / ".unfinished").symlink_to(outside)
    with pytest.raises(StoreError, match="symbolic link"):
        store.begin("y")
    with pytest.raises(StoreError, match="symbolic link"):
        store.sweep("")
    assert everything(outside) == {"secret"}


def test_the_root_itself_may_be_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    FileStore(tmp_path / "link").create("x", SMALL)
    assert (tmp_path / "real" / "x").read_bytes() == SMALL


def test_what_is_no_regular_file_is_listed_without_bytes_and_neither_read_nor_waited_for(store: FileStore, root: Path) -> None:
    """A backup whose manifest somebody has replaced by a pipe must be seen to be damaged, and must not be gone."""
    store.create("x", SMALL)
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listening, in_directory(root):  # the name of a socket may have some 100 bytes
        listening.bind("socket")
    (root / "link").symlink_to("x")
    assert [(found.name, found.size) for found in store.list()] == [("fifo", 0), ("link", 0), ("socket", 0), ("x", len(SMALL))]
    for name in ("fifo", "link", "socket"):
        with pytest.raises(StoreError, match=f"{name} is no regular file"):
            store.read(name)


@contextmanager
def in_directory(path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def test_a_time_that_is_no_date_does_not_end_a_listing(store: FileStore, root: Path) -> None:
    store.create("x", SMALL)
    for when in (2**33, 2**37, 2**42, -(2**40)):  # some file systems keep less than was set
        os.utime(root / "x", (when, when))
        assert names(store) == ["x"]


def test_a_tree_without_end_is_listed_to_the_depth_of_a_name(store: FileStore, root: Path) -> None:
    """No recursion, and one directory open at a time: here in a process that may open few files."""
    store.create("/".join(["d"] * 32), SMALL)
    store.create("z", SMALL)
    at = os.open(root / Path(*["d"] * 30), os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("e", dir_fd=at)
        below = os.open("e", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=at))
    os.close(at)
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from backupd.stores.file import FileStore
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
        for found in FileStore(Path(sys.argv[1])).list():
            print(found.name)
    """)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(root)], cwd=CHECKOUT, capture_output=True, text=True, check=True
        )
    finally:
        subprocess.run(["rm", "-rf", str(root / "d")], check=True)  # pytest's own removal is recursive
    assert done.stdout.splitlines() == ["/".join(["d"] * 32), "/".join([*["d"] * 30, "e", "file"]), "z"]


def test_a_full_disk_is_told_and_leaves_nothing(root: Path) -> None:
    """The file size limit of a process stands for the disk: the system refuses the write in the same way."""
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from backupd.errors import StoreFull
        from backupd.stores.file import FileStore
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        store = FileStore(Path(sys.argv[1]))
        upload = store.begin("x")
        upload.part(1, bytes(2**19), b"")
        try:
            upload.part(2, bytes(2**20), b"")
        except StoreFull as error:
            print(error.message, "|", error.hint)
            upload.abort()
        try:
            store.create("y", bytes(2**21))
        except StoreFull:
            print("full")
    """)
    done = subprocess.run([sys.executable, "-c", script, str(root)], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert "no room" in first
    assert "free space" in first
    assert second == "full"
    assert_nothing_left(FileStore(root))
    assert everything(root) == set()


def test_a_directory_without_rights_is_told() -> None:
    store = FileStore(Path("/sys/kernel"))  # nobody may make files there, not even root
    with pytest.raises(StoreDenied) as caught:
        store.create("x", SMALL)
    assert caught.value.hint is not None
    assert "owner" in caught.value.hint


def test_a_name_too_long_for_the_file_system_is_told(store: FileStore) -> None:
    with pytest.raises(StoreError, match="too long"):
        store.create("x" * 300, SMALL)
    assert store.sweep("") == []


def test_sweep_finishes_a_removal_that_was_cut_short(store: FileStore, root: Path) -> None:
    (root / ".unfinished" / "0123456789abcdef").mkdir(parents=True)
    assert store.sweep("anything") == []
    assert everything(root) == set()


def test_sweep_leaves_an_upload_that_is_just_beginning(store: FileStore, root: Path) -> None:
    beginning = root / ".unfinished" / "0123456789abcdef.new"
    beginning.mkdir(parents=True)
    assert store.sweep("") == []
    assert beginning.exists()
    os.utime(beginning, (1, 1))
    store.sweep("")
    assert not beginning.exists()


def entries(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def odd_uploads(unfinished: Path, outside: Path) -> None:
    """What somebody who may write into the store can put below `.unfinished`."""

    def named(entry: str) -> Path:
        (unfinished / entry).mkdir()
        return unfinished / entry / "name"

    os.mkfifo(named("0-pipe"))
    named("1-device").symlink_to("/dev/zero")
    named("2-link").symlink_to(outside / "secret")
    named("3-directory").mkdir()
    with named("4-sparse").open("wb") as file:
        file.truncate(2**33)
    named("5-bytes").write_bytes(b"clinic/\xff\xfe")
    named("6-long").write_bytes(b"x" * 901)
    named("7-empty").write_bytes(b"")
    named("8-full").write_bytes(b"clinic/full")
    (unfinished / "8-full" / "directory").mkdir()
    (unfinished / "9-dangling").symlink_to(outside / "nothing")
    (unfinished / "a-outside").symlink_to(outside)
    os.mkfifo(unfinished / "b-pipe")
    (unfinished / "c-file").write_bytes(b"clinic/file")
    (unfinished / "d-nameless").mkdir()
    (unfinished / "d-nameless" / "data").write_bytes(b"x")
    (unfinished / "e.new" / "deep").mkdir(parents=True)
    os.utime(unfinished / "e.new", (1, 1))


def test_sweep_leaves_alone_what_is_no_upload_and_does_the_rest(
    store: FileStore, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """None of it may hang a run, fill its memory, end it or lead it elsewhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"clinic/secret")
    (outside / "name").write_bytes(b"clinic/outside")
    store.create("x", SMALL)
    send(store.begin("clinic/dead"))
    odd_uploads(root / ".unfinished", outside)
    before = entries(root / ".unfinished")
    with caplog.at_level("WARNING", logger="backupd"):
        assert store.sweep("clinic") == ["clinic/dead"]
    left = entries(root / ".unfinished")
    assert len(before - left) == 1
    assert len(left) == 15
    assert everything(outside) == {"secret", "name"}
    for entry in left:
        assert entry in caplog.text
    upload = store.begin("clinic/next")
    send(upload)
    upload.commit(len(PARTS), len(WHOLE))
    assert entries(root / ".unfinished") == left
