"""Secrets as systemd credentials."""

from pathlib import Path

import pytest

from backupd.custody import SecretRef, file_of, open_custodian
from backupd.custody.credential import Credential
from backupd.custody.file import PrivateFile
from backupd.errors import ConfigError, SecretUnavailable
from tests.custody.contract import Place, TextPlaceContract
from tests.custody.test_file import keep


@pytest.fixture
def place(tmp_path: Path) -> Place:
    path = tmp_path / "signing-key.asc"
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    return Place(
        keep=lambda data: keep(path, data, 0o600),
        lose=lambda: path.unlink(missing_ok=True),
        open=lambda field: open_custodian(SecretRef("credential", "signing-key.asc", field), environ),
    )


class TestCredential(TextPlaceContract):
    """A credential keeps the contract."""


def test_the_locator_is_the_same_wherever_systemd_puts_the_directory() -> None:
    first, second = (Credential("key", {"CREDENTIALS_DIRECTORY": f"/run/credentials/{unit}"}) for unit in "ab")
    assert first.locator == second.locator == "credential:key"


def test_the_file_of_a_credential_is_known_by_its_other_name_too(tmp_path: Path) -> None:
    keep(tmp_path / "key")
    found = file_of(Credential("key", {"CREDENTIALS_DIRECTORY": str(tmp_path)}))
    assert found == file_of(PrivateFile(str(tmp_path / "key")))
    assert found is not None
    for environ in ({}, {"CREDENTIALS_DIRECTORY": str(tmp_path / "none")}):
        assert file_of(Credential("key", environ)) is None


@pytest.mark.parametrize("environ", [{}, {"CREDENTIALS_DIRECTORY": ""}])
def test_outside_of_a_unit_it_is_said_what_is_missing(environ: dict[str, str]) -> None:
    with pytest.raises(SecretUnavailable, match="CREDENTIALS_DIRECTORY is not set"):
        Credential("key", environ).fetch()


@pytest.mark.parametrize("directory", ["/nonexistent/credentials", "relative"])
def test_a_directory_that_is_not_there_holds_no_credential(directory: str) -> None:
    with pytest.raises(SecretUnavailable, match="not among this unit's credentials") as caught:
        Credential("key", {"CREDENTIALS_DIRECTORY": directory}).fetch()
    assert caught.value.hint == "add LoadCredential=key:PATH to the unit"


def test_a_credential_that_others_may_read_is_refused(tmp_path: Path) -> None:
    keep(tmp_path / "key", mode=0o644)
    with pytest.raises(SecretUnavailable, match="open to others"):
        Credential("key", {"CREDENTIALS_DIRECTORY": str(tmp_path)}).fetch()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/shadow", "../key", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not the name of a credential"):
        Credential(name, {"CREDENTIALS_DIRECTORY": "/run/credentials/backupd"})
