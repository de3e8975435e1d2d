"""The same hundred deaths as in a directory, with the backups in S3.

A request that a killed run had sent may still come into effect after its death, so a stale upload is one that was there before
the next run began; the one after that finds the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.e2e import dying
from tests.e2e.deaths import Deaths
from tests.e2e.dying import BucketView, Scene
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


class TestDeathsInABucket(Deaths):
    first_seed = 10

    def test_at_the_end_nothing_is_left(self, scene: Scene) -> None:
        """Whatever still came into effect after a death was found by the next run or the one after it."""
        with scene.service() as service:
            service.back_up("clinic")
        assert scene.view.unfinished() == set()
