"""A failed connection says why and what to do, and a server what it is."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from backupd.errors import SourceDenied, SourceError, SourceUnreachable
from backupd.postgres import session
from backupd.postgres.clients import Clients
from backupd.postgres.dsn import Dsn
from backupd.postgres.session import connect, server, translated
from backupd.redact import Secret, scrub
from tests.parts.postgres import Database, PostgresServer

ODD_PASSWORD = "p@ss w/ord:'\\%é"


def test_a_program_connects_with_an_odd_password_from_its_environment(
    database17: Database, programs: dict[int, Clients]
) -> None:
    role, _ = database17.server.create_role()
    with database17.connect() as connection:
        connection.execute(f"ALTER ROLE {role} PASSWORD {psycopg.sql.quote(ODD_PASSWORD)}".encode())
    dsn = Dsn.parse(database17.server.dsn(database17.name, role), Secret(ODD_PASSWORD))
    psql = [programs[17].program("psql"), "-XAt", "--no-password", f"--dbname={dsn.argument()}", "-c", "SELECT current_user"]
    done = subprocess.run(psql, env=dsn.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == (role, "")
    with connect(dsn, application_name="test") as connection:
        assert connection.execute("SELECT current_user, current_setting('application_name')").fetchone() == (role, "test")


@pytest.mark.parametrize("fixture", ["database15", "database17"])
def test_a_server_says_what_it_is(fixture: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(fixture)
    with connect(Dsn.parse(database.dsn), application_name="test") as connection:
        found = server(connection)
    assert found.major == database.server.major
    assert found.version.startswith(f"{found.major}.")
    assert found.version_num // 10000 == found.major
    assert found.database == database.name
    assert not found.in_recovery
    assert found.database_size > 1_000_000
    assert [(found.system_identifier,)] == database.execute("SELECT system_identifier::text FROM pg_control_system()")


def test_an_ordinary_role_may_ask_a_server_what_it_is(database15: Database) -> None:
    role, password = database15.server.create_role()
    with connect(Dsn.parse(database15.server.dsn(database15.name, role, password)), application_name="test") as connection:
        assert server(connection).major == 15


def test_a_wrong_password_is_said_without_it(database17: Database) -> None:
    role, password = database17.server.create_role()
    dsn = Dsn.parse(database17.server.dsn(database17.name, role), Secret(password[::-1], "file:///etc/clinic.password"))
    with pytest.raises(SourceDenied, match="does not accept the password") as caught:
        connect(dsn, application_name="test")
    assert password[::-1] not in str(caught.getrepr(style="long", showlocals=True))
    assert caught.value.hint == "check the password: it is read from file:///etc/clinic.password"


@pytest.mark.parametrize("cast", ["'u4@x'::bool", "repeat('u4@x', 99)::bool", "'2026-99-01'::date", "'9999999999'::int"])
def test_a_conversion_that_fails_does_not_show_the_value(database17: Database, cast: str) -> None:
    with (
        connect(Dsn.parse(database17.dsn), application_name="test") as connection,
        pytest.raises(SourceError, match=r"could not convert: .*…") as caught,
        translated("convert"),
    ):
        connection.execute(f"SELECT {cast}".encode())
    assert not re.search(r"u4@x|2026-99|9999", caught.value.message)


def test_no_password_at_all_is_told_from_a_wrong_one(database17: Database) -> None:
    role, _ = database17.server.create_role()
    with pytest.raises(SourceDenied, match="wants a password, and none was given") as caught:
        connect(Dsn.parse(database17.server.dsn(database17.name, role)), application_name="test")
    hint = caught.value.hint or ""
    assert "--password-file FILE or PGPASSWORD" in hint
    assert scrub(hint) == hint


def test_a_missing_database_is_named(postgres17: PostgresServer) -> None:
    with pytest.raises(SourceError, match=r"nowhere on .*: the database does not exist"):
        connect(Dsn.parse(postgres17.dsn("nowhere")), application_name="test")


def test_a_role_without_login_is_denied(database17: Database) -> None:
    role, password = database17.server.create_role("NOLOGIN")
    with pytest.raises(SourceDenied, match="may not log in"):
        connect(Dsn.parse(database17.server.dsn(database17.name, role, password)), application_name="test")


def test_a_role_without_connect_is_denied(database17: Database) -> None:
    role, password = database17.server.create_role()
    database17.execute(f"REVOKE CONNECT ON DATABASE {database17.name} FROM PUBLIC")
    with pytest.raises(SourceDenied, match="may not connect"):
        connect(Dsn.parse(database17.server.dsn(database17.name, role, password)), application_name="test")


def test_no_connection_left_is_said(database17: Database) -> None:
    role, password = database17.server.create_role("LOGIN CONNECTION LIMIT 0")
    with pytest.raises(SourceUnreachable, match="no connection left"):
        connect(Dsn.parse(database17.server.dsn(database17.name, role, password)), application_name="test")


def test_a_server_without_tls_is_refused_when_the_address_asks_for_it(database17: Database) -> None:
    with pytest.raises(SourceUnreachable, match="the server has no TLS"):
        connect(Dsn.parse(database17.dsn + "?sslmode=require"), application_name="test")


def test_no_server_at_the_address_is_said() -> None:
    with socket.socket() as bound:  # bound and not listening: nobody else can take the port, and nobody answers
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(SourceUnreachable, match="no server at this address"):
            connect(Dsn.parse(f"postgresql://u@127.0.0.1:{bound.getsockname()[1]}/d"), application_name="test")
    with pytest.raises(SourceUnreachable, match="no server at this address"):
        connect(Dsn.parse("host=/nonexistent user=u dbname=d"), application_name="test")


@pytest.mark.parametrize(
    ("said", "kind", "match"),
    [
        ("the database system is starting up", SourceUnreachable, "starting or stopping"),
        ("the database system is not yet accepting connections", SourceUnreachable, "starting or stopping"),
        ("sorry, too many clients already", SourceUnreachable, "no connection left"),
        ('role "u" does not exist', SourceDenied, "role does not exist"),
        ('no pg_hba.conf entry for host "::1", user "u", database "d", no encryption', SourceDenied, "wants TLS"),
        ('no pg_hba.conf entry for host "::1", user "u", database "d", SSL encryption', SourceDenied, "not let this client in"),
        ('could not access file "nope": No such file or directory', SourceUnreachable, "could not access file"),
        ("die Datenbank startet gerade", SourceUnreachable, "die Datenbank startet gerade"),
    ],
)
def test_what_a_server_says_instead_of_a_welcome_is_understood(said: str, kind: type[SourceError], match: str) -> None:
    fields = b"SFATAL\0VFATAL\0C57P03\0M" + said.encode() + b"\0\0"
    with _answering(b"E" + struct.pack("!I", len(fields) + 4) + fields) as port, pytest.raises(kind, match=match) as caught:
        connect(Dsn.parse(f"postgresql://u@127.0.0.1:{port}/d?sslmode=disable"), application_name="test")
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_connection_pooler_is_noticed(database17: Database) -> None:
    """A pooler gives its clients a process id of its own; so does this one, which passes everything else on."""
    with _pooler(database17.server.port) as port:
        address = database17.dsn.replace(f":{database17.server.port}/", f":{port}/") + "?sslmode=disable&gssencmode=disable"
        connection = connect(Dsn.parse(address), application_name="test")
        with connection, pytest.raises(SourceError, match="connection pooler"):
            server(connection)


def test_an_error_of_the_server_leaves_rows_and_statements_behind(database17: Database) -> None:
    database17.execute("CREATE TABLE t (id int PRIMARY KEY, s text UNIQUE); INSERT INTO t VALUES (1, 'JBSWY3DPEHPK3PXP')")
    with connect(Dsn.parse(database17.dsn), application_name="test") as connection:
        with pytest.raises(SourceError, match="could not try it: duplicate key") as caught, session.translated("try it"):
            connection.execute("INSERT INTO public.t VALUES (2, 'JBSWY3DPEHPK3PXP')")
        assert "JBSWY3DP" not in f"{caught.value!r} {caught.value.hint} {caught.value.__cause__!r}"


def test_a_lost_connection_and_a_missing_right_have_errors_of_their_own(database17: Database) -> None:
    role, password = database17.server.create_role()
    database17.execute("CREATE TABLE t ()")
    with connect(Dsn.parse(database17.server.dsn(database17.name, role, password)), application_name="test") as connection:
        with pytest.raises(SourceDenied, match="permission denied for table t"), session.translated("read", "GRANT it"):
            connection.execute("SELECT FROM public.t")
        connection.rollback()
        [(pid,)] = connection.execute("SELECT pg_backend_pid()").fetchall()
        database17.execute(f"SELECT pg_terminate_backend({pid}, 30000)")
        with pytest.raises(SourceUnreachable, match="could not read"), session.translated("read"):
            connection.execute("SELECT 1")


_HOSTILE = {
    "PGHOSTADDR": "127.0.0.9",
    "PGSERVICE": "nope",
    "PGOPTIONS": "-c role=nobody",
    "PGSSLMODE": "verify-full",
    "PGPASSWORD": "of another server",
    "PGTZ": "Asia/Tokyo",
}
_CONNECTING = """
import sys
from backupd.postgres.dsn import Dsn
from backupd.postgres.session import connect
with connect(Dsn.parse(sys.stdin.readline().strip()), application_name="test") as connection:
    print(*connection.execute("SELECT current_user, current_setting('TimeZone')").fetchone())
"""


def test_variables_of_libpq_lead_no_session_elsewhere(database17: Database) -> None:
    argv = [sys.executable, "-c", _CONNECTING]
    environment = dict(os.environ) | _HOSTILE
    done = subprocess.run(
        argv, input=database17.dsn + "\n", env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("postgres UTC\n", "")


def test_a_password_of_the_environment_is_not_used_unasked(database17: Database) -> None:
    role, password = database17.server.create_role()
    argv = [sys.executable, "-c", _CONNECTING]
    address = database17.server.dsn(database17.name, role)
    environment = dict(os.environ) | {"PGPASSWORD": password}
    done = subprocess.run(argv, input=address + "\n", env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "the server wants a password, and none was given" in done.stderr


def test_a_statement_timeout_is_told_from_a_cancelled_session(database17: Database) -> None:
    with connect(Dsn.parse(database17.dsn), application_name="test") as connection:
        connection.execute("SET statement_timeout = '20ms'")
        with pytest.raises(SourceError, match="statement timeout") as caught, session.translated("wait"):
            connection.execute("SELECT pg_sleep(60)")
    assert "statement_timeout = 0" in str(caught.value.hint)


def test_a_name_that_is_not_utf8_is_said_to_be(postgres17: PostgresServer) -> None:
    with postgres17.connect() as connection:
        connection.execute("CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    try:
        postgres17.execute("DO $$ BEGIN EXECUTE E'CREATE TABLE \"caf\\xe9\" ()'; END $$", database="bytes")
        with (
            connect(Dsn.parse(postgres17.dsn("bytes")), application_name="test") as connection,
            pytest.raises(SourceError) as caught,
            session.translated("list the tables"),
        ):
            connection.execute("SELECT relname FROM pg_class").fetchall()
        assert "not UTF-8" in str(caught.value.hint)
    finally:
        postgres17.drop_database("bytes")


@contextmanager
def _answering(message: bytes) -> Iterator[int]:
    """A listener that answers one start-up packet with `message`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(message)
                connection.recv(4096)

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(30)


@contextmanager
def _pooler(port: int) -> Iterator[int]:
    """One connection passed on to the server at `port`, its BackendKeyData message changed on the way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pass_on() -> None:
            client, _ = listener.accept()
            with client, socket.create_connection(("127.0.0.1", port)) as upstream:
                back = threading.Thread(target=_copy, args=(client, upstream))
                back.start()
                with upstream.makefile("rb") as messages:
                    while header := messages.read(5):  # a type and a length that counts itself
                        body = messages.read(struct.unpack("!I", header[1:])[0] - 4)
                        client.sendall(header + (struct.pack("!I", 77) + body[4:] if header[:1] == b"K" else body))
                back.join(30)

        thread = threading.Thread(target=pass_on)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(30)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while chunk := source.recv(65536):
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return
