"""The one retry loop of the stores: which errors are worth another try, how long to wait, and what is said about it.

The SDKs' own retries are switched off: they would multiply with this loop, and they know neither our deadlines nor our log.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from backupd.errors import BackupdError, StoreUnavailable

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a store is waited for: seconds per connection and per answer, then tries in all and the waits between them.

    `connect_timeout_s` also bounds a send that makes no progress at all, since that is how the HTTP libraries use it.

    The wait before try n+1 is random between 0 and `base_s * 2**(n-1)`, at most `cap_s`: exponential backoff with full jitter,
    so that hundreds of runs which one outage stopped do not come back as one wave.
    """

    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    tries: int = 5
    base_s: float = 0.5
    cap_s: float = 20.0
    sleep: Callable[[float], None] = time.sleep


def attempt(what: str, call: Callable[[], T], patience: Patience) -> T:
    """The result of `call`, tried again on StoreUnavailable alone; the last one is raised when the tries are used up."""
    for done in range(1, patience.tries):
        try:
            return call()
        except StoreUnavailable as error:
            # Jitter needs no secrecy, only that two processes differ.
            wait = random.uniform(0, min(patience.cap_s, patience.base_s * 2 ** (done - 1)))  # noqa: S311
            log.warning("%s failed (try %d of %d), next in %.1f s: %s", what, done, patience.tries, wait, error)
            patience.sleep(wait)
    return call()


class Calls:
    """The way to one server: an SDK's errors become the store's own, and what may pass is tried again."""

    def __init__(
        self,
        url: str,
        patience: Patience,
        raised: tuple[type[Exception], ...],
        translate: Callable[[Exception, str, str], BackupdError],
    ) -> None:
        """`raised` are the SDK's exceptions; `translate(error, what, url)` tells them as the store's."""
        self.url = url
        self._patience = patience
        self._raised = raised
        self._translate = translate

    def __call__(self, what: str, call: Callable[[], T]) -> T:
        """What `call` returns. `what` is a verb and its object: `write a/b`."""

        def once() -> T:
            try:
                return call()
            except self._raised as error:
                raise self._translate(error, what, self.url) from error

        return attempt(f"{self.url}: {what}", once, self._patience)
