"""Clinics for the tests of rotation."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from backupd.rotation import batches
from tests.parts.postgres import Database
from tests.rotation.clinic import Clinic, clinic


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that could write nothing is followed by the next one at once."""
    monkeypatch.setattr(batches, "STALL_S", 0.0)


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
