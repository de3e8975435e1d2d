"""A database with one of everything goes into each store and comes back as it was, on each pair of versions.

The source and its roles are gone when it comes back: what is there then came out of the backup.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from backupd.manifest import Level
from backupd.pipeline import Command, run
from backupd.postgres import clients, expectations, session
from backupd.postgres.dsn import Dsn
from backupd.stores import Store
from tests.e2e.rig import Pairs, azure_store, file_store, rigged, s3_store
from tests.parts.postgres import PostgresServer
from tests.postgres import zoo

# The whole zoo (300 tables, 200 MB of bytes) once for each store and each pair; a small one for the other pairings.
FULL = {("file", 15, 17), ("s3", 17, 17), ("azure", 15, 15)}
PREFIX = "traveller"  # of its roles: other tests have a zoo in the same clusters
PAIRINGS = [(kind, *pair) for kind in ("file", "s3", "azure") for pair in ((15, 15), (17, 17), (15, 17))]


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of the kind that the test names."""
    kind = request.getfixturevalue("kind")
    if kind == "s3":
        return s3_store(request.getfixturevalue("s3_server"))
    return file_store(tmp_path) if kind == "file" else azure_store(request.getfixturevalue("azure_server"))


def server(request: pytest.FixtureRequest, major: int) -> PostgresServer:
    """The running server of this major."""
    found: PostgresServer = request.getfixturevalue(f"postgres{major}")
    return found


@pytest.fixture
def without_roles(request: pytest.FixtureRequest, source_major: int, target_major: int) -> Iterator[None]:
    """No cluster has the zoo's roles before or after."""
    yield
    for major in {source_major, target_major}:
        with server(request, major).connect() as connection:
            zoo.drop_roles(connection, PREFIX)


def schema(dsn: str) -> str:
    """The database's definition as pg_dump writes it, less what differs between two runs."""
    parsed = Dsn.parse(dsn)
    with session.connect(parsed, application_name="test") as connection:
        chosen = clients.choose(clients.find(), session.server(connection).release)
    argv = (chosen.program("pg_dump"), "--schema-only", f"--dbname={parsed.argument()}")
    command = Command("pg_dump", argv, parsed.environment())
    return re.sub(r"(?m)^(\\(un)?restrict|-- Dumped).*\n", "", run(command, timeout_s=120).stdout.decode())


@pytest.mark.parametrize(("kind", "source_major", "target_major"), PAIRINGS)
@pytest.mark.usefixtures("without_roles")
def test_a_zoo_comes_back_as_it_was(
    request: pytest.FixtureRequest, kind: str, source_major: int, target_major: int, store: Store, pairs: Pairs, tmp_path: Path
) -> None:
    source, target = server(request, source_major), server(request, target_major)
    tables, big_mb = (300, 200) if (kind, source_major, target_major) in FULL else (20, 2)
    before, after = source.create_database(), target.create_database()
    with source.connect(before) as connection:
        built = zoo.build(connection, tables=tables, big_mb=big_mb, prefix=PREFIX)
    definition = schema(source.dsn(before))
    with rigged(store, pairs, tmp_path) as rig:
        manifest = rig.back_up(source.dsn(before), level=Level.DIGESTS)
        assert sum(artifact.size for artifact in manifest.artifacts) > big_mb * 1_000_000
        assert len(manifest.expect.tables) > tables
        source.drop_database(before)
        with source.connect() as connection:
            zoo.drop_roles(connection, PREFIX)
        rig.restore(manifest, target.dsn(after))
        with session.connect(Dsn.parse(target.dsn(after)), application_name="test", autocommit=True) as found:
            shown = expectations.found(found, manifest.expect)
        assert shown.tables == manifest.expect.tables
        assert shown.sequences == manifest.expect.sequences
        assert shown.large_objects == manifest.expect.large_objects
        assert set(shown.roles) >= set(manifest.expect.roles)
    assert schema(target.dsn(after)) == definition or source_major != target_major
    for role, password in built.passwords.items():
        with target.connect(after, role, password) as connection:
            assert connection.execute("SELECT current_user").fetchone() == (role,)
    target.drop_database(after)
