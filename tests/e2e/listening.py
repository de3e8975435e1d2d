"""A real program behind a script that copies its standard input, so that a test can count what reaches it.

The script becomes the program, so that whoever ends it ends the program. The `tee` beside it reads to the end whatever becomes
of the program, and holds a fifo open meanwhile: when nobody has that open any more, all that was given is written down.
"""

from __future__ import annotations

import os
import select
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.stores.passing import Passing

DEADLINE_S = 60.0
SCRIPT = """\
#!/bin/sh
case " $* " in
*" {argument} "*)
    exec 8<&0 9>"{directory}/open"
    mkfifo "{directory}/pipe.$$"
    tee -p "{directory}/heard.$$" <&8 >"{directory}/pipe.$$" &
    exec "{program}" "$@" <"{directory}/pipe.$$" 8<&- 9>&- ;;
*)
    exec "{program}" "$@" ;;
esac
"""


@dataclass(frozen=True, slots=True)
class Ear:
    """`program` is what to run in place of the real one; `heard` is to be asked when no new run can begin."""

    program: Path
    _directory: Path
    _fifo: int

    def heard(self) -> list[bytes]:
        """What each run since the last call was given, in no order."""
        poll = select.poll()
        poll.register(self._fifo, 0)  # POLLHUP alone: nobody has it open for writing
        if not poll.poll(DEADLINE_S * 1000):
            raise AssertionError("somebody still writes to a program that is listened to")
        files = list(self._directory.glob("heard.*"))
        found = [file.read_bytes() for file in files]
        for file in files:
            file.unlink()
        return found

    def listens(self, runs: int) -> None:
        """Return once so many runs listen: nothing that is given to them then is lost, even if they are ended at once."""
        deadline = time.monotonic() + DEADLINE_S
        while len(list(self._directory.glob("heard.*"))) < runs:
            if time.monotonic() > deadline:
                raise AssertionError("the program that is to be listened to was not started")
            time.sleep(0.001)


@contextmanager
def listening(directory: Path, program: Path, argument: str) -> Iterator[Ear]:
    """An ear for those runs of `program` that have `argument`. It lies in a directory of its own, `directory`/`ear`."""
    place = directory / "ear"
    place.mkdir()
    os.mkfifo(place / "open")
    script = place / program.name
    script.write_text(SCRIPT.format(argument=argument, directory=place, program=program))
    script.chmod(0o700)
    fifo = os.open(place / "open", os.O_RDONLY | os.O_NONBLOCK)
    os.close(os.open(place / "open", os.O_WRONLY))  # so that it is one that somebody had open
    try:
        yield Ear(script, place, fifo)
    finally:
        os.close(fifo)
        shutil.rmtree(place)


@dataclass(frozen=True, slots=True)
class Attentive(Passing):
    """A store that gives nothing of an artifact before the ear listens to the run that will be given it."""

    ear: Ear
    artifacts: tuple[str, ...]  # in the order of the runs; others are given at once

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        artifact = name.rpartition("/")[2]
        if artifact in self.artifacts:
            self.ear.listens(self.artifacts.index(artifact) + 1)
        return self.store.read(name, start, length)
