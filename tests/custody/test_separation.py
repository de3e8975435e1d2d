"""The rule that parts keys, as a matrix: everything that two keys may share is found, and everything that may be is let be."""

from base64 import b64encode, encodebytes, urlsafe_b64encode

import pytest

from backupd.custody.separation import Kept, digests, place_of, shared
from backupd.openpgp.packets import crc24
from backupd.redact import Secret
from tests.leak_watch import Planted

VAULT = "vault:https://vault.example:8200/v1"
AZURE = "azure:https://clinic.vault.azure.net"

LEGITIMATE = [
    ("file:/etc/backupd/operations.asc", "file:/etc/backupd/keyring.json"),
    ("file:/etc/backupd/keys.json", "file:/etc/backupd/keys.json.old"),
    ("file:/etc/backupd/a#key", "file:/etc/backupd/b#key"),
    ("file:/key", "credential:key"),
    ("env:key", "credential:key"),
    ("env:BACKUP_KEY", "env:COLUMN_KEY"),
    (f"{VAULT}/secret/data/backup#value", f"{VAULT}/secret/data/clinic#value"),
    (f"{VAULT}/secret/data/clinic#value", f"{VAULT}/secret/data/clinic/totp#value"),
    (f"{VAULT}/secret/data/clinic#value", f"{VAULT}/team/secret/data/clinic#value"),
    (f"{VAULT}/secret/data/clinic#value", "vault:https://vault.example:8201/v1/secret/data/clinic#value"),
    (f"{AZURE}/secrets/backup", f"{AZURE}/secrets/column"),
    (f"{AZURE}/secrets/key", "azure:https://other.vault.azure.net/secrets/key"),
    (f"{AZURE}/secrets/key", f"{AZURE}/keys/key"),
    ("file:/a?version=1", "file:/a?version=2"),
]
ONE_PLACE = [
    ("file:/etc/backupd/keys.json", "file:/etc/backupd/keys.json"),
    ("file:/etc/backupd/keys.json#backup", "file:/etc/backupd/keys.json#column"),
    ("file:/etc/backupd/keys.json#backup", "file:/etc/backupd/keys.json"),
    ("env:KEYS#a", "env:KEYS#b"),
    ("credential:keys#a", "credential:keys#b"),
    (f"{VAULT}/secret/data/clinic#backup", f"{VAULT}/secret/data/clinic#column"),
    (f"{VAULT}/secret/data/clinic?version=1#value", f"{VAULT}/secret/data/clinic?version=2#value"),
    (f"{VAULT}/secret/data/clinic?version=1#a", f"{VAULT}/secret/data/clinic#b"),
    (f"{AZURE}/secrets/key", f"{AZURE}/secrets/key/0123456789abcdef"),
    (f"{AZURE}/secrets/key/1#a", f"{AZURE}/secrets/key/2#b"),
]


def told(ours: Kept, theirs: Kept) -> list[str]:
    return [each.text for each in shared([ours], [theirs])]


@pytest.mark.parametrize(("ours", "theirs"), LEGITIMATE)
def test_two_places_are_apart(ours: str, theirs: str) -> None:
    assert told(Kept("the signing key", ours), Kept("the column keys", theirs)) == []


@pytest.mark.parametrize(("ours", "theirs"), ONE_PLACE + [(b, a) for a, b in ONE_PLACE])
def test_one_place_is_told(ours: str, theirs: str) -> None:
    [found] = told(Kept("the signing key", ours), Kept("the column keys", theirs))
    assert found == f"the column keys and the signing key are in one place, {place_of(ours)}"


@pytest.mark.parametrize(
    ("ours", "theirs", "one"),
    [
        (f"{VAULT}/transit/keys/a", f"{VAULT}/transit/keys/a", True),
        (f"{AZURE}/keys/a/1", f"{AZURE}/keys/a/2", True),
        (f"{AZURE}/keys/a", f"{AZURE}/keys/a/2", True),
        (f"{VAULT}/transit/keys/a", f"{VAULT}/transit/keys/b", False),
        (f"{AZURE}/keys/a/1", f"{AZURE}/keys/b/1", False),
        (f"{VAULT}/transit/keys/a", None, False),
        (None, None, False),
    ],
)
def test_one_wrapping_key_is_told(ours: str | None, theirs: str | None, one: bool) -> None:
    found = told(Kept("the signing key", "file:/a", ours), Kept("the column keys", "file:/b", theirs))
    assert len(found) == one
    assert all("are wrapped by one key" in each for each in found)


def test_one_openpgp_key_is_told_whichever_of_its_parts_it_is() -> None:
    ours = Kept("the recipient A", "recipient:A", fingerprints=frozenset({"A" * 40, "B" * 40}))
    same = Kept("the column keys", "file:/b", fingerprints=frozenset({"B" * 40, "C" * 40}))
    other = Kept("the column keys", "file:/b", fingerprints=frozenset({"C" * 40}))
    assert told(ours, same) == [f"the column keys and the recipient A are one OpenPGP key, {'B' * 40}"]
    assert told(ours, other) == []


def test_the_same_bytes_are_told_in_every_spelling_and_without_them(planted: Planted) -> None:
    key, other = planted.key(), planted.key()
    spellings = [
        key,
        key.hex().encode(),
        key.hex().upper().encode(),
        b64encode(key),
        urlsafe_b64encode(key),
        b64encode(key) + b"\n",
    ]
    for one in spellings:
        for two in (*spellings, urlsafe_b64encode(key).rstrip(b"=")):
            ours = Kept("the drill's secret key", "file:/a", digests=digests([Secret(other), Secret(one)]))
            theirs = Kept("the column keys", "file:/b", digests=digests([Secret(two)]))
            assert told(ours, theirs) == ["the column keys and the drill's secret key share bytes"]
    ours = Kept("the drill's secret key", "file:/a", digests=digests([Secret(key)]))
    assert told(ours, Kept("the column keys", "file:/b", digests=digests([Secret(other)]))) == []
    assert key not in repr(ours).encode()


@pytest.mark.parametrize("alone", [True, False])
def test_one_file_is_told_whatever_it_is_called(alone: bool) -> None:
    ours = Kept("the signing key", "file:/a" if alone else "file:/a#signing", file=(1, 2))
    both = "the column keys and the signing key are in one file, "
    assert told(ours, Kept("the column keys", "file:/b#keyring", file=(1, 2))) == [f"{both}file:/b and file:/a"]
    assert told(ours, Kept("the column keys", "credential:b", file=(1, 2))) == [f"{both}credential:b and file:/a"]
    for other in ((1, 3), (2, 2), None):
        assert told(ours, Kept("the column keys", "file:/b", file=other)) == []
    assert told(Kept("the signing key", "env:A"), Kept("the column keys", "env:B")) == []


def test_a_key_that_lies_beside_another_as_well_is_told(planted: Planted) -> None:
    key, other = digests([Secret(planted.key())]), digests([Secret(planted.key())])
    ours = Kept("the signing key", "env:A#signing", digests=key)
    holds = Kept("the column keys", "env:B#keyring", digests=other, beside=other | key)
    assert told(ours, holds) == ["env:B holds the signing key as well as the column keys"]
    assert [each.text for each in shared([holds], [ours])] == ["env:B holds the signing key as well as the column keys"]
    same = digests([Secret("a word that both objects have")])
    both = (Kept("one", "env:A#a", digests=key, beside=key | same), Kept("two", "env:B#b", digests=other, beside=other | same))
    assert told(*both) == []


def test_an_armour_is_one_more_spelling_and_its_body_alone_another(planted: Planted) -> None:
    """Of a key's file, its lines alone, or all of them in one, make a passphrase as good as any."""
    packets = planted.key() + planted.key() + b"0"  # 65 bytes: with padding, and of more than one line
    body, crc = encodebytes(packets).decode(), "=" + b64encode(crc24(packets)).decode()
    armours = [
        f"-----BEGIN PGP PRIVATE KEY BLOCK-----{end}{head}{end}{body.replace(chr(10), end)}{crc}{end}"
        f"-----END PGP PRIVATE KEY BLOCK-----{end}"
        for end in ("\n", "\r\n")
        for head in ("", f"Version: 1{end}Comment: a{end}")
    ]
    bodies: list[str | bytes] = [
        body,
        body + crc,
        body.replace("\n", ""),
        body.replace("\n", "") + crc,
        body.replace("\n", " "),
        packets,
        *armours,
    ]
    for one in armours:
        for two in bodies:
            ours = Kept("the drill's secret key", "file:/a", digests=digests([Secret(one)]))
            theirs = Kept("the column keys", "file:/b", digests=digests([Secret(two)]))
            assert told(ours, theirs) == ["the column keys and the drill's secret key share bytes"]
    ours = Kept("the drill's secret key", "file:/a", digests=digests([Secret(armours[0])]))
    assert told(ours, Kept("the column keys", "file:/b", digests=digests([Secret(planted.key() + planted.key())]))) == []


def test_what_is_too_short_to_mean_anything_or_was_not_read_is_not_compared() -> None:
    ours = Kept("the signing key", "file:/a", digests=digests([Secret("x"), Secret("")]))
    assert told(ours, Kept("the column keys", "file:/b", digests=digests([Secret("x"), Secret("")]))) == []
    assert told(Kept("the signing key", "file:/a"), Kept("the column keys", "file:/b")) == []


def test_each_pair_is_looked_at() -> None:
    ours = [Kept("the signing key", "file:/a"), Kept("the drill's secret key", "file:/b")]
    theirs = [Kept("one", "file:/b"), Kept("two", "file:/a"), Kept("three", "file:/c")]
    assert len(list(shared(ours, theirs))) == 2


@pytest.mark.parametrize("last", [b"\n", b" ", b"k"])
def test_a_key_that_ends_in_a_byte_of_white_space_is_found_in_another_spelling(planted: Planted, last: bytes) -> None:
    raw = planted.register(b"\x94 a key in binary form\xff" + last, "key")
    kept = digests([Secret(raw)])
    for spelt in (raw, b64encode(raw), b64encode(raw) + b"\n", raw.hex().encode()):
        assert kept & digests([Secret(spelt)])
