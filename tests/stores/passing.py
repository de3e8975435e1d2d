"""A store that passes everything on to another: what tests build on that change one thing of a real store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from backupd.stores import Limits, Store, StoredObject, Upload


@dataclass(frozen=True, slots=True)
class Passing:
    """`store`, in everything that a subclass does not do otherwise."""

    store: Store

    @property
    def url(self) -> str:
        return self.store.url

    @property
    def limits(self) -> Limits:
        return self.store.limits

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
