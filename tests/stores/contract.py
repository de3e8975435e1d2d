"""What every store owes, as tests. A test module subclasses `StoreContract` and gives a fixture `place`.

`tests/stores/network.py` adds what a network can do.
"""

import hashlib
import random
import threading
import tracemalloc
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import pytest

from backupd.errors import ObjectExists, ObjectMissing, StoreDenied, StoreError
from backupd.stores import Patience, Store, StoredObject, Upload

MIB = 2**20
# S3's smallest part; random, so that a swapped or repeated part is seen.
PARTS = (*(random.Random(seed).randbytes(5 * MIB + seed) for seed in range(3)), b"the last part may be small")
WHOLE = b"".join(PARTS)
SMALL = b"a small object"

ODD_NAMES = (
    "with space/and another",
    "ümlaut/日本語/🔐.gpg",
    "percent%20/%2F%",
    "plus+plus",
    "'single' and \"double\" quotes",
    "hash#1",
    "question?mark=1&more;x",
    "brackets[0]{1}(2)<3>",
    "pipe|tilde~caret^tick`",
    "-rf",
    "star*",
    "colon:and@at,comma$dollar!",
    ".hidden",
    "…",
)
REFUSED_NAMES = (
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "./a",
    "a\nb",
    "a\x00b",
    "a\x7fb",
    "\ud800",
    "x" * 901,
    "a/" * 32 + "a",
    ".unfinished/a",
)
# In the order of code points, which is not the order of directories: "-" and "." come before "/", "0" after it.
TRICKY_ORDER = ("a", "a-b/c", "a-c", "a.b", "a0", "aa/b/c/d", "ab", "b/1", "b/10", "b/2", "ä", "￮", "😀")

# Generous where a busy machine may be slow, quick where the tests make faults on purpose.
QUICK = Patience(connect_timeout_s=30, read_timeout_s=60, tries=4, base_s=0.01, cap_s=0.02)
IMPATIENT = Patience(connect_timeout_s=2, read_timeout_s=2, tries=6, base_s=0.01, cap_s=0.02)


class Place(Protocol):
    """Somewhere real that one test has for itself."""

    def open(self, prefix: str = "", **options: Any) -> Store:
        """A store here, below `prefix`; options as `open_store` takes them."""

    def put(self, names: Iterable[str]) -> None:
        """Make objects of one byte by other means than the store, quickly."""


@dataclass
class Naps:
    """A sleep that only takes notes."""

    taken: list[float] = field(default_factory=list)

    def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)


def send(upload: Upload, parts: Sequence[bytes] = PARTS) -> None:
    for number, data in enumerate(parts, 1):
        send_part(upload, number, data)


def send_part(upload: Upload, number: int, data: bytes | memoryview) -> None:
    upload.part(number, data, hashlib.sha256(data).digest())


def take(store: Store, name: str) -> None:
    """Make the object, by an upload of its own: to `create`, Azurite (unlike Azure) takes waiting blocks for an object."""
    upload = store.begin(name)
    send_part(upload, 1, SMALL)
    upload.commit(1, len(SMALL))


def commit_at_once(store: Store, name: str, contents: Sequence[bytes]) -> list[int]:
    """Upload each of `contents` to one name, commit all at the same time, and return the numbers of those that won."""
    uploads = [store.begin(name) for _ in contents]
    for upload, data in zip(uploads, contents, strict=True):
        send_part(upload, 1, data)
    start = threading.Barrier(len(contents))

    def commit(number: int) -> bool:
        start.wait()
        try:
            uploads[number].commit(1, len(contents[number]))
        except ObjectExists:
            return False
        return True

    with ThreadPoolExecutor(len(contents)) as pool:
        return [number for number, won in enumerate(pool.map(commit, range(len(contents)))) if won]


def names(store: Store, prefix: str = "") -> list[str]:
    return [found.name for found in store.list(prefix)]


def assert_nothing_left(store: Store, name: str = "x") -> None:
    """There is no object, and no unfinished upload that a sweep could find."""
    assert names(store) == []
    with pytest.raises(ObjectMissing):
        store.read(name)
    assert store.sweep("") == []


class StoreContract:
    """What holds for every store."""

    @pytest.fixture
    def store(self, place: Place) -> Store:
        return place.open()

    # ------------------------------------------------------------------------------------------------------- uploads

    def test_an_upload_is_read_back_as_it_was_sent(self, store: Store) -> None:
        before = datetime.now(UTC) - timedelta(minutes=5)
        upload = store.begin("a/b")
        send(upload)
        upload.commit(len(PARTS), len(WHOLE))
        assert store.read("a/b") == WHOLE
        [found] = store.list()
        assert (found.name, found.size, found.locked_until) == ("a/b", len(WHOLE), None)
        assert before < found.modified_at < datetime.now(UTC) + timedelta(minutes=5)
        assert found.modified_at.utcoffset() is not None
        assert store.sweep("") == []

    def test_nothing_is_visible_before_the_commit(self, store: Store) -> None:
        upload = store.begin("x")
        send(upload)
        assert names(store) == []
        with pytest.raises(ObjectMissing):
            store.read("x")
        upload.commit(len(PARTS), len(WHOLE))
        assert names(store) == ["x"]

    def test_an_upload_whose_source_fails_leaves_nothing(self, store: Store) -> None:
        upload = store.begin("x")
        send(upload, PARTS[:2])
        upload.abort()
        assert_nothing_left(store)

    def test_an_upload_without_parts_can_be_aborted(self, store: Store) -> None:
        store.begin("x").abort()
        assert_nothing_left(store)

    def test_abort_may_come_twice(self, store: Store) -> None:
        upload = store.begin("x")
        send(upload, PARTS[:1])
        upload.abort()
        upload.abort()
        assert_nothing_left(store)

    def test_abort_after_commit_does_nothing(self, store: Store) -> None:
        upload = store.begin("x")
        send(upload, PARTS[-1:])
        upload.commit(1, len(PARTS[-1]))
        upload.abort()
        assert store.read("x") == PARTS[-1]

    @pytest.mark.parametrize(
        ("parts", "size"),
        [(4, len(WHOLE) - 1), (4, len(WHOLE) + 1), (4, 0), (3, len(WHOLE)), (5, len(WHOLE)), (3, len(WHOLE) - len(PARTS[-1]))],
    )
    def test_commit_refuses_what_did_not_arrive(self, store: Store, parts: int, size: int) -> None:
        upload = store.begin("x")
        send(upload)
        with pytest.raises(StoreError, match=r"arrived|written"):
            upload.commit(parts, size)
        assert_nothing_left(store)

    def test_parts_may_come_in_any_order(self, store: Store) -> None:
        upload = store.begin("x")
        for number in (2, 4, 1, 3):
            send_part(upload, number, PARTS[number - 1])
        upload.commit(len(PARTS), len(WHOLE))
        assert store.read("x") == WHOLE

    def test_parts_may_come_from_several_threads(self, store: Store) -> None:
        upload = store.begin("x")
        pieces = [*PARTS[:3], *PARTS[:3], PARTS[-1]]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: send_part(upload, number, pieces[number - 1]), (3, 1, 2, 5, 4, 7, 6)))
        upload.commit(len(pieces), sum(map(len, pieces)))
        assert store.read("x") == b"".join(pieces)

    def test_a_part_may_be_a_view_of_a_buffer_that_is_used_again(self, store: Store) -> None:
        upload = store.begin("x")
        buffer = bytearray(8 * MIB)
        for number, data in enumerate(PARTS, 1):
            buffer[: len(data)] = data
            send_part(upload, number, memoryview(buffer)[: len(data)])
        buffer[:] = bytes(len(buffer))
        upload.commit(len(PARTS), len(WHOLE))
        assert store.read("x") == WHOLE

    def test_a_part_is_not_copied(self, store: Store) -> None:
        """Memory is what bounds the part size: a copy of each part in flight would double a run's."""
        buffer = bytearray(32 * MIB)
        digest = hashlib.sha256(buffer).digest()
        upload = store.begin("x")
        upload.part(1, memoryview(buffer), digest)  # what is imported and allocated once
        tracemalloc.start()
        try:
            upload.part(2, memoryview(buffer), digest)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        upload.abort()
        assert peak < 8 * MIB

    # ---------------------------------------------------------------------------------------------------- create-only

    def test_create_writes_once(self, store: Store) -> None:
        store.create("m/manifest", SMALL)
        with pytest.raises(ObjectExists):
            store.create("m/manifest", b"another")
        assert store.read("m/manifest") == SMALL

    def test_create_takes_no_bytes_too(self, store: Store) -> None:
        store.create("empty", b"")
        assert store.read("empty") == b""
        assert store.read("empty", 0, 10) == b""
        assert store.read("empty", 5) == b""
        assert [found.size for found in store.list()] == [0]

    def test_begin_refuses_a_taken_name(self, store: Store) -> None:
        store.create("x", SMALL)
        with pytest.raises(ObjectExists):
            store.begin("x")

    def test_commit_refuses_a_name_that_was_taken_meanwhile(self, store: Store) -> None:
        upload = store.begin("x")
        send(upload)
        take(store, "x")
        with pytest.raises(ObjectExists):
            upload.commit(len(PARTS), len(WHOLE))
        upload.abort()
        assert store.read("x") == SMALL
        assert store.sweep("") == []

    def test_of_two_uploads_of_one_name_exactly_one_wins(self, store: Store) -> None:
        [winner] = commit_at_once(store, "x", PARTS[:2])
        assert store.read("x") == PARTS[winner]
        assert store.sweep("") == []

    def test_an_aborted_upload_does_not_harm_another_of_the_same_name(self, store: Store) -> None:
        first, second = store.begin("x"), store.begin("x")
        send_part(first, 1, PARTS[0])
        send_part(second, 1, PARTS[1])
        second.abort()
        first.commit(1, len(PARTS[0]))
        assert store.read("x") == PARTS[0]

    def test_of_many_creations_of_one_name_exactly_one_wins(self, store: Store) -> None:
        start = threading.Barrier(6)

        def create(number: int) -> int | None:
            start.wait()
            try:
                store.create("x", b"by %d" % number)
            except ObjectExists:
                return None
            return number

        with ThreadPoolExecutor(6) as pool:
            winners = [number for number in pool.map(create, range(6)) if number is not None]
        assert len(winners) == 1
        assert store.read("x") == b"by %d" % winners[0]

    # ------------------------------------------------------------------------------------------------------ reading

    def test_reads_of_ranges(self, store: Store) -> None:
        data = PARTS[0]
        store.create("x", data)
        size = len(data)
        for start, length in [
            (0, None),
            (0, 1),
            (0, size),
            (0, size + 1),
            (0, 10 * size),
            (1, None),
            (1, 1),
            (size - 1, None),
            (size - 1, 1),
            (size - 1, 5),
            (size, None),
            (size, 1),
            (size + 1, None),
            (size + 7, 3),
            (3 * MIB - 1, 2 * MIB),
            (0, 0),
            (5, 0),
            (size + 5, 0),
        ]:
            assert store.read("x", start, length) == data[start : None if length is None else start + length], (start, length)

    def test_a_missing_object_is_told(self, store: Store) -> None:
        store.create("a/b", SMALL)
        for missing in ("a", "a/c", "a/b/c", "b", "a/b2"):
            for start, length in [(0, None), (0, 0), (7, 3)]:
                with pytest.raises((ObjectMissing, StoreError)) as caught:
                    store.read(missing, start, length)
                assert missing in caught.value.message
                assert "\n" not in caught.value.message

    # ------------------------------------------------------------------------------------------------------ listing

    def test_a_listing_of_2500_objects_is_complete_in_order_and_without_doubles(self, place: Place) -> None:
        expected = [f"many/{n % 7}/{n:04d}" for n in range(2500)]
        place.put(expected)
        assert names(place.open(), "many/") == sorted(expected)

    def test_a_listing_is_in_order_of_code_points(self, place: Place, store: Store) -> None:
        place.put(TRICKY_ORDER)
        assert names(store) == sorted(TRICKY_ORDER)

    def test_a_listing_takes_every_name_that_begins_with_the_prefix(self, place: Place, store: Store) -> None:
        place.put(["a/b/1", "a/b2", "a/bc/1", "a/c", "b"])
        assert names(store, "a/b") == ["a/b/1", "a/b2", "a/bc/1"]
        assert names(store, "a/b/") == ["a/b/1"]
        assert names(store, "nothing") == []
        assert names(store, "b/") == []

    def test_an_empty_store_lists_and_sweeps_nothing(self, store: Store) -> None:
        assert list(store.list()) == []
        assert store.sweep("") == []

    # -------------------------------------------------------------------------------------------------------- names

    def test_odd_names_work(self, store: Store) -> None:
        for name in ODD_NAMES:
            store.create(name, name.encode())
        assert names(store) == sorted(ODD_NAMES)
        for name in ODD_NAMES:
            assert store.read(name) == name.encode()

    def test_odd_names_work_for_uploads(self, store: Store) -> None:
        for name in ODD_NAMES[:9]:
            upload = store.begin(name)
            send_part(upload, 1, name.encode())
            left = store.begin("dead/" + name)
            send_part(left, 1, SMALL)
            upload.commit(1, len(name.encode()))
        assert names(store) == sorted(ODD_NAMES[:9])
        assert store.sweep("dead") == sorted("dead/" + name for name in ODD_NAMES[:9])

    def test_names_that_are_none_are_refused(self, store: Store) -> None:
        for name in REFUSED_NAMES:
            for use in (store.begin, store.read, lambda name: store.create(name, SMALL)):
                with pytest.raises(ValueError, match=r"not the name of an object|surrogates"):
                    use(name)
        assert names(store) == []

    # ------------------------------------------------------------------------------------------------------ sweeping

    def test_sweep_ends_exactly_the_dead_uploads_below_its_prefix(self, place: Place) -> None:
        dying = place.open()
        uploads = {name: dying.begin(name) for name in ("a/b/1", "a/b/2", "a/bc/1", "a/b3", "c")}
        for upload in uploads.values():
            send_part(upload, 1, SMALL)
        dying.create("a/b/object", SMALL)
        store = place.open()
        assert store.sweep("a/b") == ["a/b/1", "a/b/2"]
        assert store.sweep("a/b/") == []
        with pytest.raises(StoreError):
            uploads["a/b/1"].commit(1, len(SMALL))
        for alive in ("a/bc/1", "a/b3", "c"):
            uploads[alive].commit(1, len(SMALL))
        assert names(store) == ["a/b/object", "a/b3", "a/bc/1", "c"]
        assert store.read("a/b/object") == SMALL

    def test_an_aborted_upload_is_nothing_to_sweep_and_a_swept_one_can_be_aborted(self, place: Place) -> None:
        store = place.open()
        upload = store.begin("x")
        send_part(upload, 1, SMALL)
        assert store.sweep("") == ["x"]
        upload.abort()
        assert_nothing_left(store)

    def test_the_url_names_the_place(self, store: Store) -> None:
        assert "://" in store.url
        assert not store.url.endswith("/")


def denied(store: Store) -> None:
    """All writing is refused, and reading still works."""
    with pytest.raises(StoreDenied) as caught:
        store.create("forbidden", SMALL)
    assert caught.value.hint
    with pytest.raises(StoreDenied):
        send_part(store.begin("forbidden"), 1, SMALL)
    assert names(store) == ["there"]
    assert store.read("there") == SMALL


def found(store: Store, name: str) -> StoredObject:
    [only] = [each for each in store.list(name) if each.name == name]
    return only
