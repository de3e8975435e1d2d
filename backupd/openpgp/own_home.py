"""A custodian's own GNUPGHOME, with its agent, its pinentry and its smart card: for keys that no file holds.

Owns how gpg is called there. It exports no key and makes none; gpg itself may write to its own files, such as its random seed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backupd.errors import ConfigError, ProcessFailed
from backupd.openpgp.home import CALL_TIMEOUT_S, colons
from backupd.pipeline import Command, run

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

    def openers(self) -> tuple[str, ...]:
        """The fingerprints of the keys that open messages here, by their secret half or a card's. Raises ConfigError."""
        try:
            listing = run(self.command("gpg", "--list-secret-keys", "--with-colons"), timeout_s=CALL_TIMEOUT_S).stdout
        except ProcessFailed as error:
            raise ConfigError(
                f"gpg does not list the keys in {self.directory}", "does `gpg --list-secret-keys` show them?"
            ) from error
        primary, opens = "", False
        found: list[str] = []
        for record in colons(listing):  # doc/DETAILS: each key's record, then its fingerprint; a small e is this very key's
            if record.kind in {"sec", "ssb"}:
                primary = "" if record.kind == "sec" else primary
                opens = "e" in record.field(12) and record.field(15) != "#"  # of this one there is no secret half here
            elif record.kind == "fpr":
                primary = primary or record.field(10)
                found += [primary] if opens else []
        return tuple(dict.fromkeys(found))
