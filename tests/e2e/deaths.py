"""The hundred deaths, as tests: a test module subclasses `Deaths` and gives a fixture `scene` with a store of its own.

After each, `tests.e2e.dying` sees to it that all that is listed is whole, that the trail says what happened, and that the next
run succeeds and cleans up.
"""

from __future__ import annotations

import random
from typing import ClassVar

import pytest

from tests.e2e import dying
from tests.e2e.dying import Moment, Scene


class Deaths:
    """SIGKILL of backupd, of its pg_dump and of its gpg, at every stage of a backup."""

    first_seed: ClassVar[int]  # of the random moments: each store has others

    @pytest.mark.parametrize("number", range(6))
    def test_backupd_dies_at_a_random_moment(self, scene: Scene, number: int) -> None:
        rng = random.Random(self.first_seed + number)
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
    def test_backupd_dies_before_anything_is_committed_when(self, scene: Scene, moment: Moment) -> None:
        orphans = [scene.kill_backupd(moment) for _ in range(6)]
        assert any(orphans)

    @pytest.mark.parametrize(
        "moment",
        [
            pytest.param(dying.at_artifact, id="an artifact is committed"),
            pytest.param(dying.at_manifest, id="the manifest is written"),
        ],
    )
    def test_backupd_dies_when(self, scene: Scene, moment: Moment) -> None:
        for _ in range(6):
            scene.kill_backupd(moment)

    @pytest.mark.parametrize("program", ["pg_dump", "gpg"])
    @pytest.mark.parametrize("number", range(4))
    def test_a_program_of_its_dies(self, scene: Scene, program: str, number: int) -> None:
        rng = random.Random(self.first_seed + number)
        for _ in range(5):
            scene.kill_child(program, rng)
