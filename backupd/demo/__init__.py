"""The whole story on a scratch database, in half a minute: the shop window, and a test of everything at once.

    clinic.py   the clinic: its server, people, keys and configuration
    login.py    its login service, a process of its own: `backupd.example`

A small clinic with encrypted second factors is backed up and drilled; the column gets a new key while people log in; then a
thief changes one byte, and a colleague pastes a secret into a note. Everything happens in one private directory in memory and
through the same service as in earnest. Owns the order of events; says nothing to the screen itself, but tells a `Narrator`.
`ground` gives the same clinic to somebody who wants to try things, without the story.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from backupd.audit.chain import Report as TrailReport
from backupd.audit.records import Record, Via
from backupd.catalog import Entry
from backupd.checks import Outcome
from backupd.column_service import ColumnService
from backupd.columns import totp
from backupd.config import load
from backupd.demo import clinic as clinics
from backupd.demo.clinic import CLINICIANS, NAME, Clinic
from backupd.demo.login import LoginService, running
from backupd.errors import BackupdError
from backupd.manifest import Kind, Manifest
from backupd.postgres import session
from backupd.redact import Secret
from backupd.rotation import Pace
from backupd.rotation import Report as Moved
from backupd.rotation.rotate import Stage as RotateStage
from backupd.service import Service, actor

if TYPE_CHECKING:
    from backupd.drill import DrillReport

NEXT_KEY = "2027-1"


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

    def moved(self, report: Moved) -> None:
        """A stage of a column's rotation is done."""

    def login(self, who: str, code: str) -> None:
        """Somebody was let in with a code, and turned away with the same code again."""

    def told(self, text: str) -> None:
        """What the next lines are about."""

    def refused(self, error: BackupdError) -> None:
        """backupd would not do something."""

    def trail(self, records: list[Record], report: TrailReport) -> None:
        """Everything above, as it was recorded."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a shell may be opened: the directory with the clinic's keys, store and configuration, and the shell's variables."""

    directory: Path
    environment: dict[str, str] = field(repr=False)


class DemoFailed(BackupdError):
    """Something in the story did not come out as it must."""


def run(narrator: Narrator) -> None:
    """Tell the story. Raises DemoFailed when backupd did not do what it promises, and any other error of its."""
    with clinics.stage() as stage:
        narrator.step(
            "A clinic", f"PostgreSQL with {CLINICIANS} clinicians, each with a second factor, encrypted in its column."
        )
        clinic = clinics.fill(stage)
        narrator.clinic(clinic.stored, _code(clinic.seeds[1]))

        narrator.step("Keys and a configuration", "Backups are sealed to two public keys. Neither opens the column.")
        narrator.configuration(clinics.configure(stage))
        with Service(load(stage.configuration), actor(os.environ, Via.CLI, reason="demo"), os.environ) as service:
            _backed_up(narrator, service)
            _rotated(narrator, service, clinic)
            _stolen(narrator, service, stage.store)
            _leaked(narrator, service, clinic)
            _recorded(narrator, service)


@contextmanager
def ground() -> Iterator[Ground]:
    """The clinic with keys and a configuration, and no backup yet; taken down when the block ends.

    The environment names the configuration, and lets psql in as the server's superuser.
    """
    with clinics.stage() as stage:
        clinics.fill(stage)
        clinics.configure(stage)
        yield Ground(stage.directory, {"BACKUPD_CONFIG": str(stage.configuration), **stage.psql()})


def _backed_up(narrator: Narrator, service: Service) -> None:
    narrator.step("A backup", "pg_dump writes into gpg and gpg into the store: plaintext never touches a disk.")
    narrator.backup(service.back_up(NAME))
    narrator.listing(service.catalog.list())

    narrator.step("A drill", "The backup is restored into a scratch cluster, and every second factor is shown to work.")
    _drill(narrator, service, Outcome.PASS, "the first drill did not pass")


def _rotated(narrator: Narrator, service: Service, clinic: Clinic) -> None:
    narrator.step("A new key", "A year is over: the column gets another key, and nobody who logs in meanwhile notices.")
    columns = ColumnService(service)
    with running(clinic.login_url, clinic.keyring) as logins:
        _log_in(narrator, logins, clinic, 2)
        for number, stage in enumerate((RotateStage.ADD, RotateStage.PROMOTE, RotateStage.ROWS), start=3):
            narrator.moved(columns.rotate(NAME, None, NEXT_KEY, stage, Pace(batch=10)))
            _log_in(narrator, logins, clinic, number)
        narrator.moved(columns.retire(NAME, None, clinics.FIRST_KEY, apply=True))
        _log_in(narrator, logins, clinic, 6)
    narrator.told("The backup from before names the old key, and finds it in the archive:")
    _drill(narrator, service, Outcome.PASS, "the backup from before the rotation did not pass")


def _log_in(narrator: Narrator, logins: LoginService, clinic: Clinic, number: int) -> None:
    """With the code that the phone shows, which is good once."""
    code = _code(clinic.seeds[number])
    once, twice = (logins.log_in(clinic.email(number), clinic.password, code) for _ in range(2))
    narrator.login(clinic.email(number), code)
    _must(once, "a right code was refused")
    _must(not twice, "a code was good twice")


def _stolen(narrator: Narrator, service: Service, store: Path) -> None:
    narrator.step("A thief", "Somebody with the object store changes one byte of the backup. Nobody will restore it unawares.")
    entry = service.entry(NAME)
    made = entry.proved()
    with _one_byte_changed(store / NAME / made.backup_id / made.artifact(Kind.DATABASE).name):
        try:
            service.verify(entry)
        except BackupdError as error:
            narrator.refused(error)
        else:
            raise DemoFailed("a changed byte was not noticed")
        _drill(narrator, service, Outcome.FAIL, "a drill passed on a changed backup")


def _leaked(narrator: Narrator, service: Service, clinic: Clinic) -> None:
    narrator.step("A colleague", "Somebody pastes a TOTP secret into a visit's notes. The dump now holds it in clear.")
    with session.connect(clinic.dsn, application_name="clinic", autocommit=True) as connection:
        connection.execute("RESET search_path")
        note = f"phone lost, re-enrolled with {clinic.seeds[1].text()}"
        connection.execute("UPDATE visits SET notes = %s WHERE id = 42", (note,))
    narrator.backup(service.back_up(NAME))
    _drill(narrator, service, Outcome.FAIL, "a drill passed although a secret is in the dump in clear")


def _recorded(narrator: Narrator, service: Service) -> None:
    narrator.step("The trail", "All of it was recorded, each record holding the hash of the one before it.")
    checked = service.trail.verify()
    narrator.trail(list(service.trail.records()), checked)
    _must(checked.ok, "the trail does not verify")


def _drill(narrator: Narrator, service: Service, expected: Outcome, otherwise: str) -> None:
    report = service.drill(NAME)
    narrator.drill(report)
    _must(report.verdict is expected, otherwise)


def _code(seed: Secret) -> str:
    """What the phone shows now."""
    return totp.code(totp.decode_seed(seed).key, datetime.now(UTC))


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


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DemoFailed(otherwise, "this is a bug: please report what the lines above say")
