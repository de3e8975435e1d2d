"""One record of the trail and its bytes. `render` and `parse` are inverse, and each record has one spelling.

Format 1 is one JSON object: ASCII, sorted members, no blanks, no fractions. `parse` accepts exactly what `render` writes, for a
record that could be spelt twice could be changed without being changed. Pure: no clock, no store.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

from backupd.errors import Tampered
from backupd.redact import printable, scrub, scrub_value

FORMAT = 1
NO_PREDECESSOR = "0" * 64
LONGEST_TEXT = 4_000  # characters; a record is a line for people, and a trail is kept for years
LONGEST_LIST = 200
_LARGEST_INT = 2**63
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RUN_ID = re.compile(r"[0-9a-f]{32}")

Detail = str | int | bool | None | tuple[str, ...]


class Operation(StrEnum):
    """What was done."""

    BACKUP = "backup"
    RESTORE = "restore"
    RESTORE_TEST = "restore-test"
    VERIFY = "verify"
    CHECK = "check"
    PRUNE = "prune"
    KEYS = "keys"
    COLUMNS = "columns"
    CONFIGURATION = "configuration"
    WATCH = "watch"
    EVIDENCE = "evidence"
    AUDIT = "audit"
    DAEMON = "daemon"


class Phase(StrEnum):
    """An operation begins with an intent and ends with one of the outcomes; an event stands alone."""

    INTENT = "intent"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    INTERRUPTED = "interrupted"
    EVENT = "event"

    @property
    def is_outcome(self) -> bool:
        return self not in (Phase.INTENT, Phase.EVENT)


class Via(StrEnum):
    """How backupd was started."""

    CLI = "cli"
    DAEMON = "daemon"
    CRONJOB = "cronjob"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who: the account and host that backupd runs on, and the person behind it with their reason, where given."""

    user: str
    host: str
    via: Via
    operator: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One thing that happened. `previous` is the SHA-256 (hex) of the record before this one, as stored.

    All records of one run have its `run_id` (a UUID in hex). `error` is one line. `details` are flat, and never secret.
    """

    seq: int
    at: datetime
    run_id: str
    operation: Operation
    phase: Phase
    actor: Actor
    source: str | None = None
    backup_id: str | None = None
    details: Mapping[str, Detail] = field(default_factory=dict)
    error: str | None = None
    previous: str = NO_PREDECESSOR
    format: int = FORMAT


class UnknownFormat(Tampered):
    """A record of a format that this version does not read."""


def digest(data: bytes) -> str:
    """SHA-256 in hex: what the next record holds as `previous`."""
    return hashlib.sha256(data).hexdigest()


def render(record: Record) -> bytes:
    """The bytes that are stored and hashed."""
    plain = {
        "format": record.format,
        "seq": record.seq,
        "at": record.at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "run_id": record.run_id,
        "operation": record.operation.value,
        "phase": record.phase.value,
        "actor": {
            "user": record.actor.user,
            "host": record.actor.host,
            "via": record.actor.via.value,
            "operator": record.actor.operator,
            "reason": record.actor.reason,
        },
        "source": record.source,
        "backup_id": record.backup_id,
        "details": {key: list(value) if isinstance(value, tuple) else value for key, value in record.details.items()},
        "error": record.error,
        "previous": record.previous,
    }
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def parse(data: bytes) -> Record:
    """The record that these bytes are. Raises UnknownFormat, and Tampered for all that `render` would not have written."""
    try:
        raw = json.loads(data.decode("ascii"), parse_float=_no_fraction, parse_constant=_no_fraction)
        if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] != FORMAT:
            raise UnknownFormat(f"a record of format {raw['format']}, and this version reads {FORMAT}", "update backupd")
        record = _record(_members(raw))
        if render(record) != data:
            raise ValueError("it is spelt in another way than backupd spells records")
    except (ValueError, RecursionError) as error:
        raise Tampered(f"not a record of the trail: {error}", "find out who else writes to the trail") from error
    return record


def clean_text(text: str) -> str:
    """`text` fit for the trail: without secrets, on one line, printable, and not longer than LONGEST_TEXT."""
    cleaned = printable(" ".join(scrub(text).split()))
    return cleaned if len(cleaned) <= LONGEST_TEXT else cleaned[: LONGEST_TEXT - 1] + "…"


def clean_details(details: Mapping[str, Detail]) -> dict[str, Detail]:
    """`details` fit for the trail: as `clean_text`, and by the name of each; a list keeps its first LONGEST_LIST."""
    return {clean_text(key): _clean(scrub_value(key, value)) for key, value in details.items()}


def _clean(value: object) -> Detail:
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < _LARGEST_INT):
        return value
    if isinstance(value, list):
        shown = tuple(clean_text(str(each)) for each in value[:LONGEST_LIST])
        return shown if len(shown) == len(value) else (*shown, f"… and {len(value) - len(shown)} more")
    return clean_text(str(value))


_Kind = TypeVar("_Kind", bound=StrEnum)


class _Members:
    """The members of a JSON object, each taken once and with its type; ValueError where something else is there."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw

    def exactly(self, names: set[str]) -> None:
        if set(self.raw) != names:
            raise ValueError(f"missing or unknown members: {printable(', '.join(sorted(set(self.raw) ^ names)))[:200]}")

    def text(self, name: str) -> str:
        value = self.raw.get(name)
        if isinstance(value, str):
            return value
        raise ValueError(f"{name} is no text")

    def text_or_none(self, name: str) -> str | None:
        return None if self.raw.get(name) is None else self.text(name)

    def matching(self, name: str, pattern: re.Pattern[str]) -> str:
        value = self.text(name)
        if not pattern.fullmatch(value):
            raise ValueError(f"{name} is malformed")
        return value

    def one_of(self, name: str, kind: type[_Kind]) -> _Kind:
        return kind(self.text(name))

    def number(self, name: str) -> int:
        value = self.raw.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < _LARGEST_INT:
            raise ValueError(f"{name} is no positive number")
        return value


def _members(raw: Any) -> _Members:
    if isinstance(raw, dict):
        return _Members(raw)
    raise ValueError("there is no JSON object where one is due")


def _time(text: str) -> datetime:
    if not text.endswith("Z"):
        raise ValueError("a time is not in UTC")
    return datetime.fromisoformat(text)


def _record(members: _Members) -> Record:
    members.exactly(set(Record.__dataclass_fields__))
    return Record(
        format=members.number("format"),
        seq=members.number("seq"),
        at=_time(members.text("at")),
        run_id=members.matching("run_id", _RUN_ID),
        operation=members.one_of("operation", Operation),
        phase=members.one_of("phase", Phase),
        actor=_actor(_members(members.raw["actor"])),
        source=members.text_or_none("source"),
        backup_id=members.text_or_none("backup_id"),
        details={key: _detail(value) for key, value in _members(members.raw["details"]).raw.items()},
        error=members.text_or_none("error"),
        previous=members.matching("previous", _DIGEST),
    )


def _actor(members: _Members) -> Actor:
    members.exactly(set(Actor.__dataclass_fields__))
    return Actor(
        user=members.text("user"),
        host=members.text("host"),
        via=members.one_of("via", Via),
        operator=members.text_or_none("operator"),
        reason=members.text_or_none("reason"),
    )


def _detail(value: Any) -> Detail:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    raise ValueError("a detail is neither text, whole number, flag nor list of texts")


def _no_fraction(text: str) -> NoReturn:
    raise ValueError("a number is no whole number")
