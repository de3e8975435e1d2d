"""A table of users with secrets, the roles that read and write it, a keyring and a trail: for tests of rotation."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from psycopg import sql

from backupd.audit import open_trail_store
from backupd.audit.records import Actor, Record, Via
from backupd.audit.trail import Trail
from backupd.columns import Cell
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.custody import Custodian, SecretRef, keeper, open_custodian
from backupd.postgres.dsn import Dsn
from backupd.redact import Secret
from backupd.rotation import Former, SecretColumn
from tests.installation import keep
from tests.parts.postgres import Database, PostgresServer

USERS = 25
FIRST = "2026-1"


def seed(number: int, generation: int = 0) -> str:
    """The TOTP secret of a user, who may have enrolled anew."""
    return base64.b32encode(hashlib.sha256(f"{number}/{generation}".encode()).digest()[:20]).decode()


def nothing() -> None:
    """What happens usually."""


@dataclass(frozen=True, slots=True)
class Beset:
    """A real place of a secret, where something happens right before or after it is written."""

    place: Custodian
    before: Callable[[], None] = nothing
    after: Callable[[], None] = nothing

    @property
    def locator(self) -> str:
        return self.place.locator

    @property
    def replaceable(self) -> bool:
        return keeper(self.place).replaceable

    def fetch(self) -> Secret:
        return self.place.fetch()

    def replace(self, new: Secret, seen: Secret) -> None:
        self.before()
        keeper(self.place).replace(new, seen)
        self.after()


def interrupted() -> None:
    """Somebody's Ctrl-C."""
    raise KeyboardInterrupt


@dataclass(frozen=True, slots=True)
class Clinic:
    """`column` and `writer` are what the operations take; the keyring lies in a file."""

    database: Database
    directory: Path
    role: str
    writer: Dsn
    reader: Dsn
    trail: Trail

    @property
    def keyring_file(self) -> Path:
        return self.directory / "keyring.json"

    @property
    def keyring(self) -> Keyring:
        return Keyring.parse(Secret(self.keyring_file.read_bytes()))

    def custodian(self, name: str) -> Custodian:
        """Of a file in the clinic's directory."""
        return open_custodian(SecretRef("file", str(self.directory / name)), {})

    def column(
        self,
        *,
        column: str = "totp_sealed",
        cipher: str = "aes-256-gcm",
        archive: str | None = None,
        former: str | None = None,
        former_column: str = "totp_secret",
        former_keys: str | None = None,
    ) -> SecretColumn:
        """The column as it is configured; `former` is its former column's cipher."""
        return SecretColumn(
            "clinic",
            "users",
            "id",
            column,
            cipher,
            self.custodian("keyring.json"),
            self.custodian(archive) if archive else None,
            Former(former_column, former, self.custodian(former_keys) if former_keys else None) if former else None,
        )

    def cell(self, number: int) -> Cell:
        return Cell("users", "totp_sealed", str(number))

    def seal(self, number: int, text: str) -> bytes:
        """What the application would write."""
        return AesGcm(self.keyring).encrypt(self.cell(number), Secret(text))

    def enrol(self, *, sealed: bool) -> None:
        """Give every user a secret, in the encrypted column or in the old one in clear."""
        with self.database.connect() as connection:
            for number in range(1, USERS + 1):
                if sealed:
                    value = self.seal(number, seed(number))
                    connection.execute("UPDATE users SET totp_sealed = %s WHERE id = %s", (value, number))
                else:
                    connection.execute("UPDATE users SET totp_secret = %s WHERE id = %s", (seed(number), number))

    def opened(self) -> dict[int, str]:
        """Every user's secret, out of the encrypted column."""
        cipher = AesGcm(self.keyring)
        rows = self.database.execute("SELECT id, totp_sealed FROM users WHERE totp_sealed IS NOT NULL")
        return {number: cipher.decrypt(self.cell(number), value).text() for number, value in rows}

    def key_ids(self) -> set[str]:
        """The keys that the encrypted column's values name."""
        cipher = AesGcm(self.keyring)
        rows = self.database.execute("SELECT totp_sealed FROM users WHERE totp_sealed IS NOT NULL")
        return {cipher.key_id(value) for (value,) in rows}

    def records(self) -> list[Record]:
        return list(self.trail.records())


@contextmanager
def clinic(database: Database, directory: Path, *, sealed_column: bool = True) -> Iterator[Clinic]:
    """A clinic in an empty database. Its writing role may SELECT and UPDATE, and owns nothing."""
    server: PostgresServer = database.server
    beside = ", totp_sealed bytea" if sealed_column else ""
    database.execute(f"CREATE TABLE users (id int PRIMARY KEY, name text NOT NULL, totp_secret varchar(64){beside})")
    database.execute("INSERT INTO users SELECT n, 'user ' || n FROM generate_series(1, %s) n", (USERS,))
    with ExitStack() as held:
        roles = []
        for rights in ("SELECT, UPDATE", "SELECT"):
            role, password = server.create_role()
            database.execute(f"GRANT {rights} ON users TO {role}")
            held.callback(database.execute, f"REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}; DROP ROLE {role}")
            roles.append((role, Dsn.parse(server.dsn(database.name, role, password))))
        keep(directory / "keyring.json", Keyring.generate(FIRST).render().reveal())
        trail = Trail(open_trail_store(f"sqlite:///{directory}/audit.db"), Actor("tester", "here", Via.CLI))
        [(role, writer), (_, reader)] = roles
        yield Clinic(database, directory, role, writer, reader, trail)


def grant_ownership(made: Clinic) -> None:
    """Let the writing role own the table, as a migration role does."""
    with made.database.connect() as connection:
        connection.execute(sql.SQL("ALTER TABLE users OWNER TO {}").format(sql.Identifier(made.role)))
        connection.execute(sql.SQL("GRANT USAGE, CREATE ON SCHEMA public TO {}").format(sql.Identifier(made.role)))
