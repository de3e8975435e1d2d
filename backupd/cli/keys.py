"""`backupd keys`: a new set of keys, a look at those in use, and the release of session keys. It prints no secret key."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backupd.cli.release import release, request
from backupd.cli.session import Cell, Session, options, table
from backupd.cli.trails import trail_of
from backupd.errors import BackupdError, ConfigError, Refused
from backupd.redact import printable

if TYPE_CHECKING:
    from backupd.audit.trail import Run
    from backupd.openpgp import Home
    from backupd.openpgp.keys import KeyPair, Problem, PublicKey, Purpose
    from backupd.service import Service


@dataclass(frozen=True, slots=True)
class Role:
    """What a key is for, and where its two halves belong."""

    name: str
    purpose: Purpose
    public: str
    secret: str


ROLES = (
    Role("operations", "encrypt", "the backup host", "the custodian that restores and drills ask; not the backup host"),
    Role("escrow", "encrypt", "the backup host", "offline, in a safe: it opens backups when all else is lost"),
    Role("signing", "sign", "every host that restores", "the backup host's custodian, such as a systemd credential"),
)
_NAME_YOUR_OWN = "name a new directory, or one of your own"
REVOKING = b"Importing this ends the use of the key. To do that, remove the colon before the dashes, and gpg --import it.\n"


@dataclass(frozen=True, slots=True)
class Seen:
    """A key that was looked at, or why it could not be."""

    where: str
    purpose: Purpose | None
    key: PublicKey | None
    problems: tuple[Problem, ...]

    @property
    def fatal(self) -> bool:
        return any(problem.fatal for problem in self.problems)


@click.group("keys", short_help="Make, show and use OpenPGP keys.")
def command() -> None:
    """Backups are sealed to public keys, and their manifests are signed; the host that makes backups cannot read them.

    \b
    backupd keys generate --directory /dev/shm/new-keys
    backupd keys show
    backupd keys request clinic --out /dev/shm/clinic.request
    """


command.add_command(request)
command.add_command(release)


@command.command("generate", short_help="Make an operations, an escrow and a signing key, or one of them.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    required=True,
    help="Where to: new, or your own and empty; best on a tmpfs (/dev/shm).",
)
@click.option(
    "--only",
    type=click.Choice([role.name for role in ROLES]),
    multiple=True,
    help="Make this one alone, to replace one that is there; more than once for two of them.",
)
@click.option("--name", default="Backups", show_default=True, help="What the keys' user ids begin with.")
@click.option(
    "--expires-days",
    type=click.IntRange(1, 36_500),
    help="After how many days they expire. Default: never, for an expired key stops backups.",
)
@options
def generate(session: Session, directory: Path, only: tuple[str, ...], name: str, expires_days: int | None) -> int:
    """Make the three keys that an installation needs, or some of them, each as NAME.pub.asc, NAME.sec.asc and NAME.rev.asc.

    The secret keys have no passphrase: whoever keeps them protects them. Move them to where they belong, which is printed,
    and remove the directory. NAME.rev.asc is the certificate that ends a key's use when it was stolen.

    \b
    backupd keys generate --directory /dev/shm/new-keys --name 'Clinic backups'
    backupd keys generate --directory /dev/shm/new-keys --name 'Clinic backups 2027' --only signing
    """
    from backupd.openpgp import Home
    from backupd.openpgp import keys as openpgp_keys

    with _recorded(session, directory=str(directory)) as run:
        with Home() as home:
            made = [
                (
                    role,
                    openpgp_keys.generate(f"{name}, {role.name}", purpose=role.purpose, expires_days=expires_days, home=home),
                )
                for role in ROLES
                if not only or role.name in only
            ]
        on_disk = _write(directory, made)
        if run is not None:
            run.note(fingerprints=tuple(f"{role.name} {pair.fingerprint}" for role, pair in made))
    result = {
        "directory": str(directory),
        "on_disk": on_disk,
        "keys": [_pair_to_json(directory, role, pair) for role, pair in made],
    }
    session.result(result, lambda: _tell(directory, made, on_disk))
    return 0


@command.command("show", short_help="Show keys: what they are for, and what is wrong with them.")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@options
def show(session: Session, files: tuple[Path, ...]) -> int:
    """Show the configured keys, or the public keys in FILES. The exit code is 1 when one of them cannot do its work.

    \b
    backupd keys show
    backupd keys show keys/operations.pub.asc --json
    """
    with _recorded(session, needed=not files) as run:
        seen = list(_named(files) if files else _configured(session))
        if run is not None:
            run.note(
                fingerprints=tuple(each.key.fingerprint for each in seen if each.key is not None),
                problems=tuple(problem.message for each in seen for problem in each.problems),
            )
    session.result([_seen_to_json(each) for each in seen], lambda: _show(seen))
    return int(any(each.fatal for each in seen))


@contextmanager
def _recorded(session: Session, *, needed: bool = False, **details: str) -> Iterator[Run | None]:
    """The run in the trail of the configuration, where there is one: keys are also made before there is."""
    from backupd.audit.records import Operation

    with trail_of(session, needed=needed) as trail:
        if trail is None:
            yield None
            return
        with trail.recording(Operation.KEYS, **details) as run:
            yield run


def _write(directory: Path, made: Sequence[tuple[Role, KeyPair]]) -> bool:
    """Write the files, all or none; whether the directory is on a disk, as far as can be told.

    Raises Refused for a directory of another user, who could have made it in /dev/shm to put keys of their own in it, and
    ConfigError for one that is not empty, not private or not to be written.
    """
    from backupd.openpgp.home import in_memory

    written: list[str] = []
    if directory.is_symlink():
        raise Refused(f"{directory} is a symbolic link, which may lead into a directory of another user", _NAME_YOUR_OWN)
    opened = -1
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)  # and no other from here on
        status = os.fstat(opened)
        if status.st_uid != os.geteuid():
            raise Refused(f"{directory} belongs to another user, id {status.st_uid}, who could exchange keys", _NAME_YOUR_OWN)
        if any(directory.iterdir()):
            raise ConfigError(f"{directory} is not empty", "name a new directory: keys are never written over")
        if status.st_mode & 0o077:
            raise ConfigError(f"{directory} is open to other users", f"chmod 700 {directory}, or name a new one")
        for role, pair in made:
            for kind, data in (
                ("pub", pair.public),
                ("sec", pair.secret.reveal()),
                ("rev", REVOKING + pair.revocation.reveal()),
            ):
                name = f"{role.name}.{kind}.asc"
                descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=opened)
                written.append(name)  # ours, and so to be removed if the rest fails
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
        return not in_memory(directory)
    except BaseException as error:
        for name in written:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=opened)
        if not isinstance(error, OSError):
            raise
        raise ConfigError(
            f"cannot write keys to {directory}: {error.strerror}", "name a directory that can be made, with room in it"
        ) from error
    finally:
        if opened >= 0:
            os.close(opened)


def _named(files: Sequence[Path]) -> Iterator[Seen]:
    from backupd.openpgp import Home

    with Home() as home:
        for path in files:
            yield _look(str(path), path, None, home)


def _configured(session: Session) -> Iterator[Seen]:
    with session.service() as service:
        encryption = service.config.encryption
        for path in encryption.recipients:
            yield _look(f"recipient {path}", path, "encrypt", service.home)
        if encryption.signing_key is not None:
            yield _look_at_signer(service)
        for path in encryption.signers:
            yield _look(f"signer {path}", path, "sign", service.home)


def _look(where: str, path: Path, purpose: Purpose | None, home: Home) -> Seen:
    from backupd.openpgp import keys as openpgp_keys

    try:
        return _judge(where, openpgp_keys.read(path, home), purpose)
    except ConfigError as error:
        return _unusable(where, purpose, error)


def _look_at_signer(service: Service) -> Seen:
    """The signing key, from its custodian."""
    from backupd.openpgp import keys as openpgp_keys

    where = "signing key"
    try:
        public = service.home.call("--armor", "--export", service.signer).stdout
        return _judge(where, openpgp_keys.inspect(public, where, home=service.home), "sign")
    except BackupdError as error:
        return _unusable(where, "sign", error)


def _judge(where: str, key: PublicKey, purpose: Purpose | None) -> Seen:
    from backupd.openpgp import keys as openpgp_keys

    purpose = purpose or ("encrypt" if key.encryption_subkeys else "sign")
    found = openpgp_keys.problems(key, datetime.now(UTC), purpose=purpose)
    return Seen(where, purpose, key, tuple(found))


def _unusable(where: str, purpose: Purpose | None, error: BackupdError) -> Seen:
    from backupd.openpgp.keys import Problem

    return Seen(where, purpose, None, (Problem(True, error.message, error.hint or ""),))


def _pair_to_json(directory: Path, role: Role, pair: KeyPair) -> dict[str, Any]:
    return {
        "name": role.name,
        "purpose": role.purpose,
        "fingerprint": pair.fingerprint,
        "public": {"file": str(directory / f"{role.name}.pub.asc"), "belongs": role.public},
        "secret": {"file": str(directory / f"{role.name}.sec.asc"), "belongs": role.secret},
        "revocation": {"file": str(directory / f"{role.name}.rev.asc"), "belongs": "apart from the secret key"},
    }


def _seen_to_json(seen: Seen) -> dict[str, Any]:
    key = seen.key
    return {
        "where": seen.where,
        "purpose": seen.purpose,
        "fingerprint": None if key is None else key.fingerprint,
        "user_id": None if key is None else key.user_id,
        "created_at": None if key is None else key.created_at.isoformat(),
        "expires_at": None if key is None or key.expires_at is None else key.expires_at.isoformat(),
        "problems": [{"fatal": each.fatal, "message": each.message, "hint": each.hint or None} for each in seen.problems],
    }


def _tell(directory: Path, made: Sequence[tuple[Role, KeyPair]], on_disk: bool) -> None:
    for role, pair in made:
        click.echo(click.style(f"{role.name}  {pair.fingerprint}", bold=True))
        click.echo(printable(f"  {directory / role.name}.pub.asc  →  {role.public}"))
        click.echo(printable(f"  {directory / role.name}.sec.asc  →  {role.secret}"))
        click.echo(printable(f"  {directory / role.name}.rev.asc  →  kept apart from the secret key, for the day it is stolen"))
    if on_disk:
        click.echo(
            click.style("note: ", fg="yellow") + f"{directory} is not in memory: the secret keys were written to a disk."
            " Move them, and shred the files.",
            err=True,
        )


def _show(seen: Sequence[Seen]) -> None:
    rows = []
    for each in seen:
        state: Cell = (
            ("unusable", "bold red") if each.fatal else ("look at it", "yellow") if each.problems else ("good", "green")
        )
        key = each.key
        end = "-" if key is None else "never" if key.expires_at is None else f"{key.expires_at:%Y-%m-%d}"
        rows.append((each.where, each.purpose or "-", *_names(key), end, state))
    table(("key", "purpose", "fingerprint", "user id", "expires", "state"), rows)
    for each in seen:
        for problem in each.problems:
            click.echo(printable(problem.message), err=True)
            if problem.hint:
                click.echo(printable(f"  hint: {problem.hint}"), err=True)


def _names(key: PublicKey | None) -> tuple[str, str]:
    return ("-", "-") if key is None else (key.fingerprint, key.user_id)
