"""The same hundred deaths as in a directory, with the backups in S3.

A request that a killed run had sent may still come into effect after its death, so a stale upload is one that was there before
the next run began; the one after that finds the rest.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest

from tests.e2e import dying
from tests.e2e.dying import BucketView, Moment, Scene
from tests.installation import installed, plant
from tests.leak_watch import Planted
from tests.parts.postgres import PostgresServer
from tests.parts.s3 import S3Server


@pytest.fixture(scope="module")
def scene(
    postgres17: PostgresServer, s3_server: S3Server, planted_for_module: Planted, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """A clinic with a database of two parts, and a bucket for its backups."""
    directory = tmp_path_factory.mktemp("death-s3")
    with (
        installed(directory, postgres17, plant(planted_for_module), s3_server) as clinic,
        contextlib.closing(s3_server.client()) as client,
    ):
        clinic.database.execute(dying.FILL)
        [bucket] = [line.split("/")[2] for line in clinic.tables["store"].splitlines() if line.startswith("url = ")]
        scene = Scene(clinic, BucketView(client, bucket, "prod/"), ordered=False)
        scene.measure()
        yield scene


@pytest.mark.parametrize("seed", range(10, 16))
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
@pytest.mark.parametrize("seed", range(10, 14))
def test_a_program_of_its_dies(scene: Scene, program: str, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(5):
        scene.kill_child(program, rng)


def test_at_the_end_nothing_is_left(scene: Scene) -> None:
    """Whatever still came into effect after a death was found by the next run or the one after it."""
    with scene.service() as service:
        service.back_up("clinic")
    assert scene.view.unfinished() == set()
