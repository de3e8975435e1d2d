"""What the owner of a database puts before the server's own functions is not called with backupd's rights."""

from __future__ import annotations

from functools import partial

import psycopg
import pytest

from backupd.audit.postgres import PostgresStore, install_sql
from backupd.errors import ConfigError, Refused
from backupd.manifest import Level
from backupd.postgres import archive, column_keys, expectations, roles, session
from backupd.postgres.clients import Clients
from backupd.postgres.dsn import Dsn
from backupd.postgres.snapshot import Snapshot
from tests.parts.postgres import Database
from tests.postgres.hostile import make_hostile, used


@pytest.fixture(params=["database15", "database17"])
def hostile(request: pytest.FixtureRequest) -> Database:
    database: Database = request.getfixturevalue(request.param)
    database.execute("CREATE TABLE users (id int PRIMARY KEY, sealed bytea)")
    make_hostile(database)
    return database


def test_an_ordinary_session_would_call_it(hostile: Database) -> None:
    with psycopg.connect(hostile.dsn) as connection:
        connection.execute("SELECT pg_is_in_recovery() FROM pg_class LIMIT 1")
    assert used(hostile)


def test_a_source_s_owner_gets_nothing_of_the_backup_role(hostile: Database, programs: dict[int, Clients]) -> None:
    dsn = Dsn.parse(hostile.dsn)
    with Snapshot(dsn, application_name="backupd test") as snapshot:
        expectations.collect(snapshot, Level.DIGESTS, ["users"])
        assert column_keys.look(snapshot.connection, "users", "sealed", lambda _: None).rows == 0
        snapshot.alive()
    roles.dump_globals(programs[17], dsn)
    assert used(hostile) == []


def test_a_target_s_owner_gets_nothing_of_who_restores(hostile: Database) -> None:
    with session.connect(Dsn.parse(hostile.dsn), application_name="backupd test", autocommit=True) as connection:
        session.server(connection)
        archive.require_usable(connection)
        with pytest.raises(Refused, match="not empty"):
            archive.require_empty(connection)
    assert used(hostile) == []


def test_the_owner_of_a_trail_s_database_shows_it_no_other_catalog(hostile: Database) -> None:
    role, password = hostile.server.create_role()
    hostile.execute(f"SET search_path = pg_catalog; {install_sql(role)}")
    dsn = Dsn.parse(hostile.server.dsn(hostile.name, role, password))
    store = PostgresStore(partial(session.connect, dsn, application_name="backupd test"), "here")
    store.append(lambda _: b"record")
    assert [each.data for each in store.read()] == [b"record"]
    assert store.head() is not None
    assert store.excess_rights() == []
    assert used(hostile) == []


def test_a_table_is_found_as_the_role_would_find_it(hostile: Database) -> None:
    hostile.execute("CREATE SCHEMA app; CREATE TABLE app.only_there (id int)")
    hostile.execute(f'ALTER DATABASE "{hostile.name}" SET search_path = app, evil, pg_catalog, public')
    with session.connect(Dsn.parse(hostile.dsn), application_name="backupd test") as connection:
        assert session.table_named(connection, "only_there") == session.table_named(connection, "app.only_there")
        assert session.table_named(connection, "users") is not None
        assert session.table_named(connection, "nowhere") is None
        assert connection.execute("SHOW search_path").fetchone() == ("pg_catalog, pg_temp",)
    assert used(hostile) == []


def test_a_value_of_a_type_of_the_owner_s_is_not_made_text(database17: Database) -> None:
    """A cast is a function, and whose type it is may make one."""
    database17.execute(
        "CREATE TYPE crafted AS (a text); CREATE TABLE users (id int, sealed crafted); INSERT INTO users VALUES (1, ROW('x'));"
        "CREATE FUNCTION cast_it(crafted) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'called'; END $$;"
        "CREATE CAST (crafted AS text) WITH FUNCTION cast_it(crafted) AS ASSIGNMENT;"
        "CREATE DOMAIN note AS text; ALTER TABLE users ADD fine note DEFAULT 'x'"
    )
    with session.connect(Dsn.parse(database17.dsn), application_name="backupd test") as connection:
        with pytest.raises(ConfigError, match=r"users.sealed is of type public\.crafted"):
            column_keys.look(connection, "users", "sealed", lambda _: None)
        assert column_keys.look(connection, "users", "fine", lambda _: None).rows == 1
