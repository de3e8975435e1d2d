"""Real servers with a small zoo in each, and the installed programs of both majors."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from backupd.postgres import clients, session
from backupd.postgres.clients import Clients
from backupd.postgres.dsn import Dsn
from tests.parts.postgres import PostgresServer, postgres_bin
from tests.postgres import zoo


@dataclass(frozen=True, slots=True)
class Housed:
    """A zoo and the database that it is in."""

    server: PostgresServer
    database: str
    animals: zoo.Zoo

    @property
    def dsn(self) -> Dsn:
        return Dsn.parse(self.server.dsn(self.database))

    def release(self) -> tuple[int, int]:
        """The server's version."""
        with session.connect(self.dsn, application_name="test") as connection:
            return session.server(connection).release


@pytest.fixture(scope="session")
def programs() -> dict[int, Clients]:
    """The programs of each major, by major."""
    return {major: _of(major) for major in (15, 17)}


@pytest.fixture(scope="session")
def zoo15(postgres15: PostgresServer) -> Iterator[Housed]:
    """A zoo in PostgreSQL 15, only to be read."""
    yield from _housed(postgres15, "zoo15")


@pytest.fixture(scope="session")
def zoo17(postgres17: PostgresServer) -> Iterator[Housed]:
    """A zoo in PostgreSQL 17, only to be read."""
    yield from _housed(postgres17, "zoo17")


def _of(major: int) -> Clients:
    return next(found for found in clients.find([postgres_bin(major)]) if found.directory == postgres_bin(major))


def _housed(server: PostgresServer, name: str) -> Iterator[Housed]:
    database = server.create_database(name)
    try:
        with server.connect(database) as connection:
            animals = zoo.build(connection, tables=20, big_mb=2)
        yield Housed(server, database, animals)
    finally:
        server.drop_database(database)
        with server.connect() as connection:
            zoo.drop_roles(connection)


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """Where scratch clusters of tests lie: a short path that every account may enter, as /dev/shm is, with room everywhere."""
    with tempfile.TemporaryDirectory(prefix="bd-place-", dir="/tmp") as directory:
        Path(directory).chmod(0o1777)
        yield Path(directory)
