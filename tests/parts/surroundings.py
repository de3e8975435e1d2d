"""A pytest plugin that takes the user's own settings away from a test run, so that they cannot decide a test.

It removes variables by which the PostgreSQL, AWS, Azure, Vault, gpg and systemd libraries are steered. It leaves HOME alone:
git reads from there whom it trusts with this checkout.
"""

import os

_FAMILIES = ("PG", "AWS_", "AZURE_", "VAULT_", "BAO_", "BACKUPD_")
_SINGLE = {"GNUPGHOME", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY", "INVOCATION_ID"}
_KEPT = {"BACKUPD_AZURITE"}  # where a developer has the Azure server of the tests


def is_foreign(name: str) -> bool:
    """Whether a variable could change what a test sees."""
    return name not in _KEPT and (name.startswith(_FAMILIES) or name in _SINGLE)


def pytest_configure() -> None:
    for name in filter(is_foreign, list(os.environ)):
        del os.environ[name]
