"""The whole story on a scratch database, in about half a minute: the shop window, and a test of everything at once.

A small clinic with encrypted second factors is backed up, listed and drilled; then a thief changes one byte, and a colleague
pastes a secret into a note. Everything happens in one private directory in memory and through the same service as in earnest.
Owns the clinic and the order of events; says nothing to the screen itself, but tells a `Narrator`. `ground` gives the same
clinic to somebody who wants to try things, without the story.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from base64 import b32encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from backupd.audit.chain import Report as TrailReport
from backupd.audit.records import Record, Via
from backupd.catalog import Entry
from backupd.checks import Outcome
from backupd.columns import Cell, totp
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.config import load
from backupd.errors import BackupdError
from backupd.manifest import Kind, Manifest
from backupd.openpgp import keys
from backupd.postgres import clients, session
from backupd.postgres.scratch import SUPERUSER, ScratchCluster
from backupd.postgres.session import Dsn
from backupd.redact import Secret
from backupd.service import Service, actor

if TYPE_CHECKING:
    from backupd.drill import DrillReport

CLINICIANS = 40
VISITS = 2_000
NAME = "clinic"
_PEOPLE = ("ward", "theatre", "pharmacy", "reception")

CONFIGURATION = """\
[store]
url = "file://{directory}/store"

[encryption]
recipients = ["operations.pub.asc", "escrow.pub.asc"]
signing_key = {{ file = "signing.sec.asc" }}

[audit]
url = "sqlite:///{directory}/audit.db"

[sources.clinic]
dsn = "{dsn}"
password = {{ file = "backup_ro.password" }}

[[sources.clinic.totp]]
table = "users"
id_column = "id"
column = "totp_secret"
enrolled = "is_totp_enabled"
cipher = "aes-256-gcm"
keys = {{ file = "keyring.json" }}

[drill]
secret_key = {{ file = "operations.sec.asc" }}
directory = "{spare}"
"""


_WRITER = """\
columns_dsn = "{dsn}"
columns_password = {{ file = "clinic_columns.password" }}

[[sources.clinic.totp]]
archive = {{ file = "archive.json" }}
"""


class Narrator(Protocol):
    """Who tells the story: `cli.demo` does it in colour."""

    def step(self, title: str, text: str) -> None:
        """A new thing begins, and what it is about."""

    def clinic(self, stored: bytes, code: str) -> None:
        """What the column holds of one secret, and the code that its owner's phone shows now."""

    def configuration(self, text: str) -> None:
        """The file that everything below runs on."""

    def backup(self, made: Manifest) -> None:
        """A backup was made."""

    def listing(self, entries: list[Entry]) -> None:
        """What the store holds."""

    def drill(self, report: DrillReport) -> None:
        """A restore test came to its verdict."""

    def refused(self, error: BackupdError) -> None:
        """backupd would not do something."""

    def trail(self, records: list[Record], report: TrailReport) -> None:
        """Everything above, as it was recorded."""


@dataclass(frozen=True, slots=True)
class Clinic:
    """The application's database and the one secret of it that the story follows."""

    dsn: Dsn
    seed: Secret
    stored: bytes


@dataclass(frozen=True, slots=True)
class Stage:
    """A private directory in memory, one that may be on a disk, and a server of its own beside them."""

    directory: Path
    spare: Path
    cluster: ScratchCluster


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a shell may be opened: the directory with the clinic's keys, store and configuration, and the shell's variables."""

    directory: Path
    environment: dict[str, str] = field(repr=False)


class DemoFailed(BackupdError):
    """Something in the story did not come out as it must."""


def run(narrator: Narrator) -> None:
    """Tell the story. Raises DemoFailed when backupd did not do what it promises, and any other error of its."""
    with _stage() as stage:
        directory, cluster = stage.directory, stage.cluster
        narrator.step(
            "A clinic", f"PostgreSQL with {CLINICIANS} clinicians, each with a second factor, encrypted in its column."
        )
        clinic = _clinic(directory, cluster)
        narrator.clinic(clinic.stored, totp.code(totp.decode_seed(clinic.seed).key, datetime.now(UTC)))

        narrator.step("Keys and a configuration", "Backups are sealed to two public keys. Neither opens the column.")
        _keys(directory)
        text = CONFIGURATION.format(directory=directory, spare=stage.spare, dsn=_without_password(cluster))
        (directory / "backupd.toml").write_text(text)
        narrator.configuration(text)
        with Service(load(directory / "backupd.toml"), actor(os.environ, Via.CLI, reason="demo"), os.environ) as service:
            _story(narrator, service, directory, clinic)


@contextmanager
def ground() -> Iterator[Ground]:
    """The clinic with keys and a configuration, and no backup yet; taken down when the block ends.

    The environment names the configuration, and lets psql in as the server's superuser.
    """
    with _stage() as stage:
        directory, cluster = stage.directory, stage.cluster
        clinic = _clinic(directory, cluster)
        _keys(directory)
        _writer(directory, clinic.dsn)
        _private(directory / "archive.json", (directory / "keyring.json").read_bytes())
        text = CONFIGURATION.format(directory=directory, spare=stage.spare, dsn=_without_password(cluster))
        writer = _WRITER.format(dsn=_without_password(cluster, "clinic_columns"))
        (directory / "backupd.toml").write_text(text.replace("\n[[sources.clinic.totp]]\n", writer))
        superuser = cluster.dsn(NAME)
        yield Ground(
            directory,
            {
                "BACKUPD_CONFIG": str(directory / "backupd.toml"),
                "PGHOST": str(cluster.socket_directory),
                "PGPORT": "5432",
                "PGUSER": SUPERUSER,
                "PGPASSWORD": superuser.password.text() if superuser.password is not None else "",
            },
        )


def _story(narrator: Narrator, service: Service, directory: Path, clinic: Clinic) -> None:
    narrator.step("A backup", "pg_dump writes into gpg and gpg into the store: plaintext never touches a disk.")
    made = service.back_up(NAME)
    narrator.backup(made)
    narrator.listing(service.catalog.list())

    narrator.step("A drill", "The backup is restored into a scratch cluster, and every second factor is shown to work.")
    report = service.drill(NAME)
    narrator.drill(report)
    _must(report.verdict is Outcome.PASS, "the first drill did not pass")

    narrator.step("A thief", "Somebody with the object store changes one byte of the backup. Nobody will restore it unawares.")
    with _one_byte_changed(directory / "store" / NAME / made.backup_id / made.artifact(Kind.DATABASE).name):
        try:
            service.verify(service.entry(NAME))
        except BackupdError as error:
            narrator.refused(error)
        else:
            raise DemoFailed("a changed byte was not noticed")
        report = service.drill(NAME)
        narrator.drill(report)
        _must(report.verdict is Outcome.FAIL, "a drill passed on a changed backup")

    narrator.step("A colleague", "Somebody pastes a TOTP secret into a visit's notes. The dump now holds it in clear.")
    with session.connect(clinic.dsn, application_name="clinic", autocommit=True) as connection:
        note = f"phone lost, re-enrolled with {clinic.seed.text()}"
        connection.execute("UPDATE visits SET notes = %s WHERE id = 42", (note,))
    narrator.backup(service.back_up(NAME))
    report = service.drill(NAME)
    narrator.drill(report)
    _must(report.verdict is Outcome.FAIL, "a drill passed although a secret is in the dump in clear")

    narrator.step("The trail", "All of it was recorded, each record holding the hash of the one before it.")
    checked = service.trail.verify()
    narrator.trail(list(service.trail.records()), checked)
    _must(checked.ok, "the trail does not verify")


@contextmanager
def _stage() -> Iterator[Stage]:
    """Set up, and taken down at the end."""
    with ExitStack() as held:
        memory = Path("/dev/shm")  # noqa: S108  # keys are made here, and they must not reach a disk
        base = memory if memory.is_dir() else None
        directory = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="backupd-demo-", dir=base)))
        # Containers often have 64 MB of shared memory. Nobody's data is in here, so a disk will do for the rest.
        spare = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="backupd-demo-")))
        spare.chmod(0o711)  # the server's own account has to get through
        cluster = held.enter_context(ScratchCluster(clients.choose_server(clients.find(), 0), spare))
        yield Stage(directory, spare, cluster)


def _clinic(directory: Path, cluster: ScratchCluster) -> Clinic:
    """Fill the database as its application would: secrets are encrypted before they reach it."""
    password = secrets.token_urlsafe(18)
    _private(directory / "backup_ro.password", password.encode())
    keyring = Keyring.generate("2026-1")
    _private(directory / "keyring.json", keyring.render().reveal())
    cipher = AesGcm(keyring)
    dsn = cluster.create_database(NAME)
    seeds = {number: Secret(b32encode(os.urandom(20)), "TOTP secret") for number in range(1, CLINICIANS + 1)}
    stored = {number: cipher.encrypt(Cell("users", "totp_secret", str(number)), seed) for number, seed in seeds.items()}
    with session.connect(dsn, application_name="clinic", autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE users (id int PRIMARY KEY, name text NOT NULL, is_totp_enabled bool NOT NULL, totp_secret bytea)"
        )
        connection.execute("CREATE TABLE visits (id int PRIMARY KEY, clinician int REFERENCES users, at date, notes text)")
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO users VALUES (%s, %s, true, %s)",
                [(number, f"{_PEOPLE[number % 4]}-{number}", data) for number, data in stored.items()],
            )
        connection.execute(
            "INSERT INTO visits SELECT i, 1 + i %% %s, date '2026-01-01' + i %% 300, 'routine' FROM generate_series(1, %s) i",
            (CLINICIANS, VISITS),
        )
        connection.execute(f"CREATE ROLE backup_ro LOGIN PASSWORD '{password}'".encode())  # of our own making, without quotes
        connection.execute("GRANT pg_read_all_data TO backup_ro")
        connection.execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO backup_ro")
    return Clinic(dsn, seeds[1], stored[1])


def _writer(directory: Path, dsn: Dsn) -> None:
    """The role that brings the column under other keys."""
    password = secrets.token_urlsafe(18)
    _private(directory / "clinic_columns.password", password.encode())
    with session.connect(dsn, application_name="clinic", autocommit=True) as connection:
        connection.execute(f"CREATE ROLE clinic_columns LOGIN PASSWORD '{password}'".encode())  # the same
        connection.execute("GRANT SELECT, UPDATE ON users TO clinic_columns")


def _keys(directory: Path) -> None:
    for name, purpose in (("operations", "encrypt"), ("escrow", "encrypt"), ("signing", "sign")):
        pair = keys.generate(f"{name} (demo)", purpose="sign" if purpose == "sign" else "encrypt", expires_days=None)
        _private(directory / f"{name}.pub.asc", pair.public)
        _private(directory / f"{name}.sec.asc", pair.secret.reveal())
    (directory / "store").mkdir()


def _without_password(cluster: ScratchCluster, role: str = "backup_ro") -> str:
    return f"host={cluster.socket_directory} port=5432 user={role} dbname={NAME} sslmode=disable"


@contextmanager
def _one_byte_changed(path: Path) -> Iterator[None]:
    """As a thief with the store would; put back when the block ends."""
    whole = path.read_bytes()
    path.chmod(0o600)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    try:
        yield
    finally:
        path.write_bytes(whole)


def _private(path: Path, data: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(data)


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DemoFailed(otherwise, "this is a bug: please report what the lines above say")
