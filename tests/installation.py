"""A whole little installation in a directory: a clinic's database, keys, a store, a trail, the configuration, and its runs.

    with installed(tmp_path, postgres17, secrets) as clinic:
        clinic.run("backup", "--json")

The database is PostgreSQL's own, the store a directory, or S3 or Azure Blob when such a server is given. backupd runs as a
process of its own, in an environment that holds nothing of the user's; all that it prints is searched for planted secrets.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psycopg import sql

from backupd.audit.sqlite import SqliteStore
from backupd.columns import Cell
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.openpgp.keys import KeyPair, generate
from backupd.redact import Secret
from tests.leak_watch import Planted
from tests.parts.azure import AzureServer
from tests.parts.postgres import Database, PostgresServer
from tests.parts.s3 import REGION, S3Server

CHECKOUT = Path(__file__).resolve().parents[1]
SOURCE = "clinic"
KEY_ID = "2026-1"
PATIENTS = 12
_TIMEOUT_S = 240
_SEARCHED_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Secrets:
    """Everything secret in an installation, planted: one set serves any number of installations."""

    planted: Planted
    operations: KeyPair
    escrow: KeyPair
    signing: KeyPair
    column_key: bytes = field(repr=False)
    seeds: tuple[str, ...] = field(repr=False)
    password: str = field(repr=False)

    @property
    def keyring(self) -> bytes:
        """The column keys as their custodian keeps them."""
        return json.dumps({"current": KEY_ID, "keys": {KEY_ID: b64encode(self.column_key).decode()}}).encode()


@dataclass(frozen=True, slots=True)
class Completed:
    """One run of backupd."""

    arguments: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.stdout)

    @property
    def error(self) -> dict[str, Any]:
        """The last line of stderr: the error that --json asks for."""
        found: dict[str, Any] = json.loads(self.stderr.splitlines()[-1])
        return found

    def ok(self) -> Completed:
        """Itself, if it ended well; else the test fails and shows what it said."""
        assert self.code == 0, f"backupd {' '.join(self.arguments)} ended with {self.code}:\n{self.stdout}\n{self.stderr}"
        return self


@dataclass(frozen=True, slots=True)
class Installation:
    """`store` is the directory of the objects, None for a store in a server; `tables` are the tables of the configuration."""

    directory: Path
    database: Database
    role: str
    secrets: Secrets
    store: Path | None
    tables: dict[str, str]

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.directory / "backupd.toml"

    @property
    def trail(self) -> Path:
        """The trail's SQLite file."""
        return self.directory / "audit.db"

    @property
    def keys(self) -> Path:
        """Where the public keys lie."""
        return self.directory / "keys"

    @property
    def custody(self) -> Path:
        """Where the secrets lie, each in a file of mode 0600."""
        return self.directory / "custody"

    @property
    def secret_key(self) -> Path:
        """The operations key's secret half, which opens backups."""
        return self.custody / "operations.sec.asc"

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, config: Path | None = None) -> Completed:
        """Run `backupd ARGUMENTS` with this installation's configuration, in no terminal; nothing planted may be printed."""
        done = subprocess.run(
            [sys.executable, "-m", "backupd", *arguments],
            cwd=self.directory,
            env={**self.environment(config), **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        shown = " ".join(arguments[:2])
        self.secrets.planted.assert_absent(done.stdout, f"the output of backupd {shown}")
        self.secrets.planted.assert_absent(done.stderr, f"the errors of backupd {shown}")
        return Completed(arguments, done.returncode, done.stdout.decode(), done.stderr.decode())

    @contextmanager
    def running(self, *arguments: str, config: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """`backupd ARGUMENTS` at work, stderr piped and stdout dropped; killed at the end if it still runs."""
        with subprocess.Popen(
            [sys.executable, "-m", "backupd", *arguments],
            cwd=self.directory,
            env=self.environment(config),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def environment(self, config: Path | None = None) -> dict[str, str]:
        """What backupd gets: no HOME, AWS, PG or TZ of the user's; its own children's arguments are watched for secrets."""
        watched = self.secrets.planted.child_environment()
        return {
            **watched,
            "PYTHONPATH": os.pathsep.join([watched["PYTHONPATH"], str(CHECKOUT)]),
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.directory),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "BACKUPD_CONFIG": str(config or self.config),
        }

    def configure(self, name: str = "backupd.toml", **changed: str | None) -> Path:
        """Write a configuration: the usual tables, with those changed that are named (None: left out). Returns its path."""
        tables = {**self.tables, **changed}
        path = self.directory / name
        path.write_text("\n".join(text for text in tables.values() if text is not None))
        return path

    def records(self) -> list[dict[str, Any]]:
        """The SQLite trail, oldest record first; read here, for a process each time would cost half of some tests."""
        return [json.loads(stored.data) for stored in SqliteStore(str(self.trail)).read()]

    def back_up(self) -> str:
        """Make one backup and return its id."""
        made = self.run("backup", SOURCE, "--json", config=self.config).ok().json
        return str(made[0]["backup_id"])

    @contextmanager
    def empty_database(self) -> Iterator[Database]:
        """A fresh database beside the source's, for a restore as the superuser; dropped afterwards."""
        server = self.database.server
        self.secrets.planted.register(server.password, "superuser's password")
        name = server.create_database()
        try:
            yield Database(server, name)
        finally:
            server.drop_database(name)

    def restore_arguments(self, to: Database, *more: str) -> tuple[str, ...]:
        """The arguments of a restore of the clinic as the superuser; it also needs `superuser` as its environment."""
        address = f"postgresql://postgres@{to.server.host}:{to.server.port}/{to.name}"
        return ("restore", SOURCE, "--to", address, "--secret-key", str(self.secret_key), *more)

    @property
    def superuser(self) -> dict[str, str]:
        """The environment that holds the superuser's password."""
        return {"PGPASSWORD": self.database.server.password}


def plant(planted: Planted) -> Secrets:
    """Fresh seeds, a column key and a password, and the key pairs, which are made once in a process; all of them watched."""
    operations, escrow, signing = _pairs()
    for pair in (operations, escrow, signing):
        public = set(pair.public.splitlines())
        for line in pair.secret.reveal().splitlines():
            if len(line) == 64 and line not in public:  # a full line of armour; the headers and the checksum are no secret
                planted.register(line, "OpenPGP secret key")
    seeds = tuple(planted.seed() for _ in range(PATIENTS))
    return Secrets(planted, operations, escrow, signing, planted.key(), seeds, planted.password())


@functools.cache
def _pairs() -> tuple[KeyPair, KeyPair, KeyPair]:
    return (
        generate("Clinic backups, operations", purpose="encrypt", expires_days=None),
        generate("Clinic backups, escrow", purpose="encrypt", expires_days=None),
        generate("Clinic backups, signing", purpose="sign", expires_days=None),
    )


@contextmanager
def installed(
    directory: Path, server: PostgresServer, secrets: Secrets, store: S3Server | AzureServer | None = None
) -> Iterator[Installation]:
    """An installation below `directory`, with a database and roles of its own in `server`, which are dropped at the end.

    Without `store` the backups go to a directory. The store's and the trail's bytes are searched for planted secrets.
    """
    with ExitStack() as held:
        database = Database(server, server.create_database())
        held.callback(server.drop_database, database.name)
        role = f"backup_{database.name}"
        _populate(database, secrets)
        _grant(database, role, secrets.password)
        held.callback(server.execute, f"DROP ROLE {role}", database="postgres")
        held.callback(database.execute, f"DROP OWNED BY {role}")
        _write_keys(directory, secrets)
        where = directory / "store" if store is None else None
        tables = {
            "store": _store_table(directory, secrets, store),
            "encryption": _ENCRYPTION,
            "audit": f'[audit]\nurl = "sqlite:///{directory / "audit.db"}"\n',
            "source": f'[sources.{SOURCE}]\ndsn = "{server.dsn(database.name, role)}"\n'
            'password = { file = "custody/password" }\n',
            "totp": _TOTP,
            "drill": '[drill]\nsecret_key = { file = "custody/operations.sec.asc" }\n',
        }
        installation = Installation(directory, database, role, secrets, where, tables)
        installation.configure()
        yield installation
        _assert_no_secret_stored(installation)


def _assert_no_secret_stored(installation: Installation) -> None:
    """In the trail, and in the objects of a directory but for the largest, which are sealed whole and would take too long."""
    objects = installation.store.rglob("*") if installation.store is not None else iter(())
    for path in (installation.trail, *objects):
        if path.is_file() and path.stat().st_size <= _SEARCHED_BYTES:
            installation.secrets.planted.assert_absent(path.read_bytes(), f"the stored {path.name}")


_ENCRYPTION = """\
[encryption]
recipients = ["keys/operations.pub.asc", "keys/escrow.pub.asc"]
signing_key = { file = "custody/signing.sec.asc" }
"""
_TOTP = f"""\
[[sources.{SOURCE}.totp]]
table = "users"
id_column = "id"
column = "totp_secret"
enrolled = "is_totp_enabled"
cipher = "aes-256-gcm"
keys = {{ file = "custody/keyring.json" }}
canary = {{ id = 1, secret = {{ file = "custody/canary" }} }}
"""
_SCHEMA = """
CREATE TABLE users (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email text NOT NULL UNIQUE,
    totp_secret bytea,
    is_totp_enabled boolean NOT NULL DEFAULT false
);
CREATE TABLE appointments (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id integer NOT NULL REFERENCES users,
    "when" timestamptz NOT NULL,
    note text
);
"""


def _populate(database: Database, secrets: Secrets) -> None:
    """The clinic: every patient's second factor is encrypted for its own row."""
    cipher = AesGcm(Keyring.parse(Secret(secrets.keyring)))
    database.execute(_SCHEMA)
    with database.connect() as connection:
        for number, seed in enumerate(secrets.seeds, 1):
            sealed = cipher.encrypt(Cell("users", "totp_secret", str(number)), Secret(seed))
            connection.execute(
                "INSERT INTO users (email, totp_secret, is_totp_enabled) VALUES (%s, %s, true)",
                (f"patient{number}@clinic.example", sealed),
            )
        connection.execute("INSERT INTO users (email) VALUES ('nobody@clinic.example')")
        connection.execute(
            'INSERT INTO appointments (user_id, "when", note)'
            " SELECT 1 + n %% %s, timestamptz '2026-01-01 09:00Z' + n * interval '1 hour', 'visit ' || n"
            " FROM generate_series(1, 300) AS n",
            (PATIENTS,),
        )


def _grant(database: Database, role: str, password: str) -> None:
    with database.connect() as connection:
        named = sql.Identifier(role)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN BYPASSRLS PASSWORD {}").format(named, sql.Literal(password)))
        connection.execute(sql.SQL("GRANT pg_read_all_data TO {}").format(named))


def _write_keys(directory: Path, secrets: Secrets) -> None:
    (directory / "keys").mkdir()
    (directory / "custody").mkdir(mode=0o700)
    for name, pair in (("operations", secrets.operations), ("escrow", secrets.escrow), ("signing", secrets.signing)):
        (directory / "keys" / f"{name}.pub.asc").write_bytes(pair.public)
        keep(directory / "custody" / f"{name}.sec.asc", pair.secret.reveal())
    keep(directory / "custody" / "password", secrets.password.encode() + b"\n")
    keep(directory / "custody" / "keyring.json", secrets.keyring)
    keep(directory / "custody" / "canary", secrets.seeds[0].encode() + b"\n")


def keep(path: Path, data: bytes) -> Path:
    """Write a secret's file as its custodian wants it: readable for its owner alone."""
    path.touch(mode=0o600)
    path.write_bytes(data)
    return path


def edited(configuration: str, fragment: str) -> str:
    """The fragment's lines in their tables, in the place of those for the same keys; all others stay. Each key has one line."""
    tables = re.split(r"(?m)^(?=\[)", configuration)
    for text in re.split(r"(?m)^(?=\[)", fragment):
        head, _, lines = text.partition("\n")
        there = [index for index, each in enumerate(tables) if re.match(r"\[\w", head) and each.startswith(f"{head}\n")]
        if not there:
            tables.append(f"\n{text}")
        for index in there:
            keys = "|".join(re.findall(r"(?m)^(\w+) =", lines))
            kept = re.sub(rf"(?m)^(?:{keys}) = .*\n", "", tables[index])
            tables[index] = f"{kept.rstrip()}\n{lines}\n"
    return "".join(tables)


def _store_table(directory: Path, secrets: Secrets, store: S3Server | AzureServer | None) -> str:
    match store:
        case None:
            return f'[store]\nurl = "file://{directory / "store"}"\n'
        case S3Server():
            keep(directory / "custody" / "s3", secrets.planted.register(store.secret_key, "S3 key").encode())
            return (
                f'[store]\nurl = "s3://{store.new_bucket()}/prod"\nendpoint_url = "{store.endpoint}"\nregion = "{REGION}"\n'
                f'access_key_id = "{store.access_key}"\nsecret_access_key = {{ file = "custody/s3" }}\n'
            )
        case AzureServer():
            secrets.planted.register(store.key, "Azure account key")
            keep(directory / "custody" / "azure", store.connection_string.encode())
            return f'[store]\nurl = "azure://{store.new_container()}/prod"\nconnection_string = {{ file = "custody/azure" }}\n'
