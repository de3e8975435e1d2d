"""A hundred deaths with the backups in a directory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e import dying
from tests.e2e.deaths import Deaths
from tests.e2e.dying import DirectoryView, Scene
from tests.installation import installed, plant
from tests.leak_watch import Planted
from tests.parts.postgres import PostgresServer


@pytest.fixture(scope="module")
def scene(postgres17: PostgresServer, planted_for_module: Planted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A clinic with a database of two parts, and a directory for its backups."""
    directory = tmp_path_factory.mktemp("death")
    with installed(directory, postgres17, plant(planted_for_module)) as clinic:
        clinic.database.execute(dying.FILL)
        scene = Scene(clinic, DirectoryView(directory / "store"), ordered=True)
        scene.measure()
        yield scene


class TestDeathsInADirectory(Deaths):
    first_seed = 0
