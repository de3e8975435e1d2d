"""Secrets in Azure Key Vault, where wished wrapped by one of its keys. Never writes, never lists, never follows another vault.

A wrapped secret is what `wrapKey` gave, in base64, or, since RSA wraps no more than some 190 bytes, a JSON Web Encryption in
its compact form (RFC 7516) with RSA-OAEP-256 and A256GCM, whose content key is what Key Vault unwraps.
"""

from __future__ import annotations

import binascii
import contextlib
import json
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from backupd.custody.rights import Rights
from backupd.errors import ConfigError, ExtraMissing, SecretUnavailable
from backupd.redact import Secret

RETRIES = 3
CONNECT_S = 5.0
ANSWER_S = 30.0
ALGORITHM = "RSA-OAEP-256"
_ALPHABET = bytes.maketrans(b"-_", b"+/")
_JWE = {"alg": ALGORITHM, "enc": "A256GCM"}
_PROBE = bytes(256)  # no key unwraps zeros; a key that we may not use denies it before it tries

T = TypeVar("T")


class _Kept(Protocol):
    @property
    def locator(self) -> str: ...

    def fetch(self) -> Secret: ...


@dataclass(frozen=True, slots=True)
class Login:
    """Who we are to Microsoft Entra. All None: the workload's own identity. With a secret: a registered application's."""

    client_id: str | None = None
    tenant_id: str | None = None
    client_secret: _Kept | None = None

    def describe(self) -> str:
        return f"the identity {self.client_id}" if self.client_id else "this workload's identity"

    def credential(self) -> Any:
        """Raises SecretUnavailable."""
        from azure import identity

        if self.client_secret is not None:
            secret = self.client_secret.fetch().text().strip()
            return identity.ClientSecretCredential(self.tenant_id or "", self.client_id or "", secret)
        named = {"managed_identity_client_id": self.client_id, "workload_identity_client_id": self.client_id}
        return identity.DefaultAzureCredential(
            **({key: value for key, value in named.items() if value}),
            # Variables would overrule a client id that was configured, and whoever ran `az login` here is not this host.
            exclude_environment_credential=self.client_id is not None,
            exclude_developer_cli_credential=True,
            exclude_cli_credential=True,
            exclude_powershell_credential=True,
            exclude_visual_studio_code_credential=True,
            exclude_shared_token_cache_credential=True,
        )


class KeyVaults:
    """One identity's way to every key vault. Thread-safe.

    `credential` and `transport` take the place of what the login and the SDK would make; `retries` counts further tries.
    """

    def __init__(
        self,
        login: Login = Login(),
        *,
        credential: Any = None,
        transport: Callable[[], Any] | None = None,
        retries: int = RETRIES,
    ) -> None:
        """Nothing is asked yet."""
        self._login = login
        self._credential = credential
        self._transport = transport
        self._retries = retries
        self._lock = Lock()

    @property
    def identity(self) -> str:
        """Who we are, in words that tell no secret."""
        return self._login.describe()

    def secret(self, vault: str, name: str, version: str | None) -> str:
        """A secret's value. Raises SecretUnavailable."""

        def ask() -> str | None:
            from azure.keyvault.secrets import SecretClient

            with SecretClient(vault, self._who(), **self._options()) as client:
                value = client.get_secret(name, version).value
                return value if isinstance(value, str) else None

        where = f"azure:{_locator(vault, 'secrets', name, version)}"
        value = self._asked(where, ask)
        if value is None:
            raise SecretUnavailable(f"{where}: the key vault gave an answer that is none", "look at the vault")
        return value

    def is_deleted(self, vault: str, name: str) -> bool:
        """Whether a secret of this name waits for its purge. False also when we may not know."""

        def ask() -> bool:
            from azure.keyvault.secrets import SecretClient

            with SecretClient(vault, self._who(), **self._options()) as client:
                return client.get_deleted_secret(name).name is not None

        try:
            return self._asked(vault, ask)
        except SecretUnavailable:
            return False

    def unwrap(self, key: KeyId, wrapped: bytes, where: str) -> bytes:
        """What Key Vault's key unwraps. Raises SecretUnavailable."""

        def ask() -> bytes:
            from azure.keyvault.keys.crypto import CryptographyClient, KeyWrapAlgorithm

            with CryptographyClient(key.url, self._who(), **self._options()) as client:
                return bytes(client.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, wrapped).key)

        return self._asked(where, ask)

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "retry_total": self._retries,
            "retry_backoff_factor": 0.4,
            "retry_backoff_max": 5,
            "connection_timeout": CONNECT_S,
            "read_timeout": ANSWER_S,
        }
        return options | ({"transport": self._transport()} if self._transport is not None else {})

    def _who(self) -> Any:
        with self._lock:
            if self._credential is None:
                self._credential = self._login.credential()
            return self._credential

    def _asked(self, where: str, ask: Callable[[], T]) -> T:
        """What `ask` gives. None of the SDK's errors leaves, nor is chained: they hold requests and answers whole."""
        try:
            from azure.core.exceptions import AzureError
        except ImportError as error:
            raise ExtraMissing("secrets in Azure Key Vault need its packages", "azure") from error
        try:
            return ask()
        except SecretUnavailable:
            raise
        except ImportError as error:
            raise ExtraMissing("secrets in Azure Key Vault need its packages", "azure") from error
        except AzureError as error:
            found = _judged(where, error, self.identity)
        except Exception as error:  # the SDK reads an answer that is none as far as it goes, and fails as it may
            found = Refusal(
                f"{where}: the key vault gave an answer that is none ({type(error).__name__})", "is the address right?", None
            )
        raise found


class Refusal(SecretUnavailable):
    """A key vault said no; `status` is HTTP's, or None without an answer."""

    def __init__(self, message: str, hint: str, status: int | None) -> None:
        super().__init__(message, hint)
        self.status = status


@dataclass(frozen=True, slots=True)
class KeyVaultSecret:
    """One secret, of the newest version or of one."""

    vaults: KeyVaults
    vault: str
    name: str
    version: str | None = None

    @classmethod
    def parse(cls, vaults: KeyVaults, url: str, version: str | None) -> KeyVaultSecret:
        """Of `https://NAME.vault.azure.net/secrets/NAME`, where the version may stand at the end. Raises ConfigError."""
        vault, name, found = _parsed(url, "secrets")
        if found and version and found != version:
            raise ConfigError(f"two versions are named for {vault}/secrets/{name}", "name one of them")
        return cls(vaults, vault, name, found or version)

    @property
    def locator(self) -> str:
        return f"azure:{_locator(self.vault, 'secrets', self.name, self.version)}"

    @property
    def wrapped_by(self) -> str | None:
        return None

    def fetch(self) -> Secret:
        """The value. Raises SecretUnavailable, each cause in its own words."""
        try:
            value = self.vaults.secret(self.vault, self.name, self.version)
        except Refusal as error:
            if error.status != 404 or not self.vaults.is_deleted(self.vault, self.name):
                raise SecretUnavailable(error.message, error.hint) from None
            raise SecretUnavailable(
                f"{self.locator} was deleted", "recover it (`az keyvault secret recover`), or name another"
            ) from None
        if not value.strip():
            raise SecretUnavailable(f"{self.locator} is empty", "write the secret into it")
        return Secret(value.encode("utf-8", "surrogatepass"), self.locator)

    def rights(self) -> Rights:
        """Key Vault tells nobody's rights, so the secret is asked for, and forgotten if it comes. Raises SecretUnavailable."""
        try:
            self.vaults.secret(self.vault, self.name, self.version)
        except Refusal as error:
            if error.status == 403:
                return Rights()
            raise
        return Rights((f"get {self.locator}",))


@dataclass(frozen=True, slots=True)
class KeyId:
    """A key in a key vault or a managed HSM."""

    vault: str
    name: str
    version: str | None

    @classmethod
    def parse(cls, url: str) -> KeyId:
        """Of `https://NAME.vault.azure.net/keys/NAME/VERSION`; the version may be missing. Raises ConfigError."""
        return cls(*_parsed(url, "keys"))

    @property
    def url(self) -> str:
        return _locator(self.vault, "keys", self.name, self.version)


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """What `inner` holds, unwrapped by `key`; `secret` is the place that it is in."""

    inner: _Kept
    secret: KeyVaultSecret
    key: KeyId

    @property
    def locator(self) -> str:
        return self.inner.locator

    @property
    def wrapped_by(self) -> str | None:
        return f"azure:{self.key.url}"

    def fetch(self) -> Secret:
        """The unwrapped value. Raises SecretUnavailable."""
        kept = self.inner.fetch().reveal().strip()
        found = self._opened(kept) if kept.count(b".") == 4 else self._unwrap(_decoded(kept))
        if not found.strip():
            raise SecretUnavailable(f"{self.locator} is empty when unwrapped", "wrap the secret anew")
        return Secret(found, self.locator)

    def rights(self) -> Rights:
        """Whether the identity may use the key: a wrapped value that no key opens is refused in another way. As above."""
        try:
            self.secret.vaults.unwrap(self.key, _PROBE, self.locator)
        except Refusal as error:
            if error.status == 403:
                return Rights()
            if error.status != 400:
                raise
        return Rights((f"unwrapKey with {self.key.url}",))

    def _unwrap(self, wrapped: bytes | None) -> bytes:
        if not wrapped:
            raise self._not_wrapped()
        try:
            return self.secret.vaults.unwrap(self.key, wrapped, f"{self.locator} cannot be unwrapped with {self.key.url}")
        except Refusal as error:
            raise SecretUnavailable(error.message, error.hint) from None

    def _opened(self, kept: bytes) -> bytes:
        """RFC 7516, 5.2: the header is what GCM authenticates, as it stands."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        head, *rest = kept.split(b".")
        header: Any = None
        parts = [_decoded(each) for each in rest]
        with contextlib.suppress(ValueError):
            header = json.loads(_decoded(head) or b"")
        if not isinstance(header, dict) or {key: header.get(key) for key in _JWE} != _JWE or not all(parts):
            raise self._not_wrapped()
        wrapped, nonce, text, tag = (each or b"" for each in parts)
        content_key = self._unwrap(wrapped)
        if len(content_key) != 32 or len(nonce) != 12 or len(tag) != 16:
            raise self._not_wrapped()
        try:
            return AESGCM(content_key).decrypt(nonce, text + tag, head)
        except InvalidTag:
            raise SecretUnavailable(f"{self.locator} was changed since it was wrapped", "wrap the secret anew") from None

    def _not_wrapped(self) -> SecretUnavailable:
        return SecretUnavailable(
            f"{self.locator} is not wrapped as it should be",
            f"put wrapKey's base64 there, or a compact JWE of {ALGORITHM} and A256GCM, or remove `unwrap`",
        )


def _judged(where: str, error: Exception, identity: str) -> Refusal:
    """What an error of the SDK means."""
    import requests
    from azure.core import exceptions

    status = getattr(error, "status_code", None)
    code = _code(error)
    if isinstance(error, exceptions.ClientAuthenticationError) or status == 401:
        return Refusal(
            f"{where}: {identity} cannot log in, or the vault does not take its token",
            "is a managed identity assigned here, and its client_id right? is its secret expired?",
            status,
        )
    if "Disabled" in code:
        return Refusal(f"{where} is disabled", "enable it (`az keyvault secret set-attributes --enabled true`)", 400)
    if status == 403:
        return Refusal(
            f"{where}: the key vault denies it to {identity}",
            "grant it Key Vault Secrets User, or Crypto Service Encryption User for a key; look at the vault's firewall too",
            403,
        )
    if status == 404:
        return Refusal(f"{where} does not exist", "write the secret there, or correct its name or version", 404)
    if status == 429:
        return Refusal(f"{where}: the key vault takes no more requests now", "try again in some seconds", 429)
    if status == 400:
        return Refusal(
            f"{where}: the key vault refuses it as wrong", "is it what this key wrapped, and the version right?", 400
        )
    if status is not None and not 200 <= status < 300:
        return Refusal(f"{where}: the key vault is not able to answer now (HTTP {status})", "try again", status)
    cause = getattr(error, "inner_exception", None) or error.__cause__
    if isinstance(cause, requests.exceptions.SSLError):
        return Refusal(f"{where} cannot be trusted: its certificate does not verify", "is a proxy between us and it?", None)
    if isinstance(error, exceptions.ServiceRequestError):
        return Refusal(f"{where} cannot be reached", "is the vault's name right, and the network open to it?", None)
    if isinstance(error, exceptions.ServiceResponseError):
        return Refusal(f"{where}: the key vault did not answer in time, or not whole", "try again", None)
    return Refusal(f"{where}: the key vault gave an answer that is none", "is the address right?", None)


def _code(error: Exception) -> str:
    """The codes of Key Vault's error, outer and inner, as one text."""
    told = getattr(error, "error", None)
    codes = [getattr(told, "code", None)]
    inner = getattr(told, "innererror", None)
    codes.append(inner.get("code") if isinstance(inner, dict) else None)
    response = getattr(error, "response", None)
    with contextlib.suppress(Exception):  # whatever the body is
        said = json.loads(response.text())["error"]  # type: ignore[union-attr]  # no response is as good as no text
        codes += [said.get("code"), (said.get("innererror") or {}).get("code")]
    return " ".join(str(each) for each in codes if each)


def _parsed(url: str, collection: str) -> tuple[str, str, str | None]:
    """Vault, name and version. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        netloc = parts.netloc.lower().removesuffix(":443")
    except ValueError:
        parts, netloc = urlsplit(""), ""
    segments = parts.path.strip("/").split("/")
    named = all(each and each.replace("-", "").isalnum() and each.isascii() for each in segments)
    if parts.scheme != "https" or not netloc or "@" in netloc or parts.query or parts.fragment:
        raise ConfigError(f"not the address of something in a key vault: {url[:100]!r}", _written(collection))
    if not named or segments[0] != collection or len(segments) not in (2, 3):
        raise ConfigError(f"not the address of one of a key vault's {collection}: {url[:100]!r}", _written(collection))
    # Key Vault takes names in either case, and the same secret has one locator.
    return f"https://{netloc}", segments[1].lower(), segments[2].lower() if len(segments) == 3 else None


def _written(collection: str) -> str:
    return f"write https://NAME.vault.azure.net/{collection}/NAME"


def _locator(vault: str, collection: str, name: str, version: str | None) -> str:
    return f"{vault}/{collection}/{name}" + (f"/{version}" if version else "")


def _decoded(text: bytes) -> bytes | None:
    """The bytes that `text` is the base64 of, in either alphabet, with or without its padding."""
    bare = text.translate(_ALPHABET).rstrip(b"=")
    with contextlib.suppress(binascii.Error, ValueError):
        return b64decode(bare + b"=" * (-len(bare) % 4), validate=True)
    return None
