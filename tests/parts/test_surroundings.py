"""The user's own settings do not reach a test."""

import pytest

pytest_plugins = ["pytester"]


def test_a_users_settings_are_gone(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "AWS_PROFILE", "AZURE_STORAGE_KEY", "GNUPGHOME", "BACKUPD_CONFIG", "BACKUPD_AZURITE"):
        monkeypatch.setenv(name, "the user's")
    pytester.makepyfile(
        """
        import os
        def test_it():
            assert [name for name, value in os.environ.items() if value == "the user's"] == ["BACKUPD_AZURITE"]
        """
    )
    ran = pytester.runpytest_inprocess("-p", "tests.parts.surroundings", "-p", "no:cacheprovider", "-p", "no:xdist")
    ran.assert_outcomes(passed=1)
