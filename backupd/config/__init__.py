"""The configuration: one TOML file, read once, checked whole, and never changed afterwards.

Owns the reading of the file. What may stand in it is in `models`, how mistakes are told in `problems`. It never opens a file
that the configuration names, never reads the environment and holds no secret: where one is needed, it holds a reference.
pydantic is imported when a file is loaded, not before.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backupd.errors import ConfigError
from backupd.redact import printable, scrub

if TYPE_CHECKING:
    from backupd.config.models import Config

_LARGEST = 1 << 20  # bytes; a configuration of thousands of sources is smaller


def load(path: Path) -> Config:
    """The configuration in `path`. Relative paths in it are taken from the directory that the file is in.

    Raises ConfigError: for a file that cannot be read, for text that is no TOML (with the line), and else for everything that
    is wrong at once, each with its place, as `InvalidConfig`.
    """
    data = _read(path)
    try:
        tables = tomllib.loads(data.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{_shown(path)} is not UTF-8 text (line {line})", "save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{_shown(path)} is not TOML: {scrub(printable(str(error)))}", "correct that line") from None
    except RecursionError:
        raise ConfigError(f"{_shown(path)} is nested too deeply", "write plain tables") from None
    return _check(path, data, tables)


def _check(path: Path, data: bytes, tables: dict[str, Any]) -> Config:
    from pydantic import ValidationError

    from backupd.config import models, problems

    directory = path.absolute().parent
    try:
        config = models.Config.model_validate(tables, context={"directory": directory})
    except ValidationError as error:
        found = problems.explain(error, models.Config)
    else:
        config.note_origin(path.absolute(), hashlib.sha256(data).hexdigest())
        return config
    raise problems.InvalidConfig(_shown(path), found)  # outside: pydantic's error holds the values, and would be its context


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise ConfigError(f"there is no {_shown(path)}", "name the configuration with --config or BACKUPD_CONFIG") from None
    except IsADirectoryError:
        raise ConfigError(f"{_shown(path)} is a directory", "name the file in it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise ConfigError(f"cannot read {_shown(path)}: {reason}", "check the path and who may read it") from error
    if len(data) > _LARGEST:
        raise ConfigError(f"{_shown(path)} is larger than a configuration can be", "name the TOML file")
    return data


def _shown(path: Path) -> str:
    return printable(str(path))
