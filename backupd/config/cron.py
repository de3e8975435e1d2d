"""Cron expressions: five fields, checked but not interpreted; the scheduler does that."""

from __future__ import annotations

import re

from backupd.config.problems import Hinted

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of week", 0, 7, {name: number for number, name in enumerate(_DAYS)}),
)
_ITEM = re.compile(r"(?:\*|([a-z0-9]{1,3})(?:-([a-z0-9]{1,3}))?)(?:/([0-9]{1,2}))?")
_HINT = 'write five fields, minute hour day month weekday: "0 2 * * *" is two o\'clock each night'


def check_cron(text: str) -> str:
    """`text` with single blanks between its fields. Raises Hinted for what no scheduler would take."""
    fields = text.lower().split()
    if len(fields) != len(_FIELDS):
        raise Hinted(f"a schedule has five fields, not {len(fields)}", _HINT)
    for value, (name, low, high, names) in zip(fields, _FIELDS, strict=True):
        if not all(_fits(item, low, high, names) for item in value.split(",")):
            raise Hinted(f"the {name} of this schedule is not within {low} to {high}", _HINT)
    return " ".join(fields)


def _fits(item: str, low: int, high: int, names: dict[str, int]) -> bool:
    match = _ITEM.fullmatch(item)
    if match is None or (match[3] is not None and int(match[3]) == 0):
        return False
    bounds = [names.get(word, int(word) if word.isdecimal() else -1) for word in match.group(1, 2) if word is not None]
    return all(low <= bound <= high for bound in bounds) and bounds == sorted(bounds)
