"""A process of its own that writes runs to a trail and says each record's number once it is durable.

python -m tests.audit.writer RUNS NAME      (standard input: {"sqlite": PATH} or {"postgres": DSN})
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from backupd.audit import TrailStore
from backupd.audit.postgres import PostgresStore
from backupd.audit.records import Actor, Operation, Via
from backupd.audit.sqlite import SqliteStore
from backupd.audit.trail import Trail

ROOT = Path(__file__).parents[2]


def start_writer(spec: dict[str, str], *, runs: int, name: str = "writer") -> "subprocess.Popen[str]":
    """Start it. `runs` is how many intents and outcomes it writes."""
    writer = subprocess.Popen(
        [sys.executable, "-m", "tests.audit.writer", str(runs), name],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert writer.stdin is not None
    writer.stdin.write(json.dumps(spec) + "\n")
    writer.stdin.flush()
    return writer


def open_store(spec: dict[str, str]) -> TrailStore:
    if "sqlite" in spec:
        return SqliteStore(spec["sqlite"], busy_timeout_s=120)
    import psycopg

    return PostgresStore(partial(psycopg.connect, spec["postgres"]), where="postgresql://test", lock_timeout_s=120)


def main(runs: int, name: str) -> None:
    trail = Trail(open_store(json.loads(sys.stdin.readline())), Actor(name, str(os.getpid()), Via.CRONJOB))
    for _ in range(runs):
        run = trail.intent(Operation.BACKUP, name)
        sys.stdout.write(f"{run.intent.seq}\n")
        sys.stdout.flush()
        sys.stdout.write(f"{run.done(parts=1).seq}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
