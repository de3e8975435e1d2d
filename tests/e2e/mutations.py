"""What somebody who can write to a store can do to one object: seeded, distinct, and each with a name for how it was done.

Pure: it makes bytes, and knows nothing of stores, keys or backups.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

SIGNATURE = b"-----BEGIN PGP SIGNATURE-----\n"


@dataclass(frozen=True, slots=True)
class Mutation:
    """`data` is what lies there now; None: the object is gone."""

    how: str
    data: bytes | None


def of_artifact(
    rng: random.Random, data: bytes, sizes: Sequence[int], strangers: Sequence[bytes], count: int
) -> Iterator[Mutation]:
    """`count` different changes of an artifact whose parts have these sizes; `strangers` are artifacts of other backups."""
    cuts = [0, *accumulate(sizes)]
    parts = [data[start:end] for start, end in pairwise(cuts)]
    yield Mutation("deleted", None)
    yield Mutation("emptied", b"")
    for stranger in strangers:
        yield Mutation("another artifact", stranger)
    made = {data, *strangers, b""}
    for _ in range(count - len(strangers) - 2):
        for how, change in _until_new(rng, _ARTIFACT if len(parts) > 1 else _BYTES):
            changed = change(rng, data, parts, strangers)
            if changed not in made:
                made.add(changed)
                yield Mutation(how, changed)
                break


def of_manifest(rng: random.Random, data: bytes, strangers: Sequence[bytes], count: int) -> Iterator[Mutation]:
    """`count` different changes of a signed manifest; `strangers` are manifests of other backups."""
    for stranger in strangers:
        yield Mutation("another manifest", stranger)
        yield Mutation(
            "another manifest's signature", data.partition(SIGNATURE)[0] + b"".join(stranger.partition(SIGNATURE)[1:])
        )
    body = data.partition(b"\n\n")[2].partition(SIGNATURE)[0]
    yield Mutation("unsigned", body)
    yield Mutation("signature cut off", data.partition(SIGNATURE)[0])
    yield Mutation("doubled", data + data)
    made = {data, body, data + data, *strangers}
    for _ in range(count - 2 * len(strangers) - 3):
        for how, change in _until_new(rng, _MANIFEST):
            changed = change(rng, data, data.splitlines(keepends=True), strangers)
            if changed not in made:
                made.add(changed)
                yield Mutation(how, changed)
                break


def first_change(original: bytes, changed: bytes | None, sizes: Sequence[int]) -> int:
    """Where the first part begins that is not what it was; 0 when the object's length tells at once that it has grown."""
    if changed is None or len(changed) > len(original):
        return 0
    for start, end in pairwise([0, *accumulate(sizes)]):
        if original[start:end] != changed[start:end]:
            return start
    raise AssertionError("nothing was changed")


_Change = Callable[[random.Random, bytes, Sequence[bytes], Sequence[bytes]], bytes]


def _until_new(rng: random.Random, kinds: Mapping[str, _Change]) -> Iterator[tuple[str, _Change]]:
    """Kinds of change to try, one after another: a try may happen to give what was there already, or the same again."""
    names = list(kinds)
    while True:
        how = rng.choice(names)
        yield how, kinds[how]


def _flip(rng: random.Random, data: bytes, parts: Sequence[bytes], strangers: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _flips(rng: random.Random, data: bytes, parts: Sequence[bytes], strangers: Sequence[bytes]) -> bytes:
    for _ in range(rng.randrange(2, 20)):
        data = _flip(rng, data, parts, strangers)
    return data


def _truncate(rng: random.Random, data: bytes, parts: Sequence[bytes], strangers: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(1, len(data))]


def _behead(rng: random.Random, data: bytes, parts: Sequence[bytes], strangers: Sequence[bytes]) -> bytes:
    return data[rng.randrange(1, len(data)) :]


def _extend(rng: random.Random, data: bytes, parts: Sequence[bytes], strangers: Sequence[bytes]) -> bytes:
    return data + rng.choice([rng.randbytes(rng.randrange(1, 9000)), b"\0", b"\n", data, *strangers])


def _precede(rng: random.Random, data: bytes, parts: Sequence[bytes], strangers: Sequence[bytes]) -> bytes:
    return rng.choice([rng.randbytes(rng.randrange(1, 9000)), b"\0", b"\n", *strangers]) + data


def _insert(rng: random.Random, data: bytes, parts: Sequence[bytes], strangers: Sequence[bytes]) -> bytes:
    at = rng.randrange(1, len(data))
    return data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]


def _remove(rng: random.Random, data: bytes, parts: Sequence[bytes], strangers: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.randrange(1, 40) :]


def _overwrite(rng: random.Random, data: bytes, parts: Sequence[bytes], strangers: Sequence[bytes]) -> bytes:
    at, length = rng.randrange(len(data)), rng.randrange(1, 6000)
    fill = bytes(length) if rng.random() < 0.5 else rng.randbytes(length)
    return (data[:at] + fill + data[at + length :])[: len(data)]


def _swap(rng: random.Random, data: bytes, parts: Sequence[bytes], strangers: Sequence[bytes]) -> bytes:
    one, other = sorted(rng.sample(range(len(parts)), 2))
    return b"".join([*parts[:one], parts[other], *parts[one + 1 : other], parts[one], *parts[other + 1 :]])


def _shuffle(rng: random.Random, data: bytes, parts: Sequence[bytes], strangers: Sequence[bytes]) -> bytes:
    return b"".join(rng.sample(parts, len(parts)))


def _repeat(rng: random.Random, data: bytes, parts: Sequence[bytes], strangers: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(parts))
    return b"".join([*parts[: at + 1], *parts[at:]])


def _drop(rng: random.Random, data: bytes, parts: Sequence[bytes], strangers: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(parts))
    return b"".join([*parts[:at], *parts[at + 1 :]])


def _foreign_parts(rng: random.Random, data: bytes, parts: Sequence[bytes], strangers: Sequence[bytes]) -> bytes:
    """Some parts from the same places of another backup's artifact."""
    number, stranger = rng.randrange(len(parts)), rng.choice(strangers)
    start = sum(map(len, parts[:number]))
    end = start + sum(map(len, parts[number : number + rng.randrange(1, 4)]))
    return data[:start] + stranger[start:end] + data[end:]


def _digit(rng: random.Random, data: bytes, parts: Sequence[bytes], strangers: Sequence[bytes]) -> bytes:
    """Another digit in place of one: sizes, digests and counts are all made of them."""
    places = [at for at, byte in enumerate(data) if chr(byte).isdigit()]
    at = rng.choice(places)
    return data[:at] + str(rng.randrange(10)).encode() + data[at + 1 :]


def _blank(rng: random.Random, data: bytes, parts: Sequence[bytes], strangers: Sequence[bytes]) -> bytes:
    """A blank at a line's end, another line end, or an empty line: what a cleartext signature might not cover."""
    at = rng.choice([at for at, byte in enumerate(data) if byte == ord("\n")])
    return data[:at] + rng.choice([b" \n", b"\t\n", b"\r\n", b"\n\n", b"\n \n"]) + data[at + 1 :]


_BYTES: dict[str, _Change] = {
    "bit flipped": _flip,
    "bits flipped": _flips,
    "cut short": _truncate,
    "beginning cut off": _behead,
    "made longer": _extend,
    "something put before": _precede,
    "bytes inserted": _insert,
    "bytes removed": _remove,
    "overwritten": _overwrite,
}
_ARTIFACT: dict[str, _Change] = {
    **_BYTES,
    "parts swapped": _swap,
    "parts shuffled": _shuffle,
    "part repeated": _repeat,
    "part dropped": _drop,
    "parts of another backup": _foreign_parts,
}
_MANIFEST: dict[str, _Change] = {
    **_BYTES,
    "digit changed": _digit,
    "blank added": _blank,
    "lines swapped": _swap,
    "line repeated": _repeat,
    "line dropped": _drop,
}
