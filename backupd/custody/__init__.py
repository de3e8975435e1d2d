"""Where secrets are kept, and how they are fetched: never configured by value, always by reference.

A custodian is one place. `locator` names the secret without telling it, so that it can be compared, recorded and printed.
"""

from __future__ import annotations

from typing import Protocol

from backupd.redact import Secret


class Custodian(Protocol):
    """One secret in one place. Every implementation passes `tests/custody/contract.py`."""

    @property
    def locator(self) -> str:
        """The place as a URL-like text, the same for the same secret: `file:/etc/backupd/keyring.json`, `credential:signing-key.asc`."""

    def fetch(self) -> Secret:
        """The secret's bytes as they are kept there (a file's trailing newline is part of the file, not of a password:
        `Secret.text()` strips one). Raises SecretUnavailable, which says why without the value."""
