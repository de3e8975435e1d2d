"""A real store that takes only small parts, so that a little data makes many of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from backupd.stores import Limits
from tests.stores.passing import Passing


@dataclass(frozen=True, slots=True)
class SmallParts(Passing):
    """`store` in everything but its limits: `parts` of an object at most, each of `largest` bytes at most."""

    largest: int
    parts: int = 10_000

    @property
    def limits(self) -> Limits:
        return replace(self.store.limits, parts=self.parts, largest=self.largest)
