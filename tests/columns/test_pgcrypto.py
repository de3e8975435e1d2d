"""pgcrypto columns, written and opened by a real PostgreSQL."""

from collections.abc import Iterator

import psycopg
import pytest

from backupd.columns import Cell, Malformed, NotAuthentic
from backupd.columns.ciphers import open_cipher
from backupd.redact import Secret
from tests.parts.postgres import Database

CELL = Cell("users", "totp_secret", "42")
SEED = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"


@pytest.fixture
def scratch(database17: Database) -> Iterator[psycopg.Connection]:
    database17.execute("CREATE EXTENSION pgcrypto")
    with database17.connect() as connection:
        yield connection


def sealed(scratch: psycopg.Connection, plaintext: str, key: str, options: str = "") -> bytes:
    row = scratch.execute("SELECT pgp_sym_encrypt(%s, %s, %s)", (plaintext, key, options)).fetchone()
    assert row is not None
    return bytes(row[0])


def opener(scratch: psycopg.Connection, message: bytes, key: Secret) -> bytes:
    try:
        row = scratch.execute("SELECT pgp_sym_decrypt_bytea(%s, %s)", (message, key.text())).fetchone()
    except psycopg.errors.ExternalRoutineInvocationException as error:
        raise NotAuthentic("wrong key or corrupt data") from error
    assert row is not None
    return bytes(row[0])


@pytest.mark.parametrize("options", ["", "cipher-algo=aes256", "compress-algo=1", "s2k-mode=0", "sess-key=1", "unicode-mode=1"])
def test_what_pgcrypto_wrote_opens(scratch: psycopg.Connection, options: str) -> None:
    cipher = open_cipher("pgcrypto", Secret("päss phrase\n"), lambda message, key: opener(scratch, message, key))
    message = sealed(scratch, SEED, "päss phrase", options)
    assert cipher.decrypt(CELL, message).text() == SEED
    assert cipher.key_id(message) is None


def test_another_passphrase_does_not_open(scratch: psycopg.Connection) -> None:
    cipher = open_cipher("pgcrypto", Secret("other"), lambda message, key: opener(scratch, message, key))
    with pytest.raises(NotAuthentic):
        cipher.decrypt(CELL, sealed(scratch, SEED, "pass phrase"))


def test_what_is_no_message_never_reaches_the_server(scratch: psycopg.Connection) -> None:
    reached: list[bytes] = []

    def recorded(message: bytes, key: Secret) -> bytes:
        reached.append(message)
        return opener(scratch, message, key)

    cipher = open_cipher("pgcrypto", Secret("pass phrase"), recorded)
    row = scratch.execute("SELECT armor(%s)", (sealed(scratch, SEED, "pass phrase"),)).fetchone()
    assert row is not None
    for data in (b"", SEED.encode(), b"\xd2" + bytes(60), row[0].encode()):
        with pytest.raises(Malformed):
            cipher.decrypt(CELL, data)
    assert reached == []
    cipher.decrypt(CELL, sealed(scratch, SEED, "pass phrase"))
    assert len(reached) == 1
