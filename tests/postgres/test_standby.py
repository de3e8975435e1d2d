"""A backup can be made from a streaming standby: same figures, its own notes, and still known for the source that it is."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from backupd.errors import Busy, Refused
from backupd.manifest import Level, Source
from backupd.pipeline import run
from backupd.postgres import archive, dump, expectations
from backupd.postgres.clients import Clients
from backupd.postgres.dsn import Dsn
from backupd.postgres.snapshot import Snapshot
from backupd.rotation import cells
from tests.parts.ports import claim_port, release_port
from tests.parts.postgres import MakePostgres, PostgresServer
from tests.parts.process import ServerProcess, as_user, clean_environment, short_directory, unprivileged_user

TIMEOUT_S = 200


@contextmanager
def _standby(primary: PostgresServer) -> Iterator[Dsn]:
    """A hot standby that streams from `primary`."""
    user = unprivileged_user()
    with short_directory("bd-standby-", user) as directory:
        data = str(directory / "data")
        environment = clean_environment(directory, PGPASSWORD=primary.password)
        copy = [
            str(primary.bin / "pg_basebackup"),
            "-D",
            data,
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
            "--no-sync",
            "-d",
            primary.dsn(),
        ]
        subprocess.run(as_user(copy, user), cwd=directory, env=environment, check=True, capture_output=True, timeout=TIMEOUT_S)
        port = claim_port()
        dsn = Dsn.parse(primary.dsn().replace(f":{primary.port}/", f":{port}/"))
        argv = [str(primary.bin / "postgres"), "-D", data, "-c", f"port={port}", "-c", f"unix_socket_directories={directory}"]
        process = ServerProcess(argv, directory=directory, log=directory / "log", environment=environment, user=user)

        def answers() -> bool:
            assert dsn.password is not None
            address = f"host={dsn.host} port={port} user={dsn.user} dbname={dsn.database}"
            with psycopg.connect(address, password=dsn.password.text(), connect_timeout=10) as connection:
                return connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)

        process.start(answers)
        try:
            yield dsn
        finally:
            process.stop()
            release_port(port)


def test_a_standby_gives_the_same_backup_as_its_primary(make_postgres: MakePostgres, programs: dict[int, Clients]) -> None:
    primary = make_postgres(17)
    database = primary.create_database("clinic")
    primary.execute(
        "CREATE TABLE t (id serial, s text); INSERT INTO t (s) SELECT md5(i::text) FROM generate_series(1, 500) i;"
        " CREATE UNLOGGED TABLE cache (id serial); INSERT INTO cache DEFAULT VALUES; SELECT lo_from_bytea(5, 'x')",
        database=database,
    )
    with Snapshot(Dsn.parse(primary.dsn(database)), application_name="backupd test") as snapshot:
        expected = expectations.collect(snapshot, Level.DIGESTS)
    with _standby(primary) as standby:
        dsn = standby.with_database(database)
        with Snapshot(dsn, application_name="backupd test") as snapshot:
            assert snapshot.server.in_recovery
            assert [note for note in snapshot.notes if "unlogged tables are not in it" in note]
            assert snapshot.moment.lsn != "0/0"
            with pytest.raises(Busy):
                Snapshot(dsn, application_name="backupd test", lock_patience_s=0).__enter__()
            shown = expectations.collect(snapshot, Level.DIGESTS)
            assert expectations.compare(expected, shown) == [
                'table "public"."cache" is missing',
                'sequence "public"."cache_id_seq" is missing',
            ]
            archived = run(dump.dump(programs[17], dsn, snapshot.id, "none", 30, "test"), timeout_s=TIMEOUT_S).stdout
            source = Source("clinic", database, snapshot.server.system_identifier, snapshot.server.version)
            with pytest.raises(Refused, match="the source itself"):
                archive.require_not_source(snapshot.server, source)
        with pytest.raises(Refused, match="is a standby"), cells.primary(dsn):
            pass  # where a column's values and keys are changed
        target = primary.create_database("restored")
        restored = Dsn.parse(primary.dsn(target))
        run(archive.restore(programs[17], restored, single_transaction=True), archived, timeout_s=TIMEOUT_S)
        with Snapshot(restored, application_name="backupd test") as snapshot:
            assert expectations.compare(shown, expectations.found(snapshot.connection, shown)) == []
