"""What every store of trails owes. A test module subclasses `TrailStoreContract` and defines the fixture `place`."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

from backupd.audit import Checkpoint, Stored, TrailStore
from backupd.audit.chain import FindingKind
from backupd.audit.records import Operation, digest, parse, render
from backupd.audit.trail import Trail
from tests.audit.examples import ACTOR, SEED, START, chain_of, ticking
from tests.audit.writer import start_writer


@dataclass(frozen=True)
class Place:
    """One fresh store: how to open it, how a second process opens it, and how someone with all rights forges what is in it."""

    open: Callable[[], TrailStore]
    spec: dict[str, str]
    rows: Callable[[], list[Stored]]
    forge: Callable[[Sequence[Stored]], None]  # replaces all rows by these


def fixed(data: bytes) -> Callable[[Stored | None], bytes]:
    return lambda _: data


class BugError(Exception):
    """Raised by a test where a program has a bug."""


class TrailStoreContract:
    def test_a_new_trail_is_empty(self, place: Place) -> None:
        store = place.open()
        assert store.head() is None
        assert list(store.read()) == []

    def test_what_was_appended_is_read_by_whoever_opens_it(self, place: Place) -> None:
        written = [place.open().append(fixed(data)) for data in (b"first", b"second \xff\x00", b"")]
        assert written == [Stored(seq, data, digest(data)) for seq, data in enumerate((b"first", b"second \xff\x00", b""), 1)]
        assert list(place.open().read()) == written
        assert place.open().head() == written[-1]

    def test_the_next_record_is_made_from_the_last(self, place: Place) -> None:
        heads: list[Stored | None] = []

        def make(head: Stored | None) -> bytes:
            heads.append(head)
            return b"x"

        first, second = place.open().append(make), place.open().append(make)
        assert heads == [None, first]
        assert second.seq == 2

    def test_reading_begins_where_it_is_told(self, place: Place) -> None:
        store = place.open()
        for data in (b"a", b"b", b"c"):
            store.append(fixed(data))
        assert [stored.data for stored in store.read(2)] == [b"b", b"c"]
        assert list(store.read(4)) == []

    def test_a_failure_in_the_making_stores_nothing_and_blocks_nobody(self, place: Place) -> None:
        store = place.open()
        store.append(lambda _: b"a")

        def fail(_: Stored | None) -> bytes:
            raise BugError

        for _ in range(2):
            with pytest.raises(BugError):
                store.append(fail)
        assert store.append(lambda _: b"b").seq == 2

    def test_more_than_a_page_of_records_comes_whole_and_in_order(self, place: Place) -> None:
        place.open().append(lambda _: b"to make the table")
        rows = [Stored(seq, b"%d" % seq, digest(b"%d" % seq)) for seq in range(1, 1502)]
        place.forge(rows)
        assert list(place.open().read()) == rows
        assert [stored.seq for stored in place.open().read(500)] == list(range(500, 1502))

    def test_appending_while_reading_does_not_wait_for_itself(self, place: Place) -> None:
        store = place.open()
        for _ in range(3):
            store.append(lambda _: b"x")
        for stored in itertools.islice(store.read(), 3):
            store.append(lambda _: b"y")
            assert stored.data == b"x"
        assert sum(1 for _ in store.read()) == 6

    def test_several_processes_write_one_chain(self, place: Place) -> None:
        writers = [start_writer(place.spec, runs=10, name=f"writer{number}") for number in range(3)]
        said = [writer.communicate(timeout=240) for writer in writers]
        assert [(writer.returncode, stderr) for writer, (_, stderr) in zip(writers, said, strict=True)] == [(0, "")] * 3
        report = Trail(place.open(), ACTOR).verify()
        assert (report.ok, report.records, report.findings) == (True, 60, ())
        told = sorted(int(line) for stdout, _ in said for line in stdout.split())
        assert told == list(range(1, 61))

    def test_a_rightful_installation_has_no_excess_rights(self, place: Place) -> None:
        Trail(place.open(), ACTOR).event(Operation.CONFIGURATION)
        assert place.open().excess_rights() == []

    def test_the_place_is_told_without_credentials(self, place: Place) -> None:
        where = place.open().where
        assert "://" in where
        assert "@" not in where

    def test_no_secret_is_stored(self, place: Place) -> None:
        run = Trail(place.open(), ACTOR).intent(
            Operation.RESTORE, "clinic", {"reason": f"user said {SEED}", "password": "tr0ub4dor"}
        )
        run.failed(f"cannot reach postgresql://backup:hunter2hunter2@db/clinic with {SEED}", seed=SEED)
        stored = b"\n".join(row.data for row in place.rows())
        assert not any(secret in stored for secret in (SEED.encode(), b"tr0ub4dor", b"hunter2"))
        assert b"**redacted**" in stored

    # ------------------------------------------------------------------------------------------------------- tampering

    def test_an_honest_trail_verifies(self, place: Place) -> None:
        self._write(place)
        report = Trail(place.open(), ACTOR).verify()
        assert (report.ok, report.findings) == (True, ())
        assert report.head == Trail(place.open(), ACTOR).head()

    @pytest.mark.parametrize("seq", range(1, 7))
    def test_a_changed_record_is_found(self, place: Place, seq: int) -> None:
        rows = self._write(place)
        old = rows[seq - 1]
        rows[seq - 1] = Stored(seq, old.data.replace(b'"clinic"', b'"clinik"'), old.sha256)
        assert FindingKind.CHANGED in self._found(place, rows)

    @pytest.mark.parametrize("seq", range(1, 6))
    def test_a_changed_record_with_its_hash_made_to_fit_is_found(self, place: Place, seq: int) -> None:
        """All but the last: no record holds the last one's hash yet. That is what checkpoints are for."""
        rows = self._write(place)
        data = rows[seq - 1].data.replace(b'"clinic"', b'"clinik"')
        rows[seq - 1] = Stored(seq, data, digest(data))
        assert FindingKind.BROKEN_LINK in self._found(place, rows)

    def test_a_changed_last_record_with_its_hash_made_to_fit_needs_a_checkpoint_to_be_found(self, place: Place) -> None:
        rows = self._write(place)
        expected = Trail(place.open(), ACTOR).head()
        data = rows[-1].data.replace(b'"done"', b'"failed"')
        rows[-1] = Stored(rows[-1].seq, data, digest(data))
        assert self._found(place, rows) == set()
        assert self._found(place, rows, expected) == {FindingKind.REWRITTEN}

    @pytest.mark.parametrize("seq", range(1, 6))
    def test_a_record_taken_out_of_the_middle_is_found(self, place: Place, seq: int) -> None:
        rows = self._write(place)
        assert FindingKind.GAP in self._found(place, [row for row in rows if row.seq != seq])

    @pytest.mark.parametrize("seq", range(1, 6))
    def test_a_record_taken_out_and_the_others_moved_up_is_found(self, place: Place, seq: int) -> None:
        rows = self._write(place)
        moved = [Stored(number, row.data, row.sha256) for number, row in enumerate((r for r in rows if r.seq != seq), 1)]
        assert {FindingKind.BROKEN_LINK, FindingKind.ORDER} <= self._found(place, moved)

    @pytest.mark.parametrize(("one", "other"), [(1, 2), (2, 3), (1, 6), (3, 5), (5, 6)])
    def test_two_swapped_records_are_found(self, place: Place, one: int, other: int) -> None:
        rows = self._write(place)
        a, b = rows[one - 1], rows[other - 1]
        rows[one - 1], rows[other - 1] = Stored(one, b.data, b.sha256), Stored(other, a.data, a.sha256)
        assert FindingKind.ORDER in self._found(place, rows)

    @pytest.mark.parametrize("data", [b"", b"null", b"{}", b"\xff\x00", b'{"format":2,"seq":3}'])
    def test_bytes_that_are_no_record_are_found_and_do_not_end_the_search(self, place: Place, data: bytes) -> None:
        rows = self._write(place)
        rows[2] = Stored(3, data, digest(data))
        del rows[4]
        found = self._found(place, rows)
        assert FindingKind.GAP in found
        assert found & {FindingKind.NOT_A_RECORD, FindingKind.UNKNOWN_FORMAT}

    def test_a_cut_off_end_is_found_with_a_checkpoint_and_only_with_one(self, place: Place) -> None:
        rows = self._write(place)
        expected = Trail(place.open(), ACTOR).head()
        assert self._found(place, rows[:4]) == set()
        assert self._found(place, rows[:4], expected) == {FindingKind.TRUNCATED}
        assert self._found(place, [], expected) == {FindingKind.TRUNCATED, FindingKind.EMPTY}

    def test_a_trail_written_anew_is_found_with_a_checkpoint_and_only_with_one(self, place: Place) -> None:
        rows = self._write(place)
        expected = Trail(place.open(), ACTOR).head()
        forged = chain_of([parse(row.data) for row in rows], change=lambda record: record.source == "clinic")
        assert self._found(place, forged) == set()
        assert self._found(place, forged, expected) == {FindingKind.REWRITTEN}

    def test_an_older_checkpoint_still_holds_when_the_trail_has_grown(self, place: Place) -> None:
        self._write(place)
        expected = Trail(place.open(), ACTOR).head()
        rows = self._write(place, START + timedelta(days=1))
        assert self._found(place, rows, expected) == set()
        assert Trail(place.open(), ACTOR).verify(expected).records == 12

    def _write(self, place: Place, start: datetime = START) -> list[Stored]:
        trail = Trail(place.open(), ACTOR, ticking(start))
        for number in range(3):
            trail.intent(Operation.BACKUP, "clinic").done(backup_id=f"20261124T02000{number}Z-5f3c9a", parts=number)
        rows = place.rows()
        assert all(render(parse(row.data)) == row.data for row in rows)
        return rows

    def _found(self, place: Place, rows: Sequence[Stored], expected: Checkpoint | None = None) -> set[FindingKind]:
        place.forge(rows)
        report = Trail(place.open(), ACTOR).verify(expected)
        assert report.ok is all(finding.kind.is_warning for finding in report.findings)
        assert report.records == len(rows)
        return {finding.kind for finding in report.findings}
