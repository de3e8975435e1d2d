"""Backups of PostgreSQL databases that hold second-factor secrets: sealed, recorded, and shown to restore.

Owns the version and nothing else. It imports nothing, so that `import backupd.columns` in an application stays light.
"""

__version__ = "0.1.0"
