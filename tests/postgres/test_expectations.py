"""Figures of a database: equal wherever the same rows are, different when one is not, refused where rows are hidden."""

from __future__ import annotations

import dataclasses

import pytest

from backupd.errors import ConfigError, SourceDenied
from backupd.manifest import Expectations, LargeObjects, Level, Table
from backupd.postgres import expectations
from backupd.postgres.dsn import Dsn
from backupd.postgres.snapshot import Snapshot
from tests.parts.postgres import Database
from tests.postgres.conftest import Housed


@pytest.fixture(params=["database15", "database17"])
def database(request: pytest.FixtureRequest) -> Database:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Database)
    return found


_ODD_SETTINGS = (
    *("timezone = 'Asia/Tokyo'", "bytea_output = 'escape'", "datestyle = 'German'"),
    *("intervalstyle = 'iso_8601'", "extra_float_digits = -5"),
)


def _collect(dsn: str | Dsn, level: Level = Level.DIGESTS, digested: tuple[str, ...] = ()) -> Expectations:
    parsed = Dsn.parse(dsn) if isinstance(dsn, str) else dsn
    with Snapshot(parsed, application_name="backupd test") as snapshot:
        return expectations.collect(snapshot, level, digested)


def _digest(database: Database, table: str = '"public"."t"') -> str | None:
    return _collect(database.dsn).tables[table].digest


def test_two_majors_see_the_same_in_the_same_zoo(zoo15: Housed, zoo17: Housed) -> None:
    fifteen, seventeen = _collect(zoo15.dsn), _collect(zoo17.dsn)
    assert expectations.compare(fifteen, seventeen) == []
    assert expectations.compare(seventeen, fifteen) == []
    assert fifteen.tables == seventeen.tables
    assert fifteen.large_objects == seventeen.large_objects


def test_everything_of_the_zoo_is_counted(zoo17: Housed) -> None:
    shown = _collect(zoo17.dsn)
    assert shown.tables['"public"."empty"'].rows == 0
    assert shown.tables['"public"."visits"'].rows == 900
    assert shown.tables['"public"."visits"'].kind == "p"
    assert not [name for name in shown.tables if "visits_" in name]
    assert shown.tables['"public"."parent"'].rows == 1
    assert shown.tables['"public"."child"'].rows == 2
    assert shown.tables['"public"."no_columns"'].rows == 1
    assert shown.tables['"Odd Schema"."Quoted ""Table"""'].rows == 1
    assert shown.tables['"Odd Schema"."json"'].rows == 6
    assert dataclasses.replace(shown.tables['"public"."summary"'], rows=0) == Table(0, "m", None)
    assert shown.tables['"public"."never filled"'] == Table(0, "m", None)
    assert shown.sequences['"Odd Schema"."Counter"'] == 1028
    assert shown.sequences['"public"."downwards"'] == -67
    assert shown.sequences['"public"."untouched"'] is None
    assert shown.sequences['"public"."huge"'] == 9223372036854775806
    assert shown.large_objects is not None
    assert shown.large_objects.count == 22
    assert set(shown.extensions) == {"plpgsql", "citext", "hstore", "pgcrypto"}
    assert set(shown.roles) == {"postgres", *zoo17.animals.roles}


def test_levels_decide_how_much_is_read(zoo17: Housed) -> None:
    rows = _collect(zoo17.dsn, Level.ROWS, ("users",))
    assert rows.tables['"public"."orders"'] == Table(501, "r")
    assert rows.tables['"public"."users"'].digest is not None
    assert rows.large_objects == LargeObjects(22)
    off = _collect(zoo17.dsn, Level.OFF, ("public.users", "feelings_0"))
    assert set(off.tables) == {'"public"."users"', '"public"."feelings"'}
    assert all(table.digest for table in off.tables.values())
    assert (off.sequences, off.large_objects) == ({}, None)
    assert "citext" in off.extensions


@pytest.mark.parametrize("name", ["nowhere", "busy", "not a (name", "summary", "pg_class"])
def test_a_table_to_digest_must_be_one(zoo17: Housed, name: str) -> None:
    with pytest.raises(ConfigError, match="no table"):
        _collect(zoo17.dsn, Level.ROWS, (name,))


def test_a_snapshot_can_be_used_after_a_look_and_keeps_its_settings(zoo17: Housed) -> None:
    with Snapshot(zoo17.dsn, application_name="backupd test") as snapshot:
        before = snapshot.connection.execute("SHOW search_path").fetchone()
        expectations.collect(snapshot, Level.ROWS)
        assert snapshot.connection.execute("SHOW search_path").fetchone() == before
        snapshot.alive()


def test_the_figures_are_those_of_the_snapshot(database: Database) -> None:
    database.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1); SELECT lo_from_bytea(1, 'old')")
    before = _collect(database.dsn)
    with Snapshot(Dsn.parse(database.dsn), application_name="backupd test") as snapshot:
        database.execute("UPDATE t SET id = 2; INSERT INTO t VALUES (3); SELECT lo_put(1, 0, 'new'), lo_create(2)")
        during = expectations.collect(snapshot, Level.DIGESTS)
    assert during == before
    assert len(expectations.compare(before, _collect(database.dsn))) == 2


def test_sequences_are_those_of_the_snapshots_beginning(database: Database) -> None:
    """A dump may read them before anyone else does: what was noted must never be ahead of what was dumped."""
    database.execute("CREATE SEQUENCE numbers; SELECT nextval('numbers')")
    with Snapshot(Dsn.parse(database.dsn), application_name="backupd test") as snapshot:
        database.execute("SELECT nextval('numbers')")
        assert expectations.collect(snapshot, Level.ROWS).sequences == {'"public"."numbers"': 1}


def test_a_digest_knows_neither_order_nor_dropped_columns_nor_settings(database: Database) -> None:
    database.execute(
        "CREATE TABLE t (a int, b timestamptz, c float8, d bytea, e interval);"
        " INSERT INTO t SELECT i, '2026-01-01 12:00+02'::timestamptz, i / 3.0::float8, 'x', '1 day'"
        " FROM generate_series(1, 50) i"
    )
    first = _digest(database)
    database.execute(
        "DROP TABLE t; CREATE TABLE t (gone int, e interval, d bytea, c float8, a int, b timestamptz);"
        " ALTER TABLE t DROP COLUMN gone;"
        " INSERT INTO t (a, b, c, d, e) SELECT i, '2026-01-01 12:00+02'::timestamptz, i / 3.0::float8, 'x', '1 day'"
        " FROM generate_series(50, 1, -1) i;"
        + " ".join(f"ALTER DATABASE {database.name} SET {setting};" for setting in _ODD_SETTINGS)
    )
    assert _digest(database) == first


_CHANGES = (
    "UPDATE t SET s = 'C' WHERE id = 3",
    "UPDATE t SET s = NULL WHERE id = 3",
    "UPDATE t SET s = '' WHERE s IS NULL",
    "UPDATE t SET s = (SELECT string_agg(x.s, '') FROM t x WHERE x.id <> t.id AND x.id < 3) WHERE id < 3",
    "DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (4, 'a')",
    "UPDATE t SET s = s || ' '",
)


def test_a_digest_changes_with_any_row(database: Database) -> None:
    for change in _CHANGES:
        database.execute("DROP TABLE IF EXISTS t; CREATE TABLE t (id int, s text)")
        database.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c'), (5, NULL)")
        before = _collect(database.dsn)
        database.execute(change)
        after = _collect(database.dsn)
        assert before.tables['"public"."t"'].rows == after.tables['"public"."t"'].rows
        differences = ['table "public"."t" has the right number of rows (4) and other contents']
        assert expectations.compare(before, after) == differences, change


def test_a_digest_is_of_128_bits_and_counts_equal_rows(database: Database) -> None:
    database.execute("CREATE TABLE t (s text)")
    assert _digest(database) == "0" * 32
    database.execute("INSERT INTO t VALUES ('x'), ('x')")
    twice = _digest(database)
    assert twice is not None
    assert len(twice) == 32
    assert twice[:16] != twice[16:]
    database.execute("UPDATE t SET s = 'y'")
    assert _digest(database) not in (twice, "0" * 32)


def test_another_encoding_gives_the_same_digest(database: Database) -> None:
    database.execute("CREATE TABLE t (s text); INSERT INTO t VALUES ('Straße'), ('naïve'); SELECT lo_from_bytea(7, 'x')")
    latin = f"{database.name}_latin"
    with database.server.connect() as connection:
        connection.execute(f"CREATE DATABASE {latin} TEMPLATE template0 ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C'".encode())
    try:
        with database.server.connect(latin) as connection:
            connection.execute("CREATE TABLE t (s text)")
            connection.execute("INSERT INTO t VALUES (%s), (%s)", ("Straße", "naïve"))
            connection.execute("SELECT lo_from_bytea(7, 'x')")
        assert _collect(database.server.dsn(latin)) == _collect(database.dsn)
    finally:
        database.server.drop_database(latin)


def test_a_large_object_is_digested_to_its_last_byte(database: Database) -> None:
    database.execute("SELECT lo_from_bytea(5, decode(repeat('ab', 2097153), 'hex'))")
    before = _collect(database.dsn)
    database.execute("SELECT lo_put(5, 2097152, 'z')")
    assert expectations.compare(before, _collect(database.dsn)) == [
        "there are 1 large objects, as expected, and they have other contents"
    ]


def test_what_belongs_to_an_extension_is_the_extensions(database: Database) -> None:
    database.execute("CREATE TABLE member (id int); CREATE SEQUENCE counter; CREATE TABLE mine (id int)")
    database.execute(
        "CREATE EXTENSION citext; ALTER EXTENSION citext ADD TABLE member; ALTER EXTENSION citext ADD SEQUENCE counter"
    )
    shown = _collect(database.dsn)
    assert (list(shown.tables), list(shown.sequences)) == (['"public"."mine"'], [])


def test_a_table_that_may_not_be_read_is_named_with_the_remedy(database: Database) -> None:
    role, password = database.server.create_role()
    dsn = database.server.dsn(database.name, role, password)
    database.execute(
        'CREATE TABLE readable (id int); CREATE TABLE "Not Readable" (id int); CREATE SCHEMA hidden; CREATE SEQUENCE numbers;'
        f" GRANT SELECT ON readable TO {role}"
    )
    with pytest.raises(SourceDenied, match=f'"{role}" may not read table "public"."Not Readable"') as caught:
        _collect(dsn, Level.OFF)
    assert caught.value.hint is not None
    database.execute(caught.value.hint.partition(";")[0])
    with pytest.raises(SourceDenied, match=r'may not read sequence "public"\."numbers"') as caught:
        _collect(dsn)
    assert caught.value.hint is not None
    database.execute(caught.value.hint.partition(";")[0])
    database.execute("CREATE TABLE hidden.t (id int)")
    with pytest.raises(SourceDenied, match=r'may not read table "hidden"\."t"') as caught:
        _collect(dsn)
    assert caught.value.hint is not None
    assert 'GRANT USAGE ON SCHEMA "hidden"' in caught.value.hint
    database.execute(f"GRANT pg_read_all_data TO {role}")
    assert set(_collect(dsn).tables) == {'"public"."readable"', '"public"."Not Readable"', '"hidden"."t"'}


def test_row_security_that_hides_rows_is_refused(database: Database) -> None:
    role, password = database.server.create_role()
    dsn = database.server.dsn(database.name, role, password)
    database.execute(
        "CREATE TABLE secrets (id int); INSERT INTO secrets VALUES (1); ALTER TABLE secrets ENABLE ROW LEVEL SECURITY;"
        f" CREATE POLICY none ON secrets USING (false); GRANT pg_read_all_data TO {role}"
    )
    with pytest.raises(SourceDenied, match=r'row security hides rows of "public"\."secrets"') as caught:
        _collect(dsn)
    assert caught.value.hint is not None
    database.execute(caught.value.hint)
    assert _collect(dsn).tables['"public"."secrets"'].rows == 1


def test_a_large_object_that_may_not_be_read_is_denied(database: Database) -> None:
    role, password = database.server.create_role()
    database.execute("SELECT lo_from_bytea(5, 'x')")
    with pytest.raises(SourceDenied, match="may not read large object 5") as caught:
        _collect(database.server.dsn(database.name, role, password))
    assert f'ALTER ROLE "{role}" SET lo_compat_privileges = on' in (caught.value.hint or "")
    database.execute(f"ALTER ROLE {role} SET lo_compat_privileges = on; GRANT pg_read_all_data TO {role}")
    assert _collect(database.server.dsn(database.name, role, password)).large_objects is not None


_EXPECTED = Expectations(
    level=Level.ROWS,
    tables={'"public"."a"': Table(3, "r"), '"public"."m"': Table(3, "m")},
    sequences={'"public"."up"': 10, '"public"."down"': -10, '"public"."fresh"': None},
    large_objects=LargeObjects(2),
    extensions={"citext": "1.6"},
    roles=("owner",),
)


def test_what_may_rightly_differ_is_no_difference() -> None:
    shown = dataclasses.replace(
        _EXPECTED,
        tables={**_EXPECTED.tables, '"public"."m"': Table(9, "m")},
        sequences={'"public"."up"': 11, '"public"."down"': -13, '"public"."fresh"': 1},
        extensions={"citext": "1.7", "plpgsql": "1.0"},
    )
    assert expectations.compare(_EXPECTED, shown) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tables": {'"public"."m"': Table(3, "m")}}, 'table "public"."a" is missing'),
        ({"tables": {**_EXPECTED.tables, '"public"."a"': Table(2, "r")}}, 'table "public"."a" has 2 rows, expected 3'),
        ({"tables": {**_EXPECTED.tables, '"public"."a"': Table(3, "p")}}, '"public"."a" is of kind p, expected r'),
        ({"tables": {**_EXPECTED.tables, "x": Table(1, "r")}}, "table x has 1 rows and is not in the backup"),
        ({"sequences": {**_EXPECTED.sequences, '"public"."up"': 9}}, 'sequence "public"."up" is at 9, expected 10'),
        ({"sequences": {**_EXPECTED.sequences, '"public"."up"': None}}, 'sequence "public"."up" is at None, expected 10'),
        ({"sequences": {**_EXPECTED.sequences, '"public"."down"': -9}}, 'sequence "public"."down" is at -9, expected -10'),
        ({"sequences": {**_EXPECTED.sequences, '"public"."down"': 50}}, 'sequence "public"."down" is at 50, expected -10'),
        ({"large_objects": LargeObjects(1)}, "there are 1 large objects, expected 2"),
        ({"large_objects": None}, "there are 0 large objects, expected 2"),
        ({"extensions": {}}, "extension citext is missing"),
        ({"roles": ()}, "role owner is missing"),
    ],
)
def test_what_must_not_differ_is_said_in_words(changes: dict[str, object], line: str) -> None:
    assert expectations.compare(_EXPECTED, dataclasses.replace(_EXPECTED, **changes)) == [line]  # type: ignore[arg-type]  # fields by name
