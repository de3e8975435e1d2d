"""The table of ciphers: each name opens what its own library wrote, and nothing of the others'."""

import pytest
from cryptography.fernet import Fernet

from backupd.columns import Cell, KeysUnusable, Malformed
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.ciphers import CIPHERS, key_id, open_cipher
from backupd.columns.keyring import Keyring
from backupd.errors import ConfigError
from backupd.redact import Secret
from tests.columns.test_keyring import FERNET

CELL = Cell("users", "totp_secret", "42")
KEYRING = Keyring.generate("2026-1")
ENVELOPE = AesGcm(KEYRING).encrypt(CELL, Secret("seed"))
TOKEN = Fernet(FERNET).encrypt(b"seed")
MESSAGE = b"\xc3\x0d\x04\x07"  # how a message of pgp_sym_encrypt begins


def test_each_cipher_opens_its_own() -> None:
    assert open_cipher("aes-256-gcm", KEYRING.render()).decrypt(CELL, ENVELOPE).text() == "seed"
    assert open_cipher("fernet", Secret(FERNET)).decrypt(CELL, TOKEN).text() == "seed"
    assert open_cipher("pgcrypto", Secret("pass"), lambda message, key: message + key.reveal()).decrypt(
        CELL, MESSAGE
    ).reveal() == (MESSAGE + b"pass")


def test_a_host_without_keys_can_tell_the_key_id() -> None:
    assert key_id("aes-256-gcm", ENVELOPE) == "2026-1"
    assert key_id("fernet", TOKEN) is None
    assert key_id("pgcrypto", MESSAGE) is None


@pytest.mark.parametrize("name", CIPHERS)
def test_plaintext_and_the_others_values_are_malformed(name: str) -> None:
    own = {"aes-256-gcm": ENVELOPE, "fernet": TOKEN, "pgcrypto": MESSAGE}
    for data in [b"JBSWY3DPEHPK3PXP", b"", *(data for other, data in own.items() if other != name)]:
        with pytest.raises(Malformed):
            key_id(name, data)


def test_an_unknown_name_is_refused_and_the_known_ones_are_named() -> None:
    for call in (lambda: open_cipher("rot13", Secret("x")), lambda: key_id("rot13", b"x")):
        with pytest.raises(ConfigError, match="'rot13'") as caught:
            call()
        assert all(name in str(caught.value.hint) for name in CIPHERS)


def test_pgcrypto_needs_a_server() -> None:
    with pytest.raises(ConfigError, match="PostgreSQL server"):
        open_cipher("pgcrypto", Secret("pass"))


@pytest.mark.parametrize("name", ["aes-256-gcm", "fernet"])
def test_keys_of_another_form_are_refused(name: str) -> None:
    with pytest.raises(KeysUnusable):
        open_cipher(name, Secret("not a key"))
