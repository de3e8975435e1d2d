"""The accounts over HTTP: JSON in, JSON out. Decides nothing, and logs no body: they hold passwords, codes and a seed.

    POST /register {"email", "password"}            201 {"id"}
    POST /enrol    {"email", "password"}            200 {"provisioning_uri"}, once
    POST /confirm  {"email", "password", "code"}    204
    POST /login    {"email", "password", "code"}    200 {"id"}
    GET  /health                                    204

Errors: 400 for a request that is none, 403 for wrong credentials, 409 for an account in another state, 503 when a second factor
cannot be read, which is not the user's fault and has to wake somebody up.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from backupd.errors import BackupdError
from backupd.example.accounts import Accounts, Conflict, Denied
from backupd.redact import Secret

LARGEST = 16_384  # bytes of a request
_log = logging.getLogger(__name__)

Answer = tuple[int, dict[str, object] | None]


def server(accounts: Accounts, host: str, port: int) -> ThreadingHTTPServer:
    """A server of these accounts, bound, not yet serving. Port 0 takes a free one."""

    class Handler(_Handler):
        routes = _routes(accounts)

    return ThreadingHTTPServer((host, port), Handler)


def _routes(accounts: Accounts) -> Mapping[str, Callable[[dict[str, str]], Answer]]:
    def register(asked: dict[str, str]) -> Answer:
        return 201, {"id": accounts.register(asked["email"], Secret(asked["password"], "password"))}

    def enrol(asked: dict[str, str]) -> Answer:
        uri = accounts.enrol(asked["email"], Secret(asked["password"], "password"))
        return 200, {"provisioning_uri": uri.text()}

    def confirm(asked: dict[str, str]) -> Answer:
        accounts.confirm(asked["email"], Secret(asked["password"], "password"), asked["code"])
        return 204, None

    def login(asked: dict[str, str]) -> Answer:
        return 200, {"id": accounts.login(asked["email"], Secret(asked["password"], "password"), asked["code"])}

    return {"/register": register, "/enrol": enrol, "/confirm": confirm, "/login": login}


class _Handler(BaseHTTPRequestHandler):
    routes: Mapping[str, Callable[[dict[str, str]], Answer]]
    protocol_version = "HTTP/1.1"  # connections are kept open
    disable_nagle_algorithm = True  # else head and body of an answer wait for each other
    timeout = 60

    def do_GET(self) -> None:
        self._answer((204, None) if self.path == "/health" else (404, {"error": "there is nothing here"}))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            self.close_connection = True  # what was not read would be taken for the next request
            self._answer((400, {"error": "a request has a length, of 16 KiB at most"}))
            return
        self._answer(self._result(self.rfile.read(int(length))))

    def _result(self, body: bytes) -> Answer:
        route = self.routes.get(self.path)
        if route is None:
            return 404, {"error": "there is nothing here"}
        try:
            return route(_parsed(body))
        except (ValueError, KeyError):
            return 400, {"error": "not a request as this path takes it"}
        except Denied:
            return 403, {"error": "denied"}
        except Conflict as error:
            return 409, {"error": str(error)}
        except BackupdError as error:
            _log.error("a second factor cannot be read: %s", error)
            return 503, {"error": "not possible now"}
        except Exception:  # a fault of ours is an answer of 500, and its text, which may hold a secret, stays here
            _log.exception("a request failed")
            return 500, {"error": "failed"}

    def _answer(self, answer: Answer) -> None:
        status, content = answer
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Cache-Control", "no-store")
        if body:
            self.send_header("Content-Type", "application/json")
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002  the base class calls it so
        _log.debug(format, *arguments)


def _parsed(body: bytes) -> dict[str, str]:
    """Raises ValueError for what is no object of texts."""
    parsed = json.loads(body)
    if not isinstance(parsed, dict) or not all(isinstance(value, str) for value in parsed.values()):
        raise ValueError("a request is an object of texts")
    return parsed
