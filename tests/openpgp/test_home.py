"""A home is private, in memory, blind to the user's set-up, and leaves nothing behind, whatever happens."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from backupd.errors import ConfigError, KeyUnusable, ProcessFailed, Refused
from backupd.openpgp import Home, messages, version
from backupd.openpgp.home import colons, in_memory
from backupd.pipeline import run
from backupd.redact import Secret
from tests.openpgp.conftest import Ring, make_key
from tests.parts.mounts import with_mounts


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in shared memory that no other test's homes are in."""
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


def agent_of(path: Path) -> int:
    """A descriptor of the running agent's process, so that its end can be seen even if its number is used again."""
    answer = subprocess.run(
        ["gpg-connect-agent", "--homedir", path, "--no-autostart", "GETINFO pid", "/bye"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"^D (\d+)$", answer.stdout, re.MULTILINE)
    assert found, answer
    return os.pidfd_open(int(found[1]))


def has_ended(agent: int) -> bool:
    try:
        return bool(select.select([agent], [], [], 30)[0])
    finally:
        os.close(agent)


def test_it_is_in_memory_and_nobody_elses() -> None:
    with Home() as home:
        assert in_memory(home.path)
        assert stat.S_IMODE(home.path.stat().st_mode) == 0o700


def test_it_is_gone_with_its_agent_when_it_is_closed_and_closing_twice_is_no_error(ring: Ring) -> None:
    with Home() as home:
        home.import_secret(ring.operations.secret)
        agent = agent_of(home.path)
    assert has_ended(agent)
    assert not home.path.exists()
    home.close()


def test_it_is_gone_with_its_agent_after_an_error_too(ring: Ring) -> None:
    home = Home()
    home.import_secret(ring.operations.secret)
    agent, path = agent_of(home.path), home.path
    with pytest.raises(KeyUnusable), home:
        home.import_public(b"no key")
    assert has_ended(agent)
    assert not path.exists()


def test_the_next_home_removes_what_a_killed_process_left_and_nothing_else(memory: Path, ring: Ring) -> None:
    """A secret key must not stay in memory because backupd was killed in mid-restore."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom backupd.openpgp import Home\nfrom backupd.redact import Secret\n"
        "home = Home(directory=Path(sys.argv[1]))\nhome.import_secret(Secret(sys.stdin.buffer.read()))\n"
        "print(home.path, flush=True)\nimport signal\nsignal.pause()\n"
    )
    with (
        Home(directory=memory) as alive,
        subprocess.Popen([sys.executable, "-c", program, memory], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(ring.operations.secret.reveal())
        child.stdin.close()
        left = Path(child.stdout.readline().decode().strip())
        agent = agent_of(left)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert left.exists()
        with Home(directory=memory):
            assert has_ended(agent)
            assert not left.exists()
            assert alive.path.exists()
            assert alive.call("--list-keys").stdout == b""


def test_the_users_own_configuration_has_no_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ring: Ring) -> None:
    user = tmp_path / ".gnupg"
    user.mkdir(mode=0o700)
    (user / "gpg.conf").write_text("armor\nthrow-keyids\n")
    (tmp_path / "key.asc").write_bytes(ring.operations.public)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GNUPGHOME", str(user))
    argv = ["gpg", "--batch", "--encrypt", "--recipient-file", str(tmp_path / "key.asc")]
    plain = subprocess.run(argv, input=b"data", capture_output=True, check=True).stdout
    assert plain.startswith(b"-----BEGIN"), "the configuration was meant to be hostile"
    before = sorted(user.iterdir())
    with Home() as home:
        sealed = run(messages.seal(home, ring.recipients()), b"data", timeout_s=60).stdout
    messages.assert_sealed_to(sealed, ring.recipients())
    assert sorted(user.iterdir()) == before


def test_a_child_gets_an_environment_of_three_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPG_AGENT_INFO", "/run/agent")
    monkeypatch.setenv("DISPLAY", ":0")
    with Home() as home:
        command = home.command("gpg", "--version", extra_env={"EXTRA": "1"})
        assert set(command.env) == {"PATH", "LC_ALL", "HOME", "EXTRA"}
        assert command.env["HOME"] == str(home.path)
        assert command.env["LC_ALL"] == "C"


def test_a_path_too_long_for_a_socket_is_refused_before_gpg_fails_on_it(memory: Path) -> None:
    deep = memory / ("d" * 80)
    deep.mkdir()
    with pytest.raises(ConfigError, match="too long"):
        Home(directory=deep)


def test_the_longest_path_that_is_accepted_works(memory: Path, ring: Ring) -> None:
    deep = memory / ("d" * (106 - len(str(memory)) - len("//backupd-gpg-01234567/S.gpg-agent.browser")))
    deep.mkdir()
    with Home(directory=deep) as home:
        assert home.import_secret(ring.operations.secret) == ring.operations.fingerprint
    assert list(deep.iterdir()) == []
    longer = memory / (deep.name + "d")
    longer.mkdir()
    with pytest.raises(ConfigError, match="too long"):
        Home(directory=longer)


def test_a_directory_that_is_not_there_is_a_configuration_error(memory: Path) -> None:
    with pytest.raises(ConfigError, match="no private directory"):
        Home(directory=memory / "absent")


def test_a_program_that_is_not_there_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="not installed"):
        Home("no-such-gpg")


def test_secret_keys_are_refused_outside_memory_unless_the_directory_was_named(memory: Path, ring: Ring) -> None:
    with Home(shared_memory=memory / "absent") as home:
        assert home.path.parent == Path(tempfile.gettempdir())
        assert home.import_public(ring.operations.public) == ring.operations.fingerprint
        try:
            home.import_secret(ring.operations.secret)
            refused = False
        except Refused:
            refused = True
        assert refused == (not in_memory(home.path))
    with Home(directory=memory) as named:
        assert named.import_secret(ring.operations.secret) == ring.operations.fingerprint


def test_a_file_system_of_the_kernels_own_is_not_taken_for_memory() -> None:
    assert not in_memory(Path("/proc"))
    assert in_memory(Path("/dev/shm"))


def test_a_secret_key_is_not_taken_for_a_public_one_nor_the_reverse(home: Home, ring: Ring) -> None:
    with pytest.raises(KeyUnusable, match="secret key where a public"):
        home.import_public(ring.operations.secret.reveal())
    with pytest.raises(KeyUnusable, match="not a secret key"):
        home.import_secret(Secret(ring.operations.public))


def test_a_file_of_two_keys_is_refused(home: Home, ring: Ring) -> None:
    with pytest.raises(KeyUnusable, match="2 keys"):
        home.import_public(ring.operations.public + ring.escrow.public)


def test_a_secret_key_with_a_passphrase_is_refused_with_a_hint(home: Home) -> None:
    with Home() as elsewhere:
        fingerprint = make_key(elsewhere, "Key-Type: EDDSA", "Key-Curve: ed25519", "Name-Real: Protected")
        plain = elsewhere.call("--export-secret-keys", fingerprint).stdout
    with Home() as elsewhere:
        (elsewhere.path / "gpg-agent.conf").write_text("s2k-count 65536\n")  # a slow passphrase hash is not what is tested
        words = ("--pinentry-mode", "loopback", "--passphrase", "open sesame")
        elsewhere.call(*words, "--quick-generate-key", "Protected", "ed25519", "sign", "never")
        protected = elsewhere.call(*words, "--export-secret-keys").stdout
    with pytest.raises(KeyUnusable, match="passphrase") as caught:
        home.import_secret(Secret(protected))
    assert caught.value.hint is not None
    assert "gpg --passwd" in caught.value.hint
    with Home() as other:
        assert other.import_secret(Secret(plain)) == fingerprint


def test_the_version_of_gpg_is_three_numbers() -> None:
    assert re.fullmatch(r"2\.\d+\.\d+", version())


def test_a_program_that_is_no_gpg_is_told_from_one() -> None:
    with pytest.raises(ConfigError, match=r"no GnuPG 2\.2"):
        version("true")


def test_a_shared_memory_that_takes_no_writes_is_named(memory: Path, ring: Ring) -> None:
    """What must be changed is its mount, not the directory that the home lies in instead."""
    memory.chmod(0o555)
    real, effective, saved = os.getresuid()
    if real == 0:
        os.setresuid(65534, effective, saved)  # whether one may write is asked for the real user, and root always may
    try:
        home = Home(shared_memory=memory)
    finally:
        os.setresuid(real, effective, saved)
    with home, pytest.raises(Refused, match=f"on a disk under .*: {memory} is not writable"):
        home.import_secret(ring.operations.secret)


def test_what_a_gpg_that_cannot_work_says_is_shown(tmp_path: Path, ring: Ring) -> None:
    """And one that could not even be started has judged no key."""
    program = tmp_path / "gpg"
    program.write_text("#!/bin/sh\ncat >/dev/null\necho 'gpg: out of core in secure memory' >&2\nexit 2\n")
    program.chmod(0o755)
    with Home(str(program)) as home:
        with pytest.raises(KeyUnusable, match="that gpg can read: gpg: out of core in secure memory"):
            home.show(ring.operations.public)
        program.unlink()
        with pytest.raises(ProcessFailed, match="could not be started"):
            home.show(ring.operations.public)


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "checksum"])
def test_what_is_no_key_is_told_with_what_gpg_says(damage: str, home: Home, ring: Ring) -> None:
    key = ring.operations.public
    data = {"text": b"no key", "empty": b"", "cut": key[: len(key) // 2], "checksum": key[:200] + b"AAAA" + key[204:]}[damage]
    with pytest.raises(KeyUnusable, match="not an OpenPGP key that gpg can read: gpg: "):
        home.show(data)


def test_a_secret_key_that_was_shown_is_not_in_the_home(home: Home, ring: Ring) -> None:
    """The home that signs looks at keys that open, and must not have them."""
    assert home.show(ring.operations.secret.reveal())
    for listing in ("--list-secret-keys", "--list-keys"):
        assert {record.kind for record in colons(home.call(listing, "--with-colons").stdout)} <= {"tru"}
    assert not list(home.path.glob("private-keys-v1.d/*"))


def test_a_full_shared_memory_is_said_to_be_full() -> None:
    """And no key to be none: gpg, which can write nothing, would say that."""
    program = """
import sys
from pathlib import Path
from backupd.errors import BackupdError
from backupd.openpgp import Home

try:
    Home(directory=Path(sys.argv[1]))
except BackupdError as error:
    print(error.message, error.exit_code)
"""
    said = with_mounts("mount -t tmpfs -o size=64k none /mnt", program, ["/mnt"])  # a short path, and nobody else's
    assert said == "/mnt is full 1\n"
