"""A pytest plugin that plants secrets and fails any test after which one of them shows up where no secret belongs.

It looks, after each phase of every test, for every secret planted so far: in captured stdout, stderr and log, in the files a
test asked it to watch, and in the arguments of every process this one started (and, through `tests/leak_site`, of those that
backupd itself started). It never prints a secret: of a test that leaks, the captured output is withheld.
"""

import base64
import hashlib
import os
import stat
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

Secret = TypeVar("Secret", bound=bytes | str)

SHORTEST_BYTES = 8  # as many as a machine word has: see Registry
_BLOCK = 1 << 20
_ARGV_DEADLINE_S = 30.0
_LEAK_SITE = Path(__file__).parent / "leak_site"
_EVENTS = {"subprocess.Popen": 1, "os.posix_spawn": 1, "os.exec": 1, "os.system": 0}  # and where in its arguments the argv is


@dataclass(frozen=True, slots=True)
class Leak:
    """That a kind of secret was found in a place. It does not hold the secret."""

    kind: str
    where: str

    def __str__(self) -> str:
        return f"leak watch: {self.kind} in {self.where}"


class LeakError(AssertionError):
    """A planted secret was found where none belongs."""


@dataclass(slots=True)
class Registry:
    """Every secret planted in one pytest session, in each form in which it could leak, and what it is.

    So many forms come together that looking for one after another takes longer the longer a session lasts. So they are kept by
    their first 8 bytes, and of all 8 bytes in a row in some data those are looked up.
    """

    needles: dict[bytes, str] = field(default_factory=dict)
    heads: dict[int, list[bytes]] = field(default_factory=dict)
    planted: list["Planted"] = field(default_factory=list)
    argvs: list[bytes] = field(default_factory=list)

    def add(self, secret: bytes, kind: str) -> None:
        """Raises ValueError for secrets so short that they would be found everywhere."""
        if len(secret) < SHORTEST_BYTES:
            raise ValueError(f"a planted secret has at least {SHORTEST_BYTES} bytes, or it would be found everywhere")
        for form in _forms(secret):
            if form not in self.needles:
                self.heads.setdefault(_words(form[:SHORTEST_BYTES])[0], []).append(form)
            self.needles[form] = kind

    def search(self, data: bytes, where: str) -> list[Leak]:
        heads = {head for start in range(SHORTEST_BYTES) for head in self.heads.keys() & _words(data[start:])}
        forms = (form for head in heads for form in self.heads[head])
        return [Leak(kind, where) for kind in sorted({self.needles[form] for form in forms if form in data})]

    def search_file(self, path: Path, where: str) -> list[Leak]:
        """Like `search`, in constant memory."""
        overlap = max(map(len, self.needles), default=1) - 1
        found: set[Leak] = set()
        tail = b""
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                found.update(self.search(tail + block, where))
                tail = (tail + block)[-overlap:] if overlap else b""
        return sorted(found, key=str)


class Planted:
    """What a test plants, and what it asks to be watched. The same test plants the same secrets in every run."""

    def __init__(self, registry: Registry, origin: str, directory: Path) -> None:
        self._registry = registry
        self._origin = origin
        self._count = 0
        self.paths: list[Path] = []
        self.child_argvs = directory / "argv"

    def seed(self) -> str:
        """A TOTP secret: 20 bytes as 32 characters of base32 (RFC 4648), without padding."""
        raw = self._bytes(20)
        text = base64.b32encode(raw).decode()
        for form in (raw, text.encode(), text.lower().encode()):
            self._registry.add(form, "TOTP seed")
        return text

    def key(self) -> bytes:
        """A key of 32 bytes."""
        raw = self._bytes(32)
        self._registry.add(raw, "key")
        return raw

    def passphrase(self) -> str:
        """29 characters: lower-case letters, digits and hyphens."""
        letters = base64.b32encode(self._bytes(15)).decode().lower()
        return self.register("-".join(letters[at : at + 4] for at in range(0, 24, 4)), "passphrase")

    def password(self) -> str:
        """24 hexadecimal digits: no form of quoting changes them."""
        return self.register(self._bytes(12).hex(), "password")

    def register(self, secret: Secret, kind: str = "secret") -> Secret:
        """Watch for a secret of the test's own, of at least 8 bytes, and return it."""
        self._registry.add(secret.encode() if isinstance(secret, str) else secret, kind)
        return secret

    def watch(self, path: Path) -> Path:
        """Look into this file, or into every file below this directory, when the test's body ends. It must exist by then."""
        self.paths.append(path)
        return path

    def child_environment(self) -> dict[str, str]:
        """Variables for a Python child whose own children's arguments shall be watched too."""
        inherited = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        path = os.pathsep.join([str(_LEAK_SITE), *inherited])
        return {"PYTHONPATH": path, "BACKUPD_LEAK_WATCH": str(self.child_argvs)}

    def assert_absent(self, data: bytes | str, where: str) -> None:
        """Raises LeakError when a secret is in `data`: for output that a test read itself, which is then not captured."""
        _refuse(self._registry.search(_encode(data), where))

    def assert_not_in_argv(self, pid: int) -> None:
        """Raises LeakError when a secret is in the arguments of a running process, or when it has ended."""
        _refuse(self._registry.search(_argv_of(pid), f"the arguments of process {pid}"))

    def _bytes(self, count: int) -> bytes:
        self._count += 1
        return hashlib.shake_256(f"{self._origin} {self._count}".encode()).digest(count)


# ---------------------------------------------------------------------------------------------------------------- searching


def _forms(secret: bytes) -> Iterator[bytes]:
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    yield base64.b64encode(secret).rstrip(b"=")
    yield base64.urlsafe_b64encode(secret).rstrip(b"=")
    yield repr(secret)[2:-1].encode()


def _words(data: bytes) -> memoryview:
    """Each 8 bytes of it as one number, without those at the end that are fewer."""
    return memoryview(data)[: len(data) // SHORTEST_BYTES * SHORTEST_BYTES].cast("Q")


def _encode(data: bytes | str) -> bytes:
    return data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape")


def _refuse(leaks: list[Leak]) -> None:
    if leaks:
        raise LeakError("; ".join(map(str, leaks)))


def _leaks_in_argvs(registry: Registry, argvs: Iterable[bytes]) -> Iterator[Leak]:
    for argv in argvs:
        program = Path(os.fsdecode(argv.split(b"\0")[0])).name
        where = "a process's name" if registry.search(_encode(program), "") else f"the arguments of {program}"
        yield from registry.search(argv, where)


def _leaks_in_paths(registry: Registry, path: Path) -> Iterator[Leak]:
    if not path.exists():
        yield Leak("nothing to watch", f"{path.name}, which is not there")
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        try:
            if stat.S_ISREG(file.lstat().st_mode):
                yield from registry.search_file(file, f"file {file.name}")
        except FileNotFoundError:
            continue  # a server that still runs may remove its own files while we look


def _argv_of(pid: int) -> bytes:
    """A running process's arguments. The kernel shows none for a moment within exec, after Popen has returned already."""
    deadline = time.monotonic() + _ARGV_DEADLINE_S
    while time.monotonic() < deadline:
        if argv := Path(f"/proc/{pid}/cmdline").read_bytes():
            return argv
        time.sleep(0.01)
    raise LeakError(f"leak watch: process {pid} shows no arguments; it has ended")


def _child_argvs(planted: Planted) -> list[bytes]:
    if not planted.child_argvs.exists():
        return []
    return [bytes.fromhex(line) for line in planted.child_argvs.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------------ process starts

_recording: list[Registry] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    where = _EVENTS.get(event)
    if where is None or not _recording:
        return
    argv = arguments[where]
    parts = [argv] if isinstance(argv, str | bytes | os.PathLike) else list(argv)
    joined = b"\0".join(os.fsencode(part) for part in parts)
    for registry in _recording:
        registry.argvs.append(joined)


sys.addaudithook(_audit)  # for the life of this process, there is no way to take it back; hence once, on import

# ------------------------------------------------------------------------------------------------------------------- plugin

_registry_key = pytest.StashKey[Registry]()
_known_key = pytest.StashKey[set[Leak]]()


def pytest_configure(config: pytest.Config) -> None:
    registry = Registry()
    config.stash[_registry_key] = registry
    _recording.append(registry)


def pytest_unconfigure(config: pytest.Config) -> None:
    _recording.remove(config.stash[_registry_key])


@pytest.fixture
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    """Secrets for one test; every test after it is watched for them too."""
    yield from _plant(request, tmp_path_factory, request.node.nodeid)


@pytest.fixture(scope="module")
def planted_for_module(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    """The same, for the fixtures of a whole module; what it watches is looked at after each of the module's tests."""
    yield from _plant(request, tmp_path_factory, request.node.nodeid)


def _plant(request: pytest.FixtureRequest, factory: pytest.TempPathFactory, origin: str) -> Iterator[Planted]:
    registry = request.config.stash[_registry_key]
    planted = Planted(registry, origin, factory.mktemp("leak-watch"))
    registry.planted.append(planted)
    yield planted
    registry.planted.remove(planted)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    registry = item.config.stash[_registry_key]
    argvs = list(registry.argvs)
    registry.argvs.clear()
    if not registry.needles:
        return report
    in_output = [leak for name, text in report.sections for leak in registry.search(_encode(text), name)]
    leaks = {*in_output, *_leaks_in_argvs(registry, argvs)}
    if report.when == "call":  # the files are still there: fixtures have not ended yet
        for planted in registry.planted:
            leaks.update(_leaks_in_argvs(registry, _child_argvs(planted)))
            for path in planted.paths:
                leaks.update(_leaks_in_paths(registry, path))
    if in_output:
        report.sections = [("leak watch", "captured output is withheld: it holds a secret")]
    known = item.stash.setdefault(_known_key, set())
    fresh = sorted(map(str, leaks - known))
    known |= leaks
    if fresh:
        message = "\n".join(fresh)
        if report.failed:
            report.sections.append(("leak watch", message))
        else:
            report.outcome = "failed"
            report.longrepr = message
    return report
