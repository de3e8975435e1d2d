"""What a check says, one line at a time, and what it is given to look at. Nothing is looked at here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from backupd import logs
from backupd.errors import BackupdError
from backupd.redact import printable, scrub

if TYPE_CHECKING:
    from backupd.audit.trail import Trail
    from backupd.catalog import Catalog, Entry
    from backupd.config.models import Config, SecretRef, Source
    from backupd.custody import Custodian
    from backupd.openpgp import Home
    from backupd.openpgp.keys import PublicKey
    from backupd.postgres.dsn import Dsn
    from backupd.separation import Identities
    from backupd.stores import Store


log = logs.get(__name__)


class State(StrEnum):
    """Of one line. A warning is something that will become a problem, or makes backups worth less than they could be."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at. `area` is what it belongs to (`store`, `source clinic`); `hint` is None when ok."""

    area: str
    state: State
    text: str
    hint: str | None = None


@dataclass(frozen=True)
class Parts:
    """A configuration and its parts; each is made when it is called for, and may then raise what is wrong with it."""

    config: Config
    custodian: Callable[[SecretRef], Custodian]
    identities: Callable[[], Identities]
    public_key: Callable[[Path], PublicKey]
    home: Callable[[], Home]
    signer: Callable[[], str]
    store: Callable[[], Store]
    catalog: Callable[[], Catalog]
    trail: Callable[[], Trail]
    dsn: Callable[[Source], Dsn]

    @cached_property
    def entries(self) -> list[Entry]:
        """The backups in the store, read once: there may be many, and anybody may have put them there."""
        return self.catalog().list()


def ok(area: str, text: str) -> Line:
    return Line(area, State.OK, _clean(text))


def warning(area: str, text: str, hint: str) -> Line:
    return Line(area, State.WARNING, _clean(text), _clean(hint))


def problem(area: str, text: str, hint: str) -> Line:
    return Line(area, State.PROBLEM, _clean(text), _clean(hint))


def failed(area: str, error: BackupdError) -> Line:
    """The line that an error stands for."""
    return problem(area, error.message, error.hint or "a backup would fail on it too")


def guarded(area: str, lines: Iterable[Line]) -> Iterator[Line]:
    """`lines`, and instead of an error that ends them one line more: what is wrong in one area keeps no other from being told.

    That is so for our own mistakes too. Only their class is told, because their text may be anything.
    """
    try:
        yield from lines
    except BackupdError as error:
        yield failed(area, error)
    except Exception as error:
        log.exception("a check ended in an error that nobody expected", area=area)
        yield problem(area, f"it could not be looked at: {type(error).__name__}", "this is a fault in backupd: report it")


def _clean(text: str) -> str:
    return printable(scrub(text))
