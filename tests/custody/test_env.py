"""Secrets in environment variables."""

import pytest

from backupd.custody import SecretRef, open_custodian
from backupd.custody.env import EnvironmentVariable
from backupd.errors import ConfigError, SecretUnavailable
from tests.custody.contract import Place, TextPlaceContract


@pytest.fixture
def place() -> Place:
    environ: dict[str, str] = {"OTHER": "x"}
    return Place(
        keep=lambda data: environ.update(SECRET=data.decode()),
        lose=environ.clear,
        open=lambda field: open_custodian(SecretRef("env", "SECRET", field), environ),
    )


class TestEnvironmentVariable(TextPlaceContract):
    """A variable keeps the contract."""


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(SecretUnavailable, match="env:SEED is not set") as caught:
        EnvironmentVariable("SEED", {}).fetch()
    assert "SEED" in str(caught.value.hint)


def test_bytes_that_are_no_utf8_survive() -> None:
    assert EnvironmentVariable("SEED", {"SEED": "\udcff\udc80"}).fetch().reveal() == b"\xff\x80"


def test_the_environment_is_not_shown() -> None:
    assert "hunter2" not in repr(EnvironmentVariable("SEED", {"OTHER": "hunter2"}))


@pytest.mark.parametrize("name", ["", "A B", "A=B", "1A", "$A", "Ä"])
def test_a_name_that_no_variable_has_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not the name of an environment variable"):
        EnvironmentVariable(name, {})
