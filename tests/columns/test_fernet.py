"""Fernet columns, against tokens that the `cryptography` library and the specification made."""

import pytest
from cryptography.fernet import Fernet, MultiFernet

from backupd.columns import Cell, ColumnError, Malformed, NotAuthentic
from backupd.columns.fernet import FernetCipher
from backupd.columns.keyring import FernetKeys
from backupd.redact import Secret
from tests.columns.test_keyring import FERNET, OTHER_FERNET

CELL = Cell("users", "totp_secret", "42")
SEED = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
SPECIFIED = b"gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA=="


def cipher(*keys: str) -> FernetCipher:
    return FernetCipher(FernetKeys.parse(Secret(",".join(keys))))


def test_the_specification_s_own_token_opens() -> None:
    assert cipher(FERNET).decrypt(CELL, SPECIFIED).text() == "hello"


def test_a_token_of_any_key_of_the_list_opens_and_tells_which() -> None:
    newest, oldest = (Fernet(key).encrypt(SEED.encode()) for key in (FERNET, OTHER_FERNET))
    both = cipher(FERNET, OTHER_FERNET)
    assert (both.decrypt(CELL, newest).text(), both.key_id(newest)) == (SEED, "fernet-1")
    assert (both.decrypt(CELL, oldest).text(), both.key_id(oldest)) == (SEED, "fernet-2")


def test_what_multifernet_wrote_opens() -> None:
    token = MultiFernet([Fernet(OTHER_FERNET), Fernet(FERNET)]).encrypt(b"x" * 100)
    assert cipher(OTHER_FERNET).decrypt(CELL, token).reveal() == b"x" * 100


def test_a_token_of_a_key_that_is_gone_is_not_authentic_and_names_no_key() -> None:
    token = Fernet(OTHER_FERNET).encrypt(SEED.encode())
    assert cipher(FERNET).key_id(token) is None
    with pytest.raises(NotAuthentic, match="none of 1 Fernet keys"):
        cipher(FERNET).decrypt(CELL, token)


def test_no_changed_bit_and_no_truncation_is_accepted() -> None:
    for bit in range(len(SPECIFIED) * 8):
        changed = bytearray(SPECIFIED)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ColumnError):
            cipher(FERNET).decrypt(CELL, bytes(changed))
    for length in range(len(SPECIFIED)):
        with pytest.raises(ColumnError):
            cipher(FERNET).decrypt(CELL, SPECIFIED[:length])


@pytest.mark.parametrize(
    "data", [b"", SEED.encode(), b"gAAAAA==", SPECIFIED + b"\n", b" " + SPECIFIED, b"!" + SPECIFIED, b"\xff" * 100]
)
def test_what_is_no_token_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        cipher(FERNET).key_id(data)
