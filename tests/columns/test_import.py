"""Applications import the columns room next to their own libraries, so it must cost them nothing."""

import subprocess
import sys

HEAVY = ("boto3", "azure", "gnupg", "apscheduler", "psycopg", "pydantic", "cryptography", "click", "rich", "structlog")
ROOMS = ("cli", "stores", "custody", "audit", "postgres", "openpgp", "pipeline", "manifest", "config")
PROGRAM = """
import sys
import backupd.columns, backupd.columns.ciphers, backupd.columns.totp, backupd.columns.forms, backupd.columns.live
print(*sys.modules)
"""
WITH_SQLALCHEMY = """
import sys
import sqlalchemy, sqlalchemy.orm, sqlalchemy.ext.hybrid
before = set(sys.modules)
import backupd.columns.sqlalchemy
print(*set(sys.modules) - before)
"""


def test_importing_every_cipher_loads_no_heavy_library_and_no_other_room() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(done.stdout.split())
    assert "backupd.columns.aes_gcm" in loaded
    assert not loaded & {*HEAVY, *(f"backupd.{room}" for room in ROOMS)}


def test_importing_the_attribute_for_sqlalchemy_loads_sqlalchemy_and_the_columns_room_alone() -> None:
    done = subprocess.run([sys.executable, "-c", WITH_SQLALCHEMY], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(done.stdout.split())
    assert "backupd.columns.sqlalchemy" in loaded
    assert not {name.split(".")[0] for name in loaded} & set(HEAVY)
    ours = {name for name in loaded if name.startswith("backupd.")}
    assert {name.split(".")[1] for name in ours} == {"columns", "errors", "redact"}
