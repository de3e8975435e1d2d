"""Everything that can be done to a stored value without its key, a hundred thousand times: none of it is accepted."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from backupd.columns import Cell, ColumnError, Malformed, NotAuthentic, RetiredKey, UnknownKey
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.redact import Secret

MUTATIONS = 100_000
OLD, NEW, RETIRED = "2025-1", "2026-1", "2024-1"
ALL = Keyring.generate(RETIRED).extended(OLD).extended(NEW)
CIPHER = AesGcm(ALL.without(RETIRED))
WRITERS = {each: AesGcm(Keyring(each, ALL.keys)) for each in (RETIRED, OLD, NEW)}
CELL = Cell("users", "totp_secret", "42")
ELSEWHERE = [
    Cell("users", "totp_secret", "43"),
    Cell("users", "totp_secret", "4"),
    Cell("users", "backup_secret", "42"),
    Cell("admins", "totp_secret", "42"),
    Cell("userstotp", "_secret", "42"),
]
SEED, OTHER = Secret("JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"), Secret("KRSXG5CTMVRXEZLUKRSXG5CTMVRXEZLU")

Mutation = Callable[[random.Random, bytes, bytes], bytes]


def flip(chance: random.Random, value: bytes, _: bytes) -> bytes:
    """One to eight bits anywhere."""
    changed = bytearray(value)
    for bit in chance.sample(range(len(value) * 8), chance.randint(1, 8)):
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def overwrite(chance: random.Random, value: bytes, _: bytes) -> bytes:
    start = chance.randrange(len(value))
    more = chance.randbytes(chance.randint(1, len(value) - start))
    return value[:start] + more + value[start + len(more) :]


def cut(chance: random.Random, value: bytes, _: bytes) -> bytes:
    return value[: chance.randrange(len(value))]


def delete(chance: random.Random, value: bytes, _: bytes) -> bytes:
    start = chance.randrange(len(value))
    return value[:start] + value[start + chance.randint(1, 20) :]


def insert(chance: random.Random, value: bytes, _: bytes) -> bytes:
    start = chance.randrange(len(value) + 1)
    return value[:start] + chance.randbytes(chance.randint(1, 20)) + value[start:]


def splice(chance: random.Random, value: bytes, other: bytes) -> bytes:
    """The beginning of one valid value and the end of another, of the same cell."""
    at = chance.randrange(1, len(value))
    return value[:at] + other[at:]


def relabel(chance: random.Random, value: bytes, _: bytes) -> bytes:
    """As if another key had been used: one that is there, one that was, one that never was, one that cannot be."""
    return value[:2] + chance.choice([b"2025-1", b"2026-1", b"2024-1", b"2099-1", b"2025/1", chance.randbytes(6)]) + value[8:]


def forge(chance: random.Random, value: bytes, _: bytes) -> bytes:
    """The right form under the right id, made up."""
    return value[:8] + chance.randbytes(chance.randint(28, 80))


KINDS: list[Mutation] = [flip, overwrite, cut, delete, insert, splice, relabel, forge]


def refusal(cell: Cell, value: bytes) -> type[ColumnError] | None:
    try:
        CIPHER.decrypt(cell, value)
    except ColumnError as error:
        return type(error)
    return None


def test_of_a_hundred_thousand_mutations_none_is_accepted() -> None:
    chance = random.Random(20261124)
    values = [WRITERS[key].encrypt(CELL, seed) for key in (OLD, NEW) for seed in (SEED, OTHER) for _ in range(8)]
    valid = set(values)
    refused: Counter[tuple[str, type[ColumnError] | None]] = Counter()
    while refused.total() < MUTATIONS:
        kind = chance.choice(KINDS)
        changed = kind(chance, chance.choice(values), chance.choice(values))
        if changed not in valid:
            refused[kind.__name__, refusal(CELL, changed)] += 1
    assert [kind for kind, error in refused if error is None] == []
    assert {kind for kind, _ in refused} == {kind.__name__ for kind in KINDS}
    assert {error for _, error in refused} == {Malformed, UnknownKey, RetiredKey, NotAuthentic}
    assert all(refusal(CELL, value) is None for value in valid), "nothing would be accepted at all"


@pytest.mark.parametrize("elsewhere", ELSEWHERE, ids=str)
def test_a_value_moved_elsewhere_is_not_authentic(elsewhere: Cell) -> None:
    for key in (OLD, NEW):
        assert refusal(elsewhere, WRITERS[key].encrypt(CELL, SEED)) is NotAuthentic


def test_each_thing_that_is_done_has_its_own_error() -> None:
    value = WRITERS[NEW].encrypt(CELL, SEED)
    assert refusal(CELL, value) is None
    assert refusal(ELSEWHERE[0], value) is NotAuthentic
    assert refusal(CELL, value[:-1] + bytes([value[-1] ^ 1])) is NotAuthentic
    assert refusal(CELL, value[:30]) is Malformed
    assert refusal(CELL, WRITERS[RETIRED].encrypt(CELL, SEED)) is RetiredKey
    assert refusal(CELL, AesGcm(Keyring.generate("2099-1")).encrypt(CELL, SEED)) is UnknownKey


@settings(max_examples=2000)
@given(st.data())
def test_hypothesis_finds_no_change_that_is_accepted(data: st.DataObject) -> None:
    """It looks where a random mutation seldom goes: at lengths, at edges, at values that are nearly right."""
    value = WRITERS[NEW].encrypt(CELL, SEED)
    start = data.draw(st.integers(0, len(value)))
    end = data.draw(st.integers(start, len(value)))
    changed = value[:start] + data.draw(st.binary(max_size=40)) + value[end:]
    assume(changed != value)
    assert refusal(CELL, changed) is not None
