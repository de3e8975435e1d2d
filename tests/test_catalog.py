"""What is listed is what was signed, where it was put; everything else is listed with what is wrong with it."""

import contextlib
import dataclasses
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backupd.catalog import Catalog, chain_problems, predecessor
from backupd.errors import ObjectExists, ObjectMissing, StoreError, Tampered
from backupd.manifest import Manifest, Predecessor, render
from backupd.openpgp import Home, cleartext, keys
from backupd.openpgp.cleartext import Verified
from backupd.stores import open_store
from tests.stores.pages import Pages
from tests.test_manifest import manifest as some_manifest


@dataclass
class Shelf:
    """A catalogue over a directory, whose backups are manifests alone, unless a test fills them."""

    directory: Path
    catalog: Catalog
    home: Home
    signer: str
    stranger: str
    verified: list[bytes]

    def add(self, day: int, source: str = "clinic", signer: str | None = None) -> Manifest:
        """Publish one more backup, following the newest."""
        at = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(days=day)
        before = predecessor(self.catalog.newest(source)) if signer is None else None
        whole = some_manifest(backup_id=f"{at:%Y%m%dT%H%M%SZ}-5f3c9a", previous=before)
        whole = dataclasses.replace(whole, source=dataclasses.replace(whole.source, name=source))
        self.catalog.publish(whole, cleartext.sign(self.home, render(whole), signer or self.signer))
        return whole

    def fill(self, made: Manifest) -> Path:
        """Put the artifact beside a manifest, as large as that says; where it is."""
        [artifact] = made.artifacts
        path = self.path(made).with_name(artifact.name)
        path.write_bytes(bytes(artifact.size))
        return path

    def path(self, made: Manifest) -> Path:
        """The stored manifest."""
        return self.directory / made.source.name / made.backup_id / "manifest.asc"


@pytest.fixture(scope="module")
def signing() -> Iterator[tuple[Home, str, str]]:
    """A home with the signing key and a stranger's."""
    with Home() as home:
        ours, theirs = (keys.generate(f"{name}@example.org", purpose="sign", expires_days=None) for name in ("a", "b"))
        yield home, home.import_secret(ours.secret), home.import_secret(theirs.secret)


@pytest.fixture
def shelf(tmp_path: Path, signing: tuple[Home, str, str]) -> Shelf:
    """An empty one."""
    home, signer, stranger = signing
    directory = tmp_path / "store"
    directory.mkdir()
    verified: list[bytes] = []

    def verify(signed: bytes) -> Verified:
        verified.append(signed)
        return cleartext.verify(home, signed, {signer})

    catalog = Catalog(open_store(f"file://{directory}"), verify, lambda: datetime(2026, 11, 24, tzinfo=UTC))
    return Shelf(directory, catalog, home, signer, stranger, verified)


def test_backups_are_listed_oldest_first_and_by_source(shelf: Shelf) -> None:
    made = [shelf.add(2), shelf.add(3), shelf.add(1, "archive")]
    assert [entry.proved() for entry in shelf.catalog.list()] == [made[2], made[0], made[1]]
    assert [entry.proved() for entry in shelf.catalog.list("clinic")] == made[:2]
    assert shelf.catalog.list("clin") == []


def test_a_manifest_is_verified_once(shelf: Shelf) -> None:
    shelf.add(1)
    shelf.verified.clear()
    for _ in range(3):
        shelf.catalog.list()
        shelf.catalog.newest("clinic")
    assert len(shelf.verified) <= 1


def test_what_has_no_manifest_is_no_backup(shelf: Shelf) -> None:
    made = shelf.add(1)
    (shelf.directory / "clinic" / "20261125T000000Z-000000").mkdir()
    (shelf.directory / "clinic" / "20261125T000000Z-000000" / "database.dump.gpg").write_bytes(b"x")
    (shelf.directory / "clinic" / "notes.txt").write_bytes(b"x")
    assert [entry.backup_id for entry in shelf.catalog.list()] == [made.backup_id]


class TestArtifacts:
    """That they are there is seen in the listing that finds the manifests."""

    def test_one_that_is_gone_or_of_another_size_is_a_loss(self, shelf: Shelf) -> None:
        made = [shelf.add(day) for day in range(1, 5)]
        paths = [shelf.fill(each) for each in made]
        assert [entry.loss for entry in shelf.catalog.list()] == [""] * 4
        paths[0].unlink()
        paths[1].write_bytes(bytes(2))
        paths[3].unlink()
        paths[3].mkdir()
        (paths[3] / "x").write_bytes(bytes(3))
        gone = "database.dump.gpg is not in the store"
        entries = shelf.catalog.list("clinic")
        assert [entry.loss for entry in entries] == [gone, "database.dump.gpg has 2 bytes, and its manifest says 3", "", gone]
        assert [entry.proved() for entry in entries] == made
        assert chain_problems(entries) == {}

    def test_another_backups_artifact_does_not_stand_in_for_one(self, shelf: Shelf) -> None:
        made = [shelf.add(day) for day in (1, 2)]
        shelf.fill(made[0])
        assert [bool(entry.loss) for entry in shelf.catalog.list()] == [False, True]

    def test_sound_backups_cost_no_further_listing_and_others_one_each(self, shelf: Shelf) -> None:
        made = [shelf.add(day) for day in range(1, 9)]
        paths = [shelf.fill(each) for each in made]
        store = Pages(shelf.catalog.store)
        catalog = Catalog(store, lambda signed: cleartext.verify(shelf.home, signed, {shelf.signer}))
        catalog.list()
        assert store.listed == [""]
        for path in paths[2:4]:
            path.unlink()
        store.listed.clear()
        catalog.list()
        assert sorted(store.listed) == ["", *(f"clinic/{each.backup_id}/" for each in made[2:4])]
        assert catalog.get("clinic", made[2].backup_id).loss == ""
        assert len(store.listed) == 4

    def test_a_backup_that_is_made_while_the_store_is_listed_has_lost_nothing(self, shelf: Shelf) -> None:
        """Its roles are there when a page ends behind them, and then come its database and its manifest."""
        made = shelf.add(1)
        database, manifest = shelf.fill(made), shelf.path(made)
        roles = database.with_name("globals.sql.gpg")
        roles.write_bytes(b"x")
        whole = {path: path.read_bytes() for path in (database, manifest)}
        for path in whole:
            path.unlink()

        def finish(last: str) -> None:
            for path, data in whole.items():
                if last.endswith(roles.name) and not path.exists():
                    path.write_bytes(data)

        store = Pages(shelf.catalog.store, finish)
        catalog = Catalog(store, lambda signed: cleartext.verify(shelf.home, signed, {shelf.signer}))
        [entry] = catalog.list()
        assert (entry.proved(), entry.loss) == (made, "")
        assert len(store.listed) == 2, "the first listing showed the manifest alone"


def test_a_manifest_in_anothers_place_is_not_believed(shelf: Shelf) -> None:
    old, new = shelf.add(1), shelf.add(2)
    shelf.path(new).unlink()
    shutil.copy(shelf.path(old), shelf.path(new))
    [_, entry] = shelf.catalog.list()
    with pytest.raises(Tampered, match="is that of"):
        entry.proved()


def test_a_strangers_signature_is_not_believed(shelf: Shelf) -> None:
    shelf.add(1)
    planted = shelf.add(2, signer=shelf.stranger)
    [_, entry] = shelf.catalog.list()
    assert entry.backup_id == planted.backup_id
    with pytest.raises(Tampered, match="another key"):
        entry.proved()


def test_a_damaged_newest_backup_does_not_pass_for_the_one_before_it(shelf: Shelf) -> None:
    shelf.add(1)
    newest = shelf.add(2)
    path = shelf.path(newest)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"17.10", b"17.11"))
    entry = shelf.catalog.newest("clinic")
    assert entry is not None
    assert entry.backup_id == newest.backup_id
    assert entry.manifest is None


def test_what_lies_in_the_future_is_damaged_and_never_the_newest(shelf: Shelf) -> None:
    """No key is needed to put it there, and no backup could ever be newer."""
    tomorrow = shelf.add(24)
    later = some_manifest(backup_id="20261125T000001Z-5f3c9a")
    shelf.catalog.publish(later, cleartext.sign(shelf.home, render(later), shelf.signer))
    worthless = shelf.directory / "clinic" / "99991231T235959Z-ffffff"
    worthless.mkdir()
    (worthless / "manifest.asc").write_bytes(b"x")
    newest = shelf.catalog.newest("clinic")
    assert newest is not None
    assert newest.proved() == tomorrow
    [_, *ahead] = shelf.catalog.list()
    for entry in ahead:
        with pytest.raises(Tampered, match="lies in the future"):
            entry.proved()
    assert shelf.catalog.ids("clinic") == {tomorrow.backup_id, later.backup_id, worthless.name}


@pytest.mark.parametrize("kind", ["pipe", "link", "directory", "empty directory"])
def test_a_manifest_that_is_no_file_any_more_is_damaged_and_not_gone(shelf: Shelf, kind: str) -> None:
    made = shelf.add(1)
    path = shelf.path(made)
    if kind == "directory":
        path.unlink()
        path.mkdir()
        (path / "a").write_bytes(b"x")
        (path / "b").write_bytes(b"x")
    elif kind == "empty directory":
        path.unlink()
        path.mkdir()
    elif kind == "link":
        path.rename(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")
    else:
        path.unlink()
        os.mkfifo(path)
    [entry] = shelf.catalog.list()
    assert entry.backup_id == made.backup_id
    with pytest.raises(StoreError, match="is no regular file"):
        entry.proved()


@pytest.mark.parametrize("backup_id", ["20261101T000000Z-ffffff", "latest", "../archive/20261101T000000Z-5f3c9a", ""])
def test_a_backup_that_is_not_there_is_said_to_be_missing(shelf: Shelf, backup_id: str) -> None:
    shelf.add(1)
    with pytest.raises(ObjectMissing, match="there is no backup"):
        shelf.catalog.get("clinic", backup_id)


def test_a_backup_is_published_once(shelf: Shelf) -> None:
    made = shelf.add(1)
    with pytest.raises(ObjectExists):
        shelf.catalog.publish(made, cleartext.sign(shelf.home, render(made), shelf.signer))


def test_a_huge_manifest_is_not_read(shelf: Shelf) -> None:
    made = shelf.add(1)
    path = shelf.path(made)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.truncate((32 << 20) + 1)
    [entry] = shelf.catalog.list()
    with pytest.raises(Tampered, match="has 33554433 bytes"):
        entry.proved()


def test_large_manifests_are_read_one_at_a_time(tmp_path: Path) -> None:
    """Memory is then that of one, whatever somebody has put into the store."""
    for number in range(3):
        place = tmp_path / "clinic" / f"20261101T000000Z-{number:06d}"
        place.mkdir(parents=True)
        with (place / "manifest.asc").open("wb") as file:
            file.truncate((2 << 20) + 1 + number)
    meeting = threading.Barrier(2)
    met: list[int] = []

    def verify(signed: bytes) -> Verified:
        with contextlib.suppress(threading.BrokenBarrierError):  # nobody else comes
            met.append(meeting.wait(1))
        raise Tampered("not signed")

    assert len(Catalog(open_store(f"file://{tmp_path}"), verify).list()) == 3
    assert met == []


class TestTheChain:
    """Each manifest names the one before it."""

    def test_an_untouched_chain_has_no_problem(self, shelf: Shelf) -> None:
        for day in range(1, 5):
            shelf.add(day)
        assert chain_problems(shelf.catalog.list()) == {}

    def test_a_backup_taken_out_shows_in_the_one_after_it(self, shelf: Shelf) -> None:
        made = [shelf.add(day) for day in range(1, 5)]
        shelf.path(made[1]).unlink()
        assert list(chain_problems(shelf.catalog.list())) == [made[2].backup_id]

    def test_the_oldest_may_go(self, shelf: Shelf) -> None:
        made = [shelf.add(day) for day in range(1, 5)]
        shelf.path(made[0]).unlink()
        assert chain_problems(shelf.catalog.list()) == {}

    def test_a_worthless_object_does_not_hide_a_backup_that_was_taken_out(self, shelf: Shelf) -> None:
        made = [shelf.add(day) for day in range(1, 5)]
        shelf.path(made[1]).write_bytes(b"worthless")
        assert list(chain_problems(shelf.catalog.list())) == [], "it is listed as damaged itself, and may have been good"
        shelf.path(made[1]).parent.rename(shelf.directory / "clinic" / f"{made[1].backup_id[:-6]}ffffff")
        assert list(chain_problems(shelf.catalog.list())) == [made[2].backup_id]

    def test_a_backup_put_in_shows(self, shelf: Shelf) -> None:
        shelf.add(1)
        shelf.add(3)
        at = "20261103T000000Z-000000"
        between = some_manifest(backup_id=at, previous=Predecessor("20261101T000000Z-5f3c9a", "0" * 64))
        shelf.catalog.publish(between, cleartext.sign(shelf.home, render(between), shelf.signer))
        assert at in chain_problems(shelf.catalog.list())


def test_what_cannot_be_believed_keeps_nothing_of_what_was_read(shelf: Shelf) -> None:
    """Anybody can write into a store: their bytes must not stay in memory for as long as the list lives."""
    for day, rest in ((1, b"x" * (1 << 20)), (2, b"")):
        path = shelf.path(shelf.add(day))
        path.chmod(0o600)
        path.write_bytes(path.read_bytes().replace(b"17.10", b"17.11") + rest)
    broken = render(some_manifest(backup_id="20261104T000000Z-5f3c9a")) + "no JSON\n"
    signed = cleartext.sign(shelf.home, broken, shelf.signer)
    place = shelf.directory / "clinic" / "20261104T000000Z-5f3c9a"
    place.mkdir()
    (place / "manifest.asc").write_bytes(signed)
    entries = shelf.catalog.list()
    assert len(entries) == 3
    for entry in entries:
        assert entry.problem is not None
        assert (entry.problem.__traceback__, entry.problem.__cause__, entry.problem.__context__) == (None, None, None)
