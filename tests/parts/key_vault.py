"""A stand-in for Azure Key Vault: a server that speaks its documented REST API over TLS to the real SDK.

What it does is written after https://learn.microsoft.com/rest/api/keyvault/: the challenge before any token, secrets by name
and version, deleted and disabled ones, keys and unwrapKey with RSA-OAEP-256, and the shape of errors. The SDK believes to speak
to `clinic.vault.azure.net`, for it holds the challenge's resource against that name; its connections are led here. It cannot
show how Entra gives tokens out: who has the token `token-of-NAME` is the identity NAME.
"""

import datetime
import json
import secrets
import ssl
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID
from requests.adapters import HTTPAdapter

from tests.parts.process import short_directory

VAULT = "https://clinic.vault.azure.net"
OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
_CHALLENGE = 'Bearer authorization="https://login.microsoftonline.com/clinic", resource="https://vault.azure.net"'


@dataclass(slots=True)
class Version:
    """One version of a secret."""

    id: str
    value: str
    enabled: bool = True


@dataclass(slots=True)
class KeyVaultServer:
    """What the vault holds, who may do what, and what it shall answer instead."""

    port: int
    ca_file: Path
    secrets: dict[str, list[Version]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    keys: dict[str, dict[str, rsa.RSAPrivateKey]] = field(default_factory=dict)
    grants: dict[str, set[str]] = field(default_factory=dict)
    faults: deque[tuple[int, bytes, dict[str, str]]] = field(default_factory=deque)
    asked: list[str] = field(default_factory=list)

    def keep(self, name: str, value: str) -> str:
        """A new version of a secret; its id."""
        version = Version(secrets.token_hex(16), value)
        self.secrets.setdefault(name, []).append(version)
        self.deleted.discard(name)
        return version.id

    def new_key(self, name: str) -> str:
        """A new version of an RSA key; its identifier."""
        version = secrets.token_hex(16)
        self.keys.setdefault(name, {})[version] = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        return f"{VAULT}/keys/{name}/{version}"

    def wrap(self, key: str, plaintext: bytes) -> bytes:
        """What wrapKey would give."""
        name, version = key.split("/")[-2:]
        return self.keys[name][version].public_key().encrypt(plaintext, OAEP)

    def grant(self, identity: str, *actions: str) -> None:
        """Allow `secrets/get`, `keys/get` or `keys/unwrapKey`."""
        self.grants.setdefault(identity, set()).update(actions)

    def fail(self, status: int, body: bytes = b"", times: int = 1, **headers: str) -> None:
        """Answer the next requests with this. Status 0 ends the connection without an answer."""
        self.faults.extend([(status, body, headers)] * times)

    def transport(self, port: int | None = None, ca_file: Path | None = None) -> Any:
        """A transport for the SDK whose connections end here, whatever the name; or at another port, trusting another CA."""
        import requests
        from azure.core.pipeline.transport import RequestsTransport

        session = requests.Session()
        session.trust_env = False
        session.mount("https://", _Led(port or self.port))
        return RequestsTransport(session=session, connection_verify=str(ca_file or self.ca_file))


class Credential:
    """An identity as azure-identity would give one."""

    def __init__(self, identity: str) -> None:
        self._identity = identity

    def get_token(self, *_: str, **__: Any) -> Any:
        from azure.core.credentials import AccessToken

        return AccessToken(f"token-of-{self._identity}", 2**31)


class _Led(HTTPAdapter):
    def __init__(self, port: int) -> None:
        self._port = port
        super().__init__()

    def get_connection_with_tls_context(self, request: Any, verify: Any, proxies: Any = None, cert: Any = None) -> Any:
        target, pool = self.build_connection_pool_key_attributes(request, verify, cert)
        named = {"assert_hostname": target["host"], "server_hostname": target["host"]}
        return self.poolmanager.connection_from_host("127.0.0.1", self._port, "https", pool_kwargs=pool | named)

    def add_headers(self, request: Any, **_: Any) -> None:
        request.headers["Host"] = urlsplit(request.url).netloc


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    vault: KeyVaultServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = self.headers.get("Authorization", "").removeprefix("Bearer token-of-")
        segments = urlsplit(self.path).path.strip("/").split("/")
        if token not in self.vault.grants:
            self._answer(401, _error("Unauthorized", "AKV10000: Request is missing a Bearer or PoP token."), challenge=True)
            return
        self.vault.asked.append(f"{token} {self.command} {'/'.join(segments)}")
        if self.vault.faults:
            status, fault, headers = self.vault.faults.popleft()
            if status:
                self._answer(status, fault, headers=headers)
            self.close_connection = True
            return
        self._answer(*self._judge(self.vault.grants[token], segments, body))

    def _judge(self, granted: set[str], segments: list[str], body: bytes) -> tuple[int, bytes]:
        match segments, self.command:
            case ["secrets", name, *version], "GET":
                return self._secret(name, version) if "secrets/get" in granted else _denied()
            case ["deletedsecrets", name], "GET":
                if "secrets/get" not in granted:
                    return _denied()
                found = {"id": f"{VAULT}/secrets/{name}", "recoveryId": f"{VAULT}/deletedsecrets/{name}", "attributes": {}}
                return (200, json.dumps(found).encode()) if name in self.vault.deleted else _missing("secret", name)
            case ["keys", name, *version], "GET":
                return self._key(name, version) if "keys/get" in granted else _denied()
            case ["keys", name, version, "unwrapkey" | "unwrapKey"], "POST":
                return self._unwrap(name, version, body) if "keys/unwrapKey" in granted else _denied()
        return 400, _error("BadParameter", "the request is not understood")

    def _secret(self, name: str, version: list[str]) -> tuple[int, bytes]:
        versions = self.vault.secrets.get(name, [])
        found = [each for each in versions if not version or each.id == version[0]]
        if not found or name in self.vault.deleted:
            return _missing("secret", name)
        newest = found[-1]
        if not newest.enabled:
            return 403, _error("Forbidden", "Operation get is not allowed on a disabled secret.", "SecretDisabled")
        identifier = f"{VAULT}/secrets/{name}/{newest.id}"
        return 200, json.dumps({"value": newest.value, "id": identifier, "attributes": {"enabled": True}}).encode()

    def _key(self, name: str, version: list[str]) -> tuple[int, bytes]:
        keys = self.vault.keys.get(name, {})
        wanted = version[0] if version and version[0] else next(reversed(keys), "")
        if wanted not in keys:
            return _missing("key", name)
        numbers = keys[wanted].public_key().public_numbers()
        jwk = {
            "kid": f"{VAULT}/keys/{name}/{wanted}",
            "kty": "RSA",
            "key_ops": ["wrapKey", "unwrapKey"],
            "n": _base64url(numbers.n.to_bytes(256, "big")),
            "e": _base64url(numbers.e.to_bytes(3, "big")),
        }
        return 200, json.dumps({"key": jwk, "attributes": {"enabled": True}}).encode()

    def _unwrap(self, name: str, version: str, body: bytes) -> tuple[int, bytes]:
        key = self.vault.keys.get(name, {}).get(version)
        asked = json.loads(body)
        if key is None:
            return _missing("key", name)
        if asked.get("alg") != "RSA-OAEP-256":
            return 400, _error("BadParameter", "Property  has invalid value")
        try:
            plaintext = key.decrypt(urlsafe_b64decode(asked["value"] + "=="), OAEP)
        except ValueError:
            return 400, _error("BadParameter", "The parameter is incorrect.")
        return 200, json.dumps({"kid": f"{VAULT}/keys/{name}/{version}", "value": _base64url(plaintext)}).encode()

    def _answer(self, status: int, body: bytes, *, challenge: bool = False, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name.replace("_", "-"), value)
        if challenge:
            self.send_header("WWW-Authenticate", _CHALLENGE)
        self.end_headers()
        self.wfile.write(body)


def _error(code: str, message: str, inner: str | None = None) -> bytes:
    told: dict[str, Any] = {"code": code, "message": message}
    return json.dumps({"error": told | ({"innererror": {"code": inner}} if inner else {})}).encode()


def _denied() -> tuple[int, bytes]:
    return 403, _error("Forbidden", "Caller is not authorized to perform action on resource.", "ForbiddenByRbac")


def _missing(what: str, name: str) -> tuple[int, bytes]:
    words = (
        f"A {what} with (name/id) {name} was not found in this key vault. If you recently deleted this {what} you may be able"
    )
    return 404, _error(f"{what.capitalize()}NotFound", f"{words} to recover it using the correct recovery command.")


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def make_certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for a DNS name, and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "backupd tests")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = directory / f"{name.replace('*', 'any')}.pem", directory / f"{name.replace('*', 'any')}.key"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pkcs8, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, none))
    return certificate_file, key_file


@contextmanager
def running_key_vault() -> Iterator[KeyVaultServer]:
    """A vault of its own for the length of the block. It is a thread of the tests, so that they can look into it."""
    with short_directory("bd-kv-") as directory:
        certificate, key = make_certificate(directory, "*.vault.azure.net")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)

        class Handler(_Handler):
            """That of this vault."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            # The handshake belongs to the connection's thread, or a client that does not finish it would hold up the others.
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            server.daemon_threads = True
            vault = KeyVaultServer(server.server_port, certificate)
            Handler.vault = vault
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            try:
                yield vault
            finally:
                server.shutdown()
                thread.join()


@pytest.fixture(scope="module")
def key_vault() -> Iterator[KeyVaultServer]:
    """A key vault in which the identity `reader` may do everything; give secrets and keys names of your own."""
    with running_key_vault() as vault:
        vault.grant("reader", "secrets/get", "keys/get", "keys/unwrapKey")
        vault.grants["nobody"] = set()
        yield vault
