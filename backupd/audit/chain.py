"""Verification of a trail: pure, over stored records from wherever they come. It reports all that it finds, raises nothing.

Severity: a finding that is a warning leaves `ok` true, because the chain is whole and tells the truth. So it is with an intent
without an outcome: that run was killed, or is running now, and the trail says so honestly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from backupd.audit import Checkpoint, Stored
from backupd.audit.records import NO_PREDECESSOR, Phase, Record, UnknownFormat, digest, parse
from backupd.errors import Tampered


class FindingKind(StrEnum):
    """What can be wrong with a trail."""

    CHANGED = "changed"  # the bytes do not match the hash that was stored beside them
    BROKEN_LINK = "broken-link"  # `previous` is not the hash of the record before
    GAP = "gap"  # numbers are missing
    DOUBLED = "doubled"  # a number is there twice
    ORDER = "order"  # a record is not where its number says
    UNKNOWN_FORMAT = "unknown-format"  # a record that a newer version wrote, or an older one never did
    NOT_A_RECORD = "not-a-record"  # bytes that backupd never wrote
    NO_INTENT = "outcome-without-intent"  # an outcome of a run that never began, or had ended, or was another operation
    TRUNCATED = "truncated"  # the trail ends before a checkpoint that was taken of it
    REWRITTEN = "rewritten"  # the record that a checkpoint names is another one
    ORPHAN = "orphan"  # warning: an intent without an outcome
    CLOCK = "clock"  # warning: a record is earlier than the one before
    EMPTY = "empty"  # warning: nothing is there to verify

    @property
    def is_warning(self) -> bool:
        return self in (FindingKind.ORPHAN, FindingKind.CLOCK, FindingKind.EMPTY)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found at record `seq` (0: the trail as a whole), in one line."""

    kind: FindingKind
    seq: int
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """What verification saw. `head` is None when there is no last record, or it is none. `ok` is false for all but warnings."""

    records: int
    head: Checkpoint | None
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.kind.is_warning for finding in self.findings)


def verify(stored: Iterable[Stored], expected: Checkpoint | None = None, living: Collection[str] = ()) -> Report:
    """Check a whole trail, from its first record on.

    `expected` is a checkpoint from elsewhere. `living` are the ids of runs that are known to run now, so that their intents
    are no orphans. Memory grows with the open intents, not with the trail.
    """
    findings: list[Finding] = []
    runs = _Runs()
    last: Stored | None = None
    head: Checkpoint | None = None
    count = 0
    for count, each in enumerate(stored, 1):  # noqa: B007  # the count is used after the loop
        findings += _check_bytes(each)
        findings += _check_place(last, each)
        if expected is not None and each.seq == expected.seq and digest(each.data) != expected.head:
            findings.append(Finding(FindingKind.REWRITTEN, each.seq, "it is not the record that the checkpoint was taken of"))
        record, unreadable = _read(each)
        if record is None:
            findings += unreadable
            head = None
        else:
            findings += _check_link(last, each, record)
            if head is not None and record.at < head.at:
                findings.append(
                    Finding(FindingKind.CLOCK, each.seq, f"its time is {head.at - record.at} before the last one's")
                )
            findings += runs.follow(each.seq, record)
            head = Checkpoint(each.seq, digest(each.data), record.at)
        last = each
    findings += runs.orphans(living)
    if last is None:
        findings.append(Finding(FindingKind.EMPTY, 0, "the trail has no record"))
    if expected is not None and (last is None or last.seq < expected.seq):
        at_end = 0 if last is None else last.seq
        findings.append(Finding(FindingKind.TRUNCATED, at_end, f"the trail ends here, and once had {expected.seq} records"))
    return Report(count, head, tuple(findings))


def _check_bytes(each: Stored) -> Iterator[Finding]:
    if digest(each.data) != each.sha256:
        yield Finding(FindingKind.CHANGED, each.seq, "its bytes do not match the hash stored beside them")


def _check_place(last: Stored | None, each: Stored) -> Iterator[Finding]:
    due = 1 if last is None else last.seq + 1
    if each.seq > due:
        missing = f"record {due} is" if each.seq == due + 1 else f"records {due} to {each.seq - 1} are"
        yield Finding(FindingKind.GAP, each.seq, f"{missing} missing before it")
    elif last is not None and each.seq == last.seq:
        yield Finding(FindingKind.DOUBLED, each.seq, "there are two records of this number")
    elif each.seq < due:
        yield Finding(FindingKind.ORDER, each.seq, f"it stands where record {due} is due")


def _read(each: Stored) -> tuple[Record | None, list[Finding]]:
    try:
        return parse(each.data), []
    except UnknownFormat as error:
        return None, [Finding(FindingKind.UNKNOWN_FORMAT, each.seq, error.message)]
    except Tampered as error:
        return None, [Finding(FindingKind.NOT_A_RECORD, each.seq, error.message)]


def _check_link(last: Stored | None, each: Stored, record: Record) -> Iterator[Finding]:
    if record.seq != each.seq:
        yield Finding(FindingKind.ORDER, each.seq, f"it says that it is record {record.seq}")
    due = NO_PREDECESSOR if last is None else digest(last.data)
    follows = each.seq == (1 if last is None else last.seq + 1)
    if follows and record.previous != due:
        before = (
            "it is not the first of its chain" if last is None else f"it was not written after record {last.seq} as it is now"
        )
        yield Finding(FindingKind.BROKEN_LINK, each.seq, before)


class _Runs:
    """The runs that began and did not end yet."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, Record]] = {}

    def follow(self, seq: int, record: Record) -> Iterator[Finding]:
        if record.phase is Phase.INTENT:
            self._open[record.run_id] = (seq, record)
        elif record.phase.is_outcome:
            intent = self._open.pop(record.run_id, None)
            if intent is None:
                yield Finding(FindingKind.NO_INTENT, seq, f"{record.operation} {record.phase}, and no such run was open")
            elif (intent[1].operation, intent[1].source) != (record.operation, record.source):
                yield Finding(FindingKind.NO_INTENT, seq, f"the outcome of another operation than record {intent[0]} began")

    def orphans(self, living: Collection[str]) -> Iterator[Finding]:
        for run_id, (seq, record) in self._open.items():
            if run_id not in living:
                of = f" of {record.source}" if record.source else ""
                yield Finding(
                    FindingKind.ORPHAN, seq, f"{record.operation}{of} began {record.at:%Y-%m-%d %H:%M:%SZ} and has no outcome"
                )
