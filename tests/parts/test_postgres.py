"""The PostgreSQL parts do what other tests rely on."""

import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest

from tests.parts.postgres import Database, MakePostgres, PostgresServer, executable_by, postgres_bin
from tests.parts.process import as_user, short_directory, unprivileged_user


@pytest.fixture(params=["database15", "database17"])
def database(request: pytest.FixtureRequest) -> Database:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Database)
    return found


def test_server_is_of_the_asked_major(postgres15: PostgresServer, postgres17: PostgresServer) -> None:
    for server in (postgres15, postgres17):
        [(version,)] = server.execute("SELECT current_setting('server_version_num')::int / 10000", database="postgres")
        assert version == server.major
        programs = subprocess.run([server.bin / "pg_dump", "--version"], capture_output=True, text=True, check=True)
        assert f" {server.major}." in programs.stdout


def test_two_clusters_have_two_system_identifiers(postgres15: PostgresServer, postgres17: PostgresServer) -> None:
    query = "SELECT system_identifier FROM pg_control_system()"
    assert postgres15.execute(query, database="postgres") != postgres17.execute(query, database="postgres")


def test_database_is_empty_and_utf8(database: Database) -> None:
    assert database.execute("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == [(0,)]
    assert database.execute("SHOW server_encoding") == [("UTF8",)]
    assert database.execute("SELECT datcollate FROM pg_database WHERE datname = current_database()") == [("C.UTF-8",)]
    database.execute("CREATE TABLE left_behind (id int); INSERT INTO left_behind VALUES (7)")
    assert database.execute("SELECT id FROM left_behind WHERE id = %s", (7,)) == [(7,)]


def test_a_wrong_password_is_refused(database: Database) -> None:
    role, password = database.server.create_role()
    with database.connect(role, password) as connection:
        assert connection.execute("SELECT current_user").fetchone() == (role,)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        database.connect(role, password + "x")


def test_pgcrypto_is_there(database: Database) -> None:
    database.execute("CREATE EXTENSION pgcrypto")
    assert database.execute("SELECT pgp_sym_decrypt(pgp_sym_encrypt('x', 'k'), 'k')") == [("x",)]


@pytest.mark.parametrize("major", [15, 17])
def test_own_cluster_keeps_data_over_stop_and_crash(make_postgres: MakePostgres, major: int) -> None:
    server = make_postgres(major, settings={"log_statement": "all", "cluster_name": "it's mine"})
    assert server.execute("SHOW cluster_name", database="postgres") == [("it's mine",)]
    server.execute("CREATE TABLE kept (id int); INSERT INTO kept VALUES (1)", database="postgres")
    server.stop()
    with pytest.raises(psycopg.OperationalError):
        server.connect()
    server.start()
    with server.connect() as session:
        session.execute("CHECKPOINT")
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    server.start()
    assert server.execute("SELECT id FROM kept", database="postgres") == [(1,)]
    assert "CREATE TABLE kept" in server.log.read_text()
    assert "automatic recovery in progress" in server.log.read_text()


def test_programs_below_a_private_directory_can_still_be_run(tmp_path: Path) -> None:
    """A checkout below root's home is closed to the account that runs the servers."""
    tmp_path.chmod(0o700)
    shutil.copytree(postgres_bin(17).parent, tmp_path / "install", symlinks=True)
    user = unprivileged_user()
    with short_directory("bd-test-", user) as directory:
        programs = executable_by(user, tmp_path / "install" / "bin", directory)
        subprocess.run(as_user(["test", "-x", str(programs / "postgres")], user), check=True)
        subprocess.run(as_user(["test", "-r", str(programs.parent / "share" / "postgres.bki")], user), check=True)
