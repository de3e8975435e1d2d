"""Installations for the command line's tests: one that is only read, with two backups in it, and a fresh one for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.installation import Installation, Secrets, installed, plant
from tests.leak_watch import Planted
from tests.parts.postgres import PostgresServer


@pytest.fixture(scope="module")
def secrets(planted_for_module: Planted) -> Secrets:
    """What is secret in this module's installations; every run's output and arguments are searched for it."""
    return plant(planted_for_module)


@pytest.fixture
def clinic(tmp_path: Path, postgres17: PostgresServer, secrets: Secrets) -> Iterator[Installation]:
    """An installation of its own for one test, without a backup."""
    with installed(tmp_path, postgres17, secrets) as installation:
        yield installation


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory: pytest.TempPathFactory, postgres17: PostgresServer, secrets: Secrets) -> Iterator[Installation]:
    """An installation with two backups, for tests that change nothing but its trail."""
    with installed(tmp_path_factory.mktemp("lived-in"), postgres17, secrets) as installation:
        installation.back_up()
        installation.back_up()
        yield installation
