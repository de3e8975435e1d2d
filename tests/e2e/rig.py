"""Everything that one backup needs, wired without a configuration: for tests of the operations, on real parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from backupd.audit import open_trail_store
from backupd.audit.records import Actor, Via
from backupd.audit.trail import Trail
from backupd.backup import Protected, Sealing, back_up
from backupd.catalog import Catalog
from backupd.manifest import Level, Manifest
from backupd.opening import Opening
from backupd.openpgp import Home, cleartext, keys
from backupd.openpgp.keys import KeyPair
from backupd.postgres.dsn import Dsn
from backupd.redact import Secret
from backupd.restore import Target, restore
from backupd.stores import AzureLogin, S3Keys, Store, open_store
from tests.parts.azure import AzureServer
from tests.parts.s3 import S3Server


@dataclass(frozen=True, slots=True)
class Pairs:
    """The three pairs of keys that every installation has."""

    operations: KeyPair
    escrow: KeyPair
    signing: KeyPair

    @classmethod
    def generate(cls) -> Pairs:
        """Fresh ones."""
        operations, escrow = (
            keys.generate(f"{name}@example.org", purpose="encrypt", expires_days=None) for name in ("operations", "escrow")
        )
        return cls(operations, escrow, keys.generate("signing@example.org", purpose="sign", expires_days=None))


@dataclass(frozen=True, slots=True)
class Rig:
    """A store, a trail and keys; `sealing.home` holds the signing key, `reading` the operations key."""

    store: Store
    trail: Trail
    catalog: Catalog
    sealing: Sealing
    reading: Opening

    def back_up(self, dsn: str, *, name: str = "clinic", level: Level = Level.ROWS) -> Manifest:
        """One backup of the database at `dsn`."""
        return back_up(Protected(name, Dsn.parse(dsn), level=level), lambda: self.catalog, self.sealing, self.trail)

    def restore(self, manifest: Manifest, dsn: str) -> None:
        """Into the empty database at `dsn`."""
        restore(manifest, self.store, self.reading, Target(Dsn.parse(dsn)), self.trail)


def trail_at(path: Path) -> Trail:
    """A trail in a file of its own."""
    return Trail(open_trail_store(f"sqlite:///{path}"), Actor("tester", "here", Via.CLI))


@contextmanager
def rigged(store: Store, pairs: Pairs, directory: Path) -> Iterator[Rig]:
    """A rig over `store`, its trail in `directory`."""
    trail = trail_at(directory / "audit.db")
    with Home() as signing, Home() as reading:
        signer = signing.import_secret(pairs.signing.secret)
        reading.import_secret(pairs.operations.secret)
        recipients = tuple(keys.inspect(pair.public, "key") for pair in (pairs.operations, pairs.escrow))
        catalog = Catalog(store, lambda signed: cleartext.verify(signing, signed, {signer}))
        yield Rig(store, trail, catalog, Sealing(signing, recipients, signer), Opening(reading))


def file_store(directory: Path) -> Store:
    """A directory of its own."""
    (directory / "store").mkdir()
    return open_store(f"file://{directory}/store")


def s3_store(server: S3Server, prefix: str = "prod") -> Store:
    """A bucket of its own."""
    login = S3Keys(server.access_key, Secret(server.secret_key))
    return open_store(f"s3://{server.new_bucket()}/{prefix}", endpoint_url=server.endpoint, region="us-east-1", keys=login)


def azure_store(server: AzureServer) -> Store:
    """A container of its own."""
    login = AzureLogin(connection_string=Secret(server.connection_string))
    return open_store(f"azure://{server.new_container()}/prod", login=login)
