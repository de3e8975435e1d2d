"""A part's bytes as the readable, seekable thing that the SDKs want, without a copy of the part.

`io.BytesIO` would copy: at 64 MiB a part and several parts in flight that is most of the memory a run may use.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class Body(io.RawIOBase):
    """A binary file over a buffer; `read` gives views into it, which stay valid for as long as the buffer does."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._view = memoryview(data).cast("B")
        self._at = 0

    def __len__(self) -> int:
        return len(self._view)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int | None = -1) -> memoryview:  # a view: it serves sockets and hashes alike, uncopied
        end = len(self._view) if size is None or size < 0 else self._at + size
        found = self._view[self._at : end]
        self._at += len(found)
        return found

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        found = self.read(len(target))
        target[: len(found)] = found
        return len(found)
