"""A custodian's own GNUPGHOME, with its agent, its pinentry and its smart card: for keys that no file holds.

Owns how gpg is called there. It exports no key and makes none; gpg itself may write to its own files, such as its random seed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backupd.errors import ConfigError
from backupd.pipeline import Command

# What a pinentry needs to reach the person whose key it is.
_PASSED_ON = (
    *("HOME", "PATH", "LANG", "LC_ALL", "TERM", "GPG_TTY", "DISPLAY", "XAUTHORITY", "WAYLAND_DISPLAY"),
    *("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"),
)


@dataclass(frozen=True, slots=True)
class OwnHome:
    """The GNUPGHOME in `directory`. `environ` is the environment of this process, of which gpg gets what a pinentry needs."""

    directory: Path
    environ: Mapping[str, str] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.directory.is_dir():
            raise ConfigError(f"{self.directory} is no directory", "name the GNUPGHOME that holds the key, as ~/.gnupg")

    def command(self, name: str, *args: str) -> Command:
        """A call of gpg in this home; `name` is for messages. Passphrases and PINs are asked for by its agent."""
        gpg = shutil.which("gpg", path=self.environ.get("PATH"))
        if gpg is None:
            raise ConfigError("the program gpg is not installed", "install gnupg")
        options = ("--no-options", "--batch", "--no-tty", "--homedir", str(self.directory.absolute()), "--disable-dirmngr")
        passed = {each: self.environ[each] for each in _PASSED_ON if each in self.environ}
        return Command(name=name, argv=(gpg, *options, *args), env=passed)
