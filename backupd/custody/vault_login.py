"""Who we are to a Vault or OpenBao server: a token, an AppRole or a Kubernetes service account. Asks no server itself.

A login names the path that it is made at and what is sent there. Its secrets come from other custodians, or from the file that
Kubernetes renews, and are read anew each time: a token that was replaced is found without a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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

    @property
    def role_path(self) -> str:
        """Not known before a server is asked: a token is of any role."""
        return ""

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

    @property
    def role_path(self) -> str:
        """Where the role is kept, if its id is its name; else the server alone knows."""
        return f"auth/{self.mount}/role/{self.role_id}"

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

    @property
    def role_path(self) -> str:
        """Where the role is kept."""
        return f"auth/{self.mount}/role/{self.role}"

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


@dataclass(frozen=True, slots=True)
class Standing:
    """What a server says of a token: its namespace, policies and entity, and the path of the role or user that it is of."""

    namespace: str = ""
    policies: frozenset[str] = frozenset()
    entity: str = ""
    role: str = ""

    @classmethod
    def told(cls, told: Mapping[str, Any], namespace: str, path: str = "") -> Standing:
        """Of the answer to a login at `path`, or to a look-up, which says where the login was and whose namespace it is."""
        named = [told.get(each) for each in ("policies", "token_policies", "identity_policies")]
        policies = frozenset(str(each) for names in named if isinstance(names, list) for each in names)
        if not path:
            path, namespace = str(told.get("path") or ""), str(told.get("namespace_path") or "").strip("/")
        meta = told.get("metadata") or told.get("meta")
        meta = meta if isinstance(meta, dict) else {}
        name, role = meta.get("role_name") or meta.get("role"), ""
        if path.endswith("/login") and name:
            role = f"{path.removesuffix('/login')}/role/{name}"
        elif "/login/" in path:  # of a user with a password: what says who that is stands for a role
            role = "{}/users/{}".format(*path.split("/login/", 1))
        elif path.startswith("auth/token/create/"):
            role = f"auth/token/roles/{path.removeprefix('auth/token/create/')}"
        return cls(namespace, policies, str(told.get("entity_id") or ""), role)


def _text(kept: _Kept) -> str:
    try:
        text = kept.fetch().text().strip()
    except ValueError:
        text = ""
    if not text or not text.isascii() or not text.isprintable():  # it becomes a header, or JSON
        raise SecretUnavailable(f"{kept.locator} is not what Vault gives out", "write the token or secret id into it, alone")
    return text
