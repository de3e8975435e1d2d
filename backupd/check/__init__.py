"""Whether everything that a backup, a restore and a drill need is in order: `backupd check`.

Everything is looked at, whatever is wrong with the rest, and as a backup would use it: the signing key signs, a small text is
sealed, an upload is begun in the store (and given up, so nothing of it stays), the trail gets a record. Nothing is repaired.

    lines.py    what is said    keys.py   custodians and OpenPGP keys    sources.py   servers, roles, columns
    columns.py  the age of column keys, and whether they are all there
    storage.py  the store       trails.py the trail, and what it and the store say of each other     host.py   this machine
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime

from backupd.audit.records import Operation
from backupd.audit.trail import Run
from backupd.check import columns, host, keys, sources, storage, trails
from backupd.check.lines import Line, Parts, State, failed, guarded, ok
from backupd.errors import BackupdError

__all__ = ["Line", "Parts", "State", "check"]


def check(parts: Parts) -> list[Line]:
    """Look at everything; the result is recorded, unless it is the trail itself that cannot be written."""
    now = datetime.now(UTC)
    path = parts.config.path
    sources_held = len(parts.config.sources)
    found = [
        ok("configuration", f"{path} holds {sources_held} source{'s'[: sources_held != 1]}, SHA-256 {parts.config.digest}")
    ]
    with ExitStack() as held:
        run: Run | None = None
        try:
            run = held.enter_context(parts.trail().recording(Operation.CHECK, configuration=parts.config.digest))
            found.append(ok("trail", f"{parts.trail().where} takes records"))
        except BackupdError as error:
            found.append(failed("trail", error))
        found += guarded("keys", keys.look(parts, now))
        found += guarded("store", storage.look(parts, now))
        for name, source in parts.config.sources.items():
            found += guarded(f"source {name}", sources.look(parts, name, source))
        found += guarded("columns", columns.look(parts, now))
        if run is not None:
            found += guarded("trail", trails.look(parts, now, run))
        found += guarded("host", host.look(parts))
        found = _once(found)
        if run is not None:
            run.note(
                problems=tuple(f"{each.area}: {each.text}" for each in found if each.state is State.PROBLEM),
                warnings=tuple(f"{each.area}: {each.text}" for each in found if each.state is State.WARNING),
            )
    return found


def _once(found: list[Line]) -> list[Line]:
    """Each thing once: a store that does not answer ends the looks at it, and the trail's at it, with the same words."""
    first = dict[tuple[str, str], Line]()
    for each in found:
        if (storage.AREA, each.text) not in first:
            first.setdefault((each.area, each.text), each)
    return list(first.values())
