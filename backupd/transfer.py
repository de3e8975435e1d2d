"""Sealed bytes on their way between a pipe and a store, a part at a time, in either direction.

Owns part sizes, the digests of what crosses and the few buffers it crosses in: memory is part size times (concurrency + 1),
and at first what was read ahead, whatever the length of the stream. Sees ciphertext only, and hands on no byte of a part whose
digest is not the expected one.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from backupd.errors import ObjectMissing, StoreError, Tampered
from backupd.manifest import Artifact, Part
from backupd.stores import Limits, Store, Upload

MIB = 1 << 20
HEAD = 64 << 10  # bytes: what tells to whom a stream is sealed
SMALLEST = 8 * MIB  # a request's cost is small beside it, and three of them do not weigh
AHEAD = 16  # MiB that are read before there is a store to send them to: what a core seals while another loads an SDK

Progress = Callable[[int], None]  # called with the number of further bytes that have crossed


class Stream(Protocol):
    """Where sealed bytes come from; `pipeline.Pipeline` is one."""

    def read_into(self, buffer: memoryview) -> int: ...


class Ahead:
    """A stream that is read from now on, though nobody takes it yet: a piece at a time, until `AHEAD` of them wait.

    A thread of `beside` reads, and ends with the first `read_into`. Whoever never calls that ends the stream.
    """

    def __init__(self, stream: Stream, beside: Executor) -> None:
        self._stream = stream
        self._taken = threading.Event()
        self._reading = beside.submit(self._read)

    def _read(self) -> deque[memoryview]:
        pieces: deque[memoryview] = deque()
        while not self._taken.is_set() and len(pieces) < AHEAD:
            piece = memoryview(bytearray(MIB))
            count = self._stream.read_into(piece)
            pieces.append(piece[:count])
            if count < MIB:
                break
        return pieces

    def read_into(self, buffer: memoryview) -> int:
        """As the stream's own, whose errors it raises."""
        self._taken.set()
        pieces, filled = self._reading.result(), 0
        while pieces and filled < len(buffer):
            count = min(len(pieces[0]), len(buffer) - filled)
            buffer[filled : filled + count] = pieces[0][:count]
            filled += count
            if count < len(pieces[0]):
                pieces[0] = pieces[0][count:]
            else:
                pieces.popleft()
        return filled + (self._stream.read_into(buffer[filled:]) if filled < len(buffer) else 0)


@dataclass(frozen=True, slots=True)
class Sent:
    """What was uploaded: not visible before `upload.commit`. `head` is the stream's first bytes."""

    upload: Upload
    size: int
    sha256: str
    parts: tuple[Part, ...]
    head: bytes

    def commit(self) -> None:
        """Make the object visible."""
        self.upload.commit(len(self.parts), self.size)


def part_sizes(limits: Limits, expected: int) -> Iterator[int]:
    """The size of each part in turn, in bytes: as many as the store takes, for a stream guessed to be `expected` bytes long.

    The guess fills half of the allowed number of parts. Past that half the sizes double, eight times over what is left of the
    number, so a guess that was a hundred times too low still fits.
    """
    half = max(1, limits.parts // 2)
    size = max(SMALLEST, limits.smallest, -(-expected // half // MIB) * MIB)
    step = max(1, (limits.parts - half) // 8)
    for number in range(limits.parts):
        if number >= half and (number - half) % step == 0:
            size *= 2
        yield min(size, limits.largest)


def send(
    stream: Stream, store: Store, name: str, *, expected: int, concurrency: int = 2, progress: Progress = lambda _: None
) -> Sent:
    """Upload all that `stream` gives as the object `name`, hashing it on the way; the caller commits, or aborts `upload`.

    When anything fails here the upload is aborted before the error leaves. Raises StoreError; whatever `stream` raises passes.
    """
    upload = store.begin(name)
    try:
        return _send(stream, store, upload, expected, concurrency, progress)
    except BaseException:
        upload.abort()
        raise


def _send(stream: Stream, store: Store, upload: Upload, expected: int, concurrency: int, progress: Progress) -> Sent:
    whole, size, head = hashlib.sha256(), 0, b""
    parts: list[Part] = []
    sizes = part_sizes(store.limits, expected)
    free: deque[bytearray] = deque(bytearray() for _ in range(concurrency + 1))
    flying: deque[_Flying] = deque()
    # Hashing is left to threads of its own, for while the stream is not read its programs wait.
    with (
        ThreadPoolExecutor(concurrency, thread_name_prefix="part") as pool,
        ThreadPoolExecutor(1, thread_name_prefix="whole") as in_order,
    ):
        try:
            while True:
                if not free:
                    parts.append(flying[0].landed())
                    free.append(flying.popleft().buffer)
                wanted = next(sizes, 0)
                buffer = _of_size(free.popleft(), wanted or 1)
                count = stream.read_into(memoryview(buffer))
                if not count:
                    break
                if not wanted:
                    raise StoreError(
                        "the stream needs more parts than the store allows", "is the database growing while it is dumped?"
                    )
                data = memoryview(buffer)[:count]
                head = head or bytes(data[:HEAD])
                size += count
                number = len(parts) + len(flying) + 1
                sending = pool.submit(_part, upload, number, data, progress)
                flying.append(_Flying(sending, in_order.submit(whole.update, data), buffer))
                if count < wanted:
                    break
            parts += [each.landed() for each in flying]
        except BaseException:
            for each in flying:
                each.cancel()
            raise
    return Sent(upload, size, whole.hexdigest(), tuple(parts), head)


@dataclass(frozen=True, slots=True)
class _Flying:
    """A part under way: its buffer is free again when it was sent, and hashed as a piece of the whole."""

    sent: Future[Part]
    hashed: Future[None]
    buffer: bytearray

    def landed(self) -> Part:
        self.hashed.result()
        return self.sent.result()

    def cancel(self) -> None:
        self.sent.cancel()
        self.hashed.cancel()


def _part(upload: Upload, number: int, data: memoryview, progress: Progress) -> Part:
    digest = hashlib.sha256(data)
    upload.part(number, data, digest.digest())
    progress(len(data))
    return Part(len(data), digest.hexdigest())


def _of_size(buffer: bytearray, size: int) -> bytearray:
    return buffer if len(buffer) == size else bytearray(size)


def fetch(
    store: Store, prefix: str, artifact: Artifact, *, concurrency: int = 2, progress: Progress = lambda _: None
) -> Iterator[bytes]:
    """The artifact's parts in order, each proved by its size and SHA-256 before it is given out.

    Raises Tampered at the first part that is not what the manifest says, also when the object is longer or is gone.
    """
    name = prefix + artifact.name
    try:
        if store.read(name, artifact.size, 1):
            raise Tampered(f"{name} is longer than the {artifact.size} bytes that its manifest says", HINT)
        yield from _in_order(store, name, artifact, concurrency, progress)
    except ObjectMissing as error:
        raise Tampered(f"{name} is in the manifest but not in the store", HINT) from error


HINT = "restore another backup with --backup ID, and find out who changed this one"


def _in_order(store: Store, name: str, artifact: Artifact, concurrency: int, progress: Progress) -> Iterator[bytes]:
    start = 0
    flying: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(concurrency, thread_name_prefix="part") as pool:
        try:
            for number, part in enumerate(artifact.parts, 1):
                flying.append(pool.submit(_proved, store, name, start, number, part))
                start += part.size
                if len(flying) > concurrency:
                    yield _next(flying, progress)
            while flying:
                yield _next(flying, progress)
        finally:
            for each in flying:
                each.cancel()


def _next(flying: deque[Future[bytes]], progress: Progress) -> bytes:
    data = flying.popleft().result()
    progress(len(data))
    return data


def _proved(store: Store, name: str, start: int, number: int, part: Part) -> bytes:
    data = store.read(name, start, part.size)
    if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
        raise Tampered(f"part {number} of {name} is not what its manifest says", HINT)
    return data
