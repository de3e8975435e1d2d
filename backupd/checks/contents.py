"""Whether the restored database holds what the manifest says: rows, digests, sequences, large objects, extensions, roles."""

from __future__ import annotations

from dataclasses import dataclass

from backupd.checks import Drilled, Figure, Finding, Outcome
from backupd.manifest import Level
from backupd.postgres import expectations

NAME = "contents"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Contents:
    """The check `contents`. A backup made at level `off` noted too little to compare: that is no pass."""

    name: str = NAME

    def run(self, drilled: Drilled) -> Finding:
        expected = drilled.manifest.expect
        shown = expectations.found(drilled.connection, expected)
        differences = expectations.compare(expected, shown)
        digests = sum(table.digest is not None for table in expected.tables.values())
        rows = sum(table.rows for table in expected.tables.values())
        figures: dict[str, Figure] = {
            "level": expected.level.value,
            "tables": len(expected.tables),
            "rows": rows,
            "digests": digests,
            "sequences": len(expected.sequences),
            "large_objects": expected.large_objects.count if expected.large_objects else None,
            "extensions": len(expected.extensions),
            "roles": len(expected.roles),
            "differences": len(differences),
        }
        if differences:
            more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
            return Finding(NAME, Outcome.FAIL, "; ".join(differences[:_SHOWN]) + more, figures)
        if expected.level is Level.OFF:
            detail = "there is nothing to compare with: the backup was made with expectations = off"
            return Finding(NAME, Outcome.COULD_NOT_VERIFY, detail, figures)
        compared = f"{rows} rows in {len(expected.tables)} tables, {digests} of them by digest"
        return Finding(NAME, Outcome.PASS, f"{compared}, and all else as the manifest says", figures)
