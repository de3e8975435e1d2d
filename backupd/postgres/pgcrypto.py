"""Opening pgcrypto's messages on a scratch server of our own, whose log holds no statement and no parameter.

Never on a source: there the passphrase would stand in the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from backupd.columns import NotAuthentic
from backupd.columns.pgcrypto import PgpDecrypt
from backupd.errors import CouldNotVerify
from backupd.postgres import clients, session
from backupd.postgres.scratch import ScratchCluster
from backupd.postgres.session import Connection, translated
from backupd.redact import Secret, printable

_CORRUPT = "39000"  # SQLSTATE of pgcrypto's "Wrong key or corrupt data"


def opener(connection: Connection) -> PgpDecrypt:
    """Decryption by bind parameters on a scratch server, inside a transaction of the caller's.

    Each call is a savepoint, so that one bad value ends nothing. Raises CouldNotVerify when the server has no pgcrypto.
    """
    call = sql.SQL("SELECT {}.pgp_sym_decrypt_bytea(%s, %s)").format(sql.Identifier(_schema(connection)))

    def decrypt(message: bytes, passphrase: Secret) -> bytes:
        try:
            with connection.transaction():
                [(plaintext,)] = connection.execute(call, (message, passphrase.text())).fetchall()
        except psycopg.Error as error:
            if error.sqlstate == _CORRUPT:
                raise NotAuthentic("pgcrypto does not open a value: wrong key, or the value was changed") from None
            raise session.translate(error, "open a value on the scratch server") from None
        return bytes(plaintext)

    return decrypt


@contextmanager
def scratch_opener(client_directories: tuple[Path, ...], scratch_directory: Path | None) -> Iterator[PgpDecrypt]:
    """The same on a cluster that is there for the length of the block. Raises CouldNotVerify when none can be made."""
    found = [*clients.find(client_directories), *clients.find()]
    with (
        ScratchCluster(clients.choose_server(found, 0), scratch_directory) as cluster,
        closing(session.connect(cluster.dsn(), application_name="backupd pgcrypto", autocommit=True)) as connection,
        connection.transaction(),
    ):
        yield opener(connection)


def _schema(connection: Connection) -> str:
    """Where pgcrypto's functions are; installs it where the database lacks it, for the length of the transaction."""
    query = "SELECT nspname::text FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'pgcrypto'"
    with translated("find pgcrypto in the scratch database"):
        found = connection.execute(query).fetchall()
        if found:
            return str(found[0][0])
        try:
            with connection.transaction():
                connection.execute("CREATE SCHEMA backupd_pgcrypto; CREATE EXTENSION pgcrypto SCHEMA backupd_pgcrypto")
        except (psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported) as error:
            said = error.diag.message_primary or "it is not installed"
            raise CouldNotVerify(
                f"the scratch server has no pgcrypto: {printable(said)}", "install postgresql-contrib"
            ) from None
    return "backupd_pgcrypto"
