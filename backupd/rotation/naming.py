"""Which living backups name a column's key: who retires it has to know, and who gives a new key an id must not take theirs."""

from __future__ import annotations

from collections.abc import Sequence

from backupd.catalog import Catalog
from backupd.rotation import SecretColumn


def naming_key(catalog: Catalog, sharing: Sequence[SecretColumn], key_id: str) -> tuple[list[str], int]:
    """The living backups whose manifests name the key, and how many there are whose manifest cannot be read."""
    columns = {(each.source, each.table, each.column) for each in sharing}
    naming, unread = [], 0
    for entry in catalog.list():
        if entry.manifest is None:
            unread += 1
            continue
        if any(
            (entry.source, noted.table, noted.column) in columns and key_id in noted.key_ids
            for noted in entry.manifest.column_keys
        ):
            naming.append(entry.backup_id)
    return naming, unread
