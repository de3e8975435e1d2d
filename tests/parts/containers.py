"""Containers for tests where no Docker is: podman with storage of its own, and images that are built here, never pulled.

Podman here has its own storage, so it neither sees nor touches what else the machine runs. It needs root.
"""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.parts.debian_rootfs import SUITE, TOOL_DEADLINE_S, debian_rootfs, proxies, run
from tests.parts.ports import claim_port, release_port
from tests.parts.process import PartFailedError, ServerProcess, clean_environment, short_directory

DEBIAN_IMAGE = f"local/debian:{SUITE}"
POSTGRES_IMAGE = "local/postgres:15"
# Making the images takes a minute on an idle machine. A test that uses them needs a pytest timeout of its own above this.
BUILD_DEADLINE_S = TOOL_DEADLINE_S
READY_DEADLINE_S = 90.0

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class ContainerEngine:
    """A podman whose API, which is Docker's, is on the unix socket `socket`. `environment` is what its programs need."""

    socket: Path
    environment: Mapping[str, str] = field(repr=False)

    @property
    def url(self) -> str:
        """For DOCKER_HOST."""
        return f"unix://{self.socket}"

    def podman(self, *arguments: str) -> str:
        """Run one podman command and return its standard output."""
        return run("podman", *arguments, environment=self.environment)

    def build(self, context: Path, tag: str, *, mounts: Collection[str] = (), **build_arguments: str) -> str:
        """Build `context`'s Dockerfile, without a container runtime, and return `tag`. `mounts` are `HOST:CONTAINER:ro`."""
        options = [option for name, value in build_arguments.items() for option in ("--build-arg", f"{name}={value}")]
        options += [option for mount in mounts for option in ("--volume", mount)]
        run("buildah", "bud", "--isolation", "chroot", "--tag", tag, *options, str(context), environment=self.environment)
        return tag


@dataclass(frozen=True, slots=True)
class PostgresContainer:
    """A PostgreSQL 15 that answers on 127.0.0.1."""

    port: int
    password: str = field(repr=False)
    container_id: str

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/postgres"


@pytest.fixture(scope="session")
def container_engine() -> Iterator[ContainerEngine]:
    """Podman's API, with storage of its own."""
    if os.geteuid() != 0:
        raise PartFailedError("the container tests need root: debootstrap and podman's storage do")
    with short_directory("bd-ct-") as directory:
        engine = ContainerEngine(directory / "podman.sock", _environment(directory))
        process = ServerProcess(
            ["podman", "system", "service", "--time=0", engine.url],
            directory=directory,
            log=directory / "log",
            environment=engine.environment,
        )
        process.start(lambda: _answers(engine.url))
        try:
            yield engine
        finally:
            engine.podman("rm", "--all", "--force", "--time", "5")
            process.stop()
            # The overlay driver binds its directory to itself; removing the directory needs that undone.
            subprocess.run(["umount", "--quiet", str(directory / "storage" / "overlay")], capture_output=True, check=False)


@pytest.fixture(scope="session")
def debian_image(container_engine: ContainerEngine) -> str:
    """The name of a minimal Debian image. The test that first asks for it needs a timeout above BUILD_DEADLINE_S."""
    container_engine.podman("import", str(debian_rootfs()), DEBIAN_IMAGE)
    return DEBIAN_IMAGE


@pytest.fixture(scope="session")
def postgres_image(container_engine: ContainerEngine, debian_image: str) -> str:
    """The name of an image with Debian's PostgreSQL."""
    return container_engine.build(_HERE / "postgres_image", POSTGRES_IMAGE, BASE=debian_image)


@pytest.fixture
def postgres_container(container_engine: ContainerEngine, postgres_image: str) -> Iterator[PostgresContainer]:
    """PostgreSQL in a container that testcontainers starts, ready for queries."""
    password = secrets.token_hex(16)
    port = claim_port()
    with _testcontainers_settings(container_engine):
        from testcontainers.core.container import DockerContainer

        # The host's network, so that no bridge, firewall rule or address range of this machine plays a part.
        container = DockerContainer(postgres_image, network_mode="host")
        container.with_env("POSTGRES_PASSWORD", password).with_env("POSTGRES_PORT", str(port))
        with container:
            started = PostgresContainer(port, password, container.get_wrapped_container().id)
            _wait_for_sql(container_engine, started)
            yield started
    release_port(port)


def _wait_for_sql(engine: ContainerEngine, container: PostgresContainer) -> None:
    import psycopg

    deadline = time.monotonic() + READY_DEADLINE_S
    while True:
        try:
            with psycopg.connect(container.dsn, connect_timeout=10) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                log = engine.podman("logs", "--tail", "25", container.container_id)
                raise PartFailedError(f"PostgreSQL in a container was not ready ({error}); its log ends:\n{log}") from error
            time.sleep(0.1)
        else:
            return


@contextmanager
def _testcontainers_settings(engine: ContainerEngine) -> Iterator[None]:
    """It reads the environment when it is imported and when it connects. Its helper container, which it would pull, is off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", engine.url)
        patch.setenv("TC_HOST", "127.0.0.1")
        patch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
        patch.setenv("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
        yield


def _answers(url: str) -> bool:
    import docker  # type: ignore[import-untyped]  # published without type information

    client = docker.DockerClient(base_url=url, timeout=30)
    try:
        return bool(client.ping())
    finally:
        client.close()


def _environment(directory: Path) -> dict[str, str]:
    """Write podman's configuration; return the variables that point to it."""
    containers, storage = directory / "containers.conf", directory / "storage.conf"
    containers.write_text(
        "[containers]\n"
        'default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n'
        "[engine]\n"
        'runtime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        f'tmp_dir = "{directory}/libpod"\nvolume_path = "{directory}/volumes"\n'
        "[network]\n"
        f'network_config_dir = "{directory}/networks"\n'
    )
    environment = clean_environment(directory, **proxies())
    environment |= {"CONTAINERS_CONF": str(containers), "CONTAINERS_STORAGE_CONF": str(storage)}
    for driver in ("overlay", "vfs"):  # overlay needs a file system below it that is not itself one
        storage.write_text(f'[storage]\ndriver = "{driver}"\ngraphroot = "{directory}/storage"\nrunroot = "{directory}/run"\n')
        try:
            run("podman", "info", environment=environment)
        except PartFailedError:
            if driver == "vfs":
                raise
            shutil.rmtree(directory / "storage", ignore_errors=True)
            shutil.rmtree(directory / "libpod", ignore_errors=True)
        else:
            break
    return environment
