"""Parts on their way: all of them arrive, none that is not the expected one gets through, and memory stays small."""

import hashlib
import io
import itertools
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupd.errors import StoreError, StoreUnavailable, Tampered
from backupd.manifest import Artifact, Kind
from backupd.stores import Limits, Store, Upload, open_store
from backupd.transfer import AHEAD, MIB, Ahead, Sent, fetch, part_sizes, send
from tests.stores.small_parts import SmallParts


class Given:
    """A stream of given bytes, as a pipeline gives them."""

    def __init__(self, data: bytes, fail_at: int | None = None) -> None:
        self._data = io.BytesIO(data)
        self._fail_at = fail_at

    def read_into(self, buffer: memoryview) -> int:
        if self._fail_at is not None and self._data.tell() >= self._fail_at:
            raise ConnectionError("the source died")
        return self._data.readinto(buffer)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty directory store, which takes parts of 1,000 bytes."""
    (tmp_path / "store").mkdir()
    return SmallParts(open_store(f"file://{tmp_path}/store"), 1000)


def sent(store: Store, data: bytes) -> Artifact:
    """`data` uploaded and committed."""
    done = send(Given(data), store, "s/b/a", expected=0)
    done.commit()
    return Artifact("a", Kind.DATABASE, done.size, done.sha256, done.parts)


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 2000, 123_456])
def test_what_is_sent_is_fetched(store: Store, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    artifact = sent(store, data[:size])
    assert artifact.sha256 == hashlib.sha256(data[:size]).hexdigest()
    assert [part.size for part in artifact.parts] == [1000] * (size // 1000) + [size % 1000] * bool(size % 1000)
    assert b"".join(fetch(store, "s/b/", artifact)) == data[:size]


def test_nothing_is_visible_before_the_commit(store: Store) -> None:
    done = send(Given(bytes(5000)), store, "s/b/a", expected=0)
    assert list(store.list()) == []
    done.commit()
    assert [each.name for each in store.list()] == ["s/b/a"]


def test_a_source_that_fails_leaves_nothing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        send(Given(bytes(50_000), fail_at=10_000), store, "s/b/a", expected=0)
    assert list(store.list()) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


class Refusing:
    """A store whose uploads fail at the third part; everything else is a real store's."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.limits = store.limits
        self.aborted = 0

    def begin(self, name: str) -> Upload:
        outer, upload = self, self._store.begin(name)

        class Failing:
            def part(self, number: int, data: bytes | bytearray | memoryview, sha256: bytes) -> None:
                if number == 3:
                    raise StoreUnavailable("gone")
                upload.part(number, data, sha256)

            def commit(self, parts: int, size: int) -> None:
                raise AssertionError("a failed upload was committed")

            def abort(self) -> None:
                outer.aborted += 1
                upload.abort()

        return Failing()


def test_a_part_that_cannot_be_stored_ends_the_upload(store: Store) -> None:
    refusing = Refusing(store)
    with pytest.raises(StoreUnavailable):
        send(Given(bytes(50_000)), refusing, "s/b/a", expected=0)  # type: ignore[arg-type]  # all that `send` uses of a store
    assert refusing.aborted == 1
    assert list(store.list()) == []


def collect(parts: Iterator[bytes], into: bytearray) -> None:
    """What is given out, also before an error."""
    for part in parts:
        into += part


def mutations(data: bytes) -> Iterator[bytes]:
    """Some of everything that can happen to a stored object."""
    for at in (0, 999, 1000, 2500, len(data) - 1):
        yield data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    yield data[:-1]
    yield data[:1000]
    yield b""
    yield data + b"x"
    yield data[1000:2000] + data[:1000] + data[2000:]


def test_no_byte_of_a_changed_part_gets_through(store: Store, tmp_path: Path) -> None:
    data = bytes(number % 251 for number in range(3500))
    artifact = sent(store, data)
    [path] = [path for path in tmp_path.rglob("a") if path.is_file()]
    for changed in mutations(data):
        path.chmod(0o600)
        path.write_bytes(changed)
        got = bytearray()
        with pytest.raises(Tampered):
            collect(fetch(store, "s/b/", artifact), got)
        assert data.startswith(got)
        assert len(got) % 1000 == 0


def test_a_missing_object_is_a_changed_one(store: Store, tmp_path: Path) -> None:
    artifact = sent(store, bytes(10))
    [path] = [path for path in tmp_path.rglob("a") if path.is_file()]
    path.unlink()
    with pytest.raises(Tampered, match="in the manifest but not in the store"):
        list(fetch(store, "s/b/", artifact))


def test_leaving_a_fetch_early_ends_its_threads(store: Store) -> None:
    artifact = sent(store, bytes(100_000))
    before = threading.active_count()
    parts = fetch(store, "s/b/", artifact)
    assert next(parts)
    parts.close()  # type: ignore[attr-defined]  # it is a generator
    assert threading.active_count() == before


class TestPartSizes:
    """For stores as they are."""

    S3 = Limits(10_000, 5 * 2**20, 5 * 2**30)

    @pytest.mark.parametrize("expected", [0, 10**9, 40 * 2**30, 10**12, 5 * 10**12])
    def test_a_guess_that_is_right_uses_half_of_the_parts_at_most(self, expected: int) -> None:
        total = 0
        for number, size in enumerate(part_sizes(self.S3, expected), 1):
            total += size
            if total >= expected:
                assert number <= 5000
                return
        raise AssertionError("it does not fit")

    def test_a_guess_that_is_far_too_low_still_fits(self) -> None:
        assert sum(part_sizes(self.S3, 0)) > 2 * 2**40

    def test_no_part_breaks_a_limit(self) -> None:
        sizes = list(part_sizes(self.S3, 4 * 10**12))
        assert len(sizes) == 10_000
        assert min(sizes) >= self.S3.smallest
        assert max(sizes) <= self.S3.largest
        assert all(size % MIB == 0 for size in sizes)


def test_a_stream_that_needs_more_parts_than_there_may_be_is_an_error(store: Store) -> None:
    with pytest.raises(StoreError, match="more parts than the store allows"):
        send(Given(bytes(5000)), SmallParts(store, 1000, parts=3), "s/b/a", expected=0)


def test_a_sent_upload_knows_its_head(store: Store) -> None:
    done: Sent = send(Given(b"head" + bytes(5000)), store, "s/b/a", expected=0)
    assert done.head.startswith(b"head")
    done.upload.abort()


class Slow:
    """A stream that says when it was read, and never ends."""

    def __init__(self) -> None:
        self.pieces = threading.Semaphore(0)
        self.read = 0

    def read_into(self, buffer: memoryview) -> int:
        self.read += len(buffer)
        self.pieces.release()
        return len(buffer)


class TestAhead:
    """A stream that is read before anybody takes it."""

    @given(length=st.integers(0, 3 * MIB), sizes=st.lists(st.integers(1, MIB + 1), min_size=1, max_size=5))
    @settings(max_examples=30)
    def test_it_gives_what_the_stream_gives(self, length: int, sizes: list[int]) -> None:
        data = random.Random(length).randbytes(length)
        taken = bytearray()
        with ThreadPoolExecutor(1) as beside:
            ahead = Ahead(Given(data), beside)
            for size in itertools.cycle(sizes):
                buffer = bytearray(size)
                count = ahead.read_into(memoryview(buffer))
                taken += buffer[:count]
                if count < size:  # only the end of a stream fills a buffer in part
                    break
        assert taken == data

    def test_it_reads_before_it_is_asked_and_no_more_than_its_fill(self) -> None:
        slow = Slow()
        with ThreadPoolExecutor(1) as beside:
            ahead = Ahead(slow, beside)
            for _ in range(AHEAD):
                assert slow.pieces.acquire(timeout=60)
            beside.submit(lambda: None).result(60)  # its thread is free again
            assert slow.read == AHEAD * MIB
            assert ahead.read_into(memoryview(bytearray(2 * MIB))) == 2 * MIB
            assert slow.read == AHEAD * MIB

    def test_an_error_of_the_stream_is_raised_to_who_takes_it(self) -> None:
        with ThreadPoolExecutor(1) as beside:
            ahead = Ahead(Given(bytes(MIB), fail_at=MIB), beside)
            with pytest.raises(ConnectionError, match="died"):
                ahead.read_into(memoryview(bytearray(10)))
