"""`./dev bench`: make a database, back it up and restore it with backupd and by hand, and print the ratios of the medians.

Each round runs every contestant once, in turn, so that a busy minute falls on all of them. Nothing here asserts a time: it
prints what was measured beside the limit that the project set itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks import imports
from benchmarks.bench import Bench

# Of two medians, with the limit that the project set itself. The last is from a file that was fetched before.
RATIOS = {
    ("backup", "the pipe at its best"): 0.95,
    ("backup of data alone", "the pipe at its best"): None,
    ("backup", "the pipe with everyone's defaults"): 0.20,
    ("restore", "aws s3 cp | gpg -d | pg_restore"): 1.05,
    ("restore", "gpg -d | pg_restore"): 1.05,
}
HELP_LIMIT_S = 0.25

Contestants = dict[str, Callable[[], None]]


def main() -> int:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each contestant runs (3)")
    parser.add_argument("--gigabytes", type=float, default=1.8, help="size of the database (1.8)")
    parser.add_argument("--directory", type=Path, help="where servers keep their data (the temporary directory)")
    parser.add_argument("--skip-defaults", action="store_true", help="leave out the slow pipe with everyone's defaults")
    parser.add_argument("--only", choices=("backup", "restore"), help="leave out the others: more rounds in the same time")
    arguments = parser.parse_args()
    with ExitStack() as held:
        directory = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="backupd-bench-", dir=arguments.directory)))
        bench = held.enter_context(Bench.running(directory, arguments.gigabytes))
        say(f"database of {bench.database_bytes / 1e9:.2f} GB, PostgreSQL {bench.version}")
        backups: Contestants = {
            "backup": bench.backup,
            "backup of data alone": bench.backup_of_data_alone,
            "the pipe at its best": bench.pipe_at_its_best,
            "the pipe with everyone's defaults": bench.pipe_with_defaults,
        }
        restores: Contestants = {
            "restore": bench.restore,
            "aws s3 cp | gpg -d | pg_restore": bench.restore_from_store_by_hand,
            "gpg -d | pg_restore": bench.restore_by_hand,
        }
        if arguments.skip_defaults:
            del backups["the pipe with everyone's defaults"]
        contestants = {"backup": backups, "restore": restores}.get(arguments.only, backups | restores) | {"--help": bench.help}
        taken: dict[str, list[float]] = {name: [] for name in contestants}
        worked: dict[str, list[float]] = {name: [] for name in contestants}
        switched: dict[str, list[int]] = {name: [] for name in contestants}
        bench.backup()  # a first one for the restores, and to warm the caches alike
        for number in range(1, arguments.rounds + 1):
            # Every second round backwards: who comes after whom then weighs on all alike.
            for name, contestant in list(contestants.items())[:: 1 if number % 2 else -1]:
                bench.prepare()
                before, turns, started = busy_s(), switches(), time.perf_counter()
                contestant()
                taken[name].append(time.perf_counter() - started)
                worked[name].append(busy_s() - before)
                switched[name].append(switches() - turns)
                say(f"round {number}: {name} {taken[name][-1]:.2f} s, {worked[name][-1]:.2f} core-seconds")
        report(taken, worked, switched)
    imports.report()
    return 0


def busy_s() -> float:
    """How long all cores together have worked since the machine started, in seconds: proc_stat(5)."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def switches() -> int:
    """How often a core has gone from one thread to another since the machine started: proc_stat(5)."""
    return int(Path("/proc/stat").read_text().partition("\nctxt ")[2].split()[0])


def report(taken: dict[str, list[float]], worked: dict[str, list[float]], switched: dict[str, list[int]]) -> None:
    """The medians, then the ratios beside their limits. Core-seconds and switches are the whole machine's, servers included."""
    columns = ("what", "median s", "fastest s", "slowest s", f"median core-s, of {os.cpu_count()} cores", "median switches")
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    for name, seconds in taken.items():
        spent, turns = statistics.median(worked[name]), statistics.median(switched[name])
        print(f"| {name} | {medians[name]:.2f} | {min(seconds):.2f} | {max(seconds):.2f} | {spent:.2f} | {turns:.0f} |")
    print("\n| ratio of medians | measured | limit |\n|---|---|---|")
    for (ours, theirs), limit in RATIOS.items():
        if ours in medians and theirs in medians:
            print(f"| {ours} / {theirs} | {medians[ours] / medians[theirs]:.3f} | {limit or ''} |")
    print(f"| --help, seconds | {medians['--help']:.3f} | {HELP_LIMIT_S} |")


def say(text: str) -> None:
    """Progress, beside the table."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
