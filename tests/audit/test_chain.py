"""Verification, without any store: what is found, what is only warned about, and what cannot be seen."""

from collections.abc import Sequence
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.audit import Checkpoint, Stored
from backupd.audit.chain import Finding, FindingKind, verify
from backupd.audit.records import Operation, Phase, Record, digest
from tests.audit.examples import ACTOR, START, chain_of

RUNS = [f"{number:032x}" for number in range(10)]


def record(
    run: int, phase: Phase, second: int = 0, operation: Operation = Operation.BACKUP, source: str | None = "clinic"
) -> Record:
    return Record(1, START + timedelta(seconds=second), RUNS[run], operation, phase, ACTOR, source)


CHAIN = chain_of(
    [
        record(0, Phase.INTENT, 0),
        record(1, Phase.INTENT, 1),
        record(0, Phase.DONE, 2),
        record(2, Phase.EVENT, 3, Operation.CONFIGURATION, None),
        record(1, Phase.FAILED, 4),
        record(3, Phase.INTENT, 5, Operation.RESTORE),
        record(3, Phase.REFUSED, 6, Operation.RESTORE),
    ]
)
HEAD = Checkpoint(len(CHAIN), digest(CHAIN[-1].data), START + timedelta(seconds=6))


def kinds(rows: Sequence[Stored], expected: Checkpoint | None = None) -> list[str]:
    return [finding.kind.value for finding in verify(rows, expected).findings]


def test_a_whole_chain_is_whole() -> None:
    report = verify(iter(CHAIN), HEAD)
    assert (report.ok, report.records, report.head, report.findings) == (True, 7, HEAD, ())


def test_every_changed_byte_is_found() -> None:
    for place, row in enumerate(CHAIN):
        for position in range(len(row.data)):
            changed = bytearray(row.data)
            changed[position] ^= 1 << position % 8
            rows = [*CHAIN[:place], Stored(row.seq, bytes(changed), row.sha256), *CHAIN[place + 1 :]]
            report = verify(rows)
            assert not report.ok
            assert (
                Finding(FindingKind.CHANGED, row.seq, "its bytes do not match the hash stored beside them") in report.findings
            )


def test_every_changed_byte_whose_hash_was_made_to_fit_is_found() -> None:
    """In the last record by the checkpoint alone."""
    for place, row in enumerate(CHAIN):
        for position in range(0, len(row.data), 3):
            changed = bytearray(row.data)
            changed[position] ^= 1 << position % 8
            rows = [*CHAIN[:place], Stored(row.seq, bytes(changed), digest(bytes(changed))), *CHAIN[place + 1 :]]
            assert not verify(rows, HEAD).ok
            assert verify(rows).ok is False or place == len(CHAIN) - 1


@given(st.permutations(CHAIN), st.integers(0, 7))
def test_whatever_is_left_out_or_moved_is_found(shuffled: list[Stored], length: int) -> None:
    rows = shuffled[:length]
    assert verify(rows, HEAD).ok is (rows == CHAIN)


@given(st.lists(st.builds(Stored, st.integers(1, 9), st.binary(max_size=30), st.just("")), min_size=1, max_size=9))
def test_rubbish_is_reported_and_raises_nothing(rows: list[Stored]) -> None:
    report = verify(rows)
    assert not report.ok
    assert report.records == len(rows)
    assert report.head is None


def test_each_kind_is_named_at_its_record() -> None:
    foreign = chain_of([record(9, Phase.EVENT), record(9, Phase.EVENT)])
    assert verify([CHAIN[0], *CHAIN[2:]]).findings[0] == Finding(FindingKind.GAP, 3, "record 2 is missing before it")
    assert "records 1 to 3 are missing" in verify(CHAIN[3:]).findings[0].detail
    assert kinds([*CHAIN, CHAIN[-1]]) == ["doubled", "outcome-without-intent"]
    assert kinds([*CHAIN, CHAIN[0]])[0] == "order"
    assert kinds([*CHAIN[:1], foreign[1], *CHAIN[2:]]) == ["broken-link", "broken-link", "outcome-without-intent"]
    assert kinds([Stored(1, b'{"format":2}', digest(b'{"format":2}'))]) == ["unknown-format"]
    assert kinds([Stored(1, b"{}", digest(b"{}"))]) == ["not-a-record"]
    assert kinds([Stored(1, CHAIN[1].data, CHAIN[1].sha256)]) == ["order", "broken-link", "orphan"]


def test_an_empty_trail_is_no_fault_and_is_said() -> None:
    report = verify([])
    assert (report.ok, report.records, report.head) == (True, 0, None)
    assert kinds([]) == ["empty"]


def test_a_cut_off_end_needs_a_checkpoint_to_be_seen() -> None:
    assert verify(CHAIN[:3]).ok
    assert kinds(CHAIN[:3], HEAD) == ["orphan", "truncated"]


def test_a_chain_written_anew_needs_a_checkpoint_to_be_seen() -> None:
    anew = chain_of([record(0, Phase.INTENT), record(0, Phase.DONE)])
    assert verify(anew).ok
    assert kinds(anew, Checkpoint(2, CHAIN[1].sha256, START)) == ["rewritten"]


def test_an_intent_without_an_outcome_is_a_warning_unless_its_run_lives() -> None:
    rows = chain_of([record(0, Phase.INTENT), record(1, Phase.INTENT, source=None)])
    report = verify(rows)
    assert report.ok
    assert [(f.kind, f.seq) for f in report.findings] == [(FindingKind.ORPHAN, 1), (FindingKind.ORPHAN, 2)]
    assert report.findings[0].detail == "backup of clinic began 2026-11-24 02:00:00Z and has no outcome"
    assert [f.seq for f in verify(rows, living=[RUNS[0]]).findings] == [2]


@pytest.mark.parametrize("outcome", [phase for phase in Phase if phase.is_outcome])
def test_each_outcome_ends_its_run_once(outcome: Phase) -> None:
    begun = record(0, Phase.INTENT)
    assert kinds(chain_of([begun, record(0, outcome)])) == []
    assert kinds(chain_of([begun, record(0, outcome), record(0, outcome)])) == ["outcome-without-intent"]
    assert kinds(chain_of([record(0, outcome)])) == ["outcome-without-intent"]
    assert kinds(chain_of([begun, record(1, outcome)])) == ["outcome-without-intent", "orphan"]
    assert kinds(chain_of([begun, record(0, outcome, operation=Operation.RESTORE)])) == ["outcome-without-intent"]
    assert kinds(chain_of([begun, record(0, outcome, source="other")])) == ["outcome-without-intent"]


def test_events_neither_begin_nor_end_a_run() -> None:
    assert (
        kinds(chain_of([record(0, Phase.EVENT), record(0, Phase.INTENT), record(0, Phase.EVENT), record(0, Phase.DONE)])) == []
    )


def test_time_that_goes_backwards_is_a_warning() -> None:
    report = verify(chain_of([record(0, Phase.INTENT, 90), record(0, Phase.DONE, 0)]))
    assert report.ok
    assert [(f.kind, f.seq, f.detail) for f in report.findings] == [
        (FindingKind.CLOCK, 2, "its time is 0:01:30 before the last one's")
    ]


def test_only_three_kinds_are_warnings() -> None:
    assert {kind for kind in FindingKind if kind.is_warning} == {FindingKind.ORPHAN, FindingKind.CLOCK, FindingKind.EMPTY}
