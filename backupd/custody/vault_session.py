"""One identity's session with one Vault or OpenBao server: log in, keep the token alive, ask, and say plainly what went wrong.

Owns the token: it is fetched when it is first needed, renewed when a third of its life is left, obtained anew when it has
ended, and revoked when the session closes if it was obtained here. Never follows a redirect, for the token would go along, and
never speaks to another host without TLS. hvac's own exceptions hold answers whole, so answers are judged here instead.
"""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any
from urllib.parse import quote, urlsplit

from backupd.custody.vault_login import Login, Standing, Token
from backupd.errors import ConfigError, Denied, ExtraMissing, SecretUnavailable
from backupd.redact import Secret, printable, scrub

CONNECT_S = 5.0
ANSWER_S = 30.0
ANSWER_BYTES = 4 << 20
DENIED_S = 60.0  # for so long a login that was refused is not tried again
PAUSES_S = (0.2, 0.8)  # a leader's election takes about a second
_BUSY = {429, 472, 473, 500, 502, 504}
_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered. `body` may hold secrets; `errors` are the server's own words."""

    status: int
    body: Mapping[str, Any] = field(repr=False)

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def data(self) -> dict[str, Any]:
        found = self.body.get("data")
        return found if isinstance(found, dict) else {}

    @property
    def auth(self) -> dict[str, Any]:
        """What a login gives."""
        found = self.body.get("auth")
        return found if isinstance(found, dict) else {}

    @property
    def errors(self) -> tuple[str, ...]:
        found = self.body.get("errors")
        return tuple(str(each) for each in found) if isinstance(found, list) else ()

    def says(self, words: str) -> bool:
        """Whether the server's own words hold these."""
        return any(words in each.lower() for each in self.errors)


@dataclass(slots=True)
class _Life:
    """A token, and when it was so many seconds from its end; `seconds` is 0 for one that does not end."""

    token: Secret
    seconds: float
    renewable: bool
    since: float
    ours: bool
    standing: Standing

    def left(self, now: float) -> float:
        return self.since + self.seconds - now


class VaultSession:
    """Thread-safe. `clock` gives seconds that only grow; `pause` waits between tries."""

    def __init__(
        self,
        address: str,
        login: Login,
        *,
        namespace: str = "",
        ca_file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nothing is asked yet. Raises ConfigError for an address that is none, or that is http:// to another host."""
        self._address = checked_address(address)
        self._namespace = namespace.strip("/")
        self._login = login
        self._ca_file = ca_file
        self._clock = clock
        self._pause = pause
        self._lock = RLock()
        self._life: _Life | None = None
        self._denied: tuple[SecretUnavailable, float] | None = None
        self._adapter: Any = None

    @property
    def url(self) -> str:
        """The server and the namespace as one text, the same for every spelling of them."""
        return f"{self._address}/v1" + (f"/{self._namespace}" if self._namespace else "")

    @property
    def namespace(self) -> str:
        return self._namespace

    @property
    def login(self) -> Login:
        return self._login

    @property
    def identity(self) -> str:
        """Who we are to the server, in words that tell no secret."""
        return self._login.describe()

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, str] | None = None,
        again: bool = True,
        namespace: str | None = None,
    ) -> Answer:
        """One request with a living token. A refusal is given back; raises SecretUnavailable when there is no answer at all.

        `again` is False for a request that must not be repeated when its answer was lost; `namespace` is one to ask in instead.
        """
        with self._lock:
            life = self._living()
            options: dict[str, Any] = {"params": params, "again": again, "namespace": namespace}
            answer = self._send(method, path, body, token=life.token, **options)
            if answer.status == 403 and not self._alive(life):  # ended or revoked before its time
                self._life = None
                answer = self._send(method, path, body, token=self._living().token, **options)
            return answer

    def ask_unnamed(self, path: str) -> Answer:
        """What is given to whoever asks without a token: nothing by a server, but by a proxy that has one of its own."""
        with self._lock:
            return self._send("GET", path)

    def standing(self) -> Standing:
        """What the server said of our token when it was obtained or looked up. Raises SecretUnavailable."""
        with self._lock:
            return self._living().standing

    def close(self) -> None:
        """Revoke a token that was obtained here, and forget it. Never raises: a token left over ends by itself."""
        with self._lock:
            life, self._life = self._life, None
            if life is not None and life.ours:
                with suppress(SecretUnavailable):
                    self._send("POST", "auth/token/revoke-self", {}, token=life.token, again=False)
            if self._adapter is not None:
                self._adapter.close()
                self._adapter = None

    def refused(self, answer: Answer, what: str) -> SecretUnavailable:
        """The error that this refusal is, with `what` was asked for."""
        server = f"the Vault at {self._address}"
        if answer.status == 503 and answer.says("sealed"):
            return SecretUnavailable(f"{what}: {server} is sealed", "unseal it")
        if answer.status == 501 or answer.says("not initialized"):
            return SecretUnavailable(f"{what}: {server} is not initialised", "initialise and unseal it")
        if answer.says("namespace not found"):
            return Denied(
                f"{what}: {server} has no namespace {self._namespace!r}", "correct [vault] namespace, or leave it out"
            )
        if answer.says("no handler for route") or answer.says("unsupported path"):
            return Denied(f"{what}: nothing is mounted there", "correct the mount in the reference")
        if answer.status in (401, 403):
            return Denied(f"{what}: {server} denies it to {self.identity}", "allow it in one of its policies")
        if answer.status in _BUSY or answer.status == 503:
            return SecretUnavailable(
                f"{what}: {server} is not able to answer now (HTTP {answer.status})", "look at the server, and try again"
            )
        if 300 <= answer.status < 400:
            return SecretUnavailable(f"{what}: {server} redirects to another", "name the active server as [vault] address")
        told = printable(scrub("; ".join(answer.errors)))[:200]
        return SecretUnavailable(
            f"{what}: {server} refuses (HTTP {answer.status}{f': {told}' if told else ''})", "look at the server's log"
        )

    # ------------------------------------------------------------------------------------------------------- the token

    def _living(self) -> _Life:
        """A token with life in it: the one we have, renewed if it nears its end, or another."""
        now = self._clock()
        life = self._life
        if life is not None and life.seconds and life.left(now) <= life.seconds / 3:
            life = self._renewed(life, now) if life.renewable and life.left(now) > 0 else None
            if life is None and self._life is not None and self._life.left(now) > 0:
                life = self._logged_in(now, instead=self._life)
        if life is None:
            life = self._logged_in(now)
        self._life = life
        return life

    def _renewed(self, life: _Life, now: float) -> _Life | None:
        answer = self._send("POST", "auth/token/renew-self", {}, token=life.token)
        return self._life_of(answer, now, life.token, life.ours, life.standing) if answer.ok else None

    def _logged_in(self, now: float, instead: _Life | None = None) -> _Life:
        """A token of the login's. One that cannot be had while `instead` still lives leaves us that one."""
        if isinstance(self._login, Token):
            token = self._login.token()
            answer = self._send("GET", "auth/token/lookup-self", token=token)
            if answer.ok:
                standing = Standing.told(answer.data, self._namespace)
                return self._life_of(answer, now, token, False, standing) or _Life(token, 0.0, False, now, False, standing)
            if answer.status != 403:
                raise self.refused(answer, f"{self.identity} cannot be looked up")
            raise Denied(
                f"the Vault at {self._address} does not know {self.identity}: it is expired, revoked or no token",
                "put a new one there, with the default policy, or let backupd log in by AppRole or Kubernetes",
            )
        try:
            if self._denied is not None and now < self._denied[1]:
                raise self._denied[0]
            path, body = self._login.request()
            answer = self._send("POST", path, body)
            life = (
                self._life_of(answer, now, None, True, Standing.told(answer.auth, self._namespace, path)) if answer.ok else None
            )
            if answer.ok and life is None:
                raise self.no_answer()
            if life is None:
                error = self._not_logged_in(answer)
                # Each secret that is asked for would try again, and Vault locks an AppRole out after five.
                self._denied = (error, now + DENIED_S)
                raise error
        except SecretUnavailable:
            if instead is None:
                raise
            return instead
        return life

    def _not_logged_in(self, answer: Answer) -> SecretUnavailable:
        if answer.status in (400, 401, 403) and not answer.says("namespace") and not answer.says("no handler"):
            return Denied(
                f"the Vault at {self._address} does not log in {self.identity}",
                "is the secret id or token expired or used up, the role right, and the auth method mounted there?",
            )
        return self.refused(answer, f"{self.identity} cannot log in")

    def _life_of(self, answer: Answer, now: float, token: Secret | None, ours: bool, standing: Standing) -> _Life | None:
        """The life that an answer tells: a login or renewal under `auth`, a look-up under `data`. None if it tells none."""
        told = answer.auth or answer.data
        seconds = told.get("lease_duration", told.get("ttl"))
        given = told.get("client_token")
        if token is None and isinstance(given, str) and given:
            token = Secret(given, "Vault token")
        if token is None or not isinstance(seconds, int):
            return None
        return _Life(token, float(seconds), told.get("renewable") is True, now, ours, standing)

    def _alive(self, life: _Life) -> bool:
        """Whether the server still knows the token. One that may not look itself up passes for dead."""
        answer = self._send("GET", "auth/token/lookup-self", token=life.token)
        return answer.status != 403

    # ------------------------------------------------------------------------------------------------------- the server

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, str] | None = None,
        token: Secret | None = None,
        again: bool = True,
        namespace: str | None = None,
    ) -> Answer:
        headers = self._headers(token, self._namespace if namespace is None else namespace)
        found = self._try(method, path, body, params, headers)
        for pause in PAUSES_S if again else ():
            if found.status not in _BUSY if isinstance(found, Answer) else not found.passing:
                break
            self._pause(pause)
            found = self._try(method, path, body, params, headers)
        if isinstance(found, Answer):
            return found
        raise SecretUnavailable(f"the Vault at {self._address} {found.text}", found.hint)

    def _try(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        params: Mapping[str, str] | None,
        headers: dict[str, str],
    ) -> Answer | _Silence:
        """An answer, or why there is none. No exception of requests leaves: its request holds the token."""
        adapter = self._open()
        import requests

        try:
            response = adapter.request(
                method,
                f"/v1/{quote(path, safe='/')}",
                headers=headers,
                raise_exception=False,
                json=body,
                params=params,
                stream=True,
            )
            with response:
                return _judged(response.status_code, response.raw.read(ANSWER_BYTES + 1, decode_content=True))
        except requests.exceptions.SSLError:
            return _Silence(
                "cannot be trusted: its certificate does not verify", "name the CA that signed it as [vault] ca_file", False
            )
        except requests.exceptions.Timeout:
            return _Silence("did not answer in time", "look at the server and the network", False)
        except OSError:  # every exception of requests is one; a missing ca_file is a plain one
            if self._ca_file is not None and not self._ca_file.is_file():
                return _Silence(f"cannot be trusted: there is no {self._ca_file}", "correct [vault] ca_file", False)
            return _Silence("cannot be reached", "is it running, and is [vault] address right?", True)
        except Exception as error:  # urllib3's own, when an answer breaks off
            return _Silence(f"gave no whole answer ({type(error).__name__})", "look at the server and the network", True)

    def _headers(self, token: Secret | None, namespace: str) -> dict[str, str]:
        named = {"X-Vault-Namespace": namespace} if namespace else {}
        return named | ({"X-Vault-Token": token.text()} if token is not None else {})

    def _open(self) -> Any:
        if self._adapter is None:
            try:
                from hvac.adapters import RawAdapter
            except ImportError as error:
                raise ExtraMissing("secrets in Vault need the package hvac", "vault") from error
            import requests

            session = requests.Session()
            session.trust_env = False  # no proxy, CA bundle or .netrc of whoever runs this decides where a token goes
            session.verify = str(self._ca_file) if self._ca_file is not None else True
            self._adapter = RawAdapter(
                base_uri=self._address,
                session=session,
                allow_redirects=False,
                timeout=(CONNECT_S, ANSWER_S),
            )
        return self._adapter

    def no_answer(self) -> SecretUnavailable:
        """The error that an answer is which says nothing."""
        return SecretUnavailable(
            f"the Vault at {self._address} gave an answer that is none", "is [vault] address that of a Vault or OpenBao?"
        )


@dataclass(frozen=True, slots=True)
class _Silence:
    """Why there was no answer; `passing` if another try may bring one."""

    text: str
    hint: str
    passing: bool


def _judged(status: int, data: bytes) -> Answer | _Silence:
    parsed: Any = None
    # What json raises holds the text.
    with suppress(ValueError, RecursionError):
        parsed = json.loads(data or b"{}") if len(data) <= ANSWER_BYTES else None
    if isinstance(parsed, dict):
        return Answer(status, parsed)
    if 300 <= status < 400 or status >= 500:  # a proxy's page
        return Answer(status, {})
    return _Silence("gave an answer that is none", "is [vault] address that of a Vault or OpenBao?", False)


def checked_address(address: str) -> str:
    """The address in one spelling. Raises ConfigError: no address, credentials in it, or no TLS to another host."""
    try:
        parts = urlsplit(address)
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        parts, port = urlsplit(""), None
    host = (parts.hostname or "").lower()
    if not host or port is None or parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigError("this is not the address of a Vault server", "write https://host:8200")
    if parts.scheme != "https" and not _is_loopback(host):
        raise ConfigError(f"the Vault at {host} would be spoken to without TLS", "write https://, or use an agent on this host")
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port}{parts.path.rstrip('/')}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
