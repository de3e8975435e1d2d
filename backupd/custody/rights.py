"""What an identity may do about one secret, as the server that keeps it tells. A value: `Guarded` places make it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hazard:
    """What may give the secret all the same, where no right tells whether it does: what is so, and what to do about it."""

    text: str
    hint: str


@dataclass(frozen=True, slots=True)
class Rights:
    """`give` are the rights that give the secret, in words to follow "may"; empty when the identity cannot have it."""

    give: tuple[str, ...] = ()
    hazards: tuple[Hazard, ...] = ()
