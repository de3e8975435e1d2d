"""AES-256-GCM cells: what was written opens where it was written, and after any change or move it does not."""

import re
import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from backupd.columns import Cell, ColumnError, Malformed, NotAuthentic, UnknownKey
from backupd.columns.aes_gcm import AesGcm, key_id
from backupd.columns.keyring import Keyring
from backupd.redact import Secret

CELL = Cell("users", "totp_secret", "42")
SEED = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
OLD_KEYS = Keyring("2025-1", {"2025-1": Secret(bytes(range(32)))})
KEYS = Keyring("2026-1", {**OLD_KEYS.keys, "2026-1": Secret(bytes(range(1, 33)))})
CIPHER = AesGcm(KEYS)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
cells = st.builds(Cell, names, names, names)


@given(cells, st.binary(max_size=200))
def test_what_was_encrypted_is_decrypted(cell: Cell, plaintext: bytes) -> None:
    assert CIPHER.decrypt(cell, CIPHER.encrypt(cell, Secret(plaintext))).reveal() == plaintext


@pytest.mark.parametrize(
    ("sql", "plain"),
    [
        ('"Users"', "Users"),
        ('public."Users"', "public.Users"),
        ('"Clinic"."Us""ers"', 'Clinic.Us"ers'),
        ('us"ers', 'us"ers'),
        ("Users", "Users"),
    ],
)
def test_a_table_is_bound_without_the_quotation_marks_of_sql(sql: str, plain: str) -> None:
    """SQLAlchemy names it without them, and the configuration with them."""
    written = CIPHER.encrypt(Cell(plain, "totp_secret", "42"), Secret(SEED))
    assert CIPHER.decrypt(Cell(sql, "totp_secret", "42"), written).text() == SEED
    assert Cell(sql, "totp_secret", "42").table == plain


def test_the_envelope_is_as_documented() -> None:
    """Taken apart and opened by hand, as a recovery without this program would."""
    data = CIPHER.encrypt(CELL, Secret(SEED))
    assert data[:8] == b"\x01\x062026-1"
    assert len(data) == 1 + 1 + 6 + 12 + len(SEED) + 16
    bound = b"".join(
        struct.pack(">I", len(piece)) + piece for piece in (b"backupd column 1", b"users", b"totp_secret", b"42", b"2026-1")
    )
    assert AESGCM(bytes(range(1, 33))).decrypt(data[8:20], data[20:], bound) == SEED.encode()


def test_an_envelope_that_was_written_once_opens_for_ever() -> None:
    """A stored value from the first day: whoever changes the format locks its owner out, and this test says so."""
    kept = bytes.fromhex(
        "0106323032352d31000102030405060708090a0b"
        "0d40854c9cd6864bc809c7c082b9203dc994d463a9481b2c7d2fb5ce2e3958e2"
        "68d3c5e57a0c72dc17ce3a9afec7b22c"
    )
    assert CIPHER.decrypt(CELL, kept).text() == SEED


def test_the_ciphertext_is_no_base32_and_differs_each_time() -> None:
    first, second = CIPHER.encrypt(CELL, Secret(SEED)), CIPHER.encrypt(CELL, Secret(SEED))
    assert first != second
    assert first[8:20] != second[8:20]
    for data in (first, second):
        assert SEED.encode() not in data
        assert not re.search(rb"[A-Z2-7]{16}", data)


def test_old_keys_read_and_the_current_one_writes() -> None:
    old = AesGcm(OLD_KEYS).encrypt(CELL, Secret(SEED))
    assert CIPHER.decrypt(CELL, old).text() == SEED
    assert CIPHER.key_id(old) == "2025-1"
    assert CIPHER.key_id(CIPHER.encrypt(CELL, Secret(SEED))) == "2026-1"


def test_a_key_that_is_missing_is_named() -> None:
    with pytest.raises(UnknownKey) as caught:
        AesGcm(OLD_KEYS).decrypt(CELL, CIPHER.encrypt(CELL, Secret(SEED)))
    assert caught.value.key_id == "2026-1"


def test_another_key_of_the_same_id_does_not_open() -> None:
    other = AesGcm(Keyring("2026-1", {"2026-1": Secret(bytes(range(2, 34)))}))
    with pytest.raises(NotAuthentic):
        other.decrypt(CELL, CIPHER.encrypt(CELL, Secret(SEED)))


@given(cells, cells, st.binary(min_size=1, max_size=40))
def test_a_value_moved_to_any_other_cell_does_not_open(home: Cell, elsewhere: Cell, plaintext: bytes) -> None:
    data = CIPHER.encrypt(home, Secret(plaintext))
    if home == elsewhere:
        assert CIPHER.decrypt(elsewhere, data).reveal() == plaintext
    else:
        with pytest.raises(NotAuthentic):
            CIPHER.decrypt(elsewhere, data)


@pytest.mark.parametrize(
    "elsewhere",
    [
        Cell("users", "totp_secret", "43"),
        Cell("users", "backup_secret", "42"),
        Cell("admins", "totp_secret", "42"),
        Cell("userstotp", "_secret", "42"),
        Cell("users", "totp_secret4", "2"),
        Cell("users", "totp_secret", "042"),
        Cell("USERS", "totp_secret", "42"),
        Cell("totp_secret", "users", "42"),
    ],
)
def test_a_value_moved_to_a_neighbouring_cell_does_not_open(elsewhere: Cell) -> None:
    with pytest.raises(NotAuthentic, match="is not what '2026-1' encrypted there"):
        CIPHER.decrypt(elsewhere, CIPHER.encrypt(CELL, Secret(SEED)))


def test_no_changed_bit_is_accepted() -> None:
    """Every one of them: the version, the length, the id, the nonce, the ciphertext, the tag."""
    data = CIPHER.encrypt(CELL, Secret(SEED))
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ColumnError):
            CIPHER.decrypt(CELL, bytes(changed))


def test_no_truncated_value_is_accepted() -> None:
    data = CIPHER.encrypt(CELL, Secret(SEED))
    for length in range(len(data)):
        with pytest.raises(ColumnError):
            CIPHER.decrypt(CELL, data[:length])
        with pytest.raises(ColumnError):
            CIPHER.decrypt(CELL, data[len(data) - length :])


@given(st.binary(min_size=1, max_size=40))
def test_no_extended_value_is_accepted(more: bytes) -> None:
    data = CIPHER.encrypt(CELL, Secret(SEED))
    for changed in (data + more, more + data, data[:20] + more + data[20:]):
        with pytest.raises(ColumnError):
            CIPHER.decrypt(CELL, changed)


@given(st.binary(max_size=120))
def test_bytes_that_nobody_encrypted_are_refused(data: bytes) -> None:
    with pytest.raises(ColumnError):
        CIPHER.decrypt(CELL, data)


def test_a_value_relabelled_to_another_key_does_not_open() -> None:
    """The key id is authenticated: an attacker who rewrites it gets no value to open under a key of theirs."""
    data = CIPHER.encrypt(CELL, Secret(SEED))
    twin = AesGcm(Keyring("2099-1", {"2099-1": KEYS.key("2026-1"), "2026-1": OLD_KEYS.key("2025-1")}))
    with pytest.raises(NotAuthentic):
        twin.decrypt(CELL, data.replace(b"2026-1", b"2099-1"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        SEED.encode(),
        b"gAAAAABk",
        b"\x02\x062026-1" + bytes(60),
        b"\x01\x00" + bytes(60),
        b"\x01\x21" + b"a" * 90,
        b"\x01\x062026-1" + bytes(27),
        b"\x01\x03a/b" + bytes(60),
        b"\x01\x01\n" + bytes(60),
    ],
)
def test_what_has_not_the_form_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        key_id(data)
    assert SEED not in str(caught.value)
    with pytest.raises(Malformed):
        CIPHER.decrypt(CELL, data)


@pytest.mark.parametrize("given_id", [42, None])
def test_the_id_of_a_row_is_text(given_id: Any) -> None:
    with pytest.raises(TypeError, match=rf"the row's id is text, not {type(given_id).__name__}: str\(id\)"):
        Cell("users", "totp_secret", given_id)


def test_what_is_encrypted_is_a_secret() -> None:
    seed: Any = SEED
    with pytest.raises(TypeError, match="what is encrypted is a Secret, not str"):
        CIPHER.encrypt(CELL, seed)


@pytest.mark.parametrize("stored", [None, "text"])
def test_what_is_decrypted_is_bytes(stored: Any) -> None:
    with pytest.raises(TypeError, match=f"an encrypted value is bytes, not {type(stored).__name__}: where the column is NULL"):
        CIPHER.decrypt(CELL, stored)
