"""A dump comes back whole into an empty cluster, in every pair of majors, and the programs' complaints are understood."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from backupd.errors import (
    ConfigError,
    CouldNotVerify,
    ProcessFailed,
    Refused,
    SourceDenied,
    SourceError,
    SourceUnreachable,
    Tampered,
)
from backupd.manifest import Expectations, Level, Source
from backupd.pipeline import run
from backupd.postgres import archive, dump, expectations, roles, session
from backupd.postgres.archive import ProblemKind
from backupd.postgres.clients import Clients
from backupd.postgres.dsn import Dsn
from backupd.postgres.scratch import ScratchCluster
from backupd.postgres.session import Server
from backupd.postgres.snapshot import Snapshot
from tests.parts.postgres import Database, PostgresServer
from tests.postgres.conftest import Housed

TIMEOUT_S = 200


def _dumped(zoo: Housed, programs: Clients, wish: str = "auto") -> tuple[bytes, str, Expectations]:
    """The archive, the roles' SQL and what a restore must show."""
    with Snapshot(zoo.dsn, application_name="backupd test") as snapshot:
        compression = dump.compression(programs, wish)
        command = dump.dump(programs, zoo.dsn, snapshot.id, compression, 30, "backupd test dump")
        archived = run(command, timeout_s=TIMEOUT_S).stdout
        expected = expectations.collect(snapshot, Level.DIGESTS)
    made = run(roles.dump_globals(programs, zoo.dsn).command, timeout_s=TIMEOUT_S)
    return archived, made.stdout.decode(), expected


@pytest.mark.parametrize(
    ("source", "dumped_with", "restored_by"), [("zoo15", 15, 15), ("zoo15", 17, 17), ("zoo17", 17, 17), ("zoo15", 15, 17)]
)
def test_a_zoo_comes_back_whole(
    source: str, dumped_with: int, restored_by: int, programs: dict[int, Clients], place: Path, request: pytest.FixtureRequest
) -> None:
    zoo: Housed = request.getfixturevalue(source)
    archived, roles_sql, expected = _dumped(zoo, programs[dumped_with])
    with ScratchCluster(programs[restored_by], memory=place) as cluster:
        cluster.require_extensions(expected.extensions)
        target = cluster.create_database("restored")
        with session.connect(target, application_name="backupd test", autocommit=True) as connection:
            archive.require_empty(connection)
            report = roles.apply(connection, roles_sql)
            restoring = archive.restore(programs[restored_by], target, single_transaction=True)
            if programs[dumped_with].behind(zoo.release()) and programs[restored_by].behind(zoo.release()):
                with pytest.raises(ProcessFailed, match="pg_attver"):  # why `choose` does not take this pg_dump for that server
                    run(restoring, archived, timeout_s=TIMEOUT_S)
                return
            run(restoring, archived, timeout_s=TIMEOUT_S)
            assert set(zoo.animals.roles) <= set(report.created)
            assert expectations.compare(expected, expectations.loaded(connection, expected)) == []
            assert expectations.compare(expected, expectations.found(connection, expected)) == []
            connection.execute("DELETE FROM public.empty; INSERT INTO public.empty VALUES (1)")
            shown = expectations.found(connection, expected)
            assert expectations.compare(expected, shown) == ['table "public"."empty" has 1 rows, expected 0']
            with pytest.raises(Refused, match="the target is not empty"):
                archive.require_empty(connection)


def test_after_a_load_only_tables_are_counted_whose_statistics_say_something_else(
    postgres17: PostgresServer, programs: dict[int, Clients], place: Path
) -> None:
    source = Dsn.parse(postgres17.dsn(postgres17.create_database()))
    with session.connect(source, application_name="backupd test", autocommit=True) as connection:
        connection.execute(
            "RESET search_path; CREATE TABLE plain AS SELECT generate_series(1, 1000) AS id; CREATE TABLE nothing (id int);"
            "CREATE TABLE parted (id int) PARTITION BY LIST (id); CREATE TABLE p1 PARTITION OF parted FOR VALUES IN (1);"
            "CREATE TABLE p2 PARTITION OF parted DEFAULT; INSERT INTO parted VALUES (1), (2), (3)"
        )
    with Snapshot(source, application_name="backupd test") as snapshot:
        command = dump.dump(programs[17], source, snapshot.id, "gzip:1", 30, "backupd test dump")
        archived = run(command, timeout_s=TIMEOUT_S).stdout
        expected = expectations.collect(snapshot, Level.ROWS)
    scans = "SELECT sum(pg_stat_get_numscans(oid))::int FROM pg_class WHERE relname IN ('plain', 'nothing', 'p1', 'p2')"
    with ScratchCluster(programs[17], memory=place) as cluster:
        target = cluster.create_database("restored")
        with session.connect(target, application_name="backupd test", autocommit=True) as connection:
            connection.execute("CREATE ROLE postgres")
        run(archive.restore(programs[17], target, single_transaction=True), archived, timeout_s=TIMEOUT_S)
        with session.connect(target, application_name="backupd test", autocommit=True) as connection:
            scanned = connection.execute(scans).fetchall()  # pg_restore attaches partitions by looking at them
            assert expectations.compare(expected, expectations.loaded(connection, expected)) == []
            assert connection.execute(scans).fetchall() == scanned
            connection.execute("DELETE FROM public.parted WHERE id = 1; TRUNCATE public.plain")
        with session.connect(target, application_name="backupd test", autocommit=True) as connection:
            differences = expectations.compare(expected, expectations.loaded(connection, expected))
            assert differences == [
                'table "public"."parted" has 2 rows, expected 3',
                'table "public"."plain" has 0 rows, expected 1000',
            ]
            connection.execute("SELECT pg_stat_reset()")
            # Without statistics all are counted.
            assert expectations.compare(expected, expectations.loaded(connection, expected)) == differences


def test_newer_programs_fill_an_older_server_and_their_one_complaint_is_forgiven(
    zoo15: Housed, programs: dict[int, Clients]
) -> None:
    archived, _, expected = _dumped(zoo15, programs[17])
    name = zoo15.server.create_database()
    target = zoo15.dsn.with_database(name)
    try:
        with session.connect(target, application_name="backupd test", autocommit=True) as connection:
            assert not archive.one_transaction_fits(programs[17], session.server(connection))
            with pytest.raises(ProcessFailed) as caught:
                run(archive.restore(programs[17], target, single_transaction=True), archived, timeout_s=TIMEOUT_S)
            archive.require_empty(connection)
            assert not archive.forgiven(caught.value.stderr)
            with pytest.raises(ProcessFailed) as caught:
                run(archive.restore(programs[17], target, single_transaction=False), archived, timeout_s=TIMEOUT_S)
            assert archive.forgiven(caught.value.stderr)
            assert expectations.compare(expected, expectations.found(connection, expected)) == []
    finally:
        zoo15.server.drop_database(name)


def test_a_failed_restore_in_one_transaction_leaves_nothing(zoo17: Housed, programs: dict[int, Clients], place: Path) -> None:
    archived, _, _ = _dumped(zoo17, programs[17])
    with ScratchCluster(programs[17], memory=place) as cluster:
        target = cluster.create_database("restored")
        with pytest.raises(ProcessFailed) as caught:  # the roles are not there
            run(archive.restore(programs[17], target, single_transaction=True), archived, timeout_s=TIMEOUT_S)
        explained = archive.explained(caught.value)
        assert "a role is missing" in explained.message
        assert explained.hint == "restore the roles first, or create the role"
        with session.connect(target, application_name="backupd test") as connection:
            archive.require_empty(connection)


@pytest.mark.parametrize("major", [15, 17])
def test_reading_to_the_end_finds_a_cut_archive(
    major: int, programs: dict[int, Clients], request: pytest.FixtureRequest
) -> None:
    archived, _, _ = _dumped(request.getfixturevalue(f"zoo{major}"), programs[major])
    run(archive.read_to_end(programs[major]), archived, timeout_s=TIMEOUT_S)
    for length in (0, 3, len(archived) // 2, len(archived) - 3):
        with pytest.raises(ProcessFailed) as caught:
            run(archive.read_to_end(programs[major]), archived[:length], timeout_s=TIMEOUT_S)
        assert isinstance(archive.explained(caught.value), Tampered)


def test_an_older_pg_restore_says_that_an_archive_is_too_new(zoo17: Housed, programs: dict[int, Clients]) -> None:
    archived, _, _ = _dumped(zoo17, programs[17])
    with pytest.raises(ProcessFailed) as caught:
        run(archive.read_to_end(programs[15]), archived, timeout_s=TIMEOUT_S)
    assert [problem.kind for problem in archive.classify(caught.value.stderr)] == [ProblemKind.TOO_NEW]


def test_a_row_that_fails_to_load_does_not_leave_the_room(database17: Database, programs: dict[int, Clients]) -> None:
    database17.execute("CREATE TABLE t (secret text); INSERT INTO t VALUES ('JBSWY3DPEHPK3PXP')")
    dsn = Dsn.parse(database17.dsn)
    with Snapshot(dsn, application_name="backupd test") as snapshot:
        archived = run(dump.dump(programs[17], dsn, snapshot.id, "none", 30, "test"), timeout_s=TIMEOUT_S).stdout
    changed = archived.replace(b"secret text", b"secret  int")
    assert changed != archived
    other = database17.server.create_database()
    try:
        target = dsn.with_database(other)
        with pytest.raises(ProcessFailed) as caught:
            run(archive.restore(programs[17], target, single_transaction=True), changed, timeout_s=TIMEOUT_S)
    finally:
        database17.server.drop_database(other)
    explained = archive.explained(caught.value)
    assert 'invalid input syntax for type integer: "…"' in explained.message
    shown = f"{explained.message} {archive.without_statements(caught.value.stderr)} {archive.classify(caught.value.stderr)}"
    assert "JBSWY3DP" not in shown


@pytest.mark.parametrize(
    ("line", "kind", "text"),
    [
        ('could not execute query: ERROR:  role "zoo" does not exist', ProblemKind.MISSING_ROLE, 'role "zoo" does not exist'),
        ('could not execute query: ERROR:  extension "postgis" is not available', ProblemKind.MISSING_EXTENSION, '"postgis"'),
        ('could not execute query: ERROR:  schema "public" already exists', ProblemKind.EXISTS, 'schema "public"'),
        ("could not execute query: ERROR:  permission denied for schema public", ProblemKind.DENIED, "permission denied"),
        ("could not execute query: ERROR:  must be owner of extension plpgsql", ProblemKind.DENIED, "must be owner"),
        ('COPY failed for table "t": ERROR:  value "x@y" violates it', ProblemKind.OTHER, 'table "t": ERROR:  value "…"'),
        ("could not read from input file: end of file", ProblemKind.DAMAGED, "end of file"),
        ("did not find magic string in file header", ProblemKind.DAMAGED, "magic string"),
        ("could not extend file: No space left on device", ProblemKind.NO_ROOM, "No space left"),
        ('connection to server at "db" failed: Connection refused', ProblemKind.CONNECTION, "Connection refused"),
    ],
)
def test_a_complaint_is_sorted_and_keeps_only_names(line: str, kind: ProblemKind, text: str) -> None:
    stderr = (
        "pg_restore: while PROCESSING TOC:\npg_restore: from TOC entry 3; 2615 2200 SCHEMA public postgres\n"
        f"pg_restore: error: {line}\nDETAIL:  Key (s)=(a secret value) exists.\n"
        "Command was: INSERT INTO t VALUES ('a secret value');\n"
    )
    [problem] = archive.classify(stderr)
    assert problem.kind is kind
    assert text in problem.text
    assert "\n" not in problem.text
    assert "a secret value" not in archive.without_statements(stderr)
    assert not problem.harmless


def test_each_grave_kind_has_an_error_of_its_own() -> None:
    kinds = {
        "could not read from input file: end of file": Tampered,
        "could not execute query: ERROR:  permission denied for schema public": SourceDenied,
        'could not execute query: ERROR:  extension "postgis" is not available': CouldNotVerify,
        'could not execute query: ERROR:  role "zoo" does not exist': ProcessFailed,
    }
    for line, kind in kinds.items():
        error = archive.explained(ProcessFailed("pg_restore ended with exit code 1", stderr=f"pg_restore: error: {line}"))
        assert type(error) is kind
        assert error.hint


def test_nothing_is_forgiven_that_is_not_seen_whole() -> None:
    harmless = (
        'pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter "transaction_timeout"\n'
    )
    ignored = "pg_restore: warning: errors ignored on restore: {}\n"
    assert archive.forgiven(harmless + ignored.format(1))
    assert not archive.forgiven(harmless + ignored.format(2))
    assert not archive.forgiven(harmless)
    assert not archive.forgiven("")
    assert not archive.forgiven('pg_restore: error: ERROR:  role "x" does not exist\n' + ignored.format(1))


def test_the_source_itself_is_no_target() -> None:
    source = Source("clinic", "clinic", "7300000000000000001", "17.10")
    here = Server(170010, "17.10", 17, "7300000000000000001", "clinic", False, 1)
    with pytest.raises(Refused, match="the target is the source itself"):
        archive.require_not_source(here, source)
    archive.require_not_source(Server(170010, "17.10", 17, "7300000000000000001", "other", False, 1), source)
    archive.require_not_source(Server(170010, "17.10", 17, "7300000000000000002", "clinic", False, 1), source)


_CONTENTS = {
    "table": ("CREATE TABLE t ()", "table public.t"),
    "view": ("CREATE VIEW v AS SELECT 1", "view public.v"),
    "sequence": ("CREATE SEQUENCE s", "sequence public.s"),
    "enum": ("CREATE TYPE mood AS ENUM ()", "type public.mood"),
    "composite type": ("CREATE TYPE pair AS (a int)", "type public.pair"),
    "shell type": ("CREATE TYPE shell", "type public.shell"),
    "domain": ("CREATE DOMAIN d AS int", "type public.d"),
    "function": ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", r"function public\.f\(\)"),
    "function of a system schema": (
        "CREATE FUNCTION pg_catalog.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        r"function pg_catalog\.f\(\)",
    ),
    "schema": ("CREATE SCHEMA other", "schema other"),
    "schema public made anew": ("DROP SCHEMA public; CREATE SCHEMA public", "schema public"),
    "extension": ("CREATE EXTENSION citext", "extension citext"),
    "large object": ("SELECT lo_create(77)", "large object 77"),
    "operator": ("CREATE OPERATOR === (FUNCTION = int4eq, LEFTARG = int4, RIGHTARG = int4)", "operator public.==="),
    "operator family": ("CREATE OPERATOR FAMILY fam USING btree", "operator family public.fam"),
    "operator class": (
        "CREATE OPERATOR CLASS opc FOR TYPE int4 USING btree FAMILY integer_ops AS STORAGE int4",
        "operator class public.opc",
    ),
    "collation": ("CREATE COLLATION c (LOCALE = 'C')", "collation public.c"),
    "conversion": ("CREATE CONVERSION conv FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8", "conversion public.conv"),
    "text search configuration": (
        "CREATE TEXT SEARCH CONFIGURATION cfg (COPY = simple)",
        "text search configuration public.cfg",
    ),
    "text search dictionary": (
        "CREATE TEXT SEARCH DICTIONARY dic (TEMPLATE = simple)",
        "text search dictionary public.dic",
    ),
    "text search parser": (
        "CREATE TEXT SEARCH PARSER par"
        " (START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end, LEXTYPES = prsd_lextype)",
        "text search parser public.par",
    ),
    "text search template": ("CREATE TEXT SEARCH TEMPLATE tem (LEXIZE = dsimple_lexize)", "text search template public.tem"),
    "cast": ("CREATE CAST (int4 AS inet) WITH INOUT", r"cast \(integer AS pg_catalog\.inet\)"),
    "transform": (
        "CREATE TRANSFORM FOR int4 LANGUAGE sql (FROM SQL WITH FUNCTION prsd_lextype(internal))",
        "transform for integer",
    ),
    "language": ("CREATE LANGUAGE tongue HANDLER plpgsql_call_handler", "language tongue"),
    "access method": ("CREATE ACCESS METHOD am TYPE TABLE HANDLER heap_tableam_handler", "access method am"),
    "event trigger": (
        "CREATE FUNCTION f() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"
        "CREATE EVENT TRIGGER ev ON sql_drop EXECUTE FUNCTION f()",
        "event trigger ev",
    ),
    "foreign-data wrapper": ("CREATE FOREIGN DATA WRAPPER fdw", "foreign-data wrapper fdw"),
    "foreign server": ("CREATE FOREIGN DATA WRAPPER fdw; CREATE SERVER far FOREIGN DATA WRAPPER fdw", "server far"),
    "publication": ("CREATE PUBLICATION pub", "publication pub"),
    "subscription": (
        "CREATE SUBSCRIPTION sub CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false, slot_name = NONE)",
        "subscription sub",
    ),
    "default privileges": (
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC",
        "default acl for role postgres on tables",
    ),
    "default privileges in a schema": (
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO PUBLIC",
        "default acl for role postgres in schema public on tables",
    ),
    "grants on the schema public": ("GRANT CREATE ON SCHEMA public TO PUBLIC", "grants on schema public"),
    "a right taken from the schema public": ("REVOKE USAGE ON SCHEMA public FROM PUBLIC", "grants on schema public"),
    "another owner of the schema public": ("ALTER SCHEMA public OWNER TO postgres", "grants on schema public"),
}


@pytest.mark.parametrize("kind", _CONTENTS)
def test_a_target_that_holds_anything_is_refused(kind: str, database17: Database) -> None:
    statement, named = _CONTENTS[kind]
    with session.connect(Dsn.parse(database17.dsn), application_name="backupd test", autocommit=True) as connection:
        archive.require_empty(connection)
        with connection.transaction(force_rollback=True):
            connection.execute(b"SET LOCAL search_path TO DEFAULT; " + statement.encode())
            connection.execute("SET LOCAL search_path TO pg_catalog, pg_temp")
            with pytest.raises(Refused, match=f"holds (.*, )?{named}"):
                archive.require_empty(connection)


def test_what_another_session_keeps_for_itself_is_not_held_against_a_target(database17: Database) -> None:
    with database17.connect() as other:
        other.execute("CREATE TEMPORARY TABLE passing (); CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        with session.connect(Dsn.parse(database17.dsn), application_name="backupd test", autocommit=True) as connection:
            archive.require_empty(connection)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DROP SCHEMA public", "the target lacks schema public"),
        ("DROP EXTENSION plpgsql", "the target lacks extension plpgsql"),
        ("DROP SCHEMA public; DROP EXTENSION plpgsql", "the target lacks schema public and extension plpgsql"),
        ("ALTER DATABASE {name} SET default_transaction_read_only = on", "the target takes no writes"),
    ],
)
def test_a_target_that_could_not_be_filled_is_refused_beforehand(statement: str, message: str, database17: Database) -> None:
    with session.connect(Dsn.parse(database17.dsn), application_name="backupd test", autocommit=True) as connection:
        archive.require_usable(connection)
        connection.execute(statement.format(name=database17.name).encode())
    with session.connect(Dsn.parse(database17.dsn), application_name="backupd test", autocommit=True) as connection:
        with pytest.raises(Refused, match=message) as caught:
            archive.require_usable(connection)
        assert "from template0" in str(caught.value.hint)


def test_a_full_target_is_counted(zoo17: Housed) -> None:
    with (
        session.connect(zoo17.dsn, application_name="backupd test") as connection,
        pytest.raises(Refused, match=r"it holds cast .*, extension citext and \d+ more"),
    ):
        archive.require_empty(connection)


@pytest.mark.parametrize(
    ("major", "wish", "compression"),
    [(17, "auto", "zstd:1"), (15, "auto", "gzip:1"), (15, "none", "none"), (17, "lz4", "lz4:1"), (17, "zstd:3", "zstd:3")],
)
def test_a_dump_is_compressed_as_wished_and_its_arguments_hold_no_secret(
    major: int, wish: str, compression: str, programs: dict[int, Clients], request: pytest.FixtureRequest
) -> None:
    zoo: Housed = request.getfixturevalue(f"zoo{major}")
    chosen = dump.compression(programs[major], wish)
    assert chosen == compression
    command = dump.dump(programs[major], zoo.dsn, "00000003-1", chosen, 1.5, "backupd test")
    assert zoo.server.password not in " ".join(command.argv)
    assert zoo.server.password not in repr(command)
    assert "--lock-wait-timeout=1500" in command.argv
    archived, _, _ = _dumped(zoo, programs[major], wish)
    listed = subprocess.run([programs[major].program("pg_restore"), "-l"], input=archived, capture_output=True, check=True)
    assert {"zstd": b"zstd", "gzip": b"", "none": b"", "lz4": b"lz4"}[chosen.partition(":")[0]] in listed.stdout


@pytest.mark.parametrize("wish", ["zstd", "lz4:1"])
def test_a_compression_that_this_pg_dump_does_not_have_is_a_configuration_error(
    wish: str, programs: dict[int, Clients]
) -> None:
    with pytest.raises(ConfigError, match=r"the pg_dump of PostgreSQL 15.* has no"):
        dump.compression(programs[15], wish)


def test_a_dump_waits_for_a_lock_no_longer_than_it_may(database17: Database, programs: dict[int, Clients]) -> None:
    database17.execute("CREATE TABLE t ()")
    dsn = Dsn.parse(database17.dsn)
    with database17.connect() as holder, holder.transaction(), database17.connect() as migration, migration.transaction():
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        [(snapshot,)] = holder.execute("SELECT pg_export_snapshot()").fetchall()
        migration.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(ProcessFailed) as caught:
            run(dump.dump(programs[17], dsn, snapshot, "none", 0.2, "test"), timeout_s=TIMEOUT_S)
    explained = dump.explained(caught.value)
    assert isinstance(explained, SourceError)
    assert "canceling statement due to statement timeout" in explained.message
    assert "migration" in str(explained.hint)


def test_a_dump_that_may_not_read_says_what(database15: Database, programs: dict[int, Clients]) -> None:
    role, password = database15.server.create_role()
    database15.execute("CREATE TABLE secrets (); SELECT lo_create(5)")
    dsn = Dsn.parse(database15.server.dsn(database15.name, role, password))
    for named in ("table secrets", "large object 5"):
        with Snapshot(dsn, application_name="backupd test") as snapshot, pytest.raises(ProcessFailed) as caught:
            run(dump.dump(programs[15], dsn, snapshot.id, "none", 5, "test"), timeout_s=TIMEOUT_S)
        explained = dump.explained(caught.value)
        assert isinstance(explained, SourceDenied)
        assert named in explained.message
        database15.execute(f"GRANT SELECT ON secrets TO {role}")


def test_a_dump_of_a_snapshot_that_is_gone_says_so(database17: Database, programs: dict[int, Clients]) -> None:
    dsn = Dsn.parse(database17.dsn)
    with Snapshot(dsn, application_name="backupd test") as snapshot:
        command = dump.dump(programs[17], dsn, snapshot.id, "none", 5, "test")
    with pytest.raises(ProcessFailed) as caught:
        run(command, timeout_s=TIMEOUT_S)
    assert isinstance(dump.explained(caught.value), SourceUnreachable)


def test_older_programs_cannot_dump_a_newer_server(zoo17: Housed, programs: dict[int, Clients]) -> None:
    with Snapshot(zoo17.dsn, application_name="backupd test") as snapshot, pytest.raises(ProcessFailed) as caught:
        run(dump.dump(programs[15], zoo17.dsn, snapshot.id, "none", 5, "test"), timeout_s=TIMEOUT_S)
    assert isinstance(dump.explained(caught.value), ConfigError)


def test_a_failure_without_a_word_keeps_its_exit_code() -> None:
    error = dump.explained(ProcessFailed("pg_dump was ended by SIGKILL", "look", stderr=""))
    assert (error.message, error.hint) == ("pg_dump was ended by SIGKILL", "look")
