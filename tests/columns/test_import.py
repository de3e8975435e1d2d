"""Applications import the columns room next to their own libraries, so it must cost them nothing."""

import subprocess
import sys

HEAVY = ("boto3", "azure", "gnupg", "apscheduler", "psycopg", "pydantic", "cryptography", "click", "rich", "structlog")
ROOMS = ("cli", "stores", "custody", "audit", "postgres", "openpgp", "pipeline", "manifest", "config")
PROGRAM = """
import sys
import backupd.columns, backupd.columns.ciphers, backupd.columns.totp
print(*sys.modules)
"""


def test_importing_every_cipher_loads_no_heavy_library_and_no_other_room() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(done.stdout.split())
    assert "backupd.columns.aes_gcm" in loaded
    assert not loaded & {*HEAVY, *(f"backupd.{room}" for room in ROOMS)}
