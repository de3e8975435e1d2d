"""The trail in a PostgreSQL table: the contract, the rights of its role, and connections that break at the worst moment."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from backupd.audit import Stored, TrailError
from backupd.audit.postgres import PostgresStore, install_sql
from backupd.audit.records import Operation
from backupd.audit.trail import Trail
from backupd.errors import SourceDenied, SourceUnreachable, Tampered
from tests.audit.contract import Place, TrailStoreContract
from tests.audit.examples import ACTOR
from tests.parts.postgres import Database, MakePostgres, PostgresServer

WHERE = "postgresql://audit.example/trail"


class Installed:
    """A database with a trail in it, its administrator, and the role that writes it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.role, password = database.server.create_role()
        self.dsn = database.server.dsn(database.name, self.role, password)
        database.execute(install_sql(self.role))

    def store(self, dsn: str | None = None, **settings: float) -> PostgresStore:
        return PostgresStore(partial(psycopg.connect, dsn or self.dsn, connect_timeout=60), WHERE, **settings)

    def rows(self) -> list[Stored]:
        return [
            Stored(*row) for row in self.database.execute("SELECT seq, data, sha256 FROM backupd_audit.record ORDER BY seq")
        ]

    def forge(self, rows: Sequence[Stored]) -> None:
        with self.database.connect() as connection, connection.transaction():
            connection.execute("ALTER TABLE backupd_audit.record DISABLE TRIGGER USER")
            connection.execute("DELETE FROM backupd_audit.record")
            connection.cursor().executemany(
                "INSERT INTO backupd_audit.record VALUES (%s, %s, %s)", [(row.seq, row.data, row.sha256) for row in rows]
            )
            connection.execute("ALTER TABLE backupd_audit.record ENABLE TRIGGER USER")


@pytest.fixture
def installed(database17: Database) -> Installed:
    return Installed(database17)


@pytest.fixture(scope="module")
def emptied(postgres17: PostgresServer) -> Iterator[Installed]:
    """One database for the whole contract, because it only ever reads, appends and forges."""
    database = Database(postgres17, postgres17.create_database())
    yield Installed(database)
    postgres17.drop_database(database.name)


@pytest.fixture
def place(emptied: Installed) -> Place:
    emptied.forge([])
    return Place(open=emptied.store, spec={"postgres": emptied.dsn}, rows=emptied.rows, forge=emptied.forge)


class TestPostgres(TrailStoreContract):
    """A PostgreSQL table keeps the contract."""


# ---------------------------------------------------------------------------------------------------------------- rights


def test_the_role_can_only_read_and_append(installed: Installed) -> None:
    Trail(installed.store(), ACTOR).event(Operation.KEYS)
    with psycopg.connect(installed.dsn, autocommit=True) as connection:
        for statement in (
            b"UPDATE backupd_audit.record SET sha256 = ''",
            b"DELETE FROM backupd_audit.record",
            b"TRUNCATE backupd_audit.record",
            b"DROP TABLE backupd_audit.record",
            b"ALTER TABLE backupd_audit.record DISABLE TRIGGER ALL",
            b"CREATE TABLE backupd_audit.other (id int)",
            b"CREATE TRIGGER t BEFORE INSERT ON backupd_audit.record EXECUTE FUNCTION backupd_audit.refuse()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
    assert Trail(installed.store(), ACTOR).verify().records == 1


def test_editing_by_an_honest_administrator_is_refused(installed: Installed) -> None:
    Trail(installed.store(), ACTOR).event(Operation.KEYS)
    with installed.database.connect() as connection:
        for statement in (
            b"UPDATE backupd_audit.record SET sha256 = ''",
            b"DELETE FROM backupd_audit.record",
            b"TRUNCATE backupd_audit.record",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="only appended to"):
                connection.execute(statement)
    assert Trail(installed.store(), ACTOR).verify().records == 1


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("GRANT UPDATE ON backupd_audit.record TO {}", "may UPDATE"),
        ("GRANT UPDATE (sha256) ON backupd_audit.record TO {}", "may UPDATE"),
        ("GRANT DELETE ON backupd_audit.record TO {}", "may DELETE"),
        ("GRANT TRUNCATE ON backupd_audit.record TO {}", "may TRUNCATE"),
        ("GRANT DELETE ON backupd_audit.record TO PUBLIC", "may DELETE"),
        ("GRANT TRIGGER ON backupd_audit.record TO {}", "may TRIGGER"),
        ("GRANT CREATE ON SCHEMA backupd_audit TO {}", "may create objects"),
        ("ALTER ROLE {} SUPERUSER", "is a superuser"),
        ("ALTER TABLE backupd_audit.record DISABLE TRIGGER record_is_not_changed", "triggers"),
        ("DROP TRIGGER record_is_not_truncated ON backupd_audit.record", "triggers"),
    ],
)
def test_each_excess_right_is_named(installed: Installed, statement: str, said: str) -> None:
    assert installed.store().excess_rights() == []
    installed.database.execute(statement.format(installed.role))
    (line,) = installed.store().excess_rights()
    assert said in line


def test_the_table_s_owner_is_told_so(installed: Installed) -> None:
    installed.database.execute(f"ALTER TABLE backupd_audit.record OWNER TO {installed.role}")
    assert any("owns backupd_audit.record" in line for line in installed.store().excess_rights())


@pytest.mark.parametrize("name", ['odd "role"; DROP TABLE x', "Größe", "a\nb"])
def test_any_role_name_is_quoted_in_the_sql(database15: Database, name: str) -> None:
    """On PostgreSQL 15 too; the role is of the whole cluster, so it is dropped again."""
    role, password = database15.server.create_role(name=name)
    try:
        database15.execute(install_sql(role))
        dsn = make_conninfo(
            database15.server.dsn(database15.name, password=database15.server.password), user=role, password=password
        )
        store = PostgresStore(partial(psycopg.connect, dsn), WHERE)
        assert Trail(store, ACTOR).event(Operation.KEYS).seq == 1
        assert store.excess_rights() == []
    finally:
        quoted = name.replace('"', '""')
        database15.execute(f'DROP OWNED BY "{quoted}"; DROP ROLE "{quoted}"')


_SWALLOW = "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            _SWALLOW + "CREATE TRIGGER t BEFORE INSERT ON backupd_audit.record FOR EACH ROW EXECUTE FUNCTION swallow()",
            "trigger t",
        ),
        (
            _SWALLOW + "DROP TRIGGER record_is_not_changed ON backupd_audit.record; CREATE TRIGGER record_is_not_changed"
            " BEFORE INSERT ON backupd_audit.record FOR EACH ROW EXECUTE FUNCTION swallow()",
            "trigger record_is_not_changed",
        ),
        ("CREATE RULE quiet AS ON INSERT TO backupd_audit.record DO INSTEAD NOTHING", "rule quiet"),
        ("ALTER TABLE backupd_audit.record ENABLE ROW LEVEL SECURITY", "row security"),
        ("CREATE TABLE more () INHERITS (backupd_audit.record)", "inherits"),
        (
            "ALTER TABLE backupd_audit.record RENAME TO kept;"
            " CREATE VIEW backupd_audit.record AS SELECT * FROM backupd_audit.kept LIMIT 2;"
            " GRANT SELECT, INSERT ON backupd_audit.record TO PUBLIC",
            "no table",
        ),
    ],
)
def test_a_table_that_is_more_than_a_table_is_neither_written_nor_believed(
    installed: Installed, script: str, said: str
) -> None:
    """What is written could be swallowed, and what is read could be made up."""
    run = Trail(installed.store(), ACTOR).intent(Operation.BACKUP, "clinic")
    installed.database.execute(script)
    for use in (run.done, installed.store().head, Trail(installed.store(), ACTOR).verify):
        with pytest.raises(Tampered, match=f"is not as it was installed: .*{said}") as caught:
            use()
        assert caught.value.hint


def test_a_record_that_is_not_there_after_it_was_written_is_told(installed: Installed) -> None:
    """Something that swallows it is put there at the last moment, after the table was looked at."""

    def make(_: Stored | None) -> bytes:
        installed.database.execute(
            _SWALLOW + "CREATE TRIGGER t BEFORE INSERT ON backupd_audit.record FOR EACH ROW EXECUTE FUNCTION swallow()"
        )
        return b"x"

    with pytest.raises(Tampered, match="does not keep what is written"):
        installed.store().append(make)


# ------------------------------------------------------------------------------------------- what goes wrong, said clearly


def test_a_database_without_a_trail_says_what_to_run(database17: Database) -> None:
    role, password = database17.server.create_role()
    store = PostgresStore(partial(psycopg.connect, database17.server.dsn(database17.name, role, password)), WHERE)
    for use in (store.head, store.excess_rights, lambda: list(store.read()), lambda: store.append(lambda _: b"x")):
        with pytest.raises(TrailError, match=r"is not there|there is no trail") as caught:
            use()
        assert "administrator" in str(caught.value.hint)


def test_a_role_without_rights_is_told_which_it_needs(installed: Installed) -> None:
    role, password = installed.database.server.create_role()
    store = installed.store(installed.database.server.dsn(installed.database.name, role, password))
    with pytest.raises(TrailError, match="may not be written or read") as caught:
        store.append(lambda _: b"x")
    assert "SELECT and INSERT" in str(caught.value.hint)


def test_a_locked_trail_is_waited_for_and_then_given_up(installed: Installed) -> None:
    store = installed.store(lock_timeout_s=0.05)

    def while_locked(_: Stored | None) -> bytes:
        with pytest.raises(TrailError, match="locked by another writer"):
            store.append(lambda _: b"inner")
        return b"outer"

    assert installed.store().append(while_locked).seq == 1
    assert [row.data for row in installed.rows()] == [b"outer"]


def test_a_server_that_only_reads_is_said_to_be_one(installed: Installed) -> None:
    dsn = make_conninfo(installed.dsn, options="-c default_transaction_read_only=on")
    with pytest.raises(TrailError, match="only reads"):
        installed.store(dsn).append(lambda _: b"x")


def test_a_record_written_past_the_lock_is_a_finding_for_people(installed: Installed) -> None:
    def overtaken(_: Stored | None) -> bytes:
        installed.forge([Stored(1, b"x", "")])
        return b"mine"

    with pytest.raises(TrailError, match="written without the lock"):
        installed.store().append(overtaken)


def test_a_database_that_does_not_wait_for_its_disk_is_made_to(installed: Installed) -> None:
    """PostgreSQL would answer before the record is on the disk; what `make` sees is the transaction it is written in."""
    installed.database.execute(f"ALTER ROLE {installed.role} SET synchronous_commit = off")
    seen: list[Any] = []
    connections: list[psycopg.Connection[Any]] = []

    def connect() -> psycopg.Connection[Any]:
        connections.append(psycopg.connect(installed.dsn))
        return connections[-1]

    def make(_: Stored | None) -> bytes:
        seen.append(connections[-1].execute("SHOW synchronous_commit").fetchone())
        return b"x"

    PostgresStore(connect, WHERE).append(make)
    assert seen == [("on",)]


@pytest.mark.parametrize("error", [SourceUnreachable("no route"), psycopg.OperationalError("no route")])
def test_a_server_that_is_not_there_is_tried_again_and_then_said(error: Exception) -> None:
    tries: list[int] = []

    def connect() -> psycopg.Connection[Any]:
        tries.append(1)
        raise error

    with pytest.raises(TrailError, match=r"postgresql://audit.example/trail .*no route"):
        PostgresStore(connect, WHERE, pause_s=0).append(lambda _: b"x")
    assert len(tries) == 4


def test_a_refused_login_is_not_tried_again(installed: Installed) -> None:
    tries: list[int] = []

    def connect() -> psycopg.Connection[Any]:
        tries.append(1)
        raise SourceDenied("wrong password", "look at the DSN")

    with pytest.raises(TrailError, match="wrong password"):
        PostgresStore(connect, WHERE, pause_s=0).append(lambda _: b"x")
    assert len(tries) == 1


def test_no_password_is_in_any_message(installed: Installed) -> None:
    wrong = make_conninfo(installed.dsn, password="tr0ub4dor-and-three")
    with pytest.raises(TrailError) as caught:
        installed.store(wrong, pause_s=0).append(lambda _: b"x")
    assert "tr0ub4dor" not in f"{caught.value.message} {caught.value.hint} {installed.store(wrong)!r}"


# ---------------------------------------------------------------------------------------- connections that break


def test_a_commit_whose_answer_is_lost_is_looked_up_and_not_written_twice(installed: Installed) -> None:
    with cut_at_commit(installed.dsn, after_the_answer=True, times=1) as (dsn, cuts):
        stored = installed.store(dsn, pause_s=0).append(lambda _: b"once")
    assert cuts() == 1
    assert installed.rows() == [stored]


def test_a_commit_that_never_arrived_is_sent_again(installed: Installed) -> None:
    with cut_at_commit(installed.dsn, after_the_answer=False, times=2) as (dsn, cuts):
        stored = installed.store(dsn, pause_s=0).append(lambda _: b"once")
    assert cuts() == 2
    assert installed.rows() == [stored]


def test_a_connection_that_always_breaks_is_given_up(installed: Installed) -> None:
    with (
        cut_at_commit(installed.dsn, after_the_answer=False, times=99) as (dsn, cuts),
        pytest.raises(TrailError, match="was lost") as caught,
    ):
        installed.store(dsn, pause_s=0).append(lambda _: b"never")
    assert cuts() == 4
    assert caught.value.hint
    assert installed.rows() == []


def test_whole_runs_over_a_breaking_connection_make_a_whole_chain(installed: Installed) -> None:
    with cut_at_commit(installed.dsn, after_the_answer=True, times=3) as (dsn, cuts):
        trail = Trail(installed.store(dsn, pause_s=0), ACTOR)
        for _ in range(3):
            trail.intent(Operation.BACKUP, "clinic").done()
    assert cuts() == 3
    report = Trail(installed.store(), ACTOR).verify()
    assert (report.ok, report.records, report.findings) == (True, 6, ())


def test_a_session_that_is_terminated_in_the_middle_is_begun_again(installed: Installed) -> None:
    made: list[Stored | None] = []

    def make(head: Stored | None) -> bytes:
        made.append(head)
        if len(made) == 1:
            installed.database.execute(
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = %s", (installed.role,)
            )
        return b"x"

    assert installed.store(pause_s=0).append(make).seq == 1
    assert len(made) == 2
    assert len(installed.rows()) == 1


def test_what_was_appended_survives_a_crash_of_the_server(make_postgres: MakePostgres) -> None:
    server = make_postgres(17, settings={"fsync": "on", "full_page_writes": "on", "synchronous_commit": "off"})
    database = Database(server, server.create_database())
    installed = Installed(database)
    with database.connect() as connection:
        connection.execute("CHECKPOINT")
    trail = Trail(installed.store(), ACTOR)
    for _ in range(5):
        trail.intent(Operation.BACKUP, "clinic").done()
    server.kill()
    with pytest.raises(TrailError, match="was lost, or is not to be had"):
        Trail(installed.store(pause_s=0), ACTOR).event(Operation.KEYS)
    server.start()
    report = trail.verify()
    assert (report.ok, report.records) == (True, 10)


@contextmanager
def cut_at_commit(dsn: str, *, after_the_answer: bool, times: int) -> Iterator[tuple[str, Callable[[], int]]]:
    """A DSN through a proxy that breaks the connection at a COMMIT, the first `times` times, and how often it did.

    With `after_the_answer` the server has committed and its answer is swallowed; without, the COMMIT never reaches it.
    """
    target = conninfo_to_dict(dsn)
    address = (str(target["host"]), int(str(target["port"])))
    cuts: list[int] = []
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def client_to_server(client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if b"COMMIT" in data and len(cuts) < times:
                    cuts.append(1)
                    if after_the_answer:
                        swallow(server, data)
                    close(client)
                    close(server)
                    return
                server.sendall(data)
        close(client)
        close(server)

    # While a commit's answer is being swallowed, the other direction must not be reading: it hands over here.
    def swallow(server: socket.socket, commit: bytes) -> None:
        with swallowing:
            swallowed.clear()
            waiting.append(server)
            server.sendall(commit)
            assert swallowed.wait(60)

    swallowing, swallowed, waiting = threading.Lock(), threading.Event(), list[socket.socket]()

    def server_to_client(server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if server in waiting:
                    swallowed.set()
                    return
                client.sendall(data)
        close(client)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(address, timeout=60)
                server.settimeout(None)
                sockets.extend((client, server))
                for run, ends in ((client_to_server, (client, server)), (server_to_client, (server, client))):
                    threads.append(threading.Thread(target=run, args=ends, daemon=True))
                    threads[-1].start()

    listener = socket.create_server(("127.0.0.1", 0))
    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        port = listener.getsockname()[1]
        yield make_conninfo(dsn, port=port, sslmode="disable", gssencmode="disable"), lambda: len(cuts)
    finally:
        close(listener)
        acceptor.join(60)
        for each in sockets:
            close(each)
        for thread in threads:
            thread.join(60)


def close(end: socket.socket) -> None:
    """Wake whoever reads from it, and close it; closing alone wakes nobody."""
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
