"""Secrets in environment variables: for containers whose platform knows no better. Never sets one.

Every process of the same user can read them in /proc, and children inherit them; `check` warns of their use.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from backupd.errors import ConfigError, SecretUnavailable
from backupd.redact import Secret


@dataclass(frozen=True, slots=True)
class EnvironmentVariable:
    """One variable of the environment that the caller gives."""

    name: str
    environ: Mapping[str, str] = field(repr=False)  # it is full of secrets

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.name):
            raise ConfigError(f"not the name of an environment variable: {self.name!r}", "use letters, digits and underscores")

    @property
    def locator(self) -> str:
        return f"env:{self.name}"

    def fetch(self) -> Secret:
        """The variable's value. Raises SecretUnavailable when it is not set, or empty."""
        value = self.environ.get(self.name)
        if value is None:
            raise SecretUnavailable(f"{self.locator} is not set", f"set the environment variable {self.name} for backupd")
        if not value.strip():
            raise SecretUnavailable(f"{self.locator} is empty", f"give the environment variable {self.name} its value")
        return Secret(os.fsencode(value), self.locator)
