"""One column is read row by row, and neither it nor the key that opens it leaves a trace on the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backupd.checks import TotpColumn
from backupd.checks.column import opened
from backupd.columns import NotAuthentic
from backupd.custody.file import PrivateFile
from backupd.errors import ConfigError
from backupd.postgres import clients, session
from backupd.postgres.scratch import ScratchCluster
from backupd.postgres.session import Connection
from tests.parts.postgres import Database

PASSPHRASE = "correct horse battery staple"


def column(directory: Path, table: str = "seeds") -> TotpColumn:
    path = directory / "passphrase"
    path.touch(mode=0o600)
    path.write_text(PASSPHRASE)
    return TotpColumn(table, "id", "value", None, "pgcrypto", PrivateFile(str(path)))


@pytest.fixture
def connection(database17: Database) -> Iterator[Connection]:
    with database17.connect() as made:
        yield made


def test_the_log_of_a_scratch_cluster_holds_neither_passphrase_nor_value(tmp_path: Path) -> None:
    """Not even when decryption fails there, which is when servers log what they were asked."""
    with ScratchCluster(clients.choose_server(clients.find(), 17)) as cluster:
        with session.connect(cluster.create_database("drill"), application_name="test", autocommit=True) as connection:
            connection.execute("RESET search_path; CREATE EXTENSION pgcrypto")
            connection.execute("CREATE TABLE seeds AS SELECT 1 AS id, pgp_sym_encrypt('JBSWY3DPEHPK3PXP', 'another') AS value")
            with opened(connection, column(tmp_path)) as reader:
                [row] = reader.rows()
                assert row.value is not None
                with pytest.raises(NotAuthentic):
                    reader.cipher.decrypt(reader.cell(row), row.value)
        log = (cluster.directory / "log").read_text()
    assert "Wrong key or corrupt data" in log
    assert PASSPHRASE not in log
    assert row.value.hex()[:32] not in log
    assert "pgp_sym_decrypt" not in log


def test_every_row_is_read_however_many_batches_that_takes(connection: Connection, tmp_path: Path) -> None:
    """Through a cursor on the server, which asks for one batch at a time."""
    connection.execute(
        "CREATE TABLE seeds AS SELECT n AS id, convert_to(n::text, 'UTF8') AS value FROM generate_series(1, 4500) n"
    )
    with opened(connection, column(tmp_path)) as reader:
        rows = reader.rows()
        first = next(rows)
        assert connection.execute("SELECT name FROM pg_cursors").fetchall() == [("backupd_column",)]
        assert [first.row_id, *(row.row_id for row in rows)] == [str(n) for n in range(1, 4501)]


def test_the_parts_of_a_partitioned_table_are_read_as_one(connection: Connection, tmp_path: Path) -> None:
    connection.execute("CREATE TABLE seeds (id int, value bytea) PARTITION BY RANGE (id)")
    connection.execute("CREATE TABLE seeds_1 PARTITION OF seeds FOR VALUES FROM (0) TO (10)")
    connection.execute("CREATE TABLE seeds_2 PARTITION OF seeds DEFAULT")
    connection.execute("INSERT INTO seeds SELECT n, NULL FROM generate_series(1, 20) n")
    with opened(connection, column(tmp_path)) as reader:
        assert sum(row.value is None for row in reader.rows()) == 20


def test_a_name_that_two_schemas_have_is_not_guessed(connection: Connection, tmp_path: Path) -> None:
    for schema in ("a", "b"):
        connection.execute(f"CREATE SCHEMA {schema}".encode())
        connection.execute(f"CREATE TABLE {schema}.seeds (id int, value bytea)".encode())
    with pytest.raises(ConfigError, match=r"ambiguous: .* \(a.seeds, b.seeds\)"), opened(connection, column(tmp_path)):
        pass
    with opened(connection, column(tmp_path, "b.seeds")) as reader:
        assert list(reader.rows()) == []


def test_a_copy_that_the_search_path_would_find_first_is_not_taken_for_the_table(
    connection: Connection, tmp_path: Path
) -> None:
    """The drill's role has a name that anyone can read: a schema of that name comes first in PostgreSQL's own search path."""
    connection.execute("CREATE TABLE public.seeds (id int, value bytea)")
    connection.execute("CREATE SCHEMA AUTHORIZATION CURRENT_USER CREATE TABLE seeds (id int, value bytea)")
    assert connection.execute("SELECT to_regclass('seeds') = to_regclass('public.seeds')").fetchone() == (False,)
    with pytest.raises(ConfigError, match="ambiguous"), opened(connection, column(tmp_path)):
        pass
    connection.execute("INSERT INTO public.seeds VALUES (1, NULL)")
    with opened(connection, column(tmp_path, "public.seeds")) as reader:
        assert len(list(reader.rows())) == 1


def test_a_view_of_the_same_name_is_as_ambiguous_as_a_table(connection: Connection, tmp_path: Path) -> None:
    connection.execute("CREATE TABLE public.seeds (id int, value bytea)")
    connection.execute("CREATE SCHEMA a CREATE VIEW seeds AS SELECT 1 AS id, NULL::bytea AS value")
    with pytest.raises(ConfigError, match="ambiguous"), opened(connection, column(tmp_path)):
        pass


def test_a_function_of_the_databases_does_not_stand_in_for_the_servers_own(connection: Connection, tmp_path: Path) -> None:
    """One whose arguments fit better wins over pg_catalog's, wherever both are looked for."""
    connection.execute("CREATE TABLE seeds AS SELECT 1 AS id, 'text of a row' AS value")
    connection.execute("CREATE FUNCTION convert_to(text, text) RETURNS bytea LANGUAGE sql AS $$ SELECT 'forged'::bytea $$")
    assert connection.execute("SELECT convert_to('a'::text, 'UTF8')").fetchone() == (b"forged",)
    with opened(connection, column(tmp_path)) as reader:
        assert [row.value for row in reader.rows()] == [b"text of a row"]


def test_names_that_need_quotes_are_quoted(connection: Connection, tmp_path: Path) -> None:
    connection.execute('CREATE TABLE "x; DROP TABLE y" (id int, value bytea)')
    with opened(connection, column(tmp_path, '"x; DROP TABLE y"')) as reader:
        assert list(reader.rows()) == []
