"""Whether recovery was as quick, and the backup as recent, as was promised: in hours and minutes, measured in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from backupd.checks import Drilled, Figure, Finding, Outcome

NAME = "objectives"
_CLOCKS_S = 60  # by which two hosts' clocks may differ without anyone being wrong


@dataclass(frozen=True, slots=True)
class ObjectivesKept:
    """The check `objectives`, the last one.

    The recovery point is the newest backup's age at the drill's start, the recovery time from there until all was checked.
    """

    name: str = NAME

    def run(self, drilled: Drilled) -> Finding:
        promised = drilled.objectives
        rpo_s, rto_s = (drilled.started_at - drilled.newest_at).total_seconds(), drilled.elapsed_s()
        figures: dict[str, Figure] = {
            "rpo_s": round(rpo_s, 3),
            "rto_s": round(rto_s, 3),
            "restore_s": round(drilled.restore_s, 3),
            "rpo_promised_s": None if promised.rpo_hours is None else promised.rpo_hours * 3600,
            "rto_promised_s": None if promised.rto_minutes is None else promised.rto_minutes * 60,
        }
        point = f"the newest data is {_span(rpo_s)} old"
        time = f"recovery took {_span(rto_s)}"
        missed = []
        if promised.rpo_hours is not None and rpo_s > promised.rpo_hours * 3600:
            missed.append(f"{point}, and {promised.rpo_hours:g} hours are promised")
        if promised.rto_minutes is not None and rto_s > promised.rto_minutes * 60:
            missed.append(f"{time}, and {promised.rto_minutes:g} minutes are promised")
        if missed:
            return Finding(NAME, Outcome.FAIL, "; ".join(missed), figures)
        if promised.rpo_hours is not None and rpo_s < -_CLOCKS_S:
            return Finding(NAME, Outcome.COULD_NOT_VERIFY, "by this host's clock the backup is of the future", figures)
        measured = f"{point}, {time}"
        if promised.rpo_hours is None and promised.rto_minutes is None:
            measured += "; nothing is promised"
        return Finding(NAME, Outcome.PASS, measured, figures)


def _span(seconds: float) -> str:
    if abs(seconds) < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if abs(seconds) < 5400 else f"{seconds / 3600:.1f} hours"
