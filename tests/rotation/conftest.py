"""Clinics for the tests of rotation."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.postgres import Database
from tests.rotation.clinic import Clinic, clinic


@pytest.fixture
def sealed(database17: Database, tmp_path: Path) -> Iterator[Clinic]:
    """A clinic whose secrets are encrypted under its first key."""
    with clinic(database17, tmp_path) as made:
        made.enrol(sealed=True)
        yield made


@pytest.fixture
def in_clear(database17: Database, tmp_path: Path) -> Iterator[Clinic]:
    """A clinic whose secrets are in clear in VARCHAR(64), and that has no encrypted column yet."""
    with clinic(database17, tmp_path, sealed_column=False) as made:
        made.enrol(sealed=False)
        yield made
