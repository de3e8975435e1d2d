"""The example login service as a process of its own, and a client for it: what tests of columns under load talk to.

with running_login_service(database.dsn, keyring, moving=True) as service, service.client() as client:
    assert client.login("a@clinic.example", password, code) == 200
"""

from __future__ import annotations

import http.client
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.parts.process import ServerProcess, clean_environment, short_directory

CHECKOUT = Path(__file__).resolve().parents[2]
CHEAP = 4  # scrypt's cost as a power of two: the tests are about second factors


@dataclass(slots=True)
class Client:
    """One connection, kept open. A thread has its own."""

    connection: http.client.HTTPConnection

    def post(self, path: str, **fields: str) -> tuple[int, dict[str, Any]]:
        """Status and answer."""
        self.connection.request("POST", path, json.dumps(fields), {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if body else {}

    def login(self, email: str, password: str, code: str) -> int:
        """200 when let in, 403 when not; anything else is a fault of the service."""
        return self.post("/login", email=email, password=password, code=code)[0]


@dataclass(slots=True)
class LoginService:
    """A running service. `log` is what it printed."""

    host: str
    port: int
    log: Path
    process: ServerProcess = field(repr=False)

    @contextmanager
    def client(self) -> Iterator[Client]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            yield Client(connection)
        finally:
            connection.close()


@contextmanager
def running_login_service(
    dsn: str, keyring: Path | str, *, moving: bool = False, scrypt_log2n: int = CHEAP, **environment: str
) -> Iterator[LoginService]:
    """The service on this database (a `postgresql://` URL), with a keyring file, or any reference that KEYRING takes.

    `moving` for a table that still has secrets in clear. Call it from the main thread.
    """
    reference = f"file:{keyring}" if isinstance(keyring, Path) else keyring
    with short_directory("bd-login-") as directory:
        log = directory / "log"
        settings = {
            "DATABASE_URL": dsn.replace("postgresql://", "postgresql+psycopg://", 1),
            "KEYRING": reference,
            "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        }
        argv = [sys.executable, "-m", "backupd.example", "--port", "0", "--scrypt-log2n", str(scrypt_log2n)]
        process = ServerProcess(
            [*argv, "--moving"] if moving else argv,
            directory=directory,
            log=log,
            environment=clean_environment(directory, **settings, **environment),
        )
        process.start(lambda: _listening(log) is not None)
        found = _listening(log)
        assert found is not None
        try:
            yield LoginService(*found, log, process)
        finally:
            process.stop()


def _listening(log: Path) -> tuple[str, int] | None:
    found = re.search(r"(?m)^http://([\d.]+):(\d+)$", log.read_text())
    return None if found is None else (found[1], int(found[2]))
