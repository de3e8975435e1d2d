"""Memory does not grow with the database: parts of a fixed size, a few at a time, whatever the length of the stream."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.installation import CHECKOUT, installed, plant
from tests.leak_watch import Planted
from tests.parts.postgres import PostgresServer
from tests.parts.process import clean_environment
from tests.parts.s3 import S3Server

MOST = 150 << 20
SMALL, LARGE = 200_000_000, 20_000_000_000
TIMEOUT_S = 280

# 200 MB that do not compress.
FILL = """
CREATE TABLE scans (id integer PRIMARY KEY, scan bytea NOT NULL);
ALTER TABLE scans ALTER scan SET STORAGE EXTERNAL;
CREATE TEMPORARY TABLE once AS SELECT string_agg(sha256(int4send(n)), '') AS scan FROM generate_series(1, 31250) AS n;
INSERT INTO scans SELECT n, once.scan FROM generate_series(1, 200) AS n, once;
"""


def peak(*arguments: str, environment: Mapping[str, str]) -> int:
    """The most bytes that a process of its own had resident."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.streaming", *arguments],
        cwd=CHECKOUT,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("direction", ["send", "fetch"])
def test_20_gb_take_the_memory_of_200_mb(direction: str, tmp_path: Path) -> None:
    # Else glibc learns from the first parts to keep later ones when they are freed, sometimes one more and sometimes one less.
    environment = clean_environment(tmp_path, MALLOC_MMAP_THRESHOLD_=str(1 << 20))
    small, large = (peak(direction, str(size), environment=environment) for size in (SMALL, LARGE))
    assert large < MOST
    assert abs(large - small) < small / 10


def test_backing_up_and_verifying_200_mb_on_s3_takes_little_memory(
    s3_server: S3Server, postgres17: PostgresServer, planted: Planted, tmp_path: Path
) -> None:
    """The whole program, SDK included."""
    with installed(tmp_path, postgres17, plant(planted), s3_server) as clinic:
        clinic.database.execute(FILL)
        for command in ("backup", "verify"):
            assert peak("backupd", command, "clinic", environment=clinic.environment()) < MOST
        [backup] = clinic.run("list", "--json").ok().json
        assert sum(artifact["size"] for artifact in backup["artifacts"]) > SMALL
