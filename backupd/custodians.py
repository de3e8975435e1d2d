"""Who asks for which secret: a configuration's references become custodians, each under the identity whose business it is.

There are two. One makes backups: it has the signing key, the database's and the store's passwords. The other opens: it has the
secret key of a drill, the keys of columns, and the role that writes columns. Which one asks is decided by what the secret is
for, not by who calls. Where no second identity is configured, both are one; `separation` says what that is worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from backupd.config.models import Config, SecretRef, references
from backupd.config.servers import EntraIdentity, Vault, VaultIdentity
from backupd.custody import Custodian, Servers, open_custodian
from backupd.custody import SecretRef as Reference
from backupd.custody.file import FileId, file_at
from backupd.custody.rights import Rights
from backupd.errors import ConfigError
from backupd.redact import Secret

if TYPE_CHECKING:  # only who refers to a server pays for its client
    from backupd.custody.key_vault import KeyVaults
    from backupd.custody.vault_login import Kubernetes, Login
    from backupd.custody.vault_session import VaultSession


@dataclass(frozen=True, slots=True)
class ServerLogin:
    """What one identity logs in to one server with: the `secret`, None where the machine itself vouches for it."""

    name: str
    secret: Custodian | None


class Custodians:
    """The custodians of one configuration. `close` ends the sessions with servers, and may be called twice."""

    def __init__(self, config: Config, environ: Mapping[str, str]) -> None:
        self._config = config
        self._environ = environ
        self._held = ExitStack()

    def of(self, ref: SecretRef) -> Custodian:
        """The custodian of a secret; nothing is fetched. Raises ConfigError."""
        return self._open(ref, self._opening if ref in self._that_open else self._backups)

    def for_backups(self, ref: SecretRef) -> Custodian:
        """The same secret as the identity that makes backups would ask for it, whatever it is for."""
        return self._open(ref, self._backups)

    def over_identities(self, opens: bool) -> Rights:
        """The rights by which what makes backups could have more than it was given, where a server tells.

        `opens` says that the other identity may be asked for too. Raises as `Guarded.rights` does.
        """
        session, opening = self._backups.vault, self._opening.vault
        if session is None:
            return Rights()
        from backupd.custody import vault_rights
        from backupd.custody.vault import Place

        places = [Place.parse(each.name) for each in self._that_open if each.kind == "vault"]
        other = opening if opening is not session else None
        return vault_rights.over_identities(session, other, opens=opens, places=places)

    def logins_for_backups(self) -> tuple[ServerLogin, ...]:
        """How what makes backups logs in; nothing is fetched."""
        return tuple(self._logins("makes backups", self._config.vault, self._config.azure_key_vault))

    def logins_that_open(self) -> tuple[ServerLogin, ...]:
        """How what opens them logs in, where it has an identity of its own; nothing is fetched."""
        return tuple(self._logins("opens them", self._config.drill.vault, self._config.drill.azure_key_vault))

    def close(self) -> None:
        self._held.close()

    def _open(self, ref: SecretRef, servers: Servers) -> Custodian:
        return open_custodian(Reference(ref.kind, ref.name, ref.field, ref.version, ref.unwrap), self._environ, servers)

    @cached_property
    def _that_open(self) -> tuple[SecretRef, ...]:
        """The keys that open backups and columns, and what goes with them: canaries, passwords of who writes columns."""
        sources = self._config.sources.values()
        alone = (self._config.drill.secret_key, *(each.columns_password for each in sources))
        return (*references(tuple(each.totp for each in sources)), *(each for each in alone if each is not None))

    @cached_property
    def _backups(self) -> Servers:
        vault = self._config.vault
        return Servers(self._session(vault, vault), self._key_vaults(self._config.azure_key_vault))

    @cached_property
    def _opening(self) -> Servers:
        drill = self._config.drill
        return Servers(
            self._backups.vault if drill.vault is None else self._session(self._config.vault, drill.vault),
            self._backups.key_vaults if drill.azure_key_vault is None else self._key_vaults(drill.azure_key_vault),
        )

    def _session(self, at: Vault | None, who: VaultIdentity | None) -> VaultSession | None:
        if at is None or who is None:
            return None
        from backupd.custody.vault_session import VaultSession

        session = VaultSession(at.address, self._login(who), namespace=at.namespace or "", ca_file=at.ca_file)
        self._held.callback(session.close)
        return session

    def _login(self, who: VaultIdentity) -> Login:
        from backupd.custody import vault_login

        if who.approle is not None:
            return vault_login.AppRole(who.approle.role_id, self._local(who.approle.secret_id), who.approle.mount)
        if who.kubernetes is not None:
            return vault_login.Kubernetes(who.kubernetes.role, who.kubernetes.jwt_file, who.kubernetes.mount)
        if who.token is None:
            raise ConfigError("how to log in to Vault is not said", "give token, approle or kubernetes")
        return vault_login.Token(self._local(who.token))

    def _logins(self, does: str, vault: VaultIdentity | None, azure: EntraIdentity | None) -> Iterator[ServerLogin]:
        if vault is not None:
            yield ServerLogin(f"the login to Vault of what {does}", self._held_for(vault))
        if azure is not None:
            secret = self._local(azure.client_secret) if azure.client_secret is not None else None
            yield ServerLogin(f"the login to Key Vault of what {does}", secret)

    def _held_for(self, who: VaultIdentity) -> Custodian | None:
        from backupd.custody.vault_login import Kubernetes

        if who.kubernetes is not None:
            return _ServiceAccount(Kubernetes(who.kubernetes.role, who.kubernetes.jwt_file, who.kubernetes.mount))
        held = who.approle.secret_id if who.approle is not None else who.token
        return self._local(held) if held is not None else None

    def _key_vaults(self, who: EntraIdentity | None) -> KeyVaults:
        from backupd.custody import key_vault

        if who is None:
            return key_vault.KeyVaults()
        secret = self._local(who.client_secret) if who.client_secret is not None else None
        return key_vault.KeyVaults(key_vault.Login(who.client_id, who.tenant_id, secret))

    def _local(self, ref: SecretRef) -> Custodian:
        """What a login needs is on this host: the configuration has no other for it."""
        return self._open(ref, Servers())


@dataclass(frozen=True, slots=True)
class _ServiceAccount:
    """The token that Kubernetes mounts for a service account, as a custodian."""

    login: Kubernetes

    @property
    def locator(self) -> str:
        return f"file:{Path(self.login.jwt_file).absolute()}"

    @property
    def file(self) -> FileId | None:
        return file_at(self.login.jwt_file)

    def fetch(self) -> Secret:
        """Raises SecretUnavailable."""
        return Secret(self.login.request()[1]["jwt"], "service account token")
