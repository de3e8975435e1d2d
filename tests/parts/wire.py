"""HTTP/1.1 as bytes on a connection: heads, and bodies with their framing. It opens no connection and changes no byte."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader

BLOCK = 64 * 1024
_HEAD_LIMIT = 256 * 1024


@dataclass(frozen=True, slots=True)
class Head:
    """A request's or an answer's first line and header lines, each with its line end."""

    first: bytes
    lines: tuple[bytes, ...]

    @property
    def status(self) -> int:
        """An answer's status code."""
        return int(self.first.split(b" ")[1])

    @property
    def is_framed(self) -> bool:
        """Whether the head tells where the body ends; if not, the end of the connection does."""
        return self.get(b"transfer-encoding") == b"chunked" or self.get(b"content-length") != b""

    def get(self, name: bytes) -> bytes:
        """The value of the first header `name` (lower case), in lower case; empty when it is not there."""
        for line in self.lines:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name:
                return value.strip().lower()
        return b""

    def without(self, *names: bytes) -> "Head":
        kept = tuple(line for line in self.lines if line.partition(b":")[0].strip().lower() not in names)
        return Head(self.first, kept)

    def encode(self, *extra: bytes) -> bytes:
        return b"".join((self.first, *self.lines, *extra, b"\r\n"))


def read_head(reader: BufferedReader) -> Head | None:
    """The next head, or None when the other side ended the connection before or within it."""
    lines: list[bytes] = []
    size = 0
    while True:
        line = reader.readline(_HEAD_LIMIT)
        size += len(line)
        if not line.endswith(b"\n") or size > _HEAD_LIMIT:
            return None
        if line.strip():
            lines.append(line)
        elif lines:
            return Head(lines[0], tuple(lines[1:]))


def copy_body(head: Head, reader: BufferedReader, send: Callable[[bytes], None]) -> None:
    """Read the whole body, as it is framed, and hand its bytes on with their framing. Raises ConnectionError when cut short."""
    if head.get(b"transfer-encoding") == b"chunked":
        while True:
            line = _full_line(reader)
            send(line)
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            _copy_exactly(size + 2, reader, send)  # and the chunk's own line end
        while True:
            trailer = _full_line(reader)
            send(trailer)
            if not trailer.strip():
                return
    _copy_exactly(int(head.get(b"content-length") or 0), reader, send)


def _full_line(reader: BufferedReader) -> bytes:
    line = reader.readline(_HEAD_LIMIT)
    if not line.endswith(b"\n"):
        raise ConnectionAbortedError("a chunked body was cut short")
    return line


def _copy_exactly(count: int, reader: BufferedReader, send: Callable[[bytes], None]) -> None:
    while count > 0:
        data = reader.read1(min(count, BLOCK))
        if not data:
            raise ConnectionAbortedError("a body was cut short")
        count -= len(data)
        send(data)


def take(head: Head, reader: BufferedReader, count: int) -> bytes:
    """Up to `count` bytes of the body, framing included; fewer when the body is shorter."""
    taken: list[bytes] = []
    room = count

    def keep(data: bytes) -> None:
        nonlocal room
        taken.append(data[:room])
        room -= len(taken[-1])
        if room == 0:
            raise _EnoughError

    if count > 0:
        with suppress(_EnoughError):
            copy_body(head, reader, keep)
    return b"".join(taken)


class _EnoughError(Exception):
    pass
