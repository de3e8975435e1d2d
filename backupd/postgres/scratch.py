"""A private PostgreSQL cluster that lives for the length of a drill, in memory if there is room, and then is gone.

Owns its making, its process and its end. It listens on a unix socket alone, in a directory that only its own user and root may
enter, behind a random password, and runs as an unprivileged user, as PostgreSQL demands. That is another than ours if we are
root: what is restored brings code of its own, and code that runs as us can read our keys. So the cluster's directory is ours,
and two in it are that user's, for data and socket; we write into neither, for a name in them may lead anywhere. What such code
leaves running is ended with the server. What a killed backupd left is found by its lock: the owner holds a flock on the
cluster's directory, and the kernel lets go of that with the owner's death.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import secrets
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from psycopg import sql
from psycopg.conninfo import make_conninfo

from backupd.errors import CouldNotVerify, ProcessFailed, SourceError
from backupd.pipeline import Command, run
from backupd.postgres import orphans
from backupd.postgres.clients import Clients
from backupd.postgres.dsn import Dsn
from backupd.postgres.session import Connection, connect, translated
from backupd.redact import Secret, printable, scrub

MEMORY = Path("/dev/shm")  # noqa: S108  # tmpfs on purpose: what is restored must not reach a disk
SUPERUSER = "backupd_scratch"  # no name of a source's role, which are all made anew in here

OWN_ACCOUNT = "backupd-scratch"
# Whom the server runs as when we are root. Never `postgres`: what is restored brings code, and a live server's files are that
# account's.
ACCOUNTS = (OWN_ACCOUNT, "nobody")
SHARED_ACCOUNT = "code of the database ran as backupd's own account and could have read its keys: run drills as root"

_PREFIX = "bd-scratch-"
_ROOM_FACTOR = 3  # a restored database beside its indices, its sorting and its WAL, as a multiple of the source's size
_ROOM_BASE = 60 << 20  # an empty cluster and its WAL, in bytes; less than the 64 MiB that containers have as /dev/shm
_SOCKET_PATH_LIMIT = 107  # bytes; sun_path of unix(7)
_STOP_S = 15.0
_POLL_S = 0.02

# It holds a copy that may be lost at any moment: nothing needs to survive a crash. WAL is kept small, because it is memory.
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "32MB",
    "min_wal_size": "2MB",
    "autovacuum": "off",
    "archive_mode": "off",
    "shared_buffers": "64MB",
    "maintenance_work_mem": "128MB",
    "max_connections": "20",
    "dynamic_shared_memory_type": "mmap",  # in the cluster's own directory, so that a kill leaves nothing elsewhere
    "log_statement": "none",
    "log_min_error_statement": "panic",  # a statement may hold rows
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class ScratchCluster:
    """A context manager: inside the block there is a server, after it neither process nor file.

    It lies in `memory`, a tmpfs, if there is room for three times `expected_bytes`, else in `directory`. Entering raises
    CouldNotVerify when there is room in neither, or when the server does not start within `deadline_s` seconds. The thread that
    enters must live as long as the block: the server is tied to it.
    """

    def __init__(
        self,
        clients: Clients,
        directory: Path | None = None,
        *,
        expected_bytes: int = 0,
        deadline_s: float = 120,
        memory: Path = MEMORY,
    ) -> None:
        self._clients = clients
        self._fallback = directory
        self._memory = memory
        self._needed = _ROOM_BASE + _ROOM_FACTOR * expected_bytes
        self._deadline_s = deadline_s
        self._password = Secret(secrets.token_urlsafe(24), "scratch cluster's password")
        self._user = unprivileged_user(os.geteuid())
        self._undo = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.notes: list[str] = [SHARED_ACCOUNT] if self._user is None else []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            self._start(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._undo.close()

    @property
    def directory(self) -> Path:
        """Where everything of the cluster's is, inside the block."""
        return self._directory

    @property
    def socket_directory(self) -> Path:
        """Where its socket is: the DSN's host."""
        return self._sockets

    @property
    def pid(self) -> int | None:
        """The server's process id, None when it does not run."""
        return None if self._process is None else self._process.pid

    def dsn(self, database: str = "postgres") -> Dsn:
        """The superuser's way in."""
        text = make_conninfo("", host=str(self._sockets), port=5432, user=SUPERUSER, dbname=database, sslmode="disable")
        return Dsn.parse(text, self._password)

    def create_database(self, name: str) -> Dsn:
        """A new, empty database, in UTF-8, into which dumps of every encoding fit, and the way in. Raises SourceError."""
        with self._session() as connection, translated(f"create database {printable(name)}"):
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        return self.dsn(name)

    def require_extensions(self, names: Collection[str]) -> None:
        """Raises CouldNotVerify that names the extensions of a backup which are not installed for this server."""
        with self._session() as connection, translated("list the server's extensions"):
            there = {name for (name,) in connection.execute("SELECT name::text FROM pg_available_extensions").fetchall()}
        missing = sorted(set(names) - there)
        if missing:
            raise CouldNotVerify(
                f"the scratch server ({self._clients.release}) lacks the extension {', '.join(map(printable, missing))}",
                "install the packages of these extensions on this host, or drill on a configured server",
            )

    def log(self) -> str:
        """The last lines of the server's log, free of secrets."""
        path = self._directory / "log"
        text = path.read_text(errors="replace") if path.exists() else ""
        return "\n".join(printable(line) for line in scrub(text).splitlines()[-25:])

    def _start(self, undo: contextlib.ExitStack) -> None:
        until = time.monotonic() + self._deadline_s
        place = self._place()
        leftovers(place)
        self._directory = undo.enter_context(_private_directory(place))
        programs = undo.enter_context(_reachable(self._clients, self._user))
        data = _make_for(self._user, self._directory / "data")
        self._sockets = undo.enter_context(_socket_directory(self._directory, self._user))
        try:
            self._initdb(programs, data, until)
        except ProcessFailed as error:
            raise CouldNotVerify(f"no scratch cluster could be made: {error.message}", error.hint) from error
        if self._user is not None:  # else they could not be told from gpg's
            undo.enter_context(orphans.ended(pwd.getpwnam(self._user).pw_uid))
        undo.callback(self._stop)
        self._wait_until_ready(self._serve(programs, data), until)

    def _place(self) -> Path:
        if self._memory.is_dir() and _free(self._memory) >= self._needed:
            return self._memory
        needed = f"{self._needed / 1e6:.0f} MB"
        if self._fallback is None:
            raise CouldNotVerify(
                f"a scratch cluster needs {needed}, and {self._memory} has not that much room",
                "give the drill a directory on an encrypted disk, or more memory",
            )
        if not self._fallback.is_dir() or _free(self._fallback) < self._needed:
            raise CouldNotVerify(
                f"a scratch cluster needs {needed}, and neither {self._memory} nor {self._fallback} has that much room",
                "make room",
            )
        self.notes.append(f"the scratch cluster lay in {self._fallback}, not in memory: the restored rows reached its disk")
        return self._fallback

    def _initdb(self, programs: Path, data: Path, until: float) -> None:
        password_file = self._directory / "password"
        password_file.touch(mode=0o600)
        password_file.write_bytes(self._password.reveal() + b"\n")
        if self._user is not None:
            shutil.chown(password_file, self._user)
        argv = (
            *(str(programs / "initdb"), f"--pgdata={data}", f"--username={SUPERUSER}", f"--pwfile={password_file}"),
            *("--auth-local=scram-sha-256", "--auth-host=reject", "--encoding=UTF8", "--locale=C.UTF-8"),
            *("--no-sync", "--wal-segsize=1"),
        )
        try:
            run(Command("initdb", argv, self._environment(), user=self._user), timeout_s=max(1.0, until - time.monotonic()))
        finally:
            password_file.unlink(missing_ok=True)

    def _serve(self, programs: Path, data: Path) -> subprocess.Popen[bytes]:
        """The server as a child of ours: nobody else has to keep track of it, and where setpriv is there it dies with us."""
        account = None if self._user is None else pwd.getpwnam(self._user)
        settings = _SETTINGS | {"unix_socket_directories": f'"{self._sockets}"'}
        log = self._directory / "log"
        log.touch(mode=0o600)
        with log.open("ab") as said:
            self._process = subprocess.Popen(
                [
                    *(*_dying_with_us(), str(programs / "postgres"), "-D", str(data)),
                    *(f"--{name}={value}" for name, value in settings.items()),
                ],
                cwd=self._directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,  # a terminal's Ctrl-C is for us: we end it, after what uses it
                user=None if account is None else account.pw_uid,
                group=None if account is None else account.pw_gid,
                extra_groups=None if account is None else [],
            )
        return self._process

    def _wait_until_ready(self, process: subprocess.Popen[bytes], until: float) -> None:
        last = "it did not answer"
        while time.monotonic() < until:
            if process.poll() is not None:
                raise CouldNotVerify(f"the scratch server ended while it started: {self.log().rpartition(chr(10))[2]}")
            try:
                self._session().close()
            except SourceError as error:
                last = error.message
                time.sleep(_POLL_S)
            else:
                return
        raise CouldNotVerify(
            f"the scratch server was not ready after {self._deadline_s:.0f} s: {last}", "is the host overloaded?"
        )

    def _session(self) -> Connection:
        return connect(self.dsn(), application_name="backupd scratch", autocommit=True)

    def _environment(self) -> dict[str, str]:
        return {"LC_ALL": "C", "TZ": "UTC", "HOME": str(self._directory), "PATH": os.defpath}

    def _stop(self) -> None:
        """Immediate shutdown: the postmaster ends its children and is gone; nothing has to be kept."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGQUIT)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def leftovers(place: Path) -> list[Path]:
    """End and remove the clusters in `place` whose owners are dead, and say which. Those of living owners are not touched."""
    removed = []
    for directory in sorted(place.glob(f"{_PREFIX}*")):
        with contextlib.suppress(OSError):  # another run may be removing it too
            # What another account made is not looked into: a name in it may lead to whatever it wants to see ended.
            if directory.lstat().st_uid != os.geteuid():
                continue
            held = _hold(directory)
            if held is None:
                continue
            try:
                _end_server(directory / "data")
                shutil.rmtree(directory, ignore_errors=True)
                removed.append(directory)
            finally:
                os.close(held)
    return removed


def _end_server(data: Path) -> None:
    """End the server whose data these are, if it runs: its working directory and its user prove that it is the one."""
    try:
        status = data.lstat()
        pid = _server_named_in(data)
        process = os.pidfd_open(pid)  # before the look: another process that gets the number later is not signalled by it
    except (OSError, ValueError):
        return
    try:
        for how in (signal.SIGQUIT, signal.SIGKILL):
            if not _is_server_of(status, pid):
                return
            signal.pidfd_send_signal(process, how)
            select.select([process], [], [], _STOP_S)
    except ProcessLookupError:
        return
    finally:
        os.close(process)


def _server_named_in(data: Path) -> int:
    """The process that the cluster's own file names. Its account wrote that: it is read only if it is a file."""
    held = os.open(data / "postmaster.pid", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return int(os.read(held, 32).partition(b"\n")[0])
    finally:
        os.close(held)


def _is_server_of(data: os.stat_result, pid: int) -> bool:
    """Whether the process has these data, which are a directory and no link, for its own, and their owner for its user."""
    try:
        here, user = Path(f"/proc/{pid}/cwd").stat(), Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return False
    return os.path.samestat(here, data) and user == data.st_uid


def _hold(directory: Path) -> int | None:
    """A descriptor that holds the directory's lock; None when another process does, or when the directory has just gone."""
    try:
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(held).st_ino == directory.lstat().st_ino:
            return held
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(held)
    return None


@contextlib.contextmanager
def _private_directory(place: Path) -> Iterator[Path]:
    """A directory of ours that others may pass through, and not look into or change; it is locked by us, and removed after."""
    held = None
    directory = place
    while held is None:  # a clean-up by another run may take a new directory for a dead one before we hold it
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        held = _hold(directory)
    try:
        directory.chmod(0o711)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(held)


def _make_for(user: str | None, directory: Path) -> Path:
    """Make a directory that only `user` and root may enter, in one that is ours."""
    directory.mkdir(mode=0o700)
    if user is not None:
        shutil.chown(directory, user)
    return directory


@contextlib.contextmanager
def _socket_directory(directory: Path, user: str | None) -> Iterator[Path]:
    """One in `directory`, or a short one when a socket's path in it would be too long."""
    if len(os.fsencode(directory / "socket" / ".s.PGSQL.5432")) <= _SOCKET_PATH_LIMIT:
        yield _make_for(user, directory / "socket")
        return
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as short:
        Path(short).chmod(0o711)
        yield _make_for(user, Path(short) / "socket")


@contextlib.contextmanager
def _reachable(clients: Clients, user: str | None) -> Iterator[Path]:
    """The directory of the programs, or of a copy where `user` can run them: a checkout below /root is closed to everyone else.

    Raises CouldNotVerify when they run from nowhere.
    """
    if _runs(clients.directory, user):
        yield clients.directory
        return
    with tempfile.TemporaryDirectory(prefix="bd-programs-", ignore_cleanup_errors=True) as directory:
        copy = Path(directory) / "installation"
        shutil.copytree(clients.directory.parent, copy, symlinks=True)
        for path in (copy, *copy.rglob("*"), Path(directory)):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | (0o555 if mode & 0o100 else 0o444))
        if not _runs(copy / clients.directory.name, user):
            raise CouldNotVerify(
                f"{user or 'this user'} cannot run the programs in {clients.directory}, nor a copy in {directory}",
                "install PostgreSQL's server where everyone may run it, or mount the temporary directory without noexec",
            )
        yield copy / clients.directory.name


def _runs(directory: Path, user: str | None) -> bool:
    command = Command("postgres", (str(directory / "postgres"), "--version"), {"LC_ALL": "C"}, user=user)
    try:
        run(command, timeout_s=60)
    except ProcessFailed:
        return False
    return True


def unprivileged_user(ours: int) -> str | None:
    """Whom the server runs as, for it refuses root; None when we, user id `ours`, are not root, and it shares our account.

    Raises CouldNotVerify when this host has none of the accounts.
    """
    if ours != 0:
        return None
    for name in ACCOUNTS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise CouldNotVerify("this host has no account to run a scratch server as", "create a user `backupd-scratch`")


def _dying_with_us() -> tuple[str, ...]:
    """util-linux's setpriv, which every Debian has, makes the kernel end the server with us; elsewhere `leftovers` finds it.

    And no set-uid program makes anybody else of it.
    """
    program = shutil.which("setpriv", path=os.defpath + ":/usr/local/bin")
    return () if program is None else (program, "--no-new-privs", "--pdeathsig", "QUIT")


def _free(directory: Path) -> int:
    return shutil.disk_usage(directory).free
