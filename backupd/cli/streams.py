"""The standard streams, whatever they were when the process began: closed, full, or with nobody at the other end.

Owns what becomes of a write that fails. On stdout, where results go, it is an error, unless the reader has gone; on stderr,
where notes and errors go, there is nobody left to tell, and it is ignored. Never decides what is written.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

from backupd.errors import BackupdError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Results(io.FileIO):
    """A stdout that tells its first failure and then takes everything, or the interpreter would fail at its end once more."""

    _failed = False

    def write(self, data: ReadableBuffer, /) -> int:
        if self._failed:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self._failed = True
            if isinstance(error, BrokenPipeError):  # whoever read it has seen enough: the exit code is that of the work
                return memoryview(data).nbytes
            raise BackupdError(
                f"the result could not be written: {error.strerror}", "what was done is in the trail: `backupd audit list`"
            ) from error


class _Notes(io.FileIO):
    """A stderr that loses what it cannot write."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def prepare() -> None:
    """Open the descriptors 0 to 2 where they are closed, on /dev/null, and put the streams above in the place of Python's."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free, and so this very one
    sys.stdout = _text(_Results(1, "wb", closefd=False), sys.stdout, errors="strict")
    sys.stderr = _text(_Notes(2, "wb", closefd=False), sys.stderr, errors="backslashreplace")


def _text(raw: io.FileIO, replaced: TextIO | None, errors: str) -> TextIO:
    """Text over `raw`, encoded as what it replaces (None for a stream that was closed) was."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=None if replaced is None else replaced.encoding,
        errors=errors if replaced is None else replaced.errors,
        line_buffering=getattr(replaced, "line_buffering", True),
    )
