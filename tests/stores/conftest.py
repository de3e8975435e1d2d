"""What the stores' tests share: nothing of the user's AWS or Azure set-up may reach them."""

import os
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.stores.contract", "tests.stores.network")


@pytest.fixture(autouse=True)
def no_cloud_set_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment in which the SDKs find no credentials, endpoints, regions, profiles or proxies, and look for none."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "BOTO_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
