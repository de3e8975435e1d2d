"""What a database holds, in figures that another server of any major must show after a restore.

Owns the counting, the digests and their comparison. It reads rows only inside the server: none ever comes here.

A digest does not depend on the order of rows or columns, on the server's major, encoding or collations, or on the session's
settings: each row is written as text with its columns sorted by name under fixed settings, its UTF-8 bytes are hashed to 64
bits twice with different seeds, and the hashes are added modulo 2^64. Sequences move outside of any snapshot and are read as it
begins, so a restored one may be further on. A materialised view is computed anew by a restore and so may
rightly differ; only its presence is compared.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from backupd.errors import ConfigError, SourceDenied
from backupd.manifest import Expectations, LargeObjects, Level, Table
from backupd.postgres import sequences
from backupd.postgres.session import Connection, table_named, translated
from backupd.postgres.snapshot import Snapshot
from backupd.redact import printable

_BATCH = 50  # tables counted by one statement
_PAGE = 1 << 20  # bytes of a large object that the server holds at a time
_SEEDS = (0, 0x626B7064)
_MATERIALISED_VIEW = "m"
_READ_ALL = "or to all tables at once: GRANT pg_read_all_data TO"

# Everything that changes how a value or a name is written. Names inside values (regclass) are then always qualified. All names
# are quoted, because which ones need it depends on the major's keywords (`json` does since 16).
_TEXT_SETTINGS = {
    "search_path": "pg_catalog",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "row_security": "off",
    "quote_all_identifiers": "on",
}

# Tables whose rows a dump carries, partitions under the name of the whole: a restore may sort rows into other partitions (where
# an enum is hashed). Extensions answer for their own tables; foreign rows are not ours; a standby has no unlogged rows.
_RELATIONS = """
SELECT c.oid, format('%I.%I', n.nspname, c.relname), c.relkind::text, c.relispopulated,
       (SELECT coalesce(string_agg(format('t.%I', a.attname), ', ' ORDER BY a.attname COLLATE "C"), '')
          FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'm') AND NOT c.relispartition
   AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
   AND c.relpersistence <> 't' AND NOT (c.relpersistence = 'u' AND pg_is_in_recovery())
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
   AND NOT EXISTS (SELECT FROM pg_partition_tree(c.oid) p JOIN pg_class f ON f.oid = p.relid
                    WHERE c.relkind = 'p' AND f.relkind = 'f')
 ORDER BY 2
"""

# What pg_dump would stumble over, asked beforehand: then the table and the remedy can be named. It locks every table it
# dumps, partitions too, and that needs SELECT on each.
_DENIED = """
SELECT format('%I.%I', n.nspname, c.relname), c.relkind::text, format('%I', n.nspname),
       has_schema_privilege(n.oid, 'USAGE'), row_security_active(c.oid)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'm', 'S') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
   AND c.relpersistence <> 't'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
   AND (NOT has_schema_privilege(n.oid, 'USAGE') OR row_security_active(c.oid)
        OR NOT CASE c.relkind WHEN 'S' THEN has_sequence_privilege(c.oid, 'SELECT')
                              ELSE has_table_privilege(c.oid, 'SELECT') END)
 ORDER BY 1 LIMIT 1
"""

# pg_read_all_data does not cover large objects: each is read by its owner, a superuser or whoever was granted it.
_DENIED_LARGE_OBJECT = """
SELECT oid::text FROM pg_largeobject_metadata
 WHERE NOT pg_has_role(lomowner, 'USAGE')
   AND NOT EXISTS (SELECT FROM aclexplode(lomacl) AS a WHERE a.privilege_type = 'SELECT'
                      AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE')))
   AND current_setting('lo_compat_privileges') = 'off'
 LIMIT 1
"""

# Owners, and whom a grant, a policy or a default privilege of this database names. The first superuser is in no pg_shdepend.
# What belongs to an extension belongs, after a restore, to whoever restored it.
_ROLES = """
SELECT rolname::text COLLATE "C" FROM pg_roles WHERE rolname !~ '^pg_' AND oid IN (
  SELECT refobjid FROM pg_shdepend s
   WHERE refclassid = 'pg_authid'::regclass AND deptype IN ('o', 'a', 'r') AND classid <> 'pg_extension'::regclass
     AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
     AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = s.classid AND d.objid = s.objid AND d.deptype = 'e')
  UNION ALL SELECT relowner FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
     AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
) ORDER BY 1
"""

# One page at a time: a large object may be larger than any value may be. Only hashes are kept between two pages.
_LARGE_OBJECTS = f"""
WITH RECURSIVE pages AS (
  SELECT oid, 0::bigint AS start, page.bytes, page.hash
    FROM pg_largeobject_metadata m, LATERAL (
      SELECT length(b) AS bytes, encode(sha256(b), 'hex') AS hash FROM (SELECT lo_get(m.oid, 0, {_PAGE}) AS b OFFSET 0) p) page
  UNION ALL
  SELECT oid, start + {_PAGE}, page.bytes, page.hash
    FROM pages m, LATERAL (
      SELECT length(b) AS bytes, encode(sha256(b), 'hex') AS hash
        FROM (SELECT lo_get(m.oid, m.start + {_PAGE}, {_PAGE}) AS b OFFSET 0) p) page
   WHERE m.bytes = {_PAGE})
SELECT count(*) FILTER (WHERE start = 0),
"""  # noqa: S608  # constants of this file


# What the server's statistics say of each table, of a partitioned one the sum of its partitions. They do not tell a TRUNCATE.
_INSERTED = """
SELECT r.oid, sum(CASE WHEN pg_relation_size(part) > 0
                       THEN pg_stat_get_tuples_inserted(part) - pg_stat_get_tuples_deleted(part) ELSE 0 END)::bigint
  FROM unnest(%s::oid[]) AS r (oid),
       LATERAL (SELECT r.oid AS part UNION SELECT relid::oid FROM pg_partition_tree(r.oid)) AS parts
 GROUP BY r.oid
"""
_OTHER_SESSIONS = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
_MOMENT_S, _MOMENTS = 0.02, 50


@dataclass(frozen=True, slots=True)
class _Relation:
    oid: int
    name: str
    kind: str
    populated: bool
    columns: str


def collect(snapshot: Snapshot, level: Level, digest_tables: Collection[str] = ()) -> Expectations:
    """What a restore of this snapshot must show.

    Tables in `digest_tables` are digested at every level; a name without a schema is looked for as the role would find it.
    Raises ConfigError for one that is not there, and SourceDenied that names table and remedy where a right is missing or row
    security filters.
    """
    require_readable(snapshot.connection)
    return look(snapshot.connection, level, digest_tables, snapshot.sequences)


def found(connection: Connection, expected: Expectations) -> Expectations:
    """What a restored database shows, in the same figures as `expected`. Raises SourceDenied and SourceError."""
    with _fixed_text(connection):
        present = {relation.name for relation in _relations(connection)}
    digested = [name for name, table in expected.tables.items() if table.digest is not None and name in present]
    return look(connection, expected.level, digested, sequences.read(connection))


def loaded(connection: Connection, expected: Expectations) -> Expectations:
    """`found` for a database that a restore has just filled, and nobody else has seen: without reading every row once more.

    The first reading of a new row writes its page again, which takes longer than the counting. The server knows how many rows
    it inserted and deleted; only a table for which that is not the expected number is counted. See decision 8.
    """
    with _fixed_text(connection):
        relations = _relations(connection)
    with translated("ask how many rows were inserted"):
        _await_statistics(connection)
        inserted: dict[int, int] = dict(connection.execute(_INSERTED, ([each.oid for each in relations],)).fetchall())
    known = {
        each.name: Table(expected.tables[each.name].rows, each.kind)
        for each in relations
        if each.kind != _MATERIALISED_VIEW
        and each.name in expected.tables
        and expected.tables[each.name].rows == inserted.get(each.oid)
    }
    names = {each.name for each in relations}
    digested = [name for name, table in expected.tables.items() if table.digest is not None and name in names]
    return look(connection, expected.level, digested, sequences.read(connection), known)


def _await_statistics(connection: Connection) -> None:
    """A session's figures are there when it has ended, which is a moment after its client. A late one only costs a count."""
    for _ in range(_MOMENTS):
        [(others,)] = connection.execute(_OTHER_SESSIONS).fetchall()
        if not others:
            return
        time.sleep(_MOMENT_S)


def look(
    connection: Connection,
    level: Level,
    digest_tables: Collection[str],
    standing: Mapping[str, int | None],
    known: Mapping[str, Table] = MappingProxyType({}),
) -> Expectations:
    """The figures themselves, whether of a source or of a restored database; `standing` is where its sequences are.

    Tables in `known` are taken as they are there, unless they are to be digested.
    """
    named = _resolve(connection, digest_tables)
    with translated("read what the database holds"), _fixed_text(connection):
        relations = _relations(connection)
        _all_known(named, relations)
        digested = [each for each in relations if each.oid in named.values() or level is Level.DIGESTS]
        digested = [each for each in digested if each.kind != _MATERIALISED_VIEW]
        others = [each for each in relations if each not in digested and level is not Level.OFF]
        counted = [each for each in others if each.name not in known]
        tables = {each.name: _digested(connection, each) for each in digested}
        tables |= {each.name: known[each.name] for each in others if each.name in known}
        for start in range(0, len(counted), _BATCH):
            tables |= _counted(connection, counted[start : start + _BATCH])
        everything = level is not Level.OFF
        return Expectations(
            level=level,
            tables=dict(sorted(tables.items())),
            sequences=dict(standing) if everything else {},
            large_objects=_large_objects(connection, level) if everything else None,
            extensions=dict(connection.execute("SELECT extname::text, extversion FROM pg_extension ORDER BY 1").fetchall()),
            roles=tuple(role for (role,) in connection.execute(_ROLES).fetchall()),
        )


def compare(expected: Expectations, shown: Expectations) -> list[str]:
    """Every difference that shows a restore to be wrong, one line each; nothing when all is as it must be.

    Extensions are compared by name: a restore installs the server's own default version.
    """
    lines = list(_missing("table", expected.tables, shown.tables))
    for name, table in expected.tables.items():
        if name in shown.tables:
            lines += _table_differences(name, table, shown.tables[name])
    if expected.level is not Level.OFF:
        extra = [name for name, table in shown.tables.items() if name not in expected.tables and table.rows]
        lines += [f"table {printable(name)} has {shown.tables[name].rows} rows and is not in the backup" for name in extra]
    lines += _missing("sequence", expected.sequences, shown.sequences)
    for name, value in expected.sequences.items():
        if name in shown.sequences and _behind(value, shown.sequences[name]):
            lines.append(f"sequence {printable(name)} is at {shown.sequences[name]}, expected {value}")
    lines += _large_object_differences(expected.large_objects, shown.large_objects)
    lines += _missing("extension", expected.extensions, shown.extensions)
    lines += _missing("role", expected.roles, shown.roles)
    return lines


def _missing(what: str, expected: Iterable[str], shown: Collection[str]) -> Iterator[str]:
    return (f"{what} {printable(name)} is missing" for name in expected if name not in shown)


def _table_differences(name: str, expected: Table, shown: Table) -> Iterator[str]:
    if expected.kind != shown.kind:
        yield f"{printable(name)} is of kind {shown.kind}, expected {expected.kind}"
    elif expected.kind == _MATERIALISED_VIEW:
        return
    elif expected.rows != shown.rows:
        yield f"table {printable(name)} has {shown.rows} rows, expected {expected.rows}"
    elif expected.digest is not None and expected.digest != shown.digest:
        yield f"table {printable(name)} has the right number of rows ({shown.rows}) and other contents"


def _behind(expected: int | None, shown: int | None) -> bool:
    """Whether a sequence fell back. Away from zero is forwards, for descending sequences too."""
    if expected is None or expected == shown:
        return False
    return shown is None or abs(shown) < abs(expected) or (shown < 0) != (expected < 0)


def _large_object_differences(expected: LargeObjects | None, shown: LargeObjects | None) -> Iterator[str]:
    if expected is None:
        return
    if shown is None or expected.count != shown.count:
        yield f"there are {shown.count if shown else 0} large objects, expected {expected.count}"
    elif expected.digest is not None and expected.digest != shown.digest:
        yield f"there are {shown.count} large objects, as expected, and they have other contents"


def require_readable(connection: Connection) -> None:
    """Raises SourceDenied that names the first thing of which a dump could not read everything, and the remedy."""
    with translated("look for missing rights"), _fixed_text(connection):
        rows = connection.execute(_DENIED).fetchall()
        large_objects = connection.execute(_DENIED_LARGE_OBJECT).fetchall()
        [(user,)] = connection.execute("SELECT quote_ident(current_user)").fetchall()
    for name, kind, schema, may_enter, is_filtered in rows:
        what = "sequence" if kind == "S" else "table"
        if is_filtered:
            raise SourceDenied(
                f"row security hides rows of {printable(name)} from {printable(user)}",
                f"ALTER ROLE {printable(user)} BYPASSRLS",
            )
        right = f"SELECT ON {what} {name}" if may_enter else f"USAGE ON SCHEMA {schema}"
        raise SourceDenied(
            f"{printable(user)} may not read {what} {printable(name)}",
            printable(f"GRANT {right} TO {user}; {_READ_ALL} {user}"),
        )
    for (oid,) in large_objects:
        raise SourceDenied(
            f"{printable(user)} may not read large object {oid}",
            printable(
                f"ALTER ROLE {user} SET lo_compat_privileges = on, as a superuser;"
                f" or GRANT SELECT ON LARGE OBJECT {oid} TO {user}, and each other one; or make {user} a member of the owner"
            ),
        )


@contextmanager
def _fixed_text(connection: Connection) -> Iterator[None]:
    """Settings for the length of the block only: a savepoint (or transaction) that is rolled back takes them with it."""
    with connection.transaction(force_rollback=True):
        connection.execute(
            "SELECT set_config(name, value, true) FROM unnest(%s::text[], %s::text[]) AS wanted (name, value)",
            (list(_TEXT_SETTINGS), list(_TEXT_SETTINGS.values())),
        )
        yield


def _relations(connection: Connection) -> list[_Relation]:
    with translated("list the tables"):
        return [_Relation(*row) for row in connection.execute(_RELATIONS).fetchall()]


def _resolve(connection: Connection, names: Collection[str]) -> dict[str, int]:
    """The oid of each named table, of the whole for a partition; ConfigError for what is none."""
    resolved: dict[str, int] = {}
    for name in names:
        oid = table_named(connection, name)
        if oid is None:
            raise ConfigError(
                f"there is no table {printable(name)}", 'write SCHEMA.TABLE, quoted as SQL wants it: public."Users"'
            )
        with translated(f"find table {printable(name)}"):
            [(oid,)] = connection.execute(
                "SELECT coalesce(pg_partition_root(%s::oid::regclass)::oid, %s::oid)", (oid, oid)
            ).fetchall()
        resolved[name] = oid
    return resolved


def _all_known(named: dict[str, int], relations: Sequence[_Relation]) -> None:
    known = {relation.oid for relation in relations if relation.kind != _MATERIALISED_VIEW}
    for name, oid in named.items():
        if oid not in known:
            raise ConfigError(f"{printable(name)} is no table whose rows are in the dump", "name a table, not a view")


def _source(relation: _Relation) -> str:
    """The FROM item: children of old-style inheritance are tables of their own, partitions are not."""
    return f"{'ONLY ' if relation.kind == 'r' else ''}{relation.name}"


def _counted(connection: Connection, relations: Sequence[_Relation]) -> dict[str, Table]:
    queries = [
        f"SELECT {index}, count(*) FROM {_source(each)}" if each.populated else f"SELECT {index}, 0::bigint"  # noqa: S608  # the server quoted it
        for index, each in enumerate(relations)
    ]
    rows = connection.execute(" UNION ALL ".join(queries).encode()).fetchall()
    return {relations[index].name: Table(count, relations[index].kind) for index, count in rows}


def _digested(connection: Connection, relation: _Relation) -> Table:
    rows = f'SELECT (ROW({relation.columns})::text) COLLATE "C" AS r FROM {_source(relation)} AS t OFFSET 0'  # noqa: S608  # the server quoted it
    [(count, *sums)] = connection.execute(f"SELECT count(*), {_sums(connection, 'r')} FROM ({rows}) AS s".encode()).fetchall()  # noqa: S608  # as above
    return Table(count, relation.kind, _hex(sums))


def _large_objects(connection: Connection, level: Level) -> LargeObjects:
    if level is not Level.DIGESTS:
        [(count,)] = connection.execute("SELECT count(*) FROM pg_largeobject_metadata").fetchall()
        return LargeObjects(count)
    text = "oid || ':' || start || ':' || hash"
    [(count, *sums)] = connection.execute(f"{_LARGE_OBJECTS} {_sums(connection, text)} FROM pages".encode()).fetchall()
    return LargeObjects(count, _hex(sums))


def _sums(connection: Connection, text: str) -> str:
    """The two sums over a text expression. A record of one column hashes as the column does, and bytes hash as text does."""
    is_utf8 = connection.info.parameter_status("server_encoding") == "UTF8"
    hashed = f"hashtextextended({text}" if is_utf8 else f"hash_record_extended(ROW(convert_to({text}, 'UTF8'))"
    return ", ".join(f"coalesce(sum({hashed}, {seed})::numeric), 0)" for seed in _SEEDS)


def _hex(sums: Iterable[object]) -> str:
    return "".join(f"{int(str(each)) % (1 << 64):016x}" for each in sums)
