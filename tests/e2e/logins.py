"""Clients of the example login service that log in, are refused and enrol, without a break, and note what is not as it must be.

Everything that a client does is drawn from a fixed seed: which user is next, and whether with a right code or a wrong one.
"""

from __future__ import annotations

import base64
import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

from backupd.columns import totp
from backupd.redact import Secret
from tests.columns.login_service import LoginService
from tests.e2e.processes import wait_for

Login = Callable[[str, str, str], int]
Post = Callable[..., tuple[int, dict[str, object]]]
PASSWORD = "correct horse"
WRONG = 4  # of so many attempts one is with a wrong code
ENROLMENT = 20  # and after so many somebody enrols


def seed(number: int) -> str:
    """The secret of the user of this number, as it was before anything began."""
    return base64.b32encode(hashlib.sha256(f"user {number}".encode()).digest()[:20]).decode()


def address(number: int) -> str:
    return f"user{number}@clinic.example"


@dataclass(slots=True)
class Client:
    """One thread. `users` log in, in this order and again; `newcomers` enrol; `enrolled` are the secrets that they got."""

    users: list[int]
    newcomers: list[int]
    rng: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    enrolled: dict[int, str] = field(default_factory=dict)
    served_by: LoginService | None = None

    def work(self, load: Load) -> None:
        turn = 0
        try:
            while not load.over:
                service = load.service
                with service.client() as connection:
                    self.served_by = service
                    while service is load.service and not load.over:
                        user = self.users[turn % len(self.users)]
                        turn += 1
                        self._log_in(connection.login, user)
                        if turn % ENROLMENT == 0 and self.newcomers:
                            self._enrol(connection.post, self.newcomers.pop())
        except Exception as error:
            self.faults.append(f"a client died: {error!r}")
        finally:
            self.served_by = None

    def _log_in(self, login: Login, user: int) -> None:
        key, now = totp.decode_seed(Secret(seed(user))).key, datetime.now(UTC)
        if self.rng.randrange(WRONG) == 0:
            status = login(address(user), PASSWORD, totp.wrong_code(key, now, window=3))
            self._expect("wrong code", user, status, 403)
        else:
            status = login(address(user), PASSWORD, totp.code(key, now))
            self._expect("right code", user, status, 200)

    def _enrol(self, post: Post, user: int) -> None:
        status, answer = post("/enrol", email=address(user), password=PASSWORD)
        self._expect("enrolment", user, status, 200)
        if status != 200:
            return
        [secret] = parse_qs(urlsplit(str(answer["provisioning_uri"])).query)["secret"]
        self.enrolled[user] = secret
        code = totp.code(totp.decode_seed(Secret(secret)).key, datetime.now(UTC))
        status, _ = post("/confirm", email=address(user), password=PASSWORD, code=code)
        self._expect("confirmation", user, status, 204)

    def _expect(self, what: str, user: int, status: int, right: int) -> None:
        self.counts[what] += 1
        if status != right:
            self.faults.append(f"{what} of user {user}: {status} instead of {right}")


@dataclass(slots=True)
class Load:
    """The clients at work, and the service that they talk to."""

    service: LoginService
    clients: list[Client]
    began: float = field(default_factory=time.monotonic)
    over: bool = False

    @property
    def logins(self) -> int:
        return sum(client.counts["right code"] + client.counts["wrong code"] for client in self.clients)

    @property
    def faults(self) -> list[str]:
        return [fault for client in self.clients for fault in client.faults]

    @property
    def enrolled(self) -> dict[int, str]:
        """The secrets of all newcomers who have enrolled."""
        return {user: secret for client in self.clients for user, secret in client.enrolled.items()}

    def rate(self) -> float:
        """Logins a second, so far."""
        return self.logins / (time.monotonic() - self.began)

    def move_to(self, service: LoginService) -> None:
        """Let every client go on with another service; returns when none talks to the old one any more."""
        self.service = service
        wait_for(lambda: all(client.served_by in (service, None) for client in self.clients))

    def at_least(self, logins: int) -> None:
        """Return when so many logins were tried, or something went wrong."""
        wait_for(lambda: self.logins >= logins or self.faults)


@contextmanager
def logging_in(service: LoginService, users: list[int], newcomers: list[int], clients: int, seed_: int) -> Iterator[Load]:
    """Clients at work inside the block, each with its share of the users; no user belongs to two."""
    rng = random.Random(seed_)
    rng.shuffle(users)
    load = Load(
        service,
        [Client(users[n::clients], newcomers[n::clients], random.Random(rng.random())) for n in range(clients)],
    )
    threads = [threading.Thread(target=client.work, args=(load,)) for client in load.clients]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.over = True
        for thread in threads:
            thread.join()
