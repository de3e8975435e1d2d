"""A real store that is listed a page at a time, as object stores are, while others write to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from backupd.stores import Limits, Store, StoredObject, Upload


@dataclass(frozen=True, slots=True)
class Pages:
    """`store` in everything but its listings: a page has one name, and `then` is called with each before the next is asked for.

    `listed` are the prefixes of all listings so far.
    """

    store: Store
    then: Callable[[str], None] = lambda _: None
    listed: list[str] = field(default_factory=list)

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
        self.listed.append(prefix)
        last = ""
        while page := next((each for each in self.store.list(prefix) if each.name > last), None):
            yield page
            last = page.name
            self.then(last)
