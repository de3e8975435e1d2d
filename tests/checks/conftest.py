"""The clinic of every test of checks: its database, a connection to it, and a sealed backup, whose key is made once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from backupd.checks import Sealed
from backupd.postgres.session import Connection
from tests.checks.clinic import Clinic, Safe, build, safe
from tests.parts.postgres import Database, PostgresServer


@pytest.fixture(scope="session")
def safe_of_all_tests() -> Iterator[Safe]:
    with safe() as made:
        yield made


@pytest.fixture
def sealed(safe_of_all_tests: Safe, tmp_path: Path) -> Sealed:
    return safe_of_all_tests.sealed(tmp_path)


@pytest.fixture
def clinic(database17: Database, tmp_path: Path) -> Clinic:
    return build(database17, tmp_path)


@pytest.fixture(scope="session")
def clinic_of_all_tests(postgres17: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    name = postgres17.create_database()
    yield build(Database(postgres17, name), tmp_path_factory.mktemp("clinic"))
    postgres17.drop_database(name)


@pytest.fixture
def untouched(clinic_of_all_tests: Clinic, tmp_path: Path) -> Clinic:
    """One that tests share: nothing in its database may be changed. The files of its secrets are each test's own."""
    return replace(clinic_of_all_tests, directory=tmp_path, random=Random(1))


@pytest.fixture
def steady(untouched: Clinic) -> Iterator[Connection]:
    """A connection to the clinic that tests share."""
    with untouched.database.connect() as made:
        yield made


@pytest.fixture
def connection(clinic: Clinic) -> Iterator[Connection]:
    with clinic.database.connect() as made:
        yield made
