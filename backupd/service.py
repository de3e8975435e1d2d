"""The composition root: a configuration becomes wired parts, and each command's work is one method.

The only place that knows both the configuration and the operations. It reads keys and secrets when they are first needed, and
forgets them when it is closed. What fails before an operation has begun is recorded here, for the operation cannot.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from backupd import witness
from backupd.audit import open_trail_store
from backupd.audit.records import Actor, Operation, Via
from backupd.audit.trail import Trail
from backupd.catalog import Catalog, Entry
from backupd.custodians import Custodians
from backupd.custody import Custodian, SecretRef, open_custodian
from backupd.errors import BackupdError, ConfigError, CouldNotVerify, Refused, SecretUnavailable
from backupd.manifest import Level, Manifest
from backupd.opening import Opening, SessionKeys
from backupd.openpgp import Home, cleartext, keys
from backupd.openpgp.keys import PublicKey
from backupd.postgres.dsn import Dsn
from backupd.redact import Secret, printable
from backupd.stores import Store, open_store
from backupd.stores.access import AzureLogin, Lock, S3Keys
from backupd.transfer import Progress

if TYPE_CHECKING:  # an operation's own room is imported by the method that runs it, so that `list` does not pay for `backup`
    from backupd.backup import Protected, Sealing
    from backupd.check import Line
    from backupd.config.models import Config
    from backupd.config.models import SecretRef as ConfiguredSecret
    from backupd.config.models import Source as ConfiguredSource
    from backupd.drill import DrillPlan, DrillReport
    from backupd.postgres.roles import RolesReport
    from backupd.separation import Identities
    from backupd.verify import Proof

_PUBLIC_HALF = 'or, where nothing is signed, name its public half: signers = ["keys/signing.pub.asc"] in [encryption]'


def actor(environ: Mapping[str, str], via: Via, operator: str | None = None, reason: str | None = None) -> Actor:
    """Who runs this: the account and host, and behind `sudo` the account that called it unless `operator` says more."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in some containers
        user = f"uid {os.geteuid()}"
    return Actor(user, socket.gethostname(), via, operator or environ.get("SUDO_USER"), reason)


class Service:
    """Everything that one configuration wires together; a context manager that takes the keys out of memory when it ends."""

    def __init__(self, config: Config, actor: Actor, environ: Mapping[str, str]) -> None:
        self.config = config
        self._actor = actor
        self._environ = environ
        self._held = ExitStack()
        self._custodians = Custodians(config, environ)
        self._held.callback(self._custodians.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held.close()

    # ------------------------------------------------------------------------------------------------------------ parts

    def custodian(self, ref: ConfiguredSecret) -> Custodian:
        """The custodian of a secret; nothing is fetched."""
        return self._custodians.of(ref)

    def secret(self, ref: ConfiguredSecret) -> Secret:
        """A secret's bytes. Raises SecretUnavailable."""
        return self.custodian(ref).fetch()

    @cached_property
    def store(self) -> Store:
        """Where backups are; nothing is asked of it yet."""
        at, (s3_keys, login) = self.config.store, self._store_login
        return open_store(
            at.url,
            endpoint_url=at.endpoint_url,
            region=at.region,
            profile=at.profile,
            keys=s3_keys,
            login=login,
            checksum=at.checksum,
            lock=Lock(at.lock.mode, at.lock.days) if at.lock else None,
        )

    @cached_property
    def _store_login(self) -> tuple[S3Keys | None, AzureLogin | None]:
        """The store's secrets, where it has any of its own."""
        at = self.config.store
        s3_keys = (
            S3Keys(at.access_key_id, self.secret(at.secret_access_key)) if at.access_key_id and at.secret_access_key else None
        )
        return s3_keys, AzureLogin(connection_string=self.secret(at.connection_string)) if at.connection_string else None

    @cached_property
    def trail(self) -> Trail:
        """The audit trail."""
        at = self.config.audit
        connect = None
        if not at.is_sqlite:
            from backupd.postgres import session

            dsn = Dsn.parse(at.url, self.secret(at.password) if at.password else None)
            connect = partial(session.connect, dsn, application_name="backupd audit")
        return Trail(open_trail_store(at.url, connect), self._actor)

    @cached_property
    def home(self) -> Home:
        """The home that signs and verifies: the signing key and the signers' public keys are in it, and nothing that opens."""
        return self._held.enter_context(Home())

    @cached_property
    def signer(self) -> str:
        """The signing key's fingerprint, after its secret key was imported. Raises ConfigError on a host that has none."""
        ref = self.config.encryption.signing_key
        if ref is None:
            raise ConfigError(
                "this host has no signing key", "set [encryption] signing_key, or run this where backups are made"
            )
        return self.home.import_secret(self.secret(ref))

    @cached_property
    def pinned(self) -> frozenset[str]:
        """The fingerprints whose signatures count."""
        named = [keys.read(path, self.home) for path in self.config.encryption.signers]
        for key in named:
            self.home.import_public(key.data)
        if named:
            return frozenset(key.fingerprint for key in named)
        try:
            return frozenset({self.signer})
        except SecretUnavailable as error:
            hint = f"{error.hint}; {_PUBLIC_HALF}" if error.hint else _PUBLIC_HALF
            raise SecretUnavailable(error.message, hint) from error

    @cached_property
    def recipients(self) -> tuple[PublicKey, ...]:
        """The public keys that backups are sealed to."""
        found = tuple(keys.read(path, self.home) for path in self.config.encryption.recipients)
        if len({key.fingerprint for key in found}) != len(found):
            raise ConfigError("two of the recipients are the same key", "name the keys of operations and of an offline escrow")
        return found

    @cached_property
    def catalog(self) -> Catalog:
        """The backups in the store."""
        pinned = self.pinned
        return Catalog(self.store, lambda signed: cleartext.verify(self.home, signed, pinned))

    # ---------------------------------------------------------------------------------------------------------- sources

    def source(self, name: str) -> ConfiguredSource:
        """A configured source. Raises ConfigError that names those there are."""
        found = self.config.sources.get(name)
        if found is None:
            there = ", ".join(self.config.sources) or "there is none"
            raise ConfigError(f"no source is called {printable(name)!r}", f"configured are: {there}")
        return found

    def names(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """The sources that were named, or all. Raises ConfigError for one that is not configured, and when there is none."""
        for name in wanted:
            self.source(name)
        found = wanted or tuple(self.config.sources)
        if not found:
            raise ConfigError("no source is configured", "add a table [sources.NAME] with a dsn")
        return found

    def dsn(self, source: ConfiguredSource) -> Dsn:
        """A source's address with its password."""
        return Dsn.parse(source.dsn, self.secret(source.password) if source.password else None)

    def protected(self, name: str) -> Protected:
        """A source as a backup needs it."""
        from backupd.backup import Protected, SecondFactors

        source = self.source(name)
        return Protected(
            name=name,
            dsn=self.dsn(source),
            level=Level(source.expectations),
            second_factors=tuple(SecondFactors(each.table, each.column, each.cipher) for each in source.totp),
            compression=source.compression,
            lock_timeout_s=source.lock_timeout_s,
            deadline_s=source.deadline_minutes * 60.0,
            client_directories=self.client_directories(name),
            with_globals=source.globals,
            concurrency=self.config.limits.upload_concurrency,
        )

    def client_directories(self, name: str) -> tuple[Path, ...]:
        """Where a source's pg_dump and pg_restore are looked for first."""
        source = self.config.sources.get(name)
        return (source.clients,) if source is not None and source.clients is not None else ()

    def sealing(self) -> Sealing:
        """Whom backups are sealed to, and who signs them. Raises ConfigError for a signer whose signatures do not count."""
        from backupd.backup import Sealing

        if self.signer not in self.pinned:
            raise ConfigError(
                f"the signing key {self.signer} is none of the signers: no host would believe this backup",
                "add its public key to signers in [encryption], here and on every host that restores",
            )
        return Sealing(self.home, self.recipients, self.signer)

    def identities(self) -> Identities:
        """Who asks for which secret here, and which OpenPGP keys there are."""
        from backupd.separation import Identities

        held = self._custodians
        return Identities(
            held.of,
            held.for_backups,
            held.over_identities,
            lambda: (self.signer, self.home.secret_names(self.signer)),
            self.home.show,
            self.recipients,
            held.logins_for_backups(),
            held.logins_that_open(),
        )

    def _keep_apart(self, name: str, opening: Custodian | None = None) -> None:
        """Refuse to go on where a key of the backups and a key of the source's columns are not apart. Raises Refused."""
        from backupd.separation import require_apart

        require_apart(self.config, name, self.identities(), opening)

    # ------------------------------------------------------------------------------------------------------- operations

    def back_up(self, name: str, progress: Progress = lambda _: None) -> Manifest:
        """One backup of one source."""
        from backupd.backup import back_up

        with self.recorded(Operation.BACKUP, name):
            self._keep_apart(name)
            source, sealing = self.protected(name), self.sealing()
            self._store_login  # noqa: B018  fetched before anything begins: the store is opened when pg_dump runs
        return back_up(source, lambda: self.catalog, sealing, self.trail, progress)

    def entry(self, name: str, backup_id: str | None = None) -> Entry:
        """One backup of a source, the newest when no id is given. Raises CouldNotVerify when there is none at all.

        When the trail knows a newer one than the store has, that is warned about.
        """
        if backup_id is not None:
            return self.catalog.get(name, backup_id)
        newest = self.catalog.newest(name)
        witness.warn(name, newest, self.catalog, lambda: self.trail)
        if newest is None:
            raise self.no_backup(name)
        return newest

    def no_backup(self, name: str) -> CouldNotVerify:
        """The error that says so, and of which sources there are backups."""
        others = sorted({entry.source for entry in self.catalog.list()})
        hint = f"there are backups of {printable(', '.join(others))}" if others else "the store has none: run `backupd backup`"
        return CouldNotVerify(f"there is no backup of {printable(name)} in {printable(self.store.url)}", hint)

    def verify(self, entry: Entry, key: Opening | None = None, progress: Progress = lambda _: None) -> Proof:
        """Prove one backup's manifest and parts, and with a key that it opens and reads to its end."""
        from backupd.verify import verify

        with self.recorded(Operation.VERIFY, entry.source, entry.backup_id):
            manifest = witness.proved(entry, self.trail)
            if key is not None:
                key.require(manifest, entry.digest)
        directories = self.client_directories(entry.source)
        return verify(manifest, self.store, self.trail, deep=key, client_directories=directories, progress=progress)

    def restore(self, entry: Entry, key: Opening, target: Dsn, progress: Progress = lambda _: None) -> RolesReport | None:
        """Restore one backup into an empty database."""
        from backupd.restore import Target, restore

        with self.recorded(Operation.RESTORE, entry.source, entry.backup_id):
            manifest = witness.proved(entry, self.trail)
            key.require(manifest, entry.digest)
        to = Target(target, self.client_directories(entry.source))
        return restore(manifest, self.store, key, to, self.trail, progress)

    def check(self) -> list[Line]:
        """Look at everything that the operations above need."""
        from backupd.check import Parts, check

        parts = Parts(
            config=self.config,
            custodian=self.custodian,
            identities=self.identities,
            public_key=lambda path: keys.read(path, self.home),
            home=lambda: self.home,
            signer=lambda: self.signer,
            store=lambda: self.store,
            catalog=lambda: self.catalog,
            trail=lambda: self.trail,
            dsn=self.dsn,
        )
        return check(parts)

    def drill(
        self,
        name: str,
        backup_id: str | None = None,
        secret_key: Path | None = None,
        progress: Progress = lambda _: None,
        *,
        released: SessionKeys | None = None,
    ) -> DrillReport:
        """Drill one backup of a source, the newest when no id is given. What is wrong with the backup is in the report.

        With the `released` session keys of a backup, `secret_key` is the one-time key that they came sealed to.
        """
        from backupd.drill import drill

        with self.recorded(Operation.RESTORE_TEST, name, backup_id):
            self.source(name)
            entry = self.entry(name, backup_id)
            manifest = witness.proved(entry, self.trail)
            key = self.opening_key(secret_key)
            self._keep_apart(name, key)
            plan = self._drill_plan(entry, key)
        with self.opening(Operation.RESTORE_TEST, name, secret_key, released) as opening:
            with self.recorded(Operation.RESTORE_TEST, name, entry.backup_id):
                opening.require(manifest, entry.digest)
            return drill(manifest, self.store, opening, plan, self.trail, progress)

    def _drill_plan(self, entry: Entry, key: Custodian) -> DrillPlan:
        from backupd.checks import Canary, Objectives, Question, TotpColumn
        from backupd.columns.totp import Algorithm, Parameters
        from backupd.drill import DrillPlan

        source, promised = self.source(entry.source), self.config.drill
        newest = self.catalog.newest(entry.source)
        return DrillPlan(
            key=key,
            columns=tuple(
                TotpColumn(
                    table=each.table,
                    id_column=each.id_column,
                    column=each.column,
                    enrolled=each.enrolled,
                    cipher=each.cipher,
                    keys=self.custodian(each.keys),
                    parameters=Parameters(each.digits, each.period, Algorithm(each.algorithm.lower())),
                    archive=self.custodian(each.archive) if each.archive else None,
                    canary=Canary(each.canary.id, self.custodian(each.canary.secret)) if each.canary else None,
                    former=each.former.column if each.former else None,
                )
                for each in source.totp
            ),
            none_claimed="totp" in source.model_fields_set and not source.totp,
            questions=tuple(Question.expecting(each.name, each.query, each.expect) for each in source.sql),
            objectives=Objectives(promised.rpo_hours, promised.rto_minutes),
            notes=witness.doubts(entry.source, newest, self.catalog, lambda: self.trail),
            newest_at=newest.manifest.snapshot.taken_at if newest is not None and newest.manifest is not None else None,
            client_directories=self.client_directories(entry.source),
            scratch_directory=promised.directory,
        )

    def opening_key(self, path: Path | None) -> Custodian:
        """Where the secret key that opens backups is: a file, or the drill's custodian. Raises ConfigError without either."""
        if path is not None:
            return open_custodian(SecretRef("file", str(path.absolute())), self._environ)
        if self.config.drill.secret_key is None:
            raise ConfigError("no secret key was named", "give --secret-key FILE, or set [drill] secret_key")
        return self.custodian(self.config.drill.secret_key)

    def session_keys(self, operation: Operation, source: str, release: bytes, one_time_key: Path) -> SessionKeys:
        """The released session keys of one backup of this source; their use, and what keeps them from it, is recorded."""
        from backupd.release import accept

        with self.recorded(operation, source):
            custodian = open_custodian(SecretRef("file", str(one_time_key.absolute())), self._environ)
            keys, request_sha256 = accept(release, custodian.fetch())
            if keys.source != source:
                raise Refused(
                    f"the session keys were released for a backup of {keys.source}, not of {printable(source)}",
                    "have them released for this source: `backupd keys request`",
                )
        details = {"action": "use released session keys", "for": operation.value, "request_sha256": request_sha256}
        self.trail.event(Operation.KEYS, source, details, backup_id=keys.backup_id)
        return keys

    def target(self, address: str, password_file: Path | None) -> Dsn:
        """Where to restore: the password comes from a file or PGPASSWORD, never from the command line."""
        password = None
        if password_file is not None:
            password = open_custodian(SecretRef("file", str(password_file.absolute())), self._environ).fetch()
        elif self._environ.get("PGPASSWORD"):
            password = Secret(self._environ["PGPASSWORD"], "PGPASSWORD")
        dsn = Dsn.parse(address)
        if dsn.password is not None:
            raise ConfigError(
                "the target's address holds a password, which every user of this host can see",
                "change it, and give --password-file FILE or PGPASSWORD",
            )
        return Dsn.parse(address, password)

    @contextmanager
    def opening(
        self, operation: Operation, source: str | None, secret_key: Path | None, released: SessionKeys | None = None
    ) -> Iterator[Opening]:
        """A home of its own for the secret key that opens backups, gone when the block ends. A key that is none is recorded.

        With `released` session keys there is no secret key in it.
        """
        with Home() as home:
            if released is not None:
                yield Opening(home, released)
                return
            with self.recorded(operation, source):
                home.import_secret(self.opening_key(secret_key).fetch())
            yield Opening(home)

    @contextmanager
    def recorded(self, operation: Operation, source: str | None, backup_id: str | None = None) -> Iterator[None]:
        """Record what keeps an operation from beginning: a key that is none, a secret that is not there, a forged manifest."""
        try:
            yield
        except BackupdError as error:
            self.trail.event(operation, source, backup_id=backup_id, error=error)
            raise
