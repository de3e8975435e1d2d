"""What a drill asks of a restored database: one file per check, one Protocol, one table (`ALL`).

A check never decides the verdict and never restores anything. It looks at a restored database and says what it saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

Figure = int | float | str | bool | None


class Outcome(StrEnum):
    """Of one check; a drill's verdict has the same three values."""

    PASS = "PASS"
    FAIL = "FAIL"
    COULD_NOT_VERIFY = "COULD NOT VERIFY"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check saw: one line for people (`detail`) and figures for machines; counts and key ids, never a secret."""

    name: str
    outcome: Outcome
    detail: str
    figures: Mapping[str, Figure] = field(default_factory=dict)


class Check(Protocol):
    """One question. `run` may raise a BackupdError: CouldNotVerify becomes that outcome, all others FAIL."""

    @property
    def name(self) -> str: ...

    def run(self, drill: Restored) -> Finding: ...
