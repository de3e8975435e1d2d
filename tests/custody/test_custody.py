"""The table of custodians."""

import pytest

from backupd.custody import KINDS, SecretRef, keeper, open_custodian
from backupd.errors import ConfigError


@pytest.mark.parametrize(
    ("reference", "locator"),
    [
        (SecretRef("file", "/etc/backupd/keyring.json"), "file:/etc/backupd/keyring.json"),
        (SecretRef("file", "/etc/backupd/keyring.json", "clinic"), "file:/etc/backupd/keyring.json#clinic"),
        (SecretRef("env", "KEYRING"), "env:KEYRING"),
        (SecretRef("credential", "signing-key.asc"), "credential:signing-key.asc"),
    ],
)
def test_each_kind_has_its_locator(reference: SecretRef, locator: str) -> None:
    assert open_custodian(reference, {}).locator == locator


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no custodian of the kind 'floppy'") as caught:
        open_custodian(SecretRef("floppy", "a:"), {})
    assert all(kind in str(caught.value.hint) for kind in KINDS)


def test_a_field_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no name"):
        open_custodian(SecretRef("env", "KEYRING", ""), {})


@pytest.mark.parametrize("field", [None, "seed"])
@pytest.mark.parametrize("kind", ["env", "credential"])
def test_a_place_that_only_others_can_write_has_no_keeper(kind: str, field: str | None) -> None:
    with pytest.raises(ConfigError, match=f"cannot write to {kind}:SEED") as caught:
        keeper(open_custodian(SecretRef(kind, "SEED", field), {}))
    assert "by hand" in str(caught.value.hint)
