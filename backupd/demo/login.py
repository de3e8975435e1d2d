"""The clinic's login service: `backupd.example`, as a process of its own that knows nothing of backups."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from backupd.errors import BackupdError
from backupd.redact import Secret

ANSWER_S = 30


class LoginServiceFailed(BackupdError):
    """The login service does not start, or answers neither yes nor no."""


@dataclass(frozen=True, slots=True)
class LoginService:
    """A running service, at an address of this host."""

    url: str

    def log_in(self, email: str, password: Secret, code: str) -> bool:
        """Whether it lets somebody in. Raises LoginServiceFailed when it cannot tell."""
        body = json.dumps({"email": email, "password": password.text(), "code": code}).encode()
        request = Request(f"{self.url}/login", body, {"Content-Type": "application/json"})  # noqa: S310  # http://127.0.0.1
        try:
            with urlopen(request, timeout=ANSWER_S):  # noqa: S310  # the same
                return True
        except HTTPError as error:
            if error.code == 403:
                return False
            raise LoginServiceFailed(f"the login service answers {error.code}", "its own lines above say why") from None
        except OSError as error:
            raise LoginServiceFailed(f"the login service does not answer: {error}", "its own lines above say why") from None


@contextmanager
def running(database: Secret, keyring: Path) -> Iterator[LoginService]:
    """The service on this database (a URL of SQLAlchemy's) with the keyring in this file, ended with the block.

    What it says of errors goes to this process's own standard error. Raises LoginServiceFailed when it does not start.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "backupd.example", "--port", "0"],
        env={**os.environ, "DATABASE_URL": database.text(), "KEYRING": f"file:{keyring}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            # It prints its address when it listens, and ends, which closes the pipe, when it cannot.
            url = process.stdout.readline().strip() if process.stdout is not None else ""
            if not url:
                raise LoginServiceFailed("the login service does not start", "its own lines above say why")
            yield LoginService(url)
        finally:
            process.terminate()
