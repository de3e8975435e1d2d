"""What `import backupd.columns` costs an application, measured inside of fresh interpreters."""

from __future__ import annotations

import statistics
import subprocess
import sys

RUNS = 11
LIMIT_MS = 150.0
_PROGRAM = (
    "import sys, time\n{before}\nstarted = time.perf_counter()\n{measured}\nprint((time.perf_counter() - started) * 1000)"
)
CASES = {
    "import backupd.columns": ("", "import backupd.columns"),
    "… with every cipher, TOTP and the live keyring": (
        "",
        "import backupd.columns.ciphers, backupd.columns.forms, backupd.columns.live, backupd.columns.totp",
    ),
    "backupd.columns.sqlalchemy, beside SQLAlchemy": (
        "import sqlalchemy, sqlalchemy.orm, sqlalchemy.ext.hybrid",
        "import backupd.columns.sqlalchemy",
    ),
}


def report() -> None:
    """The medians beside the limit. The first run of each warms the caches and does not count."""
    print("\n| import, milliseconds | median | slowest | limit |\n|---|---|---|---|")
    for name, (before, measured) in CASES.items():
        taken = [_once(_PROGRAM.format(before=before, measured=measured)) for _ in range(RUNS + 1)][1:]
        print(f"| {name} | {statistics.median(taken):.1f} | {max(taken):.1f} | {LIMIT_MS:.0f} |")


def _once(program: str) -> float:
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return float(done.stdout)


if __name__ == "__main__":
    report()
