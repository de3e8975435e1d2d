"""Two sealed backups in a directory, with keys and signed manifests, and no database: a release looks at nothing more."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from backupd.audit.records import Actor, Via
from backupd.catalog import Catalog, Entry
from backupd.manifest import (
    Artifact,
    Expectations,
    Head,
    Kind,
    Level,
    Manifest,
    Moment,
    Part,
    Source,
    Tools,
    render,
)
from backupd.openpgp import Home, cleartext, keys, messages, packets
from backupd.pipeline import run
from backupd.stores import Store, open_store
from tests.e2e.rig import Pairs

PLAIN = b"PGDMP and then what a dump holds" * 1000
ASKER = Actor("dba", "restore1", Via.CLI, "the asker", "a disk was lost")
CUSTODIAN = Actor("keeper", "safe1", Via.CLI)


@dataclass(frozen=True, slots=True)
class Shelf:
    """A store with the backups `a` and `b` of the source `clinic`; `home` holds the signing key."""

    store: Store
    pairs: Pairs
    home: Home
    signer: str
    catalog: Catalog
    a: Entry
    b: Entry

    def add(self, backup_id: str, *, heads: bool = True) -> Entry:
        """One more backup; without `heads`, as one was before manifests noted them."""
        return add(self.store, self.pairs, self.home, self.catalog, backup_id, heads=heads)


@pytest.fixture(scope="session")
def pairs() -> Pairs:
    """One set of keys for all tests of this room."""
    return Pairs.generate()


@pytest.fixture(scope="module")
def shelf(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    directory = tmp_path_factory.mktemp("shelf")
    store = open_store(f"file://{directory}")
    with Home() as home:
        signer = home.import_secret(pairs.signing.secret)
        catalog = Catalog(store, lambda signed: cleartext.verify(home, signed, {signer}))
        a, b = (
            add(store, pairs, home, catalog, backup_id) for backup_id in ("20261101T020000Z-aaaaaa", "20261102T020000Z-bbbbbb")
        )
        yield Shelf(store, pairs, home, signer, catalog, a, b)


def add(store: Store, pairs: Pairs, home: Home, catalog: Catalog, backup_id: str, *, heads: bool = True) -> Entry:
    recipients = [keys.inspect(pair.public, "key") for pair in (pairs.operations, pairs.escrow)]
    artifacts = []
    for name, kind in (("database.dump.gpg", Kind.DATABASE), ("globals.sql.gpg", Kind.GLOBALS)):
        sealed = run(messages.seal(home, recipients), PLAIN, timeout_s=60).stdout
        store.create(f"clinic/{backup_id}/{name}", sealed)
        digest, head = hashlib.sha256(sealed).hexdigest(), packets.sealed_head(sealed)
        noted = Head(len(head), hashlib.sha256(head).hexdigest())
        artifacts.append(Artifact(name, kind, len(sealed), digest, (Part(len(sealed), digest),), noted if heads else None))
    at = datetime(2026, 11, 1, 2, tzinfo=UTC)
    manifest = Manifest(
        backup_id=backup_id,
        source=Source("clinic", "clinic", "7711740067189825941", "17.10"),
        snapshot=Moment(at, "0/259C000"),
        started_at=at,
        finished_at=at,
        tools=Tools("0.1.0", "17.10", "2.2.40", "zstd:1"),
        recipients=tuple(key.fingerprint for key in recipients),
        artifacts=tuple(artifacts),
        expect=Expectations(Level.OFF),
    )
    catalog.publish(manifest, cleartext.sign(home, render(manifest), pairs.signing.fingerprint))
    return catalog.get("clinic", backup_id)
