"""One record and its bytes: one spelling for each, and nothing else is accepted."""

import dataclasses
import json
import time
from datetime import UTC, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.audit.records import (
    LONGEST_LIST,
    LONGEST_TEXT,
    Actor,
    Detail,
    Operation,
    Phase,
    Record,
    UnknownFormat,
    Via,
    clean_details,
    clean_text,
    parse,
    render,
)
from backupd.errors import Tampered
from backupd.redact import Secret
from tests.audit.examples import ACTOR, SEED, START

EXAMPLE = Record(
    seq=7,
    at=START,
    run_id="0123456789abcdef" * 2,
    operation=Operation.RESTORE_TEST,
    phase=Phase.DONE,
    actor=ACTOR,
    source="clinic",
    backup_id="20261124T020000Z-5f3c9a",
    details={"verdict": "PASS", "checks": 6, "overdue": False, "rto_s": None, "recipients": ("AB", "CD"), "empty": ()},
    error=None,
    previous="ab" * 32,
)
STORED = (
    b'{"actor":{"host":"backup1","operator":"on call","reason":"drill of the quarter","user":"backupd","via":"cli"},'
    b'"at":"2026-11-24T02:00:00.000000Z","backup_id":"20261124T020000Z-5f3c9a",'
    b'"details":{"checks":6,"empty":[],"overdue":false,"recipients":["AB","CD"],"rto_s":null,"verdict":"PASS"},"error":null,'
    b'"format":1,"operation":"restore-test","phase":"done","previous":"' + b"ab" * 32 + b'",'
    b'"run_id":"' + b"0123456789abcdef" * 2 + b'","seq":7,"source":"clinic"}'
)
texts = st.text(max_size=20)
optional = st.none() | texts
details = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | texts | st.lists(texts, max_size=3).map(tuple)
records = st.builds(
    Record,
    seq=st.integers(1, 2**63 - 1),
    at=st.datetimes(timezones=st.just(UTC)),
    run_id=st.uuids().map(lambda value: value.hex),
    operation=st.sampled_from(Operation),
    phase=st.sampled_from(Phase),
    actor=st.builds(Actor, texts, texts, st.sampled_from(Via), optional, optional),
    source=optional,
    backup_id=optional,
    details=st.dictionaries(texts, details, max_size=4),
    error=optional,
    previous=st.binary(min_size=32, max_size=32).map(bytes.hex),
    format=st.just(1),
)


def test_the_stored_bytes_are_as_documented() -> None:
    """A record of the first day: whoever changes the bytes breaks every trail there is, and this test says so."""
    assert render(EXAMPLE) == STORED
    assert parse(STORED) == EXAMPLE


@given(records)
def test_every_record_is_read_back_as_it_was_written(record: Record) -> None:
    data = render(record)
    assert parse(data) == record
    assert render(parse(data)) == data
    assert data.isascii()
    assert b"\n" not in data


def test_a_time_is_stored_in_utc_whatever_zone_it_was_given_in() -> None:
    elsewhere = dataclasses.replace(EXAMPLE, at=START.astimezone(timezone(timedelta(hours=-3))))
    assert render(elsewhere) == STORED


def test_no_changed_bit_makes_another_spelling_of_the_same_record() -> None:
    for bit in range(len(STORED) * 8):
        changed = bytearray(STORED)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            record = parse(bytes(changed))
        except Tampered:
            continue
        assert record != EXAMPLE
        assert render(record) == changed


def edited(**members: object) -> bytes:
    raw = json.loads(STORED) | members
    return json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()


def without(name: str) -> bytes:
    raw = json.loads(STORED)
    del raw[name]
    return json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"1",
        b"\xff",
        b"[" * 20_000,
        STORED[:-1],
        STORED + b"\n",
        b" " + STORED,
        STORED + STORED,
        STORED.replace(b":7,", b": 7,"),
        STORED.replace(b"clinic", b"\\u0063linic"),
        STORED.replace(b'"seq":7', b'"seq":7,"seq":7'),
        STORED.replace(b'"seq":7', b'"seq":07'),
        json.dumps(json.loads(STORED)).encode(),
        edited(seq=0),
        edited(seq=-1),
        edited(seq=2**63),
        edited(seq=7.0),
        edited(seq="7"),
        edited(seq=True),
        edited(at="2026-11-24T02:00:00Z"),
        edited(at="2026-11-24T02:00:00.000000"),
        edited(at="2026-11-24T02:00:00.000000+00:00"),
        edited(at="2026-11-24T04:00:00.000000+02:00"),
        edited(at="0001-01-01T00:00:00.000000+14:00"),
        edited(at="2026-13-24T02:00:00.000000Z"),
        edited(at="yesterdayZ"),
        edited(at=None),
        edited(run_id="0123"),
        edited(run_id=("0123456789ABCDEF" * 2)),
        edited(operation="theft"),
        edited(operation=None),
        edited(phase="begun"),
        edited(actor={}),
        edited(actor=None),
        edited(actor="root"),
        edited(actor={"host": "h", "operator": None, "reason": None, "user": "u", "via": "telnet"}),
        edited(actor={"host": "h", "operator": None, "reason": None, "user": 0, "via": "cli"}),
        edited(actor={"host": "h", "operator": None, "reason": None, "user": "u", "via": "cli", "more": 1}),
        edited(source=1),
        edited(backup_id=["x"]),
        edited(details=None),
        edited(details=[]),
        edited(details={"a": 1.5}),
        edited(details={"a": {}}),
        edited(details={"a": [1]}),
        edited(details={"a": float("nan")}),
        edited(details={"a": float("inf")}),
        edited(error=1),
        edited(previous="ab"),
        edited(previous="AB" * 32),
        edited(previous=None),
        edited(format="1"),
        edited(format=True),
        edited(format=1.0),
        edited(format=None),
        edited(more=1),
        without("error"),
        without("format"),
        without("actor"),
    ],
)
def test_everything_else_is_refused(data: bytes) -> None:
    with pytest.raises(Tampered) as caught:
        parse(data)
    assert not isinstance(caught.value, UnknownFormat)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("data", [b'{"format":2}', edited(format=2), edited(format=0), edited(format=999, more=1)])
def test_another_format_is_said_to_be_one(data: bytes) -> None:
    with pytest.raises(UnknownFormat, match="reads 1"):
        parse(data)


def test_a_zone_of_the_host_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the environment is set: this is how a host differs from another."""
    try:
        for zone in ("UTC", "Asia/Kathmandu", "America/St_Johns"):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            assert render(EXAMPLE) == STORED
            assert parse(STORED).at == START
            with pytest.raises(Tampered):
                parse(edited(at="2026-11-24T02:00:00.000000"))
    finally:
        monkeypatch.undo()
        time.tzset()


# --------------------------------------------------------------------------------------------------------- what comes in


def test_text_becomes_one_printable_line_without_secrets() -> None:
    assert clean_text("a\r\n b\tc ") == "a b c"
    assert "\x1b" not in clean_text("red \x1b[31m alert \u202e")
    assert clean_text(f"code of {SEED}") == "code of **redacted**"
    assert clean_text("\ud800").isascii()


def test_a_living_secret_is_removed_even_when_it_has_no_shape_and_spans_lines() -> None:
    secret = Secret("correct horse\nbattery staple")
    assert "horse" not in clean_text("psql said: correct horse\nbattery staple!")
    assert secret.text()


def test_long_text_and_long_lists_are_cut_and_say_so() -> None:
    assert clean_text("x" * LONGEST_TEXT) == "x" * LONGEST_TEXT
    assert clean_text("x" * (LONGEST_TEXT + 1)) == "x" * (LONGEST_TEXT - 1) + "…"
    cut = clean_details({"tables": tuple(f"t{number}" for number in range(LONGEST_LIST + 5))})["tables"]
    assert isinstance(cut, tuple)
    assert (len(cut), cut[-1]) == (LONGEST_LIST + 1, "… and 5 more")


def test_details_keep_what_is_harmless_and_lose_what_is_secret_by_name_or_shape() -> None:
    kept: dict[str, Detail] = {
        "key_id": "2026-1",
        "sha256": "ab" * 32,
        "parts": 12,
        "ok": True,
        "none": None,
        "fingerprints": ("A1" * 20,),
    }
    assert clean_details(kept) == kept
    lost = clean_details(
        {"password": "tr0ub4dor", "note": SEED, "notes": ("fine", SEED), "dsn": "postgresql://u:tr0ub4dor@h/d"}
    )
    assert lost == {
        "password": "**redacted**",
        "note": "**redacted**",
        "notes": ("fine", "**redacted**"),
        "dsn": "postgresql://u:**redacted**@h/d",
    }


def test_what_the_types_forbid_is_still_storable() -> None:
    """A record must not fail because of a detail: after the fact there is nobody to tell."""
    odd = clean_details({"ratio": 0.5, "huge": 10**30, "when": START, "map": {"a": 1}})  # type: ignore[dict-item]  # the point
    record = dataclasses.replace(EXAMPLE, details=odd)
    assert parse(render(record)) == record
    assert (odd["ratio"], odd["huge"]) == ("0.5", str(10**30))
