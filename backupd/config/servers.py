"""The tables of the servers that keep secrets, and of who we are to them: `[vault]`, `[azure_key_vault]`, and the drill's."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from backupd.config.problems import Hinted
from backupd.config.references import SERVED, File, SecretRef, Table, Text


def _kept_apart(ref: SecretRef | None, key: str) -> None:
    if ref is not None and ref.kind in SERVED:
        raise Hinted("would itself be kept behind a login", "keep it in a file or a systemd credential", key=key)


class AppRole(Table):
    """A login by AppRole."""

    role_id: Text = Field(description="The role's id; it is no secret.")
    secret_id: SecretRef = Field(description="The secret id.")
    mount: Text = Field("approle", description="Where the auth method is mounted.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _kept_apart(self.secret_id, "secret_id")
        return self


class Kubernetes(Table):
    """A login by a pod's service account."""

    role: Text = Field(description="The role at the auth method.")
    jwt_file: Text = Field(
        "/var/run/secrets/kubernetes.io/serviceaccount/token", description="The service account's token; renewed by Kubernetes."
    )
    mount: Text = Field("kubernetes", description="Where the auth method is mounted.")


class VaultIdentity(Table):
    """Who asks for the keys that open: the secret key of a drill, and column keys. The server is that of `[vault]`."""

    token: SecretRef | None = Field(None, description="A token that somebody else obtains and renews, such as an agent.")
    approle: AppRole | None = Field(None, description="A login by AppRole.")
    kubernetes: Kubernetes | None = Field(None, description="A login by a pod's service account.")

    @model_validator(mode="after")
    def _one_login(self) -> Self:
        named = [key for key in ("token", "approle", "kubernetes") if getattr(self, key) is not None]
        if len(named) != 1:
            raise Hinted("expected exactly one of token, approle, kubernetes", "say how to log in")
        _kept_apart(self.token, "token")
        return self


class Vault(VaultIdentity):
    """A HashiCorp Vault or OpenBao server, and who backups are made as. It may read no key that opens anything."""

    address: Text = Field(description="`https://host:8200`; without TLS only on this host.")
    namespace: Text | None = Field(None, description="A namespace, where the server has them.")
    ca_file: File | None = Field(None, description="The CA that signed the server's certificate. Default: the system's.")


class EntraIdentity(Table):
    """Who asks Azure Key Vault: in `[azure_key_vault]` what makes backups, in `[drill.azure_key_vault]` what opens them."""

    client_id: Text | None = Field(None, description="A managed or workload identity. Default: the only one there is.")
    tenant_id: Text | None = Field(None, description="With `client_secret`: the tenant.")
    client_secret: SecretRef | None = Field(None, description="The secret of a registered application, outside of Azure.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.client_secret is not None and not (self.client_id and self.tenant_id):
            raise Hinted("needs client_id and tenant_id beside it", key="client_secret")
        if self.client_secret is None and self.tenant_id is not None:
            raise Hinted("means nothing without client_secret", "remove tenant_id", key="tenant_id")
        _kept_apart(self.client_secret, "client_secret")
        return self
