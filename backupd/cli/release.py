"""`backupd keys request` and `keys release`: one backup's session keys, asked for and given; and the options that use them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backupd.cli.session import SECRET_FILE, Row, Session, options, table
from backupd.cli.session import size as shown_size
from backupd.cli.trails import trail_of
from backupd.errors import BackupdError, ConfigError, Refused
from backupd.redact import printable

if TYPE_CHECKING:
    from backupd.audit.records import Operation
    from backupd.opening import SessionKeys
    from backupd.openpgp import Home
    from backupd.openpgp.session_keys import Keyring
    from backupd.release import Given, Proved
    from backupd.service import Service

_NOT_PROVED = (
    "who asks and why is what the request says: compare the code with them, over a line that you know",
    "whoever holds the signing key could have named other messages of your key in this manifest, two at most",
)


@dataclass(frozen=True, slots=True)
class Released:
    """The files of a release: the answer, and the one-time key that opens it."""

    release: Path
    request_key: Path


def released_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a command that opens backups with released session keys; it gets them as `released`, or None."""
    import functools

    @click.option("--session-key", type=SECRET_FILE, help="One backup's released session keys, instead of a key.")
    @click.option("--request-key", type=SECRET_FILE, help="The one-time key of the request that it answers.")
    @functools.wraps(function)
    def wrapped(*args: Any, session_key: Path | None, request_key: Path | None, **arguments: Any) -> Any:
        if (session_key is None) != (request_key is None):
            raise click.UsageError("--session-key and --request-key belong together")
        if session_key is None or request_key is None:
            return function(*args, released=None, **arguments)
        if arguments.get("secret_key") is not None:
            raise click.UsageError("--secret-key and --session-key exclude each other")
        return function(*args, released=Released(session_key, request_key), **arguments)

    return wrapped


@click.command("request", short_help="Ask a custodian to release one backup's session keys.")
@click.argument("source")
@click.option("--backup", "backup_id", help="The backup's id. Default: the newest.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The request to be written, a new file.")
@click.option(
    "--key-out",
    type=click.Path(path_type=Path),
    help="The one-time key to be written, best on a tmpfs. Default: the request's name and `.key`.",
)
@options
def request(session: Session, source: str, backup_id: str | None, out: Path, key_out: Path | None) -> int:
    """Write a request for the session keys of one backup of SOURCE, and the one-time key that the answer will be sealed to.

    The request holds no secret: send it to whoever keeps an operations or escrow key, and tell them the code that is printed
    by another way. The one-time key stays here; remove it after the restore. A request lives seven days.

    \b
    backupd keys request clinic --out /dev/shm/clinic.request --reason 'restore after disk loss'
    """
    from backupd.audit.records import Operation
    from backupd.openpgp.home import in_memory
    from backupd.release.request import ask, code_of

    key_file = key_out if key_out is not None else out.with_name(out.name + ".key")
    with session.service() as service:
        entry = service.entry(source, backup_id)
        with service.trail.recording(
            Operation.KEYS, source=source, backup_id=entry.backup_id, action="request session keys"
        ) as run:
            data, one_time = ask(entry, service.store, session.actor())
            run.note(request_code=code_of(data), one_time_key=one_time.fingerprint)
            with _new_file(key_file, one_time.secret.reveal()), _new_file(out, data):
                on_disk = not in_memory(key_file)
    result = {
        "backup_id": entry.backup_id,
        "source": source,
        "request": str(out),
        "request_key": str(key_file),
        "on_disk": on_disk,
        "code": code_of(data),
    }
    session.result(result, lambda: _tell_request(out, key_file, code_of(data), entry.backup_id, on_disk))
    return 0


@click.command("release", short_help="Release one backup's session keys to whoever asked.")
@click.argument("request_file", metavar="REQUEST", type=click.Path(path_type=Path))
@click.option(
    "--signer",
    "signers",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="The public key that signs manifests (signing.pub.asc); may be repeated.",
)
@click.option("--code", help="What the one who asks told you; the request must have this code.")
@click.option("--secret-key", type=SECRET_FILE, help="A recipient's secret key, without a passphrase.")
@click.option(
    "--gpg-home",
    type=click.Path(path_type=Path),
    help="The GNUPGHOME of your own gpg, for a key with a passphrase or on a smart card.",
)
@click.option("--recipient", help="The fingerprint of the key to be used; needed where --gpg-home has several that open.")
@click.option("--out", type=click.Path(path_type=Path), help="The release to be written, a new file. Default: only look.")
@options
def release(
    session: Session,
    request_file: Path,
    signers: tuple[Path, ...],
    code: str | None,
    secret_key: Path | None,
    gpg_home: Path | None,
    recipient: str | None,
    out: Path | None,
) -> int:
    """Show what REQUEST asks for and, with --out, release the session keys of that one backup.

    To be run where the secret key is. It needs backupd and gpg, no configuration and no network. The release is sealed to the
    one-time key of the request, and opens this backup and no other. With a configuration it is recorded in its trail; without
    one, keep the record that is printed.

    \b
    backupd keys release clinic.request --signer signing.pub.asc
    backupd keys release clinic.request --signer signing.pub.asc --secret-key escrow.sec.asc --out clinic.release
    """
    from backupd.audit.records import Operation
    from backupd.openpgp import Home
    from backupd.release.request import LARGEST_REQUEST

    if out is not None and (secret_key is None) == (gpg_home is None):
        raise click.UsageError("--out needs one of --secret-key and --gpg-home")
    data = _read(request_file, LARGEST_REQUEST)
    given: Given | None = None
    with trail_of(session) as trail, Home() as home:
        try:
            proved = _prove(data, home, signers, code)
        except BackupdError as error:
            if trail is not None:
                trail.event(Operation.KEYS, details={"action": "release session keys"}, error=error)
            raise
        about = {"action": "release session keys", "request_code": proved.code, "asked_by": _who(proved)}
        source, backup_id = proved.manifest.source.name, proved.manifest.backup_id
        if not session.json:
            _show(proved)  # before a PIN is asked for
        key = _Key(secret_key, gpg_home, recipient)
        if out is not None and trail is None:
            given = _give(proved, home, key, session, out)
        elif out is not None and trail is not None:
            with trail.recording(Operation.KEYS, source=source, backup_id=backup_id, **about) as run:
                given = _give(proved, home, key, session, out)
                run.note(fingerprints=given.fingerprints, release_sha256=given.sha256)
    result = _to_json(proved, given, session, out)
    session.result(result, lambda: _tell_release(result, recorded=trail is not None))
    return 0


def released_by(service: Service, operation: Operation, source: str, files: Released | None) -> SessionKeys | None:
    """The session keys in a release, when there is one."""
    if files is None:
        return None
    from backupd.release.answer import LARGEST_RELEASE

    return service.session_keys(operation, source, _read(files.release, LARGEST_RELEASE), files.request_key)


def _prove(data: bytes, home: Home, signers: tuple[Path, ...], code: str | None) -> Proved:
    from backupd.openpgp import keys
    from backupd.release import prove
    from backupd.release.request import code_of

    if code is not None and code.strip().lower().replace("-", "") != code_of(data).replace("-", ""):
        raise Refused(
            f"the request has the code {code_of(data)}, not the one that was told",
            "it is not the request that was made: ask back",
        )
    return prove(data, home, frozenset(home.import_public(keys.read(path, home).data) for path in signers))


@dataclass(frozen=True, slots=True)
class _Key:
    """The long-lived key: a file, or in the custodian's own gpg; and its fingerprint, where it was given."""

    file: Path | None
    gpg_home: Path | None
    recipient: str | None


def _give(proved: Proved, home: Home, key: _Key, session: Session, out: Path) -> Given:
    from backupd.release import give

    wanted = None if key.recipient is None else key.recipient.replace(" ", "").upper()
    if wanted is not None and wanted not in proved.manifest.recipients:
        raise Refused(
            f"the backup is not sealed to {printable(str(key.recipient))}, but to {' and '.join(proved.manifest.recipients)}",
            "give the fingerprint of one of these with --recipient, if it is a key of yours for backups",
        )
    with _keyring(key, wanted) as keyring:
        given = give(proved, keyring, home, session.actor(), wanted)
    with _new_file(out, given.data):
        return given


@contextmanager
def _keyring(key: _Key, wanted: str | None) -> Iterator[Keyring]:
    """Where the long-lived key is: the custodian's own gpg, or a home in memory that a key file is read into.

    Raises Refused for a gpg with several keys that open, none of them named: the signer may have named another message's head.
    """
    if key.gpg_home is not None:
        from backupd.openpgp.own_home import OwnHome

        own = OwnHome(key.gpg_home, os.environ)
        if wanted is None and len(openers := own.openers()) > 1:
            raise Refused(
                f"{printable(str(key.gpg_home))} has {len(openers)} keys that open messages: {', '.join(openers)}",
                "name the one that backups are sealed to, with --recipient FINGERPRINT",
            )
        yield own
        return
    from backupd.custody import SecretRef, open_custodian
    from backupd.openpgp import Home

    with Home() as private:
        private.import_secret(open_custodian(SecretRef("file", str(Path(str(key.file)).absolute())), os.environ).fetch())
        yield private


def _read(path: Path, largest: int) -> bytes:
    """A file of somebody else's, and one byte more than it may have. No pipe and no device: those may never end."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123 — a descriptor
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{printable(str(path))} is no regular file", "give the file itself")
            return file.read(largest + 1)
    except OSError as error:
        raise ConfigError(f"{printable(str(path))} cannot be read: {error.strerror}", "check its path and mode") from error


@contextmanager
def _new_file(path: Path, data: bytes) -> Iterator[None]:
    """A file that was not there, for its owner alone; gone again if the block fails."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"{printable(str(path))} cannot be written: {error.strerror}", "name a new file; none is written over"
        ) from error
    try:
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ConfigError(f"{printable(str(path))} cannot be written: {error.strerror}", "is there room?") from error
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _who(proved: Proved) -> str:
    by = proved.request.by
    return f"{by.operator or by.user}, as {by.user} on {by.host}"


def _to_json(proved: Proved, given: Given | None, session: Session, out: Path | None) -> dict[str, Any]:
    manifest, by = proved.manifest, session.actor()
    asked = proved.request.by
    return {
        "released": given is not None,
        "release": None if given is None else str(out),
        "release_sha256": None if given is None else given.sha256,
        "released_at": None if given is None else given.released_at.isoformat(timespec="seconds"),
        "released_by": None
        if given is None
        else {"user": by.user, "host": by.host, "operator": by.operator, "reason": by.reason},
        "keys_used": [] if given is None else list(given.fingerprints),
        "code": proved.code,
        "request_sha256": proved.sha256,
        "one_time_key": proved.reply_to.fingerprint,
        "asked_by": {"user": asked.user, "host": asked.host, "operator": asked.operator, "reason": asked.reason},
        "asked_at": proved.request.asked_at.isoformat(timespec="seconds"),
        "source": manifest.source.name,
        "database": manifest.source.database,
        "backup_id": manifest.backup_id,
        "manifest_sha256": proved.manifest_sha256,
        "snapshot_at": manifest.snapshot.taken_at.isoformat(timespec="seconds"),
        "artifacts": [{"name": each.name, "size": each.size} for each in manifest.artifacts],
        "recipients": list(manifest.recipients),
        "signed_by": proved.signed_by,
        "signed_at": proved.signed_at.isoformat(timespec="seconds"),
        "not_proved": list(_NOT_PROVED),
    }


def _tell_request(out: Path, key_file: Path, code: str, backup_id: str, on_disk: bool) -> None:
    click.echo(printable(f"asks for the session keys of {backup_id}"))
    click.echo(printable(f"  {out}  →  to the custodian of an operations or escrow key; it holds no secret"))
    click.echo(printable(f"  {key_file}  →  stays here, and is removed after the restore"))
    click.echo("the code, to be told to the custodian by another way: " + click.style(code, bold=True))
    if on_disk:
        click.echo(
            click.style("note: ", fg="yellow")
            + printable(f"{key_file} is not in memory: the one-time key was written to a disk.")
            + " If that is the medium that travels, remove it there and ask anew with --key-out, to a place in /dev/shm.",
            err=True,
        )


def _show(proved: Proved) -> None:
    """What is asked for: proved, said, and not proved. Its code stands above all that others wrote, and once more below it."""
    manifest, by, source = proved.manifest, proved.request.by, proved.manifest.source
    code = "the code of this request: " + click.style(proved.code, bold=True)
    click.echo(code)
    rows: list[Row] = [
        ("backup", manifest.backup_id),
        ("of", f"{source.name}: database {_quoted(source.database)}, PostgreSQL {source.server_version}"),
        ("as it was at", f"{manifest.snapshot.taken_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("artifacts", ", ".join(f"{each.name} ({shown_size(each.size)})" for each in manifest.artifacts)),
        *(("sealed to", fingerprint) for fingerprint in manifest.recipients),
        ("manifest signed by", f"{proved.signed_by} at {proved.signed_at:%Y-%m-%d %H:%M:%S} UTC"),
    ]
    table(("proved", ""), rows)
    said: list[Row] = [
        ("asked by", _quoted(by.operator or by.user)),
        ("from", f"the account {_quoted(by.user)} on the host {_quoted(by.host)}"),
        ("reason", "none was given" if by.reason is None else _quoted(by.reason)),
        ("at", f"{proved.request.asked_at:%Y-%m-%d %H:%M:%S} UTC"),
    ]
    table(("said by the request", ""), said)
    for line in _NOT_PROVED:
        click.echo(f"not proved: {line}")
    click.echo(code)


def _quoted(said: str) -> str:
    """What somebody chose, in quotes and without runs of blanks, by which it could take a line of its own in a table."""
    return '"' + re.sub(r"\s+", " ", printable(said)).replace('"', '\\"') + '"'


def _tell_release(result: dict[str, Any], *, recorded: bool) -> None:
    if not result["released"]:
        click.echo("nothing was released: give --out FILE, and --secret-key FILE or --gpg-home DIRECTORY")
        return
    click.echo(printable(f"released into {result['release']}, sealed to the one-time key of the request"))
    if not recorded:
        import json

        click.echo("there is no trail here. Keep this record:")
        click.echo(json.dumps({name: value for name, value in result.items() if name != "not_proved"}))
