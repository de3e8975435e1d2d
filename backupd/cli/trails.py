"""The trail of a command that also works where there is none yet, or none at all: keys are made and released anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from backupd.cli.session import Session

if TYPE_CHECKING:
    from backupd.audit.trail import Trail


@contextmanager
def trail_of(session: Session, *, needed: bool = False) -> Iterator[Trail | None]:
    """The trail of the configuration, or None where no configuration is named and none is `needed`."""
    if not needed and (session.config is None or _is_still_to_come(session.config)):
        yield None
        return
    with session.service() as service:
        yield service.trail


def _is_still_to_come(config: Path) -> bool:
    """Whether the environment, not this command's caller, names a configuration that has not been written yet."""
    if click.get_current_context().get_parameter_source("config") is not ParameterSource.ENVIRONMENT:
        return False
    try:
        config.stat()
    except FileNotFoundError:
        return True
    except OSError:  # it may be there: whoever reads it says what is wrong
        return False
    return False
