"""An actor, a clock and chains for tests of the trail. It knows no store."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from backupd.audit import Stored
from backupd.audit.records import NO_PREDECESSOR, Actor, Record, Via, digest, render

SEED = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
ACTOR = Actor("backupd", "backup1", Via.CLI, operator="on call", reason="drill of the quarter")
START = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)


def ticking(start: datetime = START, step: timedelta = timedelta(seconds=1)) -> Callable[[], datetime]:
    """A clock that goes on by `step` each time it is looked at."""
    ticks = itertools.count()
    return lambda: start + step * next(ticks)


def chain_of(records: Iterable[Record], change: Callable[[Record], bool] = lambda _: False) -> list[Stored]:
    """These records, numbered and linked anew as a forger would; in those that `change` picks, the reason is rewritten."""
    rows: list[Stored] = []
    for seq, record in enumerate(records, 1):
        actor = dataclasses.replace(record.actor, reason="nothing happened") if change(record) else record.actor
        previous = digest(rows[-1].data) if rows else NO_PREDECESSOR
        data = render(dataclasses.replace(record, seq=seq, actor=actor, previous=previous))
        rows.append(Stored(seq, data, digest(data)))
    return rows
