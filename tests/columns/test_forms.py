"""Values in every form that a column may hold while it is migrated, told apart without a key."""

from base64 import b32encode
from typing import Any

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from backupd.columns import Cell
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.forms import Form, Told, form_of
from backupd.columns.keyring import Keyring
from backupd.redact import Secret
from tests.parts.postgres import Database

CELL = Cell("users", "totp_secret", "42")
CIPHER = AesGcm(Keyring.generate("2026-1"))
FERNET = Fernet(Fernet.generate_key())
seeds = st.binary(min_size=1, max_size=64)


@given(seeds)
def test_every_seed_in_clear_is_plaintext_however_it_is_spelt(seed: bytes) -> None:
    text = b32encode(seed).decode()
    for spelling in (text, text.rstrip("="), text.lower(), text + "\n", " ".join(text)):
        assert form_of(spelling) == form_of(spelling.encode()) == Told(Form.PLAINTEXT)


@given(seeds)
def test_every_envelope_names_its_key(seed: bytes) -> None:
    assert form_of(CIPHER.encrypt(CELL, Secret(seed))) == Told(Form.AES_256_GCM, "2026-1")


@given(seeds)
def test_every_fernet_token_is_one_in_bytes_and_in_text(seed: bytes) -> None:
    token = FERNET.encrypt(seed)
    assert form_of(token) == form_of(token.decode()) == Told(Form.FERNET)


@pytest.mark.parametrize(
    "options", ["", "cipher-algo=aes256", "compress-algo=1", "s2k-mode=0", "s2k-mode=1", "disable-mdc=1", "sess-key=1"]
)
def test_what_pgcrypto_writes_is_pgcryptos(database17: Database, options: str) -> None:
    database17.execute("CREATE EXTENSION pgcrypto")
    rows = database17.execute(
        "SELECT pgp_sym_encrypt(repeat('A', n), 'a passphrase', %s) FROM generate_series(1, 60) AS n", (options,)
    )
    assert {form_of(value) for (value,) in rows} == {Told(Form.PGCRYPTO)}


@pytest.mark.parametrize("text", ["otpauth://totp/x?secret=JBSWY3DPEHPK3PXP", "Ärztin", "Ã", "0123456789abcdef", "gAAAAAB="])
def test_any_other_text_stands_in_clear(text: str) -> None:
    assert form_of(text) == form_of(text.encode()) == Told(Form.PLAINTEXT)


@pytest.mark.parametrize("value", ["", " ", "\n", b"", memoryview(b"")])
def test_nothing_is_empty(value: bytes | str) -> None:
    assert form_of(value) == Told(Form.EMPTY)


def test_a_damaged_envelope_is_no_plaintext() -> None:
    data = CIPHER.encrypt(CELL, Secret("JBSWY3DPEHPK3PXP"))
    assert form_of(b"\x02" + data[1:]) == form_of(data[:20]) == form_of(bytes(20)) == Told(Form.UNKNOWN)


@given(st.binary(max_size=200))
def test_every_value_has_one_form(data: bytes) -> None:
    told = form_of(data)
    assert (told.key_id is not None) == (told.form is Form.AES_256_GCM)


def test_null_has_none() -> None:
    null: Any = None
    with pytest.raises(TypeError, match="a value is text or bytes, not NoneType: where the column is NULL there is none"):
        form_of(null)
