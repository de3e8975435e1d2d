"""The scanner finds every spelling it says it finds, wherever a stream is cut, and leaves ordinary text alone."""

from __future__ import annotations

import random
import re
from base64 import b32encode, b64encode, urlsafe_b64encode
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.checks.scanner import OUTSIDE, REACH, Hit, Report, Scanner, Wanted, looks_like_a_seed

RANDOM = random.Random(20261124)
RAW = RANDOM.randbytes(20)
SEED = b32encode(RAW)
KEY = RANDOM.randbytes(32)
FOUR = re.findall(b"....", SEED)

SEED_SPELLINGS = {
    "base32": SEED,
    "lower case": SEED.lower(),
    "groups": b" ".join(FOUR),
    "groups after words of four letters": b"this code " + b" ".join(FOUR) + b" that",
    "hyphens": b"-".join(FOUR),
    "an otpauth address": b"otpauth://totp/clinic:ada?secret=" + SEED + b"&issuer=clinic",
    "JSON": b'{"secret": "' + SEED + b'"}',
    "the last part of a path": b"backup/" + SEED,
    "after an escaped line end": b"first line\\n" + SEED,
    "after an escaped tab": b"a\\t" + SEED,
    "bytea of the seed": b"\\\\x" + RAW.hex().encode(),
    "bytea of the base32": b"\\\\x" + SEED.hex().encode(),
    "base64": b64encode(RAW),
    "glued to other letters": b"seed1" + SEED + b"S",
    "glued to other letters, in lower case": b"x" + SEED.lower() + b"99",
    "inside of a longer bytea": b"\\\\x00ff" + RAW.hex().encode() + b"00" * 2000,
    "its base32 inside of a longer bytea": b"\\\\x" + b"7b" * 2000 + SEED.lower().hex().encode() + b"7d",
    "hex in upper case inside of a longer one": b"AB" + RAW.hex().upper().encode() + b"CD",
    "a large object": b"SELECT pg_catalog.lowrite(0, '\\x0001" + SEED.hex().encode() + b"02');",
    "base64 inside of a longer text": b64encode(b"abc" + RAW + b"d"),
    "base64 inside of a longer text, one byte on": b64encode(b"a" + RAW + b"b"),
    "base64 inside of a longer text, two bytes on": b64encode(b"ab" + RAW + b"b"),
    "its base32 in base64": b64encode(b"secret=" + SEED + b"&digits=6"),
    "its base32 in base64url": urlsafe_b64encode(b"??>" + SEED.lower() + b"??>"),
}
KEY_SPELLINGS = {
    "bytea": b"\\\\x" + KEY.hex().encode(),
    "bytea inside of a longer one": b"\\\\x00ff" + KEY.hex().encode() + b"00",
    "hex in upper case": KEY.hex().upper().encode(),
    "base64": b64encode(KEY),
    "base64url, as Fernet keys are": urlsafe_b64encode(KEY),
    "base64 inside of a longer text, one byte on": b64encode(b"a" + KEY + b"b"),
    "base64 inside of a longer text, two bytes on": b64encode(b"ab" + KEY + b"b"),
    "base32": b32encode(KEY),
}


def wanted() -> Wanted:
    found = Wanted()
    found.seed(SEED, RAW)
    found.key(KEY)
    found.key(b"correct horse \\ battery")
    return found


def scanned(*chunks: bytes, looking_for: Wanted | None = None) -> Report:
    scanner = Scanner(looking_for or wanted())
    for chunk in chunks:
        scanner.feed(chunk)
    return scanner.close()


def dump(rows: Iterable[bytes], table: bytes = b"public.notes") -> bytes:
    lines = b"".join(row + b"\n" for row in rows)
    return (
        b"--\n-- PostgreSQL database dump\n--\n\nCOPY " + table + b" (id, note) FROM stdin;\n" + lines + b"\\.\n\n\n-- done\n"
    )


def around(text: bytes) -> bytes:
    return dump([b"1\tquite ordinary", b"2\t" + text, b"3\tordinary again"])


@pytest.mark.parametrize("spelling", SEED_SPELLINGS)
def test_a_known_seed_is_found_in_each_spelling(spelling: str) -> None:
    report = scanned(around(SEED_SPELLINGS[spelling]))
    assert report.hits == {Hit.SEED: 1}
    assert report.places == {"public.notes": 1}


@pytest.mark.parametrize("spelling", KEY_SPELLINGS)
def test_a_known_key_is_found_in_each_spelling(spelling: str) -> None:
    assert scanned(around(KEY_SPELLINGS[spelling])).hits[Hit.KEY] == 1


def test_a_passphrase_is_found_as_text_with_its_backslashes_doubled() -> None:
    assert scanned(around(rb"note: correct horse \\ battery, said Ada")).hits == {Hit.KEY: 1}


@pytest.mark.parametrize("spelling", [*SEED_SPELLINGS, *KEY_SPELLINGS])
def test_a_hit_counts_once_wherever_the_stream_is_cut(spelling: str) -> None:
    """The cut runs through every byte of the secret, with so much before and after that each half is looked at by itself."""
    secret = (SEED_SPELLINGS | KEY_SPELLINGS)[spelling]
    filling = [b"%d\tordinary filling of a row" % number for number in range(2 * REACH // 20)]
    secret = secret.replace(b"00" * 2000, b"00").replace(b"7b" * 2000, b"7b")  # each cut costs a scan
    before, after = (b"\n".join(filling) + b"\n9\t"), (b"\n" + b"\n".join(filling))
    whole = dump([before + secret + after])
    at = whole.index(secret)
    expected = scanned(whole).hits
    assert sum(expected.values()) == 1
    for cut in range(at - 1, at + len(secret) + 2):
        assert scanned(whole[:cut], whole[cut:]).hits == expected
    for distance in range(at + REACH - 2, at + REACH + len(secret) + 2):
        assert scanned(whole[:distance], whole[distance:]).hits == expected


@given(st.lists(st.integers(1, 9000), max_size=12), st.integers(0, 30))
def test_neither_hits_nor_rows_depend_on_the_sizes_of_chunks(sizes: list[int], shift: int) -> None:
    rows = [b"%d\t%s" % (number, SEED if number % 50 == 7 else b"text that is ordinary") for number in range(600)]
    stream = b"x" * shift + b"\n" + dump(rows) + dump([], b"public.nobody") + dump([b64encode(KEY)], b'clinic."Odd, name"')
    chunks, at = [], 0
    for size in sizes:
        chunks.append(stream[at : at + size])
        at += size
    report = scanned(*chunks, stream[at:])
    assert report.hits == {Hit.SEED: 12, Hit.KEY: 1}
    assert report.places == {"public.notes": 12, 'clinic."Odd, name"': 1}
    assert (report.rows, report.tables, report.size) == (601, 3, len(stream))


def test_a_stream_in_single_bytes_gives_the_same() -> None:
    stream = dump([b"1\t" + SEED] * 3)
    assert scanned(*(stream[at : at + 1] for at in range(len(stream)))).hits == scanned(stream).hits == {Hit.SEED: 3}


def test_a_row_that_looks_like_the_end_of_a_table_ends_none() -> None:
    """In COPY's text a backslash in a value is doubled, and a line end is an escape."""
    report = scanned(dump([b"1\t\\\\.", b"2\tline\\nCOPY public.users (id) FROM stdin;", b"3\t" + SEED]))
    assert report.places == {"public.notes": 1}
    assert (report.rows, report.tables) == (3, 1)


def test_a_secret_outside_of_tables_is_found() -> None:
    """In a comment, a default or the body of a function."""
    report = scanned(b"ALTER TABLE t ALTER note SET DEFAULT '" + SEED + b"';\n" + dump([b"1\tplain"]))
    assert report.places == {OUTSIDE: 1}


def test_an_unknown_seed_is_found_by_its_shape() -> None:
    seeds = [b32encode(RANDOM.randbytes(20)) for _ in range(50)]
    report = scanned(dump(b"%d\t%s" % (number, seed) for number, seed in enumerate(seeds)), looking_for=Wanted())
    assert report.hits == {Hit.SHAPE: 50}


@pytest.mark.parametrize(("size", "characters"), [(10, 16), (16, 26), (20, 32), (32, 52), (64, 103)])
def test_unknown_seeds_of_all_usual_sizes_have_the_shape(size: int, characters: int) -> None:
    """A column of random seeds cannot hide, though a few of the short ones have too few digits."""
    seeds = [b32encode(RANDOM.randbytes(size)).rstrip(b"=") for _ in range(200)]
    assert {len(seed) for seed in seeds} == {characters}
    assert sum(map(looks_like_a_seed, seeds)) > 140


ORDINARY = [
    b"THE PATIENT WAS SEEN IN THE OUTPATIENTDEPARTMENT",
    b"ELECTROENCEPHALOGRAPHICALLY",
    b"DE89370400440532013000",
    b"GB29NWBK60161331926819",
    b"01ARZ3NDEKTSV4RRFFQ69G5FAV",
    b"0CC175B9C0F1B6A831C399E269772661",
    b"ABCDEF2345672345ABCDEF2345672345",
    b"2222222222222222",
    b"2345672345672345",
    b"ACGTACGTACGTACGTACGTACGTACGTACGT",
    b"AAAAAAAA22222222",
    b"SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
    b"prefixMFRGGZDFMZTWQ2LKNNWG23TPOB",
    b"550e8400-e29b-41d4-a716-446655440000",
    b"AB2C-DE3F-GH4I-JK5L",
    b"2026-11-24 02:00:00.000000+00",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_has_not_the_shape_of_a_secret(text: bytes) -> None:
    assert scanned(around(text)).hits == {}


def test_a_large_random_bytea_is_not_full_of_secrets() -> None:
    """Ciphertext in a dump is hex; a megabyte of base64 text is none either."""
    noise = RANDOM.randbytes(1 << 20)
    assert scanned(around(b"\\\\x" + noise.hex().encode())).hits == {}
    assert scanned(around(b64encode(noise))).hits == {}
    assert scanned(around(noise.hex().upper().encode())).hits == {}


def test_another_seed_than_the_known_one_is_no_known_seed() -> None:
    other = b32encode(RANDOM.randbytes(20)).lower()
    assert scanned(around(other)).hits == {}


def test_many_thousand_seeds_are_looked_for_at_once() -> None:
    many = Wanted()
    raws = [RANDOM.randbytes(20) for _ in range(20_000)]
    for raw in raws:
        many.seed(b32encode(raw), raw)
    assert scanned(dump(b"1\t" + b32encode(raw).lower() for raw in raws[::1000]), looking_for=many).hits == {Hit.SEED: 20}
