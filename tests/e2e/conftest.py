"""What the end-to-end tests share."""

import pytest

from tests.e2e.rig import Pairs


@pytest.fixture(scope="session")
def pairs() -> Pairs:
    """One set of keys for all: making them is no part of any of these tests."""
    return Pairs.generate()
