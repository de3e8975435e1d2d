"""A real store that is listed a page at a time, as object stores are, while others write to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from backupd.stores import StoredObject
from tests.stores.passing import Passing


@dataclass(frozen=True, slots=True)
class Pages(Passing):
    """`store` in everything but its listings: a page has one name, and `then` is called with each before the next is asked for.

    `listed` are the prefixes of all listings so far.
    """

    then: Callable[[str], None] = lambda _: None
    listed: list[str] = field(default_factory=list)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        self.listed.append(prefix)
        last = ""
        while page := next((each for each in self.store.list(prefix) if each.name > last), None):
            yield page
            last = page.name
            self.then(last)
