"""A manifest's text says one thing, and only what this program would have written is read as one."""

import dataclasses
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.errors import Tampered
from backupd.manifest import (
    Artifact,
    ColumnKeys,
    Expectations,
    Head,
    Kind,
    LargeObjects,
    Level,
    Manifest,
    Moment,
    Part,
    Predecessor,
    Source,
    Table,
    Tools,
    parse,
    render,
)

DIGEST = "ab" * 32


def manifest(**changes: Any) -> Manifest:
    """One with something in every member."""
    at = datetime(2026, 11, 24, 2, 0, 0, 123456, UTC)
    whole = Manifest(
        backup_id="20261124T020000Z-5f3c9a",
        source=Source("clinic", 'Krankenhaus "Süd"', "7711740067189825941", "17.10"),
        snapshot=Moment(at, "0/259C000"),
        started_at=at,
        finished_at=at,
        tools=Tools("0.1.0", "17.10", "2.2.40", "zstd:1"),
        recipients=("A" * 40, "B" * 40),
        artifacts=(
            Artifact("database.dump.gpg", Kind.DATABASE, 3, DIGEST, (Part(2, DIGEST), Part(1, DIGEST)), Head(2, DIGEST)),
        ),
        expect=Expectations(
            Level.ROWS, {'"public"."t"': Table(5, "r", "x")}, {"s": None, "r": 4}, LargeObjects(1), {"plpgsql": "1.0"}, ("a",)
        ),
        column_keys=(ColumnKeys("users", "totp_secret", "aes-256-gcm", ("2026-1",), 5),),
        previous=Predecessor("20261123T020000Z-5f3c9a", DIGEST),
        notes=("a note",),
    )
    return dataclasses.replace(whole, **changes)


def test_parse_gives_back_what_was_rendered() -> None:
    assert parse(render(manifest())) == manifest()


def test_absent_things_come_back_as_absent() -> None:
    bare = manifest(previous=None, column_keys=(), notes=(), expect=Expectations(Level.OFF))
    assert parse(render(bare)) == bare


def test_a_manifest_from_before_heads_were_noted_is_read_and_spelt_as_it_was() -> None:
    """Its digest stands in the next one: it may not be written in two ways."""
    old = manifest(artifacts=(dataclasses.replace(manifest().artifacts[0], head=None),))
    assert "head" not in render(old)
    assert parse(render(old)) == old


def test_the_text_is_ascii_and_no_line_ends_in_a_blank() -> None:
    text = render(manifest())
    assert text.isascii()
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.pop("previous"),
        lambda raw: raw.update(extra=1),
        lambda raw: raw.update(started_at="yesterday"),
        lambda raw: raw.update(started_at="2026-11-24T02:00:00+00:00"),
        lambda raw: raw.update(recipients="A"),
        lambda raw: raw.update(recipients=[1]),
        lambda raw: raw.update(recipients=[]),
        lambda raw: raw.update(recipients=["A" * 40, "A" * 40]),
        lambda raw: raw.update(recipients=["A" * 40 + "\n"]),
        lambda raw: raw.update(recipients=["the code of this request: ffad-443d"]),
        lambda raw: raw.update(recipients=[f"{each:040X}" for each in range(17)]),
        lambda raw: raw["source"].update(database="x" * 256),
        lambda raw: raw["artifacts"][0].update(size=True),
        lambda raw: raw["artifacts"][0].update(size=4),
        lambda raw: raw["artifacts"][0].update(kind="tapes"),
        lambda raw: raw["artifacts"][0].update(name="../../etc/passwd"),
        lambda raw: raw["artifacts"][0].update(sha256="zz"),
        lambda raw: raw["artifacts"][0].update(parts=[]),
        lambda raw: raw["artifacts"][0]["parts"][0].update(size=-1, extra=1),
        lambda raw: raw["artifacts"][0].update(name="database."),
        lambda raw: raw["artifacts"][0].update(name="a" * 101),
        lambda raw: raw["artifacts"][0].update(size=(5 << 30) + 1, parts=[{"size": (5 << 30) + 1, "sha256": DIGEST}]),
        lambda raw: raw["artifacts"][0].update(size=100_001, parts=[{"size": 1, "sha256": DIGEST}] * 100_001),
        lambda raw: raw["artifacts"][0].update(head=None),
        lambda raw: raw["artifacts"][0].update(head={"size": 2}),
        lambda raw: raw["artifacts"][0]["head"].update(size=0),
        lambda raw: raw["artifacts"][0]["head"].update(size=4),
        lambda raw: raw["artifacts"][0]["head"].update(sha256="zz"),
        lambda raw: raw["artifacts"].append(raw["artifacts"][0]),
        lambda raw: raw["source"].update(server_version=""),
        lambda raw: raw["source"].update(server_version="\u0663"),
        lambda raw: raw["source"].update(server_version="9" * 5000),
        lambda raw: raw["tools"].update(pg_dump="seventeen"),
        lambda raw: raw.update(started_at="0001-01-01T00:00:00+23:00Z"),
        lambda raw: raw["expect"]["tables"].update(t=[]),
        lambda raw: raw["source"].update(name="../up"),
        lambda raw: raw.update(backup_id="latest"),
        lambda raw: raw.update(backup_id="\u0662\u0660\u0662\u0666\u0661\u0661\u0662\u0664T020000Z-5f3c9a"),
        lambda raw: raw.update(column_keys=None),
    ],
)
def test_anything_else_is_refused(change: Any) -> None:
    raw = json.loads(render(manifest()))
    change(raw)
    with pytest.raises(Tampered):
        parse(json.dumps(raw))


def test_the_largest_backup_fits() -> None:
    """Half a petabyte in 100,000 parts: nothing that a store takes is refused when it is listed."""
    large = Artifact("database.dump.gpg", Kind.DATABASE, 100_000 * (5 << 30), DIGEST, (Part(5 << 30, DIGEST),) * 100_000)
    text = render(manifest(artifacts=(large,)))
    assert parse(text).artifacts == (large,)
    assert len(text) < 16 << 20


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"format": 1, "format": 1}', '{"format": NaN}'])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(Tampered):
        parse(text)


def test_a_doubled_member_is_refused() -> None:
    text = render(manifest()).replace('"format": 1', '"format": 1,\n "format": 1')
    with pytest.raises(Tampered, match="there twice"):
        parse(text)


def test_a_later_format_says_that_this_version_is_too_old() -> None:
    with pytest.raises(Tampered) as caught:
        parse(render(manifest()).replace('"format": 1', '"format": 2'))
    assert caught.value.hint == "a newer backupd wrote it: update this one"


@given(st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    with pytest.raises(Tampered):
        parse(text)


@given(st.data())
def test_a_changed_character_is_another_manifest_or_none(data: st.DataObject) -> None:
    text = render(manifest())
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.characters(min_codepoint=32, max_codepoint=126)) + text[at + 1 :]
    try:
        read = parse(changed)
    except Tampered:
        return
    assert (read == manifest()) == (json.loads(changed) == json.loads(text))


def test_one_artifact_of_a_kind_is_asked_for() -> None:
    assert manifest().artifact(Kind.DATABASE).name == "database.dump.gpg"
    with pytest.raises(Tampered, match="lists 0 artifacts of kind globals"):
        manifest().artifact(Kind.GLOBALS)


def test_what_is_said_of_a_strange_manifest_is_short() -> None:
    """Or it would push what stands above it out of a terminal."""
    for strange in (
        {"format": "x" * 100_000},
        {"format": 1, "x" * 100_000: 1},
        json.loads(render(manifest())) | {"expect": "\n" * 9999},
    ):
        with pytest.raises(Tampered) as caught:
            parse(json.dumps(strange))
        assert len(caught.value.message) < 400
    raw = json.loads(render(manifest()))
    raw["expect"]["tables"] = {"x" * 100_000: 5}
    with pytest.raises(Tampered) as caught:
        parse(json.dumps(raw))
    assert len(caught.value.message) < 400
