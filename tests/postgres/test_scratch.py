"""A scratch cluster is private while it lives, and nothing of it is left, however its owner ends."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backupd.errors import CouldNotVerify, SourceError
from backupd.postgres import clients, scratch
from backupd.postgres.clients import Clients
from backupd.postgres.dsn import Dsn
from backupd.postgres.scratch import ScratchCluster
from backupd.postgres.session import connect, server
from backupd.redact import Secret

DEADLINE_S = 60
OF_ACCOUNT = [scratch.SHARED_ACCOUNT] if os.geteuid() != 0 else []
# Who is not root has no second account to run a server as, and nothing to test there. CI is root, and fails where this skips.
needs_another_account = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives the server another account than its own")

_OWNER = """
import sys
from pathlib import Path
from backupd.postgres import clients
from backupd.postgres.scratch import ScratchCluster
programs = clients.find([Path(sys.argv[1])])
with ScratchCluster(next(each for each in programs if str(each.directory) == sys.argv[1]), memory=Path(sys.argv[2])) as cluster:
    print(cluster.pid, cluster.directory, flush=True)
    sys.stdin.read()
"""


def _is_running(pid: int | None) -> bool:
    """Whether the process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait_until_gone(pid: int) -> None:
    until = time.monotonic() + DEADLINE_S
    while _is_running(pid):
        assert time.monotonic() < until, f"process {pid} is still there"
        time.sleep(0.02)


@pytest.mark.parametrize("major", [15, 17])
def test_a_scratch_cluster_serves_and_is_gone_afterwards(major: int, programs: dict[int, Clients], place: Path) -> None:
    with ScratchCluster(programs[major], memory=place) as cluster:
        pid, directory = cluster.pid, cluster.directory
        dsn = cluster.create_database('odd "name"')
        with connect(dsn, application_name="backupd test") as connection:
            found = server(connection)
            assert (found.major, found.database) == (major, 'odd "name"')
            assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
            assert connection.execute("SELECT lower('ÄÖÜ')").fetchone() == ("äöü",)
            addresses = connection.execute("SELECT inet_server_addr()").fetchone()
            assert addresses == (None,)
        assert directory.parent == place
        assert {path.name: path.stat().st_mode & 0o777 for path in (directory, *directory.iterdir())} == {
            directory.name: 0o711,
            "data": 0o700,
            "socket": 0o700,
            "log": 0o600,
        }
        assert cluster.notes == OF_ACCOUNT
    assert not _is_running(pid)
    assert not directory.exists()
    assert cluster.pid is None


def test_its_server_is_not_roots(programs: dict[int, Clients], place: Path) -> None:
    with ScratchCluster(programs[17], memory=place) as cluster:
        owner = Path(f"/proc/{cluster.pid}").stat().st_uid
        assert owner != 0
        assert owner == (os.geteuid() or pwd.getpwnam(scratch.unprivileged_user(0) or "").pw_uid)


def test_a_server_that_shares_our_account_is_told_of() -> None:
    """Its superuser runs programs, and what is restored brings code: root gives it another account, others cannot."""
    assert scratch.unprivileged_user(0) in scratch.ACCOUNTS
    assert scratch.unprivileged_user(10001) is None
    assert "could have read its keys" in scratch.SHARED_ACCOUNT


def test_code_of_the_database_reaches_none_of_our_files(programs: dict[int, Clients], place: Path, tmp_path: Path) -> None:
    """COPY … FROM PROGRAM, as a superuser: what a function in a table's constraint can do during a restore.

    Where we are not root the server is ours, and it reaches them: then the cluster has a note that says so.
    """
    secret = tmp_path / "key"
    secret.touch(mode=0o600)
    secret.write_text("the key")
    with ScratchCluster(programs[17], memory=place) as cluster:
        with connect(cluster.dsn(), application_name="backupd test", autocommit=True) as connection:
            connection.execute("CREATE TABLE public.seen (line text)")
            connection.execute(f"COPY public.seen FROM PROGRAM 'cat {secret} || echo nothing'".encode())
            seen = [line for (line,) in connection.execute("SELECT line FROM public.seen").fetchall()]
        assert seen == (["the key"] if scratch.SHARED_ACCOUNT in cluster.notes else ["nothing"])
        assert cluster.notes == OF_ACCOUNT


SWAP = """
import os, sys, time
from pathlib import Path
place, victim, until = Path(sys.argv[1]), sys.argv[2], time.monotonic() + 60
print("ready", flush=True)
while time.monotonic() < until:
    for directory in place.glob("bd-scratch-*"):
        for name in ("password", "log", "data", "socket"):
            try:
                os.symlink(victim, directory / name)
            except OSError:
                pass
            try:
                os.rename(directory, place / "away")
            except OSError:
                pass
"""


@needs_another_account
def test_whoever_has_the_server_s_account_leads_root_nowhere(programs: dict[int, Clients], place: Path, tmp_path: Path) -> None:
    """A process that an earlier drill's code left, and that puts links where the next cluster's files will be."""
    account = scratch.unprivileged_user(0)
    victim = tmp_path / "victim"
    victim.touch(mode=0o600)
    before = victim.stat()
    argv = ["/usr/bin/python3", "-c", SWAP, str(place), str(victim)]  # not ours, which may lie where only root may enter
    with subprocess.Popen(argv, stdout=subprocess.PIPE, user=account, cwd="/") as swapping:
        try:
            assert swapping.stdout is not None
            swapping.stdout.readline()
            for _ in range(3):
                with ScratchCluster(programs[17], memory=place) as cluster:
                    cluster.create_database("drill")
                    assert cluster.directory.parent == place
                    assert not any(path.is_symlink() for path in cluster.directory.iterdir())
                assert not cluster.directory.exists()
        finally:
            swapping.kill()
    after = victim.stat()
    assert (after.st_uid, after.st_mode, after.st_size) == (before.st_uid, before.st_mode, 0)


# In a session of its own it starts another, says who they are, and stays when its parent has ended.
STAYS = "setsid sh -c 'setsid sleep 600 >/dev/null 2>&1 & echo $!; echo $$; exec sleep 600 >/dev/null 2>&1' &"


@needs_another_account
def test_what_restored_code_leaves_running_ends_with_the_server(programs: dict[int, Clients], place: Path) -> None:
    """And nothing else of the account does, which may be another service's."""
    with subprocess.Popen(["sleep", "600"], user=scratch.unprivileged_user(0), cwd="/") as of_others:
        try:
            with ScratchCluster(programs[17], memory=place) as cluster:
                with connect(cluster.dsn(), application_name="backupd test", autocommit=True) as connection:
                    connection.execute("CREATE TABLE public.started (pid int)")
                    connection.execute("COPY public.started FROM PROGRAM '{}'".format(STAYS.replace("'", "''")).encode())
                    left = [pid for (pid,) in connection.execute("SELECT pid FROM public.started").fetchall()]
                assert [_is_running(pid) for pid in left] == [True, True]
            assert [_is_running(pid) for pid in left] == [False, False]
            assert of_others.poll() is None
        finally:
            of_others.kill()


def test_no_server_is_ended_that_a_directory_of_others_leads_to(programs: dict[int, Clients], place: Path) -> None:
    """A link named `data` in a directory that looks like a dead cluster's; and one of ours whose data lead elsewhere."""
    with ScratchCluster(programs[17], memory=place) as living:
        for owner in ("nobody", None):
            planted = place / f"bd-scratch-planted-{owner}"
            planted.mkdir()
            (planted / "data").symlink_to(living.directory / "data")
            if owner is not None and os.geteuid() == 0:
                shutil.chown(planted, owner)
            scratch.leftovers(place)
        assert _is_running(living.pid)
        living.create_database("still_there")


def test_its_password_is_its_own_and_needed(programs: dict[int, Clients], place: Path) -> None:
    with ScratchCluster(programs[17], memory=place) as one, ScratchCluster(programs[17], memory=place) as two:
        other = two.dsn().password
        assert other is not None
        assert one.dsn().password != other
        wrong = Dsn.parse(f"host={one.socket_directory} user={scratch.SUPERUSER} dbname=postgres", Secret(other.reveal()))
        with pytest.raises(SourceError, match="does not accept the password"):
            connect(wrong, application_name="backupd test")
        assert other.text() not in f"{two.dsn()!r} {two.log()}"
        assert not list(two.directory.glob("password"))


def test_extensions_that_are_not_installed_are_named(programs: dict[int, Clients], place: Path) -> None:
    with ScratchCluster(programs[17], memory=place) as cluster:
        cluster.require_extensions(["plpgsql", "pgcrypto", "citext"])
        with pytest.raises(CouldNotVerify, match="lacks the extension postgis, timescaledb") as caught:
            cluster.require_extensions(["timescaledb", "pgcrypto", "postgis"])
        assert caught.value.exit_code == 3


def test_a_failure_in_the_block_leaves_nothing(programs: dict[int, Clients], place: Path) -> None:
    seen = []

    def fail() -> None:
        with ScratchCluster(programs[15], memory=place) as cluster:
            seen.append((cluster.pid, cluster.directory))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    [(pid, directory)] = seen
    assert not _is_running(pid)
    assert not directory.exists()


def test_a_server_that_does_not_start_in_time_leaves_nothing(programs: dict[int, Clients], place: Path) -> None:
    own = place / "own"
    own.mkdir(mode=0o755)
    with pytest.raises(CouldNotVerify), ScratchCluster(programs[17], memory=own, deadline_s=0.0):
        pass
    assert list(own.iterdir()) == []


def test_a_cluster_that_is_killed_is_ended_once_and_for_all(programs: dict[int, Clients], place: Path) -> None:
    with ScratchCluster(programs[17], memory=place) as cluster:
        assert cluster.pid is not None
        os.kill(cluster.pid, signal.SIGKILL)
        with pytest.raises(SourceError):
            cluster.create_database("x")
    assert not cluster.directory.exists()


def test_it_lies_in_memory_if_there_is_room_and_says_when_not(programs: dict[int, Clients], place: Path) -> None:
    with ScratchCluster(programs[17], place) as cluster:
        in_memory = cluster.directory.parent == scratch.MEMORY
        assert in_memory or cluster.directory.parent == place
        assert bool([note for note in cluster.notes if "not in memory" in note]) != in_memory
    with ScratchCluster(programs[17], place, memory=place / "no tmpfs") as cluster:
        assert cluster.directory.parent == place
        assert [note for note in cluster.notes if "not in memory" in note]


def test_without_room_it_could_not_verify(programs: dict[int, Clients], place: Path) -> None:
    everything = shutil.disk_usage(place).total
    with pytest.raises(CouldNotVerify, match="has not that much room"):
        ScratchCluster(programs[17], memory=place, expected_bytes=everything).__enter__()
    with pytest.raises(CouldNotVerify, match="neither"):
        ScratchCluster(programs[17], place, memory=place, expected_bytes=everything).__enter__()


def test_a_path_too_long_for_a_socket_is_no_hindrance(programs: dict[int, Clients], place: Path) -> None:
    deep = place / ("d" * 120)
    deep.mkdir()
    deep.chmod(0o1777)
    with ScratchCluster(programs[17], memory=deep) as cluster:
        sockets = cluster.socket_directory
        assert cluster.directory.parent == deep
        assert sockets.parent != deep
        with connect(cluster.dsn(), application_name="backupd test") as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not sockets.exists()


def test_programs_in_a_closed_directory_are_run_from_a_copy(programs: dict[int, Clients], place: Path) -> None:
    """A checkout below /root, mode 0700, with files of mode 0600 and less: the server's account may enter none of it."""
    closed = place / "root"
    shutil.copytree(programs[17].directory.parent, closed / "install", symlinks=True)
    for path in (closed, *closed.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)
    [own] = [each for each in clients.find([closed / "install" / "bin"]) if each.directory == closed / "install" / "bin"]
    with ScratchCluster(own, memory=place) as cluster, connect(cluster.dsn(), application_name="backupd test") as connection:
        assert server(connection).major == 17
        cluster.require_extensions(["pgcrypto"])
        running = Path(f"/proc/{cluster.pid}/exe").readlink()
        assert running.is_relative_to(closed) == (os.geteuid() != 0)
    assert running.exists() == (os.geteuid() != 0)


def test_programs_that_run_from_nowhere_could_not_verify(programs: dict[int, Clients], place: Path) -> None:
    broken = place / "broken" / "bin"
    broken.mkdir(parents=True)
    (broken / "postgres").write_text("#!/bin/sh\nexit 1\n")
    (broken / "postgres").chmod(0o755)
    with (
        pytest.raises(CouldNotVerify, match="cannot run the programs"),
        ScratchCluster(Clients(broken, (17, 0), True, True), memory=place),
    ):
        pass


def test_the_server_of_a_killed_owner_dies_and_its_directory_is_removed_by_the_next(
    programs: dict[int, Clients], place: Path
) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(programs[17].directory), str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert owner.stdout is not None
        pid, directory = owner.stdout.readline().split()
        assert scratch.leftovers(place) == []
        assert _is_running(int(pid)), "the cluster of a living owner was ended"
        assert Path(directory).is_dir()
    finally:
        owner.kill()
        owner.communicate()
    _wait_until_gone(int(pid))
    assert scratch.leftovers(place) == [Path(directory)]
    assert not Path(directory).exists()


def test_a_server_that_outlived_its_owner_is_ended(programs: dict[int, Clients], place: Path) -> None:
    """As on a host without setpriv: the server is nobody's child of ours and goes on."""
    user = None if os.geteuid() else pwd.getpwnam(scratch.unprivileged_user(0) or "")
    own = place / "orphans"
    own.mkdir(mode=0o755)
    directory = own / "bd-scratch-orphan"
    directory.mkdir()
    directory.chmod(0o711)
    install = place / "install"
    shutil.copytree(programs[17].directory.parent, install, symlinks=True)
    for name in ("data", "socket"):
        (directory / name).mkdir(mode=0o700)
        if user is not None:
            os.chown(directory / name, user.pw_uid, user.pw_gid)
    account = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": list[int]()}
    data = str(directory / "data")
    subprocess.run(
        [install / "bin" / "initdb", "-D", data, "-A", "peer", "--no-sync"], check=True, capture_output=True, cwd="/", **account
    )  # type: ignore[call-overload]  # keyword arguments by name
    child = subprocess.Popen(
        [install / "bin" / "postgres", "-D", data, "-k", str(directory / "socket"), "-h", ""],
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **account,
    )  # type: ignore[call-overload]  # as above
    try:
        until = time.monotonic() + DEADLINE_S
        while not (directory / "socket" / ".s.PGSQL.5432").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        link = own / "bd-scratch-link"
        link.symlink_to(programs[17].directory)
        assert scratch.leftovers(own) == [directory]
        assert not _is_running(child.pid)
        assert not directory.exists()
        assert programs[17].directory.is_dir()
    finally:
        child.kill()
        child.wait()
