"""Who we are to a Vault or OpenBao server: a token, an AppRole or a Kubernetes service account. Asks no server itself.

A login names the path that it is made at and what is sent there. Its secrets come from other custodians, or from the file that
Kubernetes renews, and are read anew each time: a token that was replaced is found without a restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from backupd.errors import SecretUnavailable
from backupd.redact import Secret

JWT_BYTES = 64 * 1024
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount/token"


class _Kept(Protocol):
    @property
    def locator(self) -> str: ...

    def fetch(self) -> Secret: ...


@dataclass(frozen=True, slots=True)
class Token:
    """A token that somebody else obtained, a Vault agent for instance."""

    kept: _Kept

    def describe(self) -> str:
        return f"the token in {self.kept.locator}"

    def token(self) -> Secret:
        """Raises SecretUnavailable."""
        return Secret(_text(self.kept), "Vault token")


@dataclass(frozen=True, slots=True)
class AppRole:
    """An AppRole: its id is no secret, its secret id is."""

    role_id: str
    secret_id: _Kept
    mount: str = "approle"

    def describe(self) -> str:
        return f"the AppRole {self.role_id}"

    def request(self) -> tuple[str, dict[str, str]]:
        """The path to log in at, and what is sent. Raises SecretUnavailable."""
        return f"auth/{self.mount}/login", {"role_id": self.role_id, "secret_id": _text(self.secret_id)}


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """A service account's token, as Kubernetes mounts it into a pod; the server has Kubernetes judge it."""

    role: str
    jwt_file: str = SERVICE_ACCOUNT
    mount: str = "kubernetes"

    def describe(self) -> str:
        return f"the Kubernetes role {self.role}"

    def request(self) -> tuple[str, dict[str, str]]:
        """The path to log in at, and what is sent. Raises SecretUnavailable."""
        try:
            # Its mode is what Kubernetes gives it, 0644 in most clusters: the pod is the wall around it.
            with Path(self.jwt_file).open("rb") as file:
                jwt = Secret(file.read(JWT_BYTES).strip(), "service account token")
        except OSError as error:
            raise SecretUnavailable(
                f"the service account token {self.jwt_file} cannot be read: {error.strerror}",
                "run this in a pod with automountServiceAccountToken, or correct jwt_file",
            ) from error
        return f"auth/{self.mount}/login", {"role": self.role, "jwt": jwt.text()}


Login = Token | AppRole | Kubernetes


def _text(kept: _Kept) -> str:
    try:
        text = kept.fetch().text().strip()
    except ValueError:
        text = ""
    if not text or not text.isascii() or not text.isprintable():  # it becomes a header, or JSON
        raise SecretUnavailable(f"{kept.locator} is not what Vault gives out", "write the token or secret id into it, alone")
    return text
