"""The image builds from the hashed locks and does its work as an ordinary user."""

import os
from pathlib import Path

import pytest

from backupd import __version__
from tests.parts.containers import BUILD_DEADLINE_S, ContainerEngine

ROOT = Path(__file__).resolve().parents[1]
IMAGE = "local/backupd:test"
# Where the registries are behind an authority of its own, pip in the build must know it; elsewhere this is Debian's own.
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")

pytestmark = pytest.mark.timeout(3 * BUILD_DEADLINE_S)


@pytest.fixture(scope="module")
def image(container_engine: ContainerEngine, debian_image: str) -> str:
    """The name of backupd's image, built on the tests' own Debian."""
    within = "/run/authorities.crt"
    mounts = [f"{AUTHORITIES}:{within}:ro"]
    return container_engine.build(ROOT, IMAGE, mounts=mounts, BASE=debian_image, PIP_CERT=within)


def run(engine: ContainerEngine, image: str, *arguments: str) -> str:
    """One run of the image, with no network and a root file system that cannot be written to."""
    limits = ("--rm", "--network=none", "--read-only", "--shm-size=512m", "--cap-drop=all")
    return engine.podman("run", *limits, *arguments[:-1], image, *arguments[-1].split())


def test_the_image_runs_backupd_as_an_ordinary_user(container_engine: ContainerEngine, image: str) -> None:
    assert __version__ in run(container_engine, image, "--version")
    assert run(container_engine, image, "--entrypoint=id", "-u").strip() == "10001"


def test_the_demo_runs_in_the_image(container_engine: ContainerEngine, image: str) -> None:
    assert "All of it worked" in run(container_engine, image, "demo")


def test_the_image_holds_no_installer(container_engine: ContainerEngine, image: str) -> None:
    listed = run(container_engine, image, "--entrypoint=ls", "/opt/backupd/bin").split()
    assert "backupd" in listed
    assert not [name for name in listed if name.startswith("pip")]


def test_this_test_is_run_by_root(container_engine: ContainerEngine) -> None:
    """What it shows of an ordinary user is shown by the image, not by the account that runs the tests."""
    assert os.geteuid() == 0
    assert container_engine.url.startswith("unix://")
