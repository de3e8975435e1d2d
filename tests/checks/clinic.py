"""A small clinic whose second factors are encrypted in three ways, with all that a check may look at; every part is real."""

from __future__ import annotations

import subprocess
from base64 import b32encode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from backupd.checks import Drilled, Objectives, Sealed, TotpColumn
from backupd.columns import Cell
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.custody.file import PrivateFile
from backupd.manifest import Artifact, ColumnKeys, Expectations, Kind, Level, Manifest, Moment, Part, Source, Tools
from backupd.openpgp import Home, keys, messages
from backupd.openpgp.keys import KeyPair
from backupd.pipeline import run
from backupd.postgres import expectations
from backupd.postgres.dsn import Dsn
from backupd.postgres.session import Connection
from backupd.postgres.snapshot import Snapshot
from backupd.redact import Secret
from tests.parts.postgres import Database

TAKEN_AT = datetime(2026, 11, 24, 2, tzinfo=UTC)
PASSPHRASE = "correct horse battery staple"
NO_DIGEST = "0" * 64

SCHEMA = """
CREATE EXTENSION pgcrypto;
CREATE TABLE users (id int PRIMARY KEY, name text, enrolled boolean NOT NULL, totp_secret bytea);
CREATE TABLE nurses (id int PRIMARY KEY, totp_secret text);
CREATE TABLE "Labor ä" ("Id" uuid PRIMARY KEY DEFAULT gen_random_uuid(), totp_secret bytea);
CREATE TABLE notes (id serial PRIMARY KEY, note text);
INSERT INTO notes (note) SELECT 'THE PATIENT WAS SEEN ' || n FROM generate_series(1, 500) AS n;
"""


@dataclass(slots=True)
class Clinic:
    """`seeds` are those of table users by id: 1 to 12 are enrolled, 13 is not, 14 never had a seed; 7 is the canary."""

    database: Database
    directory: Path
    keyring: Keyring
    fernet_keys: tuple[bytes, ...]
    random: Random
    seeds: dict[int, str] = field(default_factory=dict)

    def new_seed(self, size: int = 20) -> str:
        return b32encode(self.random.randbytes(size)).decode().rstrip("=")

    def execute(self, statement: str, parameters: tuple[Any, ...] | None = None) -> list[tuple[Any, ...]]:
        return self.database.execute(statement, parameters)

    def keep(self, name: str, value: bytes) -> PrivateFile:
        """A custodian of its own for this secret."""
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_bytes(value)
        return PrivateFile(str(path))

    def put(self, row: int, seed: str, *, keyring: Keyring | None = None, cell_row: int | None = None) -> None:
        """Encrypt a seed into users, as the application does."""
        cell = Cell("users", "totp_secret", str(cell_row or row))
        envelope = AesGcm(keyring or self.keyring).encrypt(cell, Secret(seed))
        self.execute("UPDATE users SET totp_secret = %s WHERE id = %s", (envelope, row))

    @property
    def users(self) -> TotpColumn:
        kept = self.keep("keyring", self.keyring.render().reveal())
        return TotpColumn("users", "id", "totp_secret", "enrolled", "aes-256-gcm", kept)

    @property
    def nurses(self) -> TotpColumn:
        kept = self.keep("fernet", b"\n".join(self.fernet_keys) + b"\n")
        return TotpColumn("nurses", "id", "totp_secret", None, "fernet", kept)

    @property
    def laboratory(self) -> TotpColumn:
        kept = self.keep("passphrase", PASSPHRASE.encode() + b"\n")
        return TotpColumn('"Labor ä"', "Id", "totp_secret", None, "pgcrypto", kept)


def build(database: Database, directory: Path) -> Clinic:
    """A clinic in an empty database; its secrets' files in `directory`."""
    from cryptography.fernet import Fernet

    random = Random(4226)
    old = Keyring("2025-1", {"2025-1": Secret(random.randbytes(32))})
    keyring = Keyring("2026-1", {**old.keys, "2026-1": Secret(random.randbytes(32))})
    fernet_keys = tuple(urlsafe_b64encode(random.randbytes(32)) for _ in range(2))
    clinic = Clinic(database, directory, keyring, fernet_keys, random)
    clinic.execute(SCHEMA)
    with database.connect() as connection, connection.transaction():
        for row in range(1, 15):
            value = None
            if row <= 13:
                clinic.seeds[row] = clinic.new_seed((10, 16, 20, 32)[row % 4])
                cipher = AesGcm(old if row <= 4 else keyring)
                value = cipher.encrypt(Cell("users", "totp_secret", str(row)), Secret(clinic.seeds[row]))
            connection.execute("INSERT INTO users VALUES (%s, %s, %s, %s)", (row, f"user {row}", row <= 12, value))
        for row in range(1, 6):
            token = Fernet(fernet_keys[row % 2]).encrypt(clinic.new_seed().encode()).decode()
            connection.execute("INSERT INTO nurses VALUES (%s, %s)", (row, token))
        for _ in range(4):
            value_of = 'INSERT INTO "Labor ä" (totp_secret) VALUES (pgp_sym_encrypt(%s, %s))'
            connection.execute(value_of, (clinic.new_seed(), PASSPHRASE))
    return clinic


def manifest_of(expect: Expectations, column_keys: tuple[ColumnKeys, ...] = ()) -> Manifest:
    """A manifest as a backup would have written it; only what checks look at is true of anything."""
    part = Part(100, NO_DIGEST)
    return Manifest(
        backup_id="20261124T020000Z-5f3c9a",
        source=Source("clinic", "clinic", "7000000000000000001", "17.10"),
        snapshot=Moment(TAKEN_AT, "0/1A2B3C"),
        started_at=TAKEN_AT,
        finished_at=TAKEN_AT,
        tools=Tools("0.1.0", "17.10", "2.2.40", "zstd:1"),
        recipients=(),
        artifacts=(Artifact("database.dump.gpg", Kind.DATABASE, 100, NO_DIGEST, (part,)),),
        expect=expect,
        column_keys=column_keys,
    )


@dataclass(frozen=True, slots=True)
class Safe:
    """A backup from outside: a recipient's key pair, a home that holds its secret key, and a stream sealed to it."""

    pair: KeyPair
    home: Home
    head: bytes

    def sealed(self, directory: Path) -> Sealed:
        path = directory / "backup-key.asc"
        path.touch(mode=0o600)
        path.write_bytes(self.pair.secret.reveal())
        return Sealed(self.head, self.home, PrivateFile(str(path)))


@contextmanager
def safe() -> Iterator[Safe]:
    pair = keys.generate("Clinic backup", purpose="encrypt", expires_days=None)
    with Home() as home:
        home.import_secret(pair.secret)
        yield Safe(pair, home, seal(home, pair.public))


def seal(home: Home, public: bytes, plaintext: bytes = b"PGDMP" + bytes(100_000)) -> bytes:
    """The first bytes of a sealed stream, too few for it to be whole."""
    return run(messages.seal(home, [keys.inspect(public, "the recipient")]), plaintext, timeout_s=60).stdout[: 64 << 10]


def drilled(
    clinic: Clinic,
    connection: Connection,
    sealed: Sealed,
    *columns: TotpColumn,
    level: Level = Level.ROWS,
    dumped_as: str = "plain",
    **changes: Any,
) -> Drilled:
    """The clinic as a drill would show it. pg_dump makes its dump here and now; no scan can read one `dumped_as="custom"`."""

    @contextmanager
    def unsealed(kind: Kind) -> Iterator[Iterator[bytes]]:
        dump = plain_dump(clinic.database, dumped_as)
        yield (dump[at : at + 4096] for at in range(0, len(dump), 4096))

    with Snapshot(Dsn.parse(clinic.database.dsn), application_name="test") as held:
        looked = expectations.collect(held, level, [column.table for column in columns])
    whole = Drilled(
        manifest=manifest_of(looked),
        connection=connection,
        unsealed=unsealed,
        sealed=sealed,
        columns=columns,
        questions=(),
        objectives=Objectives(),
        newest_at=TAKEN_AT,
        started_at=TAKEN_AT,
        restore_s=1.0,
        elapsed_s=lambda: 90.0,
    )
    return replace(whole, **changes)


def plain_dump(database: Database, dumped_as: str = "plain") -> bytes:
    """pg_dump's output: `plain` SQL is what pg_restore makes of an archive too."""
    environment: Mapping[str, str] = {"LC_ALL": "C", "PGPASSWORD": database.server.password}
    program = str(database.server.bin / "pg_dump")
    argv = [
        program,
        f"--format={dumped_as}",
        "--dbname",
        database.server.dsn(database.name).replace(database.server.password, ""),
    ]
    return subprocess.run(argv, env=environment, check=True, capture_output=True, timeout=60).stdout


def damage(clinic: Clinic, table: str) -> None:
    """Flip the last bit of the encrypted values of all rows."""
    last = "8 * length(totp_secret) - 1"
    flipped = f"set_bit(totp_secret, {last}, 1 - get_bit(totp_secret, {last}))"
    clinic.execute(f'UPDATE "{table}" SET totp_secret = {flipped}')
