"""A real Azure Blob server for tests: Azurite. It has no immutability API, and it holds no test data."""

import base64
import itertools
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.parts.ports import claim_port, release_port
from tests.parts.process import PartFailedError, ServerProcess, clean_environment, short_directory

if TYPE_CHECKING:
    from azure.storage.blob import BlobServiceClient

_CHECKOUT = Path(__file__).resolve().parents[2]
_MEMORY_LIMIT_MB = 2048
_START_TRIES = 3
_names = itertools.count(1)


@dataclass(frozen=True, slots=True)
class AzureServer:
    """One running server with one account; `key` is the account's key in base64."""

    account: str
    key: str = field(repr=False)
    blob_endpoint: str

    @property
    def port(self) -> int:
        return int(self.blob_endpoint.split(":")[2].split("/")[0])

    @property
    def connection_string(self) -> str:
        return self.connection_string_for(self.blob_endpoint)

    def connection_string_for(self, blob_endpoint: str) -> str:
        """The same account by another way in, such as a proxy."""
        parts = {"AccountName": self.account, "AccountKey": self.key, "BlobEndpoint": blob_endpoint}
        return "DefaultEndpointsProtocol=http;" + "".join(f"{name}={value};" for name, value in parts.items())

    def client(self) -> "BlobServiceClient":
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient.from_connection_string(self.connection_string, connection_timeout=30, read_timeout=90)

    def new_container(self) -> str:
        """Make a fresh, empty container and return its name."""
        name = f"container-{next(_names)}"
        with self.client() as client:
            client.create_container(name)
        return name


@contextmanager
def running_azure() -> Iterator[AzureServer]:
    """A server of its own for the length of the block."""
    with short_directory("bd-az-") as directory:
        for attempt in range(1, _START_TRIES + 1):
            port = claim_port()
            server, process = _prepare(directory, port)
            try:
                process.start(lambda: _takes_a_blob(server))  # noqa: B023  start() has called it for the last time on return
            except PartFailedError as error:
                release_port(port)
                if attempt == _START_TRIES or "EADDRINUSE" not in str(error):
                    raise
                continue
            try:
                yield server
            finally:
                process.stop()
                release_port(port)
            return


def azurite_program() -> Path:
    """Azurite's start script: BACKUPD_AZURITE, else where `./dev` installs it in this checkout, else on PATH."""
    named = os.environ.get("BACKUPD_AZURITE")
    if named:
        return Path(named)
    installed = _CHECKOUT / ".parts" / "node" / "node_modules" / ".bin" / "azurite-blob"
    found = str(installed) if installed.exists() else shutil.which("azurite-blob")
    if found is None:
        raise PartFailedError("no `azurite-blob` program: `./dev` installs it, or name it in BACKUPD_AZURITE")
    return Path(found)


def _prepare(directory: Path, port: int) -> tuple[AzureServer, ServerProcess]:
    account = "account" + secrets.token_hex(4)
    server = AzureServer(account, base64.b64encode(secrets.token_bytes(64)).decode(), f"http://127.0.0.1:{port}/{account}")
    node = shutil.which("node")
    if node is None:
        raise PartFailedError("no `node` program, and Azurite needs one")
    argv = [
        *(node, str(azurite_program()), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--skipApiVersionCheck"),
        *("--inMemoryPersistence", "--extentMemoryLimit", str(_MEMORY_LIMIT_MB), "--disableTelemetry", "--silent"),
    ]
    environment = clean_environment(directory, AZURITE_ACCOUNTS=f"{server.account}:{server.key}")
    return server, ServerProcess(argv, directory=directory, log=directory / "log", environment=environment)


def _takes_a_blob(server: AzureServer) -> bool:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10):
        pass  # fails at once while nothing listens, where the client would wait 15 s before it tries again
    with server.client() as client, client.get_blob_client(server.new_container(), "probe") as blob:
        blob.upload_blob(b"ready")
        return blob.download_blob().readall() == b"ready"


@pytest.fixture(scope="session")
def azure_server() -> Iterator[AzureServer]:
    """Azurite, shared: use a container of your own (`azure_server.new_container()`)."""
    with running_azure() as server:
        yield server
