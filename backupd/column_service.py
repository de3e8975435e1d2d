"""The composition root's half about columns of second factors: what `backupd columns` does, one method a command.

Owns what a configured column is wired to. Which custodians, store and trail there are is the service's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd import logs
from backupd.audit.records import Operation
from backupd.errors import BackupdError, ConfigError
from backupd.postgres.dsn import Dsn
from backupd.redact import printable
from backupd.service import Service

if TYPE_CHECKING:  # as in the service, an operation's room is imported by the method that runs it
    from backupd.rotation import Moved, Pace, Report, SecretColumn, Sharing
    from backupd.rotation.encrypt import Stage as EncryptStage
    from backupd.rotation.rotate import Stage as RotateStage
    from backupd.rotation.status import Status

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class ColumnService:
    """The columns of one configuration's sources."""

    service: Service

    def columns(self, name: str) -> tuple[SecretColumn, ...]:
        """A source's columns of second factors, with their custodians; nothing is fetched."""
        from backupd.rotation import Former, SecretColumn

        return tuple(
            SecretColumn(
                source=name,
                table=each.table,
                id_column=each.id_column,
                column=each.column,
                cipher=each.cipher,
                keys=self.service.custodian(each.keys),
                archive=self.service.custodian(each.archive) if each.archive else None,
                former=Former(
                    each.former.column,
                    each.former.cipher,
                    self.service.custodian(each.former.keys) if each.former.keys else None,
                )
                if each.former
                else None,
            )
            for each in self.service.source(name).totp
        )

    def column(self, name: str, wanted: str | None) -> SecretColumn:
        """The column `TABLE.COLUMN` of a source, or the only one that it has. Raises ConfigError that names those there are."""
        there = self.columns(name)
        found = [each for each in there if wanted in (None, each.name)]
        if len(found) != 1:
            names = ", ".join(each.name for each in there) or "there is none"
            what = "has not exactly one column of second factors" if wanted is None else f"has no column {printable(wanted)}"
            raise ConfigError(f"the source {printable(name)} {what}", f"name one with --column; configured are: {names}")
        return found[0]

    def status(self, name: str) -> list[Status]:
        """What a source's columns of second factors hold."""
        from backupd.rotation import status

        with self.service.recorded(Operation.COLUMNS, name):
            columns, dsn = self.columns(name), self.service.dsn(self.service.source(name))
        return status.look(name, columns, dsn, self.service.trail)

    def encrypt(
        self, name: str, wanted: str | None, stage: EncryptStage | None, pace: Pace, moved: Moved = lambda _: None
    ) -> Report:
        """Move a column's secrets to AES-256-GCM, one stage at a time; without a stage, say what is to be done."""
        from backupd.rotation import encrypt

        with self.service.recorded(Operation.COLUMNS, name):
            column, dsn = self.column(name, wanted), self._writer(name)
        if stage is None:
            return encrypt.plan(column, dsn, self.service.trail)
        opening = encrypt.Opening(self.service.client_directories(name), self.service.config.drill.directory)
        return encrypt.encrypt(column, dsn, stage, self.service.trail, pace, opening, moved)

    def rotate(
        self,
        name: str,
        wanted: str | None,
        key_id: str,
        stage: RotateStage | None,
        pace: Pace,
        moved: Moved = lambda _: None,
    ) -> Report:
        """Bring a column under another key, one stage at a time; without a stage, say what is to be done."""
        from backupd.rotation import rotate

        with self.service.recorded(Operation.COLUMNS, name):
            column, dsn = self.column(name, wanted), self._writer(name)
            sharing = self._sharing(column)
        if stage is None:
            return rotate.plan(column, dsn, key_id, self.service.trail, sharing)
        return rotate.rotate(column, dsn, key_id, stage, self.service.trail, pace, moved, sharing)

    def retire(self, name: str, wanted: str | None, key_id: str, *, apply: bool) -> Report:
        """Move a column's key that nothing names any more from the keyring to the archive."""
        from backupd.rotation.retire import retire

        with self.service.recorded(Operation.COLUMNS, name):
            column = self.column(name, wanted)
            all_of_it = self._with_the_keyring_of(column)
            dsns = {each.source: self._closest(each.source) for each in all_of_it}
            catalog = self.service.catalog
        return retire(column, key_id, all_of_it, dsns, catalog, self.service.trail, apply=apply)

    def _with_the_keyring_of(self, column: SecretColumn) -> list[SecretColumn]:
        """The columns of all sources that have this one's keyring, itself too."""
        from backupd.rotation import keyrings

        everywhere = [each for source in self.service.config.sources for each in self.columns(source)]
        return [each for each in everywhere if keyrings.one_place(each.keys, column.keys)]

    def _sharing(self, column: SecretColumn) -> Sharing:
        """For a new key: where there is no store at hand, a rotation that is urgent does without the backups."""
        from backupd.rotation import Sharing
        from backupd.rotation.naming import naming_key

        all_of_it = self._with_the_keyring_of(column)

        def backups(key_id: str) -> Sequence[str]:
            try:
                return naming_key(self.service.catalog, all_of_it, key_id)[0]
            except BackupdError as error:
                log.warning("no backup could be asked whether it names the key", key_id=key_id, reason=error.message)
                return ()

        others = [each for each in all_of_it if (each.source, each.name) != (column.source, column.name)]
        return Sharing([(each, self._closest(each.source)) for each in others], backups)

    def _closest(self, name: str) -> Dsn:
        """Where a source's columns are written, if that is said; where it is read may be a standby, which is behind."""
        source = self.service.source(name)
        return self.service.dsn(source) if source.columns_dsn is None else self._writer(name)

    def _writer(self, name: str) -> Dsn:
        source = self.service.source(name)
        if source.columns_dsn is None:
            raise ConfigError(
                f"the role of {printable(name)} reads, and no other is configured to write its columns",
                "set columns_dsn to a role that may SELECT and UPDATE the table",
            )
        return Dsn.parse(source.columns_dsn, self.service.secret(source.columns_password) if source.columns_password else None)
