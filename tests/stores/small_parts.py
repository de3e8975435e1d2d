"""A real store that takes only small parts, so that a little data makes many of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from backupd.stores import Limits, Store, StoredObject, Upload


@dataclass(frozen=True, slots=True)
class SmallParts:
    """`store` in everything but its limits: `parts` of an object at most, each of `largest` bytes at most."""

    store: Store
    largest: int
    parts: int = 10_000

    @property
    def url(self) -> str:
        return self.store.url

    @property
    def limits(self) -> Limits:
        return replace(self.store.limits, parts=self.parts, largest=self.largest)

    def begin(self, name: str) -> Upload:
        return self.store.begin(name)

    def create(self, name: str, data: bytes) -> None:
        self.store.create(name, data)

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        return self.store.read(name, start, length)

    def sweep(self, prefix: str) -> list[str]:
        return self.store.sweep(prefix)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        return self.store.list(prefix)
