"""Roles come back with their passwords, attributes and memberships; what exists is left alone, and nothing else is run."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql as composed
from psycopg.conninfo import make_conninfo

from backupd.errors import ProcessFailed, SourceDenied, SourceError, SourceUnreachable, Tampered
from backupd.pipeline import run
from backupd.postgres import dump, roles
from backupd.postgres.clients import Clients
from backupd.postgres.dsn import Dsn
from backupd.postgres.scratch import ScratchCluster
from backupd.postgres.session import Connection, connect
from tests.parts.postgres import Database, MakePostgres
from tests.postgres.conftest import Housed

TIMEOUT_S = 200
# As the server makes them; a text of any other shape it would take for a password to be hashed.
HASH = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$" + ":".join(2 * [b64encode(bytes(range(32))).decode()])


@pytest.fixture(scope="module", params=[15, 17])
def cluster(request: pytest.FixtureRequest, programs: dict[int, Clients], place: Path) -> Iterator[ScratchCluster]:
    with ScratchCluster(programs[request.param], memory=place) as made:
        yield made


@pytest.fixture
def superuser(cluster: ScratchCluster) -> Iterator[Connection]:
    """A session in a cluster of each major; what a test does to the cluster's roles is undone."""
    with connect(cluster.dsn(), application_name="backupd test", autocommit=True) as connection:
        connection.execute("BEGIN")
        yield connection
        connection.execute("ROLLBACK")


def _members(connection: Connection) -> set[tuple[str, str, bool]]:
    rows = connection.execute(
        "SELECT r.rolname::text, m.rolname::text, admin_option FROM pg_auth_members a JOIN pg_roles r ON r.oid = roleid"
        " JOIN pg_roles m ON m.oid = member WHERE r.rolname !~ '^pg_(monitor|read_all_s|stat_s)'"
    )
    return set(rows.fetchall())


@pytest.mark.parametrize("major", [15, 17])
def test_the_roles_of_a_zoo_come_back_with_passwords_that_work(
    major: int, cluster: ScratchCluster, programs: dict[int, Clients], request: pytest.FixtureRequest
) -> None:
    zoo: Housed = request.getfixturevalue(f"zoo{major}")
    dumped = roles.dump_globals(programs[17], zoo.dsn)
    assert dumped.passwords
    sql = run(dumped.command, timeout_s=TIMEOUT_S).stdout.decode()
    with connect(cluster.dsn(), application_name="backupd test", autocommit=True) as connection:
        try:
            report = roles.apply(connection, sql)
            assert report.kept == ()
            assert {"postgres", *zoo.animals.roles} <= set(report.created)
            assert roles.apply(connection, sql) == roles.RolesReport((), report.created, ())
            for role, password in zoo.animals.passwords.items():
                with connect(_as(cluster, role, password), application_name="backupd test") as session:
                    assert session.execute("SELECT current_user").fetchone() == (role,)
            reader = zoo.animals.reader
            with connect(_as(cluster, reader, zoo.animals.passwords[reader]), application_name="backupd test") as session:
                session.execute("RESET search_path")
                assert session.execute("SHOW search_path").fetchone() == ('"Odd Schema", public',)
            assert {
                (zoo.animals.group, zoo.animals.owner, True),
                (zoo.animals.group, zoo.animals.reader, False),
            } <= _members(connection)
            [(limit, comment)] = connection.execute(
                "SELECT (SELECT rolconnlimit FROM pg_roles WHERE rolname = %s), shobj_description(oid, 'pg_authid')"
                " FROM pg_roles WHERE rolname = %s",
                (zoo.animals.reader, zoo.animals.owner),
            ).fetchall()
            assert (limit, comment) == (7, "owns; it's\ntwo lines")
        finally:
            for (name,) in connection.execute("SELECT rolname::text FROM pg_roles WHERE oid > 16383").fetchall():
                connection.execute(composed.SQL("DROP ROLE {}").format(composed.Identifier(name)))


def test_a_role_that_may_not_read_hashes_ships_roles_without_passwords(
    database15: Database, programs: dict[int, Clients]
) -> None:
    role, password = database15.server.create_role()
    dumped = roles.dump_globals(programs[15], Dsn.parse(database15.server.dsn(database15.name, role, password)))
    assert not dumped.passwords
    sql = run(dumped.command, timeout_s=TIMEOUT_S).stdout.decode()
    assert f"CREATE ROLE {role};" in sql
    assert "SCRAM" not in sql
    assert password not in " ".join(dumped.command.argv)


def test_a_dump_of_roles_that_cannot_connect_says_so(database15: Database, programs: dict[int, Clients]) -> None:
    command = roles.dump_globals(programs[17], Dsn.parse(database15.dsn)).command
    database15.server.drop_database(database15.name)
    with pytest.raises(ProcessFailed) as caught:
        run(command, timeout_s=TIMEOUT_S)
    explained = dump.explained(caught.value)
    assert isinstance(explained, SourceUnreachable)
    assert explained.message.startswith("pg_dumpall failed: could not connect to database")


def test_roles_are_shipped_in_utf8_whatever_the_databases_encoding(
    make_postgres: MakePostgres, programs: dict[int, Clients]
) -> None:
    server = make_postgres(15)  # of its own: such a name is no UTF-8 in the eyes of every other database of the cluster
    server.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C'", database="postgres")
    server.execute('CREATE ROLE U&"B\\00E4cker"', database="latin")
    dumped = roles.dump_globals(programs[17], Dsn.parse(server.dsn("latin")))
    assert 'CREATE ROLE "Bäcker";' in run(dumped.command, timeout_s=TIMEOUT_S).stdout.decode()


def test_a_role_that_exists_is_left_as_it_is(superuser: Connection) -> None:
    superuser.execute("CREATE ROLE old NOLOGIN; CREATE ROLE boss")
    report = roles.apply(
        superuser,
        "CREATE ROLE old;\nALTER ROLE old WITH SUPERUSER LOGIN;\nALTER ROLE old SET work_mem TO '1MB';\n"
        "COMMENT ON ROLE old IS 'changed';\nGRANT boss TO old;\nCREATE ROLE fresh;\nGRANT old TO fresh;\n",
    )
    assert report == roles.RolesReport(("fresh",), ("old",), ())
    [attributes] = superuser.execute(
        "SELECT rolsuper, rolcanlogin, rolconfig, shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = 'old'"
    ).fetchall()
    assert attributes == (False, False, None, None)
    assert {row[:2] for row in _members(superuser)} == {("old", "fresh")}


def test_parameters_are_granted_to_new_roles_alone(superuser: Connection) -> None:
    """Who may set `archive_command` has a shell on the target: no role that was there gets that from a source, nor do all."""
    superuser.execute("CREATE ROLE old")
    report = roles.apply(
        superuser,
        "CREATE ROLE old;\nCREATE ROLE fresh;\nGRANT ALTER SYSTEM ON PARAMETER archive_command TO old;\n"
        "GRANT ALL ON PARAMETER log_statement TO PUBLIC;\nREVOKE ALL ON PARAMETER log_statement FROM postgres;\n"
        'GRANT SET,ALTER SYSTEM ON PARAMETER archive_command TO fresh WITH GRANT OPTION;\nCREATE ROLE "current_user";\n'
        "GRANT SET ON PARAMETER log_statement TO current_user;\n",
    )
    assert report == roles.RolesReport(
        ("fresh", "current_user"),
        ("old",),
        (
            "GRANT ALTER SYSTEM ON PARAMETER archive_command TO old: only the roles that are made have their rights changed",
            "GRANT ALL ON PARAMETER log_statement TO PUBLIC: only the roles that are made have their rights changed",
            "REVOKE ALL ON PARAMETER log_statement FROM postgres: only the roles that are made have their rights changed",
        ),
    )
    privileges = superuser.execute(
        "SELECT parname, pg_catalog.array_agg(DISTINCT grantee::regrole::text) FROM pg_parameter_acl, aclexplode(paracl)"
        " WHERE grantee <> 10 GROUP BY parname ORDER BY parname"
    ).fetchall()
    assert privileges == [("archive_command", ["fresh"]), ("log_statement", ['"current_user"'])]


def test_a_right_that_a_role_passed_on_comes_back(cluster: ScratchCluster, programs: dict[int, Clients]) -> None:
    """pg_dumpall becomes that role for the statement; here nobody becomes another."""
    with connect(cluster.dsn(), application_name="backupd test", autocommit=True) as connection:
        connection.execute('CREATE ROLE "the giver"; CREATE ROLE taker')
        try:
            connection.execute('GRANT ALTER SYSTEM ON PARAMETER archive_command TO "the giver" WITH GRANT OPTION')
            connection.execute('SET ROLE "the giver"; GRANT ALTER SYSTEM ON PARAMETER archive_command TO taker; RESET ROLE')
            sql = run(roles.dump_globals(programs[17], cluster.dsn()).command, timeout_s=TIMEOUT_S).stdout.decode()
        finally:
            connection.execute('DROP OWNED BY taker; DROP OWNED BY "the giver"; DROP ROLE taker; DROP ROLE "the giver"')
        assert 'SET SESSION AUTHORIZATION "the giver";' in sql
        with connection.transaction(force_rollback=True):
            report = roles.apply(connection, sql)
            assert (set(report.created), report.skipped) == ({"the giver", "taker"}, ())
            [(may, user)] = connection.execute(
                "SELECT has_parameter_privilege('taker', 'archive_command', 'ALTER SYSTEM'), session_user = current_user"
            ).fetchall()
            assert (may, user) == (True, True)


def test_attributes_hashes_and_odd_names_are_kept(superuser: Connection) -> None:
    report = roles.apply(
        superuser,
        'CREATE ROLE "a ""b"" ; c";\n'
        f'ALTER ROLE "a ""b"" ; c" WITH NOSUPERUSER NOINHERIT CREATEROLE LOGIN PASSWORD \'{HASH}\''
        " VALID UNTIL '2030-01-01 00:00:00+00';\n"
        "CREATE ROLE \"Ünï'\";\nALTER ROLE \"Ünï'\" SET \"myapp.who\" TO E'it\\\\''s; --';\n",
    )
    assert set(report.created) == {'a "b" ; c', "Ünï'"}
    [row] = superuser.execute(
        "SELECT rolinherit, rolcreaterole, rolcanlogin, rolpassword, rolvaliduntil::text LIKE '2030%' FROM pg_authid"
        " WHERE rolname = 'a \"b\" ; c'"
    ).fetchall()
    assert row == (False, True, True, HASH, True)
    [(config,)] = superuser.execute("SELECT rolconfig FROM pg_roles WHERE rolname = 'Ünï'''").fetchall()
    assert config == ["myapp.who=it\\'s; --"]


_NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=15).filter(
    lambda name: not name.startswith("pg_") and name not in ("public", "none")
)


@given(name=_NAMES, text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_and_text_that_postgresql_quotes_is_read_back(superuser: Connection, name: str, text: str) -> None:
    with superuser.transaction(force_rollback=True):
        [(quoted, literal)] = superuser.execute(
            "SELECT quote_ident(%s), (CASE WHEN strpos(%s, '\\') > 0 THEN ' ' ELSE '' END) || quote_literal(%s)",
            (name, text, text),
        ).fetchall()
        report = roles.apply(superuser, f"CREATE ROLE {quoted};\nCOMMENT ON ROLE {quoted} IS {literal};\nCREATE ROLE after;\n")
        assert report == roles.RolesReport((name, "after"), (), ())
        comments = superuser.execute(
            "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = %s", (name,)
        ).fetchall()
        assert comments == [(text,)]


def test_memberships_of_every_major_are_understood(superuser: Connection) -> None:
    [(number,)] = superuser.execute("SELECT current_setting('server_version_num')::int").fetchall()
    report = roles.apply(
        superuser,
        "CREATE ROLE g;\nCREATE ROLE a;\nCREATE ROLE b;\nCREATE ROLE c;\nCREATE ROLE gone;\n"
        "GRANT g TO a WITH ADMIN OPTION GRANTED BY gone;\nGRANT g TO b WITH INHERIT FALSE, SET FALSE GRANTED BY postgres;\n"
        "GRANT g TO c GRANTED BY c;\nGRANT pg_read_all_data TO c GRANTED BY nobody_here;\nGRANT pg_not_here TO c;\n",
    )
    assert {("g", "a", True), ("g", "b", False), ("g", "c", False), ("pg_read_all_data", "c", False)} == _members(superuser)
    absent = "c is no member of pg_not_here, which this server does not have"
    if number >= 160000:
        assert report.skipped == (absent,)
        options = superuser.execute(
            "SELECT inherit_option, set_option FROM pg_auth_members WHERE member = 'b'::regrole"  # since 16
        ).fetchall()
        assert options == [(False, False)]
    else:
        assert len(report.skipped) == 3
        assert absent in report.skipped


def test_what_a_server_does_not_know_is_reported_and_nothing_else(superuser: Connection) -> None:
    report = roles.apply(
        superuser,
        "CREATE ROLE a;\nALTER ROLE a SET nonsense_setting TO 'x';\nALTER ROLE a IN DATABASE nowhere SET work_mem TO '2MB';\n"
        "ALTER ROLE a SET work_mem TO '3MB';\nCREATE TABLESPACE fast OWNER a LOCATION '/mnt/fast';\n"
        "COMMENT ON TABLESPACE fast IS 'x';\nGRANT CREATE ON TABLESPACE fast TO a;\n"
        "GRANT SET ON PARAMETER log_statement TO a;\n",
    )
    assert report.created == ("a",)
    assert len(report.skipped) == 5
    assert any("nonsense_setting" in line for line in report.skipped)
    assert any("CREATE TABLESPACE fast" in line for line in report.skipped)
    assert superuser.execute("SELECT rolconfig FROM pg_roles WHERE rolname = 'a'").fetchall() == [(["work_mem=3MB"],)]
    assert superuser.execute("SELECT has_parameter_privilege('a', 'log_statement', 'SET')").fetchall() == [(True,)]


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE users;",
        "CREATE ROLE a SUPERUSER;",
        "CREATE ROLE a; SELECT 1;",
        "ALTER ROLE a RENAME TO b;",
        "GRANT ALL ON TABLE users TO a;",
        "GRANT a, b TO c;",
        "GRANT SET ON PARAMETER log_statement TO a, b;",
        "GRANT SET ON PARAMETER log_statement TO GROUP a;",
        "GRANT SET ON PARAMETER log_statement FROM a;",
        "REVOKE SET ON PARAMETER log_statement FROM a, b;",
        "COPY t FROM PROGRAM 'id';",
        "COMMENT ON TABLE t IS 'x';",
        "ALTER SYSTEM SET ssl = off;",
        "REVOKE a FROM b;",
        "DO $$ BEGIN END $$;",
        "\\! id\n",
        "\\restrict x y\n",
        "CREATE ROLE a; \\restrict x\n",
        "CREATE ROLE a -- no end",
        "CREATE ROLE 'unfinished;",
        "SELECT pg_read_file('/etc/passwd');",
        "SET ROLE a;",
        "SET SESSION AUTHORIZATION a, b;",
        "RESET ROLE;",
    ],
)
def test_a_statement_that_pg_dumpall_would_not_write_is_refused_before_anything_is_run(
    superuser: Connection, statement: str
) -> None:
    with pytest.raises(Tampered):
        roles.apply(superuser, f"CREATE ROLE early;\n{statement}\n")
    assert superuser.execute("SELECT 1 FROM pg_roles WHERE rolname = 'early'").fetchall() == []


def test_all_roles_or_none_and_no_hash_in_the_error(cluster: ScratchCluster) -> None:
    with connect(cluster.dsn(), application_name="backupd test", autocommit=True) as connection:
        sql = f"CREATE ROLE first;\nCREATE ROLE pg_reserved;\nALTER ROLE first WITH PASSWORD '{HASH}';\n"
        with pytest.raises(SourceError, match="could not create role pg_reserved") as caught:
            roles.apply(connection, sql)
        with pytest.raises(SourceError) as second:
            roles.apply(connection, f"CREATE ROLE first;\nALTER ROLE first WITH NONSENSE PASSWORD '{HASH}';\n")
        assert connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'first'").fetchall() == []
    for error in (caught.value, second.value):
        assert "SCRAM" not in f"{error} {error.hint} {error.__cause__}"
    assert HASH not in cluster.log()


def test_a_role_that_only_may_create_roles_can_restore_ordinary_ones(superuser: Connection) -> None:
    superuser.execute("CREATE ROLE maker CREATEROLE; SET ROLE maker")
    report = roles.apply(
        superuser,
        "CREATE ROLE a;\nALTER ROLE a WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB LOGIN NOREPLICATION NOBYPASSRLS;\n"
        "CREATE ROLE b;\nALTER ROLE b WITH SUPERUSER LOGIN BYPASSRLS;\n",
    )
    assert report.created == ("a", "b")
    assert report.skipped == (
        "b is not SUPERUSER: only a superuser may say so",
        "b is not BYPASSRLS: only a superuser may say so",
    )
    rows = superuser.execute("SELECT rolcanlogin, rolsuper FROM pg_roles WHERE rolname IN ('a', 'b')").fetchall()
    assert rows == [(True, False), (True, False)]


def test_a_role_without_the_right_is_denied(superuser: Connection) -> None:
    superuser.execute("CREATE ROLE nothing; SET ROLE nothing")
    with pytest.raises(SourceDenied, match="could not create role a"):
        roles.apply(superuser, "CREATE ROLE a;\n")


def _as(cluster: ScratchCluster, role: str, password: str) -> Dsn:
    text = make_conninfo("", host=str(cluster.socket_directory), user=role, password=password, dbname="postgres")
    return Dsn.parse(text)
