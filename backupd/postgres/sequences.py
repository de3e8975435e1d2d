"""Where a database's sequences stand. They move outside of any transaction, so when they are read matters.

A snapshot reads them as it begins, before a dump of it can: a dumped sequence is then never behind what was read here.
"""

from __future__ import annotations

from backupd.postgres.session import Connection, translated

# The last value, None for a sequence never used. Extensions answer for their own; a standby has no unlogged ones.
_SEQUENCES = """
SELECT format('%I.%I', s.schemaname, s.sequencename), s.last_value
  FROM pg_sequences s
  JOIN pg_namespace n ON n.nspname = s.schemaname
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = s.sequencename
 WHERE c.relpersistence <> 't' AND NOT (c.relpersistence = 'u' AND pg_is_in_recovery())
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
 ORDER BY 1
"""


def read(connection: Connection) -> dict[str, int | None]:
    """Every sequence's last value by its name, quoted in full. Raises SourceError."""
    with translated("read the sequences"), connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL quote_all_identifiers = on")
        return dict(connection.execute(_SEQUENCES).fetchall())
