"""Secrets as systemd credentials: `LoadCredential=` or `LoadCredentialEncrypted=` in the unit, a file on a tmpfs for us.

See systemd.exec(5), "Credentials". Never decrypts one itself: systemd has done it, bound to the TPM or the host's key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backupd.custody.file import FileId, file_at, read_private
from backupd.errors import ConfigError, SecretUnavailable
from backupd.redact import Secret

DIRECTORY = "CREDENTIALS_DIRECTORY"


@dataclass(frozen=True, slots=True)
class Credential:
    """One credential of the unit that we run in."""

    name: str
    environ: Mapping[str, str] = field(repr=False)

    def __post_init__(self) -> None:
        if "/" in self.name or "\0" in self.name or self.name in ("", ".", ".."):
            raise ConfigError(
                f"not the name of a credential: {self.name!r}", "use the name before the colon in LoadCredential="
            )

    @property
    def locator(self) -> str:
        return f"credential:{self.name}"

    @property
    def file(self) -> FileId | None:
        """The file that systemd put it into; None outside of such a unit."""
        directory = self.environ.get(DIRECTORY, "")
        return file_at(str(Path(directory) / self.name)) if directory else None

    def fetch(self) -> Secret:
        """The credential's bytes. Raises SecretUnavailable: no unit, no such credential, and what a file may lack."""
        directory = self.environ.get(DIRECTORY, "")
        if not directory:
            raise SecretUnavailable(
                f"{self.locator} is not there: {DIRECTORY} is not set",
                "run backupd as a systemd unit, or refer to the secret as a file",
            )
        path = Path(directory) / self.name
        if not path.is_absolute() or not os.access(path, os.F_OK):
            raise SecretUnavailable(
                f"{self.locator} is not among this unit's credentials", f"add LoadCredential={self.name}:PATH to the unit"
            )
        return read_private(str(path), self.locator)
