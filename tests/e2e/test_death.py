"""SIGKILL of backupd, of its pg_dump and of its gpg, at every stage of a backup into a directory: a hundred deaths.

After each, `tests.e2e.dying` sees to it that all that is listed is whole, that the trail says what happened, and that the next
run succeeds and cleans up.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.e2e import dying
from tests.e2e.dying import DirectoryView, Moment, Scene
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


@pytest.mark.parametrize("seed", range(6))
def test_backupd_dies_at_a_random_moment(scene: Scene, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(5):
        scene.kill_backupd(dying.at_random(rng))


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(dying.at_intent, id="the intent is recorded"),
        pytest.param(dying.at_dump, id="pg_dump runs"),
        pytest.param(dying.at_part, id="the first part is stored"),
    ],
)
def test_backupd_dies_before_anything_is_committed_when(scene: Scene, moment: Moment) -> None:
    orphans = [scene.kill_backupd(moment) for _ in range(6)]
    assert any(orphans)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(dying.at_artifact, id="an artifact is committed"),
        pytest.param(dying.at_manifest, id="the manifest is written"),
    ],
)
def test_backupd_dies_when(scene: Scene, moment: Moment) -> None:
    for _ in range(6):
        scene.kill_backupd(moment)


@pytest.mark.parametrize("program", ["pg_dump", "gpg"])
@pytest.mark.parametrize("seed", range(4))
def test_a_program_of_its_dies(scene: Scene, program: str, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(5):
        scene.kill_child(program, rng)
