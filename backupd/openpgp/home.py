"""A private GNUPGHOME: in memory, mode 0700, gone with its agent when it is closed, and blind to the user's own gpg set-up.

Owns how gpg is called and what it says (status lines, colon listings). Never asks for a passphrase, never opens a network
connection, never looks at a smart card. A signal does not keep a home from being removed, and one whose process was killed is
removed by the next `Home` beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from backupd import interrupts
from backupd.errors import BackupdError, ConfigError, KeyUnusable, ProcessFailed, Refused
from backupd.openpgp import agent
from backupd.pipeline import Command, Completed, run

if TYPE_CHECKING:
    from backupd.redact import Secret

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 — the one place that is in memory on every Linux; what is made in it is 0700
# For calls that use keys. Not for those that read them: without a trust database gpg 2.2.40 gives up on a revoked key.
TRUSTING = ("--trust-model", "always")
_ROOM_BYTES = 256 << 10  # of a home with a few keys; without it gpg says of each key that it is none
KEY_FILE_BYTES = 1 << 20  # no key of use is larger; what is larger was made to be slow
CALL_TIMEOUT_S = 120.0  # of one short call; a busy machine may take its time, a stuck gpg may not have for ever
SOCKET_NAME_BYTES = 106  # sun_path has 108 with its NUL, unix(7); gpg-agent does not start with one byte less than that
FINGERPRINT = re.compile(r"[0-9A-F]{40}")  # version 4, RFC 4880 section 12.2
KEYGRIP = "keygrip "
_PREFIX = "backupd-gpg-"
_LONGEST_SOCKET = "/S.gpg-agent.browser"


@dataclass(frozen=True, slots=True)
class Status:
    """One line of gpg's machine-readable report: `[GNUPG:] KEYWORD arguments`."""

    keyword: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a `--with-colons` listing; `field(1)` is the kind of record, as GnuPG's doc/DETAILS counts."""

    fields: tuple[str, ...]

    def field(self, number: int) -> str:
        return self.fields[number - 1] if number <= len(self.fields) else ""

    @property
    def kind(self) -> str:
        return self.fields[0]


class Home:
    """A private GNUPGHOME; a context manager, and `close` may be called twice.

    It lies under `directory`, or else in shared memory. Where there is none, it lies in the temporary directory and refuses
    secret keys: only a caller who names a directory may have them on a disk.
    """

    def __init__(self, gpg: str = "gpg", *, directory: Path | None = None, shared_memory: Path = SHARED_MEMORY) -> None:
        """Raises ConfigError: no such program, or a directory that cannot serve. Raises BackupdError when there is no room."""
        self._gpg = _program(gpg)
        self._shared_memory = shared_memory
        base = directory if directory is not None else _default_base(shared_memory)
        if len(os.fsencode(base)) + len(f"/{_PREFIX}01234567{_LONGEST_SOCKET}") > SOCKET_NAME_BYTES:
            raise ConfigError(
                f"the path {base} is too long for the sockets of gpg-agent", "name a directory with a shorter path"
            )
        self._secrets_welcome = directory is not None or in_memory(base)
        self._closed = False
        self._closing = threading.RLock()
        try:
            _sweep(base, self._gpg)
            if shutil.disk_usage(base).free < _ROOM_BYTES:
                raise BackupdError(f"{base} is full", "gpg's keys and agent need room there: see what fills it")
            with interrupts.held():
                self.path, self._lock = _create(base)
                interrupts.owe(self.close)
        except OSError as error:
            raise ConfigError(
                f"no private directory can be made under {base}: {error.strerror}", "is it writable, has it room?"
            ) from error
        # Without this, gpg-agent starts scdaemon, which talks to the smart cards of whoever is logged in.
        (self.path / "gpg-agent.conf").write_text("disable-scdaemon\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the agent, remove the directory; a signal waits until that is done.

        Raises BackupdError when the directory, which may hold keys, cannot be removed. Then it may be called again.
        """
        with interrupts.held(), self._closing:
            if self._closed:
                return
            _dispose(self.path, self._gpg)
            self._closed = True
            os.close(self._lock)
            interrupts.paid(self.close)

    def options(self) -> tuple[str, ...]:
        """What every call of gpg gets. `--no-options`: a user's gpg.conf would change everything."""
        return (
            *("--no-options", "--batch", "--no-tty", "--homedir", str(self.path)),
            *("--no-auto-key-locate", "--no-auto-key-retrieve", "--disable-dirmngr"),
            *("--pinentry-mode", "error", "--no-auto-check-trustdb"),
            *("--exit-on-status-write-error", "--display-charset", "utf-8"),
        )

    def environment(self) -> dict[str, str]:
        """All that gpg gets: no GNUPGHOME, GPG_AGENT_INFO or home directory of the user leaks in; messages are English."""
        return agent.environment(self._gpg, self.path)

    def command(
        self, name: str, *args: str, pass_fds: tuple[int, ...] = (), extra_env: Mapping[str, str] | None = None
    ) -> Command:
        """A call of gpg in this home; `name` is for messages."""
        argv = (self._gpg, *self.options(), *args)
        return Command(name=name, argv=argv, env={**self.environment(), **(extra_env or {})}, pass_fds=pass_fds)

    def call(self, *args: str, stdin: bytes = b"") -> Completed:
        """A short call. Raises ProcessFailed."""
        return run(self.command("gpg", *args), stdin, timeout_s=CALL_TIMEOUT_S)

    def fresh(self, kind: str) -> Path:
        """A file name in this home that nobody else uses; the file is not there yet."""
        return self.path / f"{kind}-{secrets.token_hex(8)}"

    def keep(self, stem: str, data: bytes) -> Path:
        """A file that holds `data`, whole from its first moment and never changed: another gpg may be reading it right now."""
        path = self.path / f"{stem}-{hashlib.sha256(data).hexdigest()[:16]}"
        if not path.exists():
            new = self.fresh("new")
            new.write_bytes(data)
            new.replace(path)
        return path

    def show(self, key: bytes) -> tuple[Record, ...]:
        """What gpg sees in a key file, with no keyring touched; also what is not valid yet or no longer.

        Raises KeyUnusable; ProcessFailed, when gpg was not started or did not come to its own end.
        """
        if len(key) > KEY_FILE_BYTES:
            raise KeyUnusable("a key file of more than 1 MiB", "a key has some KiB: is this the right file?")
        # A key whose creation lies in the future has no valid self-signature yet, and would show no capability.
        clock = ("--ignore-time-conflict", "--ignore-valid-from")
        try:
            return colons(self.call(*clock, "--show-keys", "--with-colons", "--with-keygrip", stdin=key).stdout)
        except ProcessFailed as error:
            if error.status != 2:  # what gpg ends with when it has read something and does not like it
                raise
            said = error.stderr.rpartition("\n")[2]
            raise KeyUnusable(
                f"not an OpenPGP key that gpg can read: {said}", "export one with: gpg --armor --export FINGERPRINT"
            ) from error

    def listed(self, fingerprint: str) -> tuple[Record, ...]:
        """This home's records of one key. Raises ProcessFailed when it has none of that fingerprint."""
        return colons(self.call("--list-keys", "--with-colons", fingerprint).stdout)

    def secret_names(self, fingerprint: str) -> frozenset[str]:
        """The names, as `names` gives them, of each part of a key whose secret half is in this home. Raises ProcessFailed."""
        found: list[Record] = []
        here = False
        for record in colons(self.call("--list-secret-keys", "--with-colons", "--with-keygrip", fingerprint).stdout):
            if record.kind in {"sec", "ssb"}:
                here = record.field(15) == "+"  # `#` is a part that was left out, a number that of a card
            if here:
                found.append(record)
        return names(found)

    def import_public(self, key: bytes) -> str:
        """The fingerprint of the one public key in `key`. Raises KeyUnusable: a secret key, several, none."""
        records = self.show(key)
        if any(record.kind in {"sec", "ssb"} for record in records):
            raise KeyUnusable("this is a secret key where a public key is due", "use the file that gpg --export made")
        return self._import(key)

    def import_secret(self, key: Secret) -> str:
        """The fingerprint of the primary key.

        Raises Refused outside memory. Raises KeyUnusable: not a secret key, several keys, a passphrase on it.
        """
        self.require_secrecy()
        before = self._protected_grips()
        records = self.show(key.reveal())
        if not any(record.kind == "sec" for record in records):
            raise KeyUnusable("this is not a secret key", "export one with: gpg --armor --export-secret-keys FINGERPRINT")
        fingerprint = self._import(key.reveal())
        if self._protected_grips() - before:
            raise KeyUnusable(
                f"the secret key {fingerprint} is protected by a passphrase, and nobody is here to type it",
                "remove it with gpg --passwd and let the custodian protect the key",
            )
        return fingerprint

    def require_secrecy(self) -> None:
        """Raises Refused where a secret key would come to lie on a disk that nobody named."""
        if not self._secrets_welcome:
            where = self._shared_memory
            why = "is not writable" if where.is_dir() and in_memory(where) else "is no tmpfs"
            raise Refused(
                f"a secret key would lie on a disk under {self.path.parent}: {where} {why}",
                f"mount {where} as a writable tmpfs",
            )

    def gnupg(self) -> Any:
        """python-gnupg at work in this home. Not for secret keys: it logs the first bytes of what it imports and exports."""
        import gnupg

        return gnupg.GPG(
            gpgbinary=self._gpg,
            gnupghome=str(self.path),
            options=list(self.options()),
            env=self.environment(),
            encoding="utf-8",
        )

    def _import(self, key: bytes) -> str:
        report = self.fresh("status")
        try:
            self.call("--status-file", str(report), "--import", stdin=key)
        except ProcessFailed as error:
            raise KeyUnusable("gpg does not take this key", "was it cut short?") from error
        found = {status.arguments[1] for status in statuses(report) if status.keyword == "IMPORT_OK"}
        report.unlink(missing_ok=True)
        if len(found) != 1:
            raise KeyUnusable(f"{len(found)} keys in one file", "one file holds one key")
        return found.pop()

    def _protected_grips(self) -> frozenset[str]:
        """Keygrips of the agent's keys that need a passphrase (`P` in the KEYINFO of doc/agent.texi; `C` is clear)."""
        answer = agent.ask(self._gpg, self.path, "KEYINFO --list", CALL_TIMEOUT_S)
        lines = [line.split() for line in answer.splitlines() if line.startswith("S KEYINFO ")]
        return frozenset(words[2] for words in lines if len(words) > 7 and words[7] != "C")


def version(gpg: str = "gpg") -> str:
    """The version of gpg, as `2.2.40`. Raises ConfigError: no gpg, or one before 2.2."""
    program = _program(gpg)
    command = Command("gpg", (program, "--no-options", "--version"), agent.environment(program, Path("/nonexistent")))
    first = run(command, timeout_s=CALL_TIMEOUT_S).stdout.decode(errors="replace").partition("\n")[0]
    found = re.search(r"\b(\d+)\.(\d+)\.(\d+)\b", first)
    if not first.startswith("gpg ") or found is None or (int(found[1]), int(found[2])) < (2, 2):
        raise ConfigError(f"{program} is no GnuPG 2.2 or newer", "install gnupg")
    return found[0]


def in_memory(path: Path) -> bool:
    """Whether a path's file system is one that lives in memory (it may be swapped: encrypt swap, or have none)."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():  # proc_pid_mountinfo(5)
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0] in {"tmpfs", "ramfs"}
    return False


def statuses(path: Path) -> tuple[Status, ...]:
    """What gpg wrote to its status file; nothing when it never came to write one."""
    try:
        return status_lines(path.read_bytes())
    except FileNotFoundError:
        return ()


def status_lines(report: bytes) -> tuple[Status, ...]:
    """The same from what gpg wrote to a status descriptor."""
    text = report.decode(errors="replace")
    lines = [line.removeprefix("[GNUPG:] ").split(" ") for line in text.split("\n") if line.startswith("[GNUPG:] ")]
    return tuple(Status(words[0], tuple(words[1:])) for words in lines)


def colons(listing: bytes) -> tuple[Record, ...]:
    """A `--with-colons` listing, its C-style escapes (`\\x3a`) undone."""
    lines = [line for line in listing.decode(errors="replace").split("\n") if line]
    return tuple(Record(tuple(_unescape(field) for field in line.split(":"))) for line in lines)


def names(records: Iterable[Record]) -> frozenset[str]:
    """What the keys in a listing are known by: their fingerprints, and their keygrips, which are so called.

    A keygrip names the numbers of a key alone: it stays when another certificate adopts them, and the fingerprint need not.
    """
    marks = {"fpr": "", "grp": KEYGRIP}
    return frozenset(marks[record.kind] + record.field(10) for record in records if record.kind in marks)


def _unescape(field: str) -> str:
    return re.sub(r"\\x([0-9a-fA-F]{2})", lambda found: chr(int(found[1], 16)), field)


def _program(gpg: str) -> str:
    found = shutil.which(gpg)
    if found is None:
        raise ConfigError(f"the program {gpg} is not installed", "install gnupg")
    return str(Path(found).absolute())


def _default_base(shared_memory: Path) -> Path:
    if shared_memory.is_dir() and os.access(shared_memory, os.W_OK | os.X_OK) and in_memory(shared_memory):
        return shared_memory
    return Path(tempfile.gettempdir())


def _create(base: Path) -> tuple[Path, int]:
    """A new home and the lock that says it is in use. It takes its final name, which sweepers look for, once it is locked."""
    new = Path(tempfile.mkdtemp(prefix="backupd-new-", dir=base))  # mode 0700
    try:
        lock = os.open(new / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path = base / f"{_PREFIX}{secrets.token_hex(4)}"
            new.rename(path)
        except OSError:
            os.close(lock)
            raise
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return path, lock


def _sweep(base: Path, gpg: str) -> None:
    """Remove our homes whose process died without closing them: they may hold secret keys."""
    for path in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, BackupdError), _abandoned(path) as abandoned:
            if abandoned:
                with interrupts.held():
                    _dispose(path, gpg)


@contextlib.contextmanager
def _abandoned(path: Path) -> Iterator[bool]:
    if path.is_symlink() or path.stat().st_uid != os.geteuid():
        yield False
        return
    # Made again where it is not there: a process that was killed while it removed its home may have removed the lock first.
    lock = os.open(path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(lock)


def _dispose(path: Path, gpg: str) -> None:
    for _ in range(3):  # a gpg that is just being ended may still write its last file, or have started an agent
        with contextlib.suppress(ProcessFailed, OSError):
            agent.end(gpg, path)
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists() and not agent.running(path):
            return
    raise BackupdError(f"the private directory {path} could not be removed", "remove it by hand: it may hold keys")
