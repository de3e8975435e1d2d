"""Whatever is done to stored objects, it is noticed, and no byte of a changed part reaches gpg or pg_restore.

The mutations are random from a fixed seed. What crosses is counted at the programs themselves: gpg and pg_restore are the real
ones behind a script that copies what they are given. Parts are 4 KiB here, so that a small artifact has many.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from backupd import opening, transfer
from backupd.catalog import MANIFEST, Catalog, name_of
from backupd.errors import Tampered
from backupd.manifest import ARTIFACTS, Artifact, Kind, Manifest, render
from backupd.opening import Opening
from backupd.openpgp import Home, cleartext, keys
from backupd.postgres import archive, clients, session
from backupd.postgres.dsn import Dsn
from backupd.restore import Target, restore
from backupd.verify import verify
from tests.e2e import mutations
from tests.e2e.listening import Attentive, listening
from tests.e2e.mutations import Mutation, first_change
from tests.e2e.rig import Pairs, Rig, file_store, rigged, s3_store
from tests.installation import installed, plant
from tests.leak_watch import Planted
from tests.parts.postgres import PostgresServer, postgres_bin
from tests.parts.s3 import S3Server
from tests.stores.small_parts import SmallParts

PER_DATABASE, PER_GLOBALS, PER_MANIFEST = 600, 100, 350  # of each of three backups
AT_GPG, AT_RESTORE, AT_VERIFY = 102, 12, 20  # the same

FILL_MORE = """
CREATE TABLE scans (id integer PRIMARY KEY, scan bytea NOT NULL);
ALTER TABLE scans ALTER scan SET STORAGE EXTERNAL;
INSERT INTO scans SELECT n, (SELECT string_agg(sha256(int4send(n * 1000 + m)), '') FROM generate_series(1, 1000) AS m)
  FROM generate_series(1, 400) AS n;
"""
FILL = """
CREATE TABLE patients (id integer PRIMARY KEY, record bytea NOT NULL);
INSERT INTO patients SELECT n, sha256(int4send(n)) FROM generate_series(1, 2000) AS n;
"""


@dataclass(frozen=True, slots=True)
class Shelf:
    """Two backups of one source and one of another, in a directory."""

    rig: Rig
    directory: Path
    manifests: tuple[Manifest, ...]

    def path(self, manifest: Manifest, name: str) -> Path:
        """Where an object of a backup lies."""
        return self.directory / manifest.source.name / manifest.backup_id / name

    def bytes_of(self, manifest: Manifest, kind: Kind) -> bytes:
        """An artifact as it is stored."""
        return self.path(manifest, manifest.artifact(kind).name).read_bytes()

    def strangers(self, manifest: Manifest, kind: Kind) -> list[bytes]:
        """Every other artifact there is."""
        return [self.bytes_of(each, one) for each in self.manifests for one in Kind if (each, one) != (manifest, kind)]

    def mutations(self, manifest: Manifest, kind: Kind, count: int, seed: int) -> Iterator[Mutation]:
        """So many changes of one artifact, the same in every run of these backups."""
        data, artifact = self.bytes_of(manifest, kind), manifest.artifact(kind)
        sizes = [part.size for part in artifact.parts]
        strangers = self.strangers(manifest, kind)
        return mutations.of_artifact(random.Random(seed), data, sizes, strangers, count)


@pytest.fixture(scope="module")
def shelf(postgres17: PostgresServer, pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """Whoever changes an object on it puts it back (`changed` does)."""
    directory = tmp_path_factory.mktemp("tampering")
    with ExitStack() as held:
        rig = held.enter_context(rigged(SmallParts(file_store(directory), 4096), pairs, directory))
        made = []
        for name in ("clinic", "clinic", "archive"):
            database = postgres17.create_database()
            held.callback(postgres17.drop_database, database)
            postgres17.execute(FILL, database=database)
            made.append(rig.back_up(postgres17.dsn(database), name=name))
        yield Shelf(rig, directory / "store", tuple(made))


@contextmanager
def changed(path: Path, mutation: Mutation) -> Iterator[None]:
    """The object at `path` is changed for the length of the block."""
    original = path.read_bytes()
    assert mutation.data != original
    path.unlink()
    try:
        if mutation.data is not None:
            path.write_bytes(mutation.data)
        yield
    finally:
        path.write_bytes(original)


def sizes(artifact: Artifact) -> list[int]:
    """Of its parts."""
    return [part.size for part in artifact.parts]


def given_out(shelf: Shelf, manifest: Manifest, artifact: Artifact) -> tuple[bytes, bool]:
    """What `fetch` gives out before it is done, and whether it finds something wrong."""
    got = bytearray()
    try:
        for part in transfer.fetch(shelf.rig.store, name_of(manifest.source.name, manifest.backup_id, ""), artifact):
            got += part
    except Tampered:
        return bytes(got), True
    return bytes(got), False


def test_what_is_not_changed_is_accepted(shelf: Shelf) -> None:
    """Or else all that follows would prove nothing."""
    for manifest in shelf.manifests:
        assert shelf.rig.catalog.get(manifest.source.name, manifest.backup_id).proved() == manifest
        proof = verify(manifest, shelf.rig.store, shelf.rig.trail, deep=shelf.rig.reading)
        assert proof.parts > 20
        for artifact in manifest.artifacts:
            assert given_out(shelf, manifest, artifact) == (shelf.bytes_of(manifest, artifact.kind), False)


def test_no_change_of_an_artifact_is_accepted(shelf: Shelf) -> None:
    """What is given out before the change is found is what was there, up to the changed part and no further."""
    seen: Counter[str] = Counter()
    for seed, manifest in enumerate(shelf.manifests):
        for kind, count in ((Kind.DATABASE, PER_DATABASE), (Kind.GLOBALS, PER_GLOBALS)):
            artifact, original = manifest.artifact(kind), shelf.bytes_of(manifest, kind)
            for mutation in shelf.mutations(manifest, kind, count, seed):
                with changed(shelf.path(manifest, artifact.name), mutation):
                    got, noticed = given_out(shelf, manifest, artifact)
                assert noticed, mutation.how
                assert got == original[: first_change(original, mutation.data, sizes(artifact))], mutation.how
                seen[mutation.how] += 1
    assert seen.total() == 3 * (PER_DATABASE + PER_GLOBALS)
    assert len(seen) == 17


def test_verify_tells_every_kind_of_change_and_records_it(shelf: Shelf) -> None:
    records = sum(1 for _ in shelf.rig.trail.records())
    count = 0
    for seed, manifest in enumerate(shelf.manifests):
        for kind in Kind:
            path = shelf.path(manifest, manifest.artifact(kind).name)
            for mutation in shelf.mutations(manifest, kind, AT_VERIFY, 100 + seed):
                with changed(path, mutation), pytest.raises(Tampered) as error:
                    verify(manifest, shelf.rig.store, shelf.rig.trail)
                assert error.value.hint == transfer.HINT
                count += 1
    written = list(shelf.rig.trail.records(records + 1))
    assert [record.phase.value for record in written] == ["intent", "failed"] * count


def test_no_byte_of_a_changed_part_reaches_gpg(shelf: Shelf, pairs: Pairs, tmp_path: Path) -> None:
    """By the one way that restores and deep verifications go; gpg is given what comes before the changed part, and no more."""
    crossed = 0
    reader = archive.read_to_end(clients.choose_reader(clients.find(), 17))
    with listening(tmp_path, gpg(), "--decrypt") as ear, Home(gpg=str(ear.program)) as home:
        home.import_secret(pairs.operations.secret)
        key = Opening(home)
        store = Attentive(shelf.rig.store, ear, (ARTIFACTS[Kind.DATABASE], ARTIFACTS[Kind.GLOBALS]))
        for seed, manifest in enumerate(shelf.manifests):
            artifact, original = manifest.artifact(Kind.DATABASE), shelf.bytes_of(manifest, Kind.DATABASE)
            for mutation in shelf.mutations(manifest, Kind.DATABASE, AT_GPG, 200 + seed):
                with changed(shelf.path(manifest, artifact.name), mutation), pytest.raises(Tampered):
                    opening.feed(manifest, artifact, store, key, reader)
                [heard] = ear.heard()
                assert heard == original[: first_change(original, mutation.data, sizes(artifact))], mutation.how
                crossed += len(heard)
            for mutation in shelf.mutations(manifest, Kind.GLOBALS, 5, 200 + seed):
                with changed(shelf.path(manifest, manifest.artifact(Kind.GLOBALS).name), mutation), pytest.raises(Tampered):
                    verify(manifest, store, shelf.rig.trail, deep=key)
                assert [heard for heard in ear.heard() if heard] == [original]
        assert crossed > 2_000_000  # what was good before a change did cross
        manifest = shelf.manifests[0]
        verify(manifest, store, shelf.rig.trail, deep=key)
        assert sorted(ear.heard()) == sorted(shelf.bytes_of(manifest, kind) for kind in Kind)


def test_nothing_of_a_changed_part_reaches_pg_restore(shelf: Shelf, postgres17: PostgresServer, tmp_path: Path) -> None:
    """And the database that was to be restored into is as empty as before."""
    target = Dsn.parse(postgres17.dsn(postgres17.create_database()))
    with listening(tmp_path, postgres_bin(17) / "pg_restore", "--format=custom") as ear:
        for name in ("pg_dump", "pg_dumpall"):
            (ear.program.parent / name).symlink_to(postgres_bin(17) / name)
        into = Target(target, client_directories=(ear.program.parent,))
        store = Attentive(shelf.rig.store, ear, (ARTIFACTS[Kind.DATABASE],))
        for seed, manifest in enumerate(shelf.manifests):
            artifact, original = manifest.artifact(Kind.DATABASE), shelf.bytes_of(manifest, Kind.DATABASE)
            plain = plaintext(shelf, manifest)
            for mutation in shelf.mutations(manifest, Kind.DATABASE, AT_RESTORE, 300 + seed):
                with changed(shelf.path(manifest, artifact.name), mutation), pytest.raises(Tampered):
                    restore(manifest, store, shelf.rig.reading, into, shelf.rig.trail)
                heard = b"".join(ear.heard())
                assert plain.startswith(heard)
                assert len(heard) <= first_change(original, mutation.data, sizes(artifact))
                with session.connect(target, application_name="test") as connection:
                    archive.require_empty(connection)
        manifest = shelf.manifests[0]
        restore(manifest, store, shelf.rig.reading, into, shelf.rig.trail)
        assert ear.heard() == [plaintext(shelf, manifest)]
    postgres17.drop_database(target.database)


def plaintext(shelf: Shelf, manifest: Manifest) -> bytes:
    """The dump in a backup, unsealed."""
    return b"".join(opening.read(manifest, manifest.artifact(Kind.DATABASE), shelf.rig.store, shelf.rig.reading))


def gpg() -> Path:
    """The real one."""
    found = shutil.which("gpg")
    assert found is not None
    return Path(found)


def test_no_change_of_a_manifest_is_believed(shelf: Shelf) -> None:
    seen: Counter[str] = Counter()
    for seed, manifest in enumerate(shelf.manifests):
        path = shelf.path(manifest, MANIFEST)
        strangers = [shelf.path(each, MANIFEST).read_bytes() for each in shelf.manifests if each != manifest]
        for mutation in mutations.of_manifest(random.Random(seed), path.read_bytes(), strangers, PER_MANIFEST):
            with changed(path, mutation):
                entry = shelf.rig.catalog.get(manifest.source.name, manifest.backup_id)
            assert entry.manifest is None, mutation.how
            assert isinstance(entry.problem, Tampered), mutation.how
            seen[mutation.how] += 1
    assert seen.total() == 3 * PER_MANIFEST
    assert len(seen) == 19


@contextmanager
def slipped_in(shelf: Shelf, manifest: Manifest, signed: bytes) -> Iterator[None]:
    """A whole new backup with the artifacts of an existing one and a manifest of somebody's, for the length of the block."""
    place = shelf.directory / manifest.source.name / manifest.backup_id
    place.mkdir()
    try:
        for artifact in shelf.manifests[0].artifacts:
            shutil.copy(shelf.path(shelf.manifests[0], artifact.name), place / artifact.name)
        (place / MANIFEST).write_bytes(signed)
        yield
    finally:
        shutil.rmtree(place)


def later(manifest: Manifest) -> Manifest:
    """The same with a newer id."""
    at = manifest.started_at + timedelta(days=1)
    return dataclasses.replace(manifest, backup_id=f"{at:%Y%m%dT%H%M%SZ}-000000")


def test_an_older_manifest_under_a_newer_id_is_not_believed(shelf: Shelf) -> None:
    newer = later(shelf.manifests[0])
    with slipped_in(shelf, newer, shelf.path(shelf.manifests[0], MANIFEST).read_bytes()):
        entry = shelf.rig.catalog.newest("clinic")
    assert entry is not None
    assert entry.backup_id == newer.backup_id
    with pytest.raises(Tampered, match="is that of"):
        entry.proved()


@pytest.mark.parametrize("known", [False, True], ids=["a stranger", "somebody we know"])
def test_a_backup_signed_by_a_thief_is_not_believed(shelf: Shelf, pairs: Pairs, known: bool) -> None:
    """Not even where the thief's public key is in the keyring, as an operator's may be: it is not pinned."""
    newer = later(shelf.manifests[0])
    thief = keys.generate("thief@example.org", purpose="sign", expires_days=None)
    with Home() as den, Home() as ours:
        signed = cleartext.sign(den, render(newer), den.import_secret(thief.secret))
        pinned = {ours.import_public(pairs.signing.public)}
        if known:
            ours.import_public(thief.public)
        catalog = Catalog(shelf.rig.store, lambda given: cleartext.verify(ours, given, pinned))
        with slipped_in(shelf, newer, signed):
            entry = catalog.get("clinic", newer.backup_id)
        assert catalog.get("clinic", shelf.manifests[0].backup_id).proved() == shelf.manifests[0]
    with pytest.raises(Tampered, match="signed by another key"):
        entry.proved()


def test_an_artifact_and_its_digests_changed_together_are_not_believed(shelf: Shelf) -> None:
    """Whoever can write to the store can make the manifest fit; without the signing key that is of no use."""
    manifest = shelf.manifests[0]
    artifact, other = manifest.artifact(Kind.DATABASE), shelf.manifests[1].artifact(Kind.DATABASE)
    fitting = dataclasses.replace(other, name=artifact.name)
    changed_text = render(
        dataclasses.replace(manifest, artifacts=tuple(fitting if each is artifact else each for each in manifest.artifacts))
    )
    path = shelf.path(manifest, MANIFEST)
    signed = path.read_bytes().decode()
    forged = signed.replace(render(manifest), changed_text).encode()
    with changed(path, Mutation("made to fit", forged)):
        entry = shelf.rig.catalog.get("clinic", manifest.backup_id)
    with pytest.raises(Tampered, match="the signed text was changed"):
        entry.proved()


def test_on_s3_no_change_is_accepted_either(
    s3_server: S3Server, postgres17: PostgresServer, pairs: Pairs, tmp_path: Path
) -> None:
    """Objects overwritten and deleted by somebody with every right to the bucket. Parts have S3's least size there, 5 MiB."""
    database = postgres17.create_database()
    postgres17.execute(FILL, database=database)
    postgres17.execute(FILL_MORE, database=database)
    store = s3_store(s3_server)
    bucket, prefix = store.url.removeprefix("s3://").split("/")
    with ExitStack() as held:
        client = held.enter_context(contextlib.closing(s3_server.client()))
        rig = held.enter_context(rigged(SmallParts(store, 5 << 20), pairs, tmp_path))
        manifest = rig.back_up(postgres17.dsn(database))
        for artifact, other in (manifest.artifacts, manifest.artifacts[::-1]):
            name = name_of("clinic", manifest.backup_id, artifact.name)
            original, stranger = store.read(name), store.read(name_of("clinic", manifest.backup_id, other.name))
            put = partial(client.put_object, Bucket=bucket, Key=f"{prefix}/{name}")
            for mutation in mutations.of_artifact(random.Random(1), original, sizes(artifact), [stranger], 16):
                if mutation.data is None:
                    client.delete_object(Bucket=bucket, Key=f"{prefix}/{name}")
                else:
                    put(Body=mutation.data)
                with pytest.raises(Tampered):
                    verify(manifest, store, rig.trail)
            put(Body=original)
        assert verify(manifest, store, rig.trail).parts > 3
        name = name_of("clinic", manifest.backup_id, MANIFEST)
        for mutation in mutations.of_manifest(random.Random(1), store.read(name), [], 40):
            assert mutation.data is not None
            client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=mutation.data)
            with pytest.raises(Tampered):
                rig.catalog.get("clinic", manifest.backup_id).proved()
    postgres17.drop_database(database)


def test_the_command_line_refuses_in_two_lines(postgres17: PostgresServer, planted: Planted, tmp_path: Path) -> None:
    """Exit code 1, an error and a hint, a record of it, and an empty target."""
    with installed(tmp_path, postgres17, plant(planted)) as clinic, clinic.empty_database() as target:
        backup_id = clinic.back_up()
        assert clinic.store is not None
        place = clinic.store / "clinic" / backup_id
        for name in (ARTIFACTS[Kind.DATABASE], ARTIFACTS[Kind.GLOBALS], MANIFEST):
            data = (place / name).read_bytes()
            flipped = data[:200] + bytes([data[200] ^ 4]) + data[201:]
            for mutation in (Mutation("bit flipped", flipped), Mutation("cut short", data[:-1])):
                with changed(place / name, mutation):
                    done = clinic.run(*clinic.restore_arguments(target), env=clinic.superuser)
                assert (done.code, done.stdout) == (1, ""), mutation.how
                error, hint = done.stderr.splitlines()
                assert error.startswith("error: ")
                assert hint.startswith("hint: ")
                with session.connect(Dsn.parse(target.dsn), application_name="test") as connection:
                    archive.require_empty(connection)
        told = [record for record in clinic.records() if record["operation"] == "restore" and record["error"]]
        assert len(told) == 6
        clinic.run(*clinic.restore_arguments(target), env=clinic.superuser).ok()
