"""A backup that cannot be whole is none: each way of failing, what it leaves, and what the trail says of it."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from backupd.audit.records import Phase, Record
from backupd.audit.trail import Trail
from backupd.backup import Protected, SecondFactors, back_up
from backupd.catalog import Catalog, chain_problems
from backupd.columns import Cell
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.errors import (
    BackupdError,
    Busy,
    Interrupted,
    KeyUnusable,
    ProcessFailed,
    SourceDenied,
    SourceError,
    SourceUnreachable,
    StoreError,
    Tampered,
)
from backupd.manifest import Manifest
from backupd.openpgp import cleartext, keys
from backupd.openpgp.cleartext import Verified
from backupd.postgres.dsn import Dsn
from backupd.redact import Secret
from backupd.stores import S3Keys, open_store
from tests.e2e.rig import Pairs, Rig, file_store, rigged, trail_at
from tests.parts.postgres import Database, PostgresServer
from tests.parts.proxy import FaultProxy
from tests.parts.s3 import S3Server


@pytest.fixture
def rig(pairs: Pairs, tmp_path: Path) -> Iterator[Rig]:
    """Over a directory."""
    with rigged(file_store(tmp_path), pairs, tmp_path) as made:
        yield made


@pytest.fixture
def clinic(database17: Database) -> Database:
    """A small database."""
    database17.execute("CREATE TABLE t AS SELECT i, repeat('x', 100) AS x FROM generate_series(1, 1000) i")
    return database17


def outcomes(rig: Rig) -> list[Record]:
    """All records that say how something ended."""
    return [record for record in rig.trail.records() if record.phase.is_outcome]


def nothing_is_left(rig: Rig) -> None:
    """No object, no upload in the making, and a trail that says so and is whole."""
    assert list(rig.store.list()) == []
    assert list(rig.store.sweep("clinic")) == []
    report = rig.trail.verify()
    assert report.ok
    assert report.findings == ()


def blocked(clinic: Database, table: str = "t") -> psycopg.Connection:
    """Someone who holds a lock that a dump has to wait for."""
    connection = clinic.connect()
    connection.autocommit = False
    connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
    return connection


def test_a_backup_notes_what_a_restore_must_show(rig: Rig, clinic: Database) -> None:
    made = rig.back_up(clinic.dsn)
    assert [table.rows for table in made.expect.tables.values()] == [1000]
    assert [record.phase for record in rig.trail.records()] == [Phase.INTENT, Phase.DONE]
    [outcome] = outcomes(rig)
    assert outcome.backup_id == made.backup_id
    assert str(outcome.details["session"]).startswith("pid ")


def test_the_second_backup_names_the_first(rig: Rig, clinic: Database) -> None:
    first, second = rig.back_up(clinic.dsn), rig.back_up(clinic.dsn)
    assert second.previous is not None
    assert second.previous.backup_id == first.backup_id


def test_a_second_run_is_kept_out(rig: Rig, clinic: Database) -> None:
    holding = threading.Event()
    done = threading.Event()

    def hold(count: int) -> None:
        holding.set()
        assert done.wait(60)

    source = Protected("clinic", Dsn.parse(clinic.dsn))
    first = threading.Thread(target=back_up, args=(source, lambda: rig.catalog, rig.sealing, rig.trail, hold))
    first.start()
    try:
        assert holding.wait(60)
        with pytest.raises(Busy, match=r"another run holds t\d+: backupd .*pid \d+"):
            rig.back_up(clinic.dsn)
    finally:
        done.set()
        first.join()
    assert sorted(record.phase for record in outcomes(rig)) == [Phase.DONE, Phase.REFUSED]
    assert len(rig.catalog.list()) == 1


def test_a_lock_that_is_not_given_ends_the_run(rig: Rig, clinic: Database) -> None:
    with blocked(clinic), pytest.raises(BackupdError) as caught:
        back_up(Protected("clinic", Dsn.parse(clinic.dsn), lock_timeout_s=0.5), lambda: rig.catalog, rig.sealing, rig.trail)
    assert "lock" in f"{caught.value.message} {caught.value.hint}"
    nothing_is_left(rig)


def test_the_deadline_ends_the_run(rig: Rig, clinic: Database) -> None:
    source = Protected("clinic", Dsn.parse(clinic.dsn), lock_timeout_s=600, deadline_s=1)
    with blocked(clinic, "pg_publication"), pytest.raises(BackupdError, match="deadline"):  # which pg_dump alone looks into
        back_up(source, lambda: rig.catalog, rig.sealing, rig.trail)
    nothing_is_left(rig)


def test_the_deadline_ends_the_run_when_only_the_roles_are_left(rig: Rig, clinic: Database) -> None:
    source = Protected("clinic", Dsn.parse(clinic.dsn), lock_timeout_s=600, deadline_s=3)
    with blocked(clinic, "pg_parameter_acl"), pytest.raises(ProcessFailed, match=r"pg_dumpall .*deadline"):  # its alone, too
        back_up(source, lambda: rig.catalog, rig.sealing, rig.trail)
    nothing_is_left(rig)


def test_roles_that_cannot_be_dumped_end_the_dump_beside_them(rig: Rig, clinic: Database, tmp_path: Path) -> None:
    """And what pg_dumpall said is the reason, not that pg_dump was ended for it."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("pg_dump", "pg_restore"):
        (programs / name).symlink_to(clinic.server.bin / name)
    failing = programs / "pg_dumpall"
    failing.write_text("#!/bin/sh\necho 'pg_dumpall: error: query failed: ERROR:  the disk is full' >&2\nexit 1\n")
    failing.chmod(0o755)
    source = Protected("clinic", Dsn.parse(clinic.dsn), client_directories=(programs,))
    with (
        blocked(clinic, "pg_publication"),  # so pg_dump would go on for ever
        pytest.raises(ProcessFailed, match="pg_dumpall failed: query failed: ERROR:  the disk is full"),
    ):
        back_up(source, lambda: rig.catalog, rig.sealing, rig.trail)
    nothing_is_left(rig)


def test_a_lock_is_waited_for_no_longer_than_the_deadline(rig: Rig, clinic: Database) -> None:
    source = Protected("clinic", Dsn.parse(clinic.dsn), lock_timeout_s=600, deadline_s=1)
    with blocked(clinic), pytest.raises(SourceError, match="lock"):
        back_up(source, lambda: rig.catalog, rig.sealing, rig.trail)
    nothing_is_left(rig)


def test_a_signal_ends_the_run_and_is_recorded(rig: Rig, clinic: Database) -> None:
    def interrupted(count: int) -> None:
        raise Interrupted("interrupted by SIGTERM")

    with pytest.raises(Interrupted) as caught:
        back_up(Protected("clinic", Dsn.parse(clinic.dsn)), lambda: rig.catalog, rig.sealing, rig.trail, interrupted)
    assert caught.value.hint == "no backup was made, and what is stored of this one counts for nothing: run it again"
    assert [record.phase for record in outcomes(rig)] == [Phase.INTERRUPTED]
    nothing_is_left(rig)


@pytest.mark.parametrize("stop", [PostgresServer.kill, PostgresServer.stop])
def test_a_source_that_dies_leaves_nothing(
    rig: Rig, make_postgres: Callable[[int], PostgresServer], stop: Callable[[PostgresServer], None]
) -> None:
    server = make_postgres(17)
    server.execute(
        "CREATE TABLE t AS SELECT i, (SELECT string_agg(sha256((i || ':' || j)::bytea), '') FROM generate_series(1, 500) j) x"
        " FROM generate_series(1, 2000) i",
        database="postgres",
    )
    died: list[int] = []

    def die(count: int) -> None:
        if not died:
            died.append(count)
            stop(server)

    with pytest.raises((SourceError, ProcessFailed)):
        back_up(Protected("clinic", Dsn.parse(server.dsn())), lambda: rig.catalog, rig.sealing, rig.trail, die)
    assert died
    nothing_is_left(rig)


def test_a_server_that_is_not_there_is_said_to_be(rig: Rig) -> None:
    with pytest.raises(SourceUnreachable):
        rig.back_up("postgresql://nobody@127.0.0.1:1/nowhere")
    assert [record.phase for record in outcomes(rig)] == [Phase.FAILED]
    nothing_is_left(rig)


def test_a_missing_right_on_one_table_names_it(rig: Rig, clinic: Database) -> None:
    role, password = clinic.server.create_role("LOGIN BYPASSRLS")
    clinic.execute(f'GRANT EXECUTE ON FUNCTION pg_control_system() TO "{role}"')
    clinic.execute("CREATE TABLE secret_one (x int)")
    clinic.execute(f'GRANT SELECT ON t TO "{role}"')
    with pytest.raises(SourceDenied, match=r"(may not read|permission denied for) table .*secret_one"):
        rig.back_up(clinic.server.dsn(clinic.name, role, password))
    nothing_is_left(rig)


def test_an_expired_recipient_stops_the_run_before_anything_is_dumped(rig: Rig, pairs: Pairs) -> None:
    later = dataclasses.replace(rig.sealing.recipients[0], expires_at=rig.sealing.recipients[0].created_at)
    sealing = dataclasses.replace(rig.sealing, recipients=(later, rig.sealing.recipients[1]))
    unreachable = Protected("clinic", Dsn.parse("postgresql://nobody@127.0.0.1:1/nowhere"))
    with pytest.raises(KeyUnusable, match="expired"):
        back_up(unreachable, lambda: rig.catalog, sealing, rig.trail)
    nothing_is_left(rig)


def test_a_store_that_fails_in_the_middle_leaves_nothing(
    clinic: Database, pairs: Pairs, tmp_path: Path, s3_server: S3Server, make_proxy: Callable[..., FaultProxy]
) -> None:
    clinic.execute(
        "CREATE TABLE big AS SELECT i, (SELECT string_agg(sha256((i || ':' || j)::bytea), '') FROM generate_series(1, 500) j) x"
        " FROM generate_series(1, 1500) i"
    )
    proxy = make_proxy("127.0.0.1", s3_server.port)
    bucket = s3_server.new_bucket()
    login = S3Keys(s3_server.access_key, Secret(s3_server.secret_key))
    store = open_store(f"s3://{bucket}/p", endpoint_url=proxy.url, region="us-east-1", keys=login)
    with rigged(store, pairs, tmp_path) as rig:
        proxy.fail_next(1000, 403, method="PUT", path="partNumber=2")
        with pytest.raises(StoreError):
            rig.back_up(clinic.dsn)
        nothing_is_left(rig)
        assert "Uploads" not in s3_server.client().list_multipart_uploads(Bucket=bucket)


def test_the_next_run_succeeds_and_sweeps(rig: Rig, clinic: Database) -> None:
    dead = rig.store.begin("clinic/20260101T000000Z-000000/database.dump.gpg")
    dead.part(1, b"x", bytes(32))
    assert rig.back_up(clinic.dsn).notes is not None
    assert list(rig.store.sweep("clinic")) == []


def test_a_backup_that_was_removed_is_noted_by_the_next(rig: Rig, clinic: Database, tmp_path: Path) -> None:
    first = rig.back_up(clinic.dsn)
    (tmp_path / "store" / "clinic" / first.backup_id / "manifest.asc").unlink()
    second = rig.back_up(clinic.dsn)
    assert f"an earlier backup, {first.backup_id}, is in the trail and not in the store" in second.notes


def test_no_worthless_object_parts_the_chain_or_hides_what_was_removed(rig: Rig, clinic: Database, tmp_path: Path) -> None:
    """Objects that no key signed, in the future and as the newest, put there by who removed a backup."""
    made = [rig.back_up(clinic.dsn) for _ in range(3)]
    (tmp_path / "store" / "clinic" / made[1].backup_id / "manifest.asc").unlink()
    planted = f"{made[2].backup_id[:-6]}ffffff"  # of the same second, and later
    for worthless in (planted, "99991231T235959Z-ffffff"):
        place = tmp_path / "store" / "clinic" / worthless
        place.mkdir()
        (place / "manifest.asc").write_bytes(b"worthless")
    following = rig.back_up(clinic.dsn)
    assert following.previous is not None
    assert following.previous.backup_id == made[2].backup_id
    assert f"an earlier backup, {made[1].backup_id}, is in the trail and not in the store" in following.notes
    assert any(note.startswith(f"the backup before this one, {planted}, cannot be believed") for note in following.notes)
    entries = rig.catalog.list()
    assert [entry.backup_id for entry in entries if entry.problem is not None] == [planted, "99991231T235959Z-ffffff"]
    assert list(chain_problems(entries)) == [made[2].backup_id]


def forge(store: Path, after: datetime, numbers: range) -> None:
    """Put objects that no key signed in the place of newer backups, an hour after this time: it is not yet the future."""
    for number in numbers:
        place = store / "clinic" / f"{after + timedelta(hours=1):%Y%m%dT%H%M%SZ}-{number:06x}"
        place.mkdir(parents=True)
        (place / "manifest.asc").write_bytes(b"worthless")


def test_worthless_objects_hold_up_no_run_whatever_their_number(rig: Rig, clinic: Database, tmp_path: Path) -> None:
    """Nor do they part the chain while the trail knows a backup that is there; else the manifest says why it is parted."""
    verified: list[bytes] = []

    def verify(signed: bytes) -> Verified:
        verified.append(signed)
        return cleartext.verify(rig.sealing.home, signed, {rig.sealing.signer})

    def follow(trail: Trail = rig.trail) -> Manifest:
        verified.clear()
        catalog = Catalog(rig.store, verify)  # one that knows no manifest yet
        return back_up(Protected("clinic", Dsn.parse(clinic.dsn)), lambda: catalog, rig.sealing, trail)

    made = rig.back_up(clinic.dsn)
    forge(tmp_path / "store", made.started_at, range(99))
    following = follow()
    assert following.previous is not None
    assert following.previous.backup_id == made.backup_id
    assert not any(note.startswith("this backup follows none") for note in following.notes)
    forge(tmp_path / "store", made.started_at, range(99, 120))
    recorded = follow()
    assert recorded.previous is not None
    assert recorded.previous.backup_id == following.backup_id
    assert len(verified) == 101
    alone = follow(trail_at(tmp_path / "another.db"))
    assert alone.previous is None
    assert "this backup follows none: the 100 newest cannot be believed, nor what the trail knows" in alone.notes
    assert len(verified) == 100
    assert list(chain_problems(rig.catalog.list())) == [alone.backup_id]


def test_the_deadline_ends_the_search_for_the_backup_before(rig: Rig, clinic: Database, tmp_path: Path) -> None:
    """In a store that is slow, and full of what cannot be believed."""
    verified: list[bytes] = []

    def verify(signed: bytes) -> Verified:
        verified.append(signed)
        time.sleep(0.5)
        raise Tampered("not signed")

    forge(tmp_path / "store", datetime.now(UTC), range(20))
    there = list(rig.store.list())
    source = Protected("clinic", Dsn.parse(clinic.dsn), deadline_s=1)
    with pytest.raises(ProcessFailed, match="deadline"):
        back_up(source, lambda: Catalog(rig.store, verify), rig.sealing, rig.trail)
    assert len(verified) < 20
    assert list(rig.store.list()) == there


def test_three_missing_backups_are_named_and_the_others_counted(rig: Rig, clinic: Database, tmp_path: Path) -> None:
    made = [rig.back_up(clinic.dsn) for _ in range(5)]
    for each in made:
        (tmp_path / "store" / "clinic" / each.backup_id / "manifest.asc").unlink()
    notes = rig.back_up(clinic.dsn).notes
    named = [f"an earlier backup, {each.backup_id}, is in the trail and not in the store" for each in reversed(made[2:])]
    assert [note for note in notes if "trail" in note] == [*named, "so are 2 more that the trail knows"]


def test_key_ids_of_a_column_are_noted_and_so_are_values_in_clear(rig: Rig, clinic: Database) -> None:
    cipher = AesGcm(Keyring.generate("2026-1"))
    clinic.execute("CREATE TABLE users (id int PRIMARY KEY, totp_secret bytea)")
    for number in range(1, 6):
        sealed = cipher.encrypt(Cell("users", "totp_secret", str(number)), Secret(b"JBSWY3DPEHPK3PXP" * 2))
        clinic.execute("INSERT INTO users VALUES (%s, %s)", (number, sealed))
    clinic.execute("INSERT INTO users VALUES (6, 'in clear'), (7, NULL)")
    factors = (SecondFactors("users", "totp_secret", "aes-256-gcm"),)
    source = Protected("clinic", Dsn.parse(clinic.dsn), second_factors=factors)
    made = back_up(source, lambda: rig.catalog, rig.sealing, rig.trail)
    [noted] = made.column_keys
    assert (noted.key_ids, noted.rows) == (("2026-1",), 6)
    assert "1 of 6 values in users.totp_secret are not encrypted with aes-256-gcm" in made.notes
    assert next(table.digest for name, table in made.expect.tables.items() if "users" in name) is not None


def test_a_killed_peer_ends_the_run(rig: Rig, clinic: Database) -> None:
    """pg_dump's session is ended by the DBA: gpg would call what it got a whole message."""
    held = blocked(clinic, "pg_publication")

    def terminate() -> None:
        with clinic.connect() as connection:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                ended = connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND application_name ~ '^[0-9]{8}T' AND wait_event_type = 'Lock'"
                ).fetchall()
                if ended:
                    return
                time.sleep(0.05)

    killer = threading.Thread(target=terminate)
    killer.start()
    source = Protected("clinic", Dsn.parse(clinic.dsn), lock_timeout_s=600, deadline_s=120)
    with held, pytest.raises(BackupdError, match=r"terminating connection due to administrator command"):
        back_up(source, lambda: rig.catalog, rig.sealing, rig.trail)
    killer.join()
    nothing_is_left(rig)


def test_key_inspection_is_of_the_bytes_that_are_sealed_to(pairs: Pairs) -> None:
    assert keys.inspect(pairs.operations.public, "x").fingerprint == pairs.operations.fingerprint
