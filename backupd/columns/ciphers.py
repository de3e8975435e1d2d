"""The table of column ciphers by the names that the configuration uses. A new one is a file and a line in each table."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from backupd.columns import Cipher, aes_gcm, fernet, pgcrypto
from backupd.columns.keyring import FernetKeys, Keyring, passphrase
from backupd.errors import ConfigError
from backupd.redact import Secret


def _pgcrypto(keys: Secret, pgp_decrypt: pgcrypto.PgpDecrypt | None) -> Cipher:
    if pgp_decrypt is None:
        raise ConfigError("pgcrypto columns are read through a PostgreSQL server, and none was given", "use a scratch server")
    return pgcrypto.PgCrypto(passphrase(keys), pgp_decrypt)


def _no_key_id(data: bytes) -> None:
    fernet.check_token(data)


_OPENERS: Mapping[str, Callable[[Secret, pgcrypto.PgpDecrypt | None], Cipher]] = {
    "aes-256-gcm": lambda keys, _: aes_gcm.AesGcm(Keyring.parse(keys)),
    "fernet": lambda keys, _: fernet.FernetCipher(FernetKeys.parse(keys)),
    "pgcrypto": _pgcrypto,
}
_KEY_IDS: Mapping[str, Callable[[bytes], str | None]] = {
    "aes-256-gcm": aes_gcm.key_id,
    "fernet": _no_key_id,
    "pgcrypto": pgcrypto.check_message,
}
CIPHERS = tuple(_OPENERS)


def open_cipher(name: str, keys: Secret, pgp_decrypt: pgcrypto.PgpDecrypt | None = None) -> Cipher:
    """The cipher `name` with what its custodian gave: a keyring, a list of Fernet keys, a passphrase.

    Raises ConfigError for an unknown name, KeysUnusable for keys that are none.
    """
    _check_known(name)
    return _OPENERS[name](keys, pgp_decrypt)


def key_id(name: str, data: bytes) -> str | None:
    """The id of the key that `data` names, for a host without keys; None when this cipher names none. Raises Malformed."""
    _check_known(name)
    return _KEY_IDS[name](data)


def _check_known(name: str) -> None:
    if name not in CIPHERS:
        raise ConfigError(f"there is no column cipher {name!r}", f"use one of {', '.join(CIPHERS)}")
