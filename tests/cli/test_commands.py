"""What holds for every command: help with an example, errors as two lines or as JSON, and documented exit codes."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backupd.cli.session import SECRET_FILE, table
from backupd.openpgp import keys
from tests.e2e.processes import wait_for
from tests.installation import Installation

GROUPS = {"audit": ("list", "show", "verify", "export", "install-sql"), "keys": ("generate", "show")}
COMMANDS = [("demo",), ("check",), ("backup",), ("list",), ("verify",), ("restore",), ("restore-test",)] + [
    (group, name) for group, names in GROUPS.items() for name in names
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_has_help_with_an_example(lived_in: Installation, command: tuple[str, ...]) -> None:
    """`-h` tells what it is, and shows it at work in a line of its own."""
    shown = lived_in.run(*command, "-h").ok().stdout
    assert re.search(rf"^ +backupd {' '.join(command)}\b", shown, re.MULTILINE)
    assert ("--json" in shown) == (command != ("demo",))  # the demo is for people alone


def test_the_first_help_names_every_command_and_exit_code(lived_in: Installation) -> None:
    """The whole program on one page."""
    shown = lived_in.run("--help").ok().stdout
    for name in ("demo", "check", "backup", "list", "verify", "restore", "restore-test", "audit", "keys"):
        assert re.search(rf"^  {name} ", shown, re.MULTILINE)
    assert "3 could not verify" in " ".join(shown.split())


def test_an_error_is_one_line_and_a_hint(lived_in: Installation) -> None:
    """For people two lines on stderr, for machines one object, nothing on stdout, and the same exit code."""
    said = lived_in.run("backup", "klinik")
    assert (said.code, said.stdout) == (2, "")
    assert said.stderr.splitlines() == ["error: no source is called 'klinik'", "hint: configured are: clinic"]
    machine = lived_in.run("backup", "klinik", "--json")
    assert machine.code == 2
    assert machine.error == {"error": "no source is called 'klinik'", "hint": "configured are: clinic", "exit_code": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bakcup",), "did you mean backup?"),
        (("backup", "--jsno"), "No such option"),
        (("-c", "other.toml", "check"), "options stand after the command, as in `backupd check -c FILE`"),
        (("audit", "-c", "other.toml", "list"), "options stand after the command"),
        (("list", "klinik"), "no source is called 'klinik'"),
        (("restore", "clinic"), "--to"),
        (("audit", "show", "first"), "first"),
        (("audit", "verify", "--expect", "12"), "--expect takes SEQ:HEAD"),
        (("audit", "list", "--operation", "bakcup"), "there is no operation"),
        (("verify", "--all", "--backup", "20260101T000000Z-000000"), "exclude each other"),
    ],
)
def test_a_usage_error_is_exit_code_2(lived_in: Installation, arguments: tuple[str, ...], message: str) -> None:
    """A wrong word on the command line is told in the same two lines."""
    done = lived_in.run(*arguments)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.splitlines()[-1].startswith("hint: ")


def test_a_secret_that_this_account_may_not_read_is_no_mistake_of_usage(tmp_path: Path) -> None:
    """Its custodian says that it is not to be had, which is another exit code. Root may read all: so somebody else looks."""
    for directory in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        directory.chmod(directory.stat().st_mode | 0o711)
    path = tmp_path / "key"
    path.touch(mode=0)
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            os._exit(int(SECRET_FILE.convert(str(path), None, None) != path or os.access(path, os.R_OK)))
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_backups_are_listed_with_their_state(lived_in: Installation) -> None:
    """The documented members, oldest first; people get a table of the same."""
    listed = lived_in.run("list", "--json").ok().json
    assert [each["state"] for each in listed] == ["committed", "committed"]
    assert [each["backup_id"] for each in listed] == sorted(each["backup_id"] for each in listed)
    for each in listed:
        assert {"backup_id", "source", "artifacts", "started_at", "finished_at", "state", "locked_until"} <= each.keys()
        assert each["backup_id"] in lived_in.run("list", "clinic").ok().stdout


def test_an_id_is_never_broken_over_two_lines(lived_in: Installation) -> None:
    """On 80 columns everything of a backup is on its line; on fewer the others give way."""
    ids = [each["backup_id"] for each in lived_in.run("list", "--json").ok().json]
    for columns in ("80", "60"):
        shown = lived_in.run("list", env={"COLUMNS": columns}).ok().stdout
        assert all(backup_id in shown for backup_id in ids)
        assert all(len(line) <= int(columns) for line in shown.splitlines())
    lines = lived_in.run("list", env={"COLUMNS": "80"}).ok().stdout.splitlines()
    assert all(re.search(rf"{backup_id} .* committed *$", "\n".join(lines), re.MULTILINE) for backup_id in ids)


def test_a_host_without_sources_lists_what_the_store_has(lived_in: Installation) -> None:
    """It only restores, and knows no other names. "No backups" would say to a mistyped one that all is lost."""
    without = lived_in.configure("restores.toml", source=None, totp=None)
    assert len(lived_in.run("list", "clinic", "--json", config=without).ok().json) == 2
    mistyped = lived_in.run("list", "klinik", "--json", config=without)
    assert mistyped.code == 3
    assert "there is no backup of klinik" in mistyped.error["error"]
    assert mistyped.error["hint"] == "there are backups of clinic"


def test_without_the_signing_key_its_public_half_is_asked_for(clinic: Installation) -> None:
    """Listing and verifying need no more; making backups does, and says nothing of it."""
    signer = clinic.secrets.signing
    clinic.back_up()
    (clinic.custody / "signing.sec.asc").unlink()
    for command in ("list", "verify"):
        done = clinic.run(command)
        assert done.code == 3
        assert 'signers = ["keys/signing.pub.asc"] in [encryption]' in done.stderr.splitlines()[-1]
    assert "signers" not in clinic.run("backup").stderr
    (clinic.keys / "signing.pub.asc").write_bytes(signer.public)
    named = clinic.tables["encryption"] + 'signers = ["keys/signing.pub.asc"]\n'
    for command in ("list", "verify"):
        clinic.run(command, config=clinic.configure("named.toml", encryption=named)).ok()


def test_no_backup_is_made_that_no_host_would_believe(clinic: Installation) -> None:
    """The signing key was changed, and `signers` was not: exit code 2, recorded, and nothing is in the store."""
    other = keys.generate("signing 2027", purpose="sign", expires_days=None)
    (clinic.keys / "other.pub.asc").write_bytes(other.public)
    config = clinic.configure("other.toml", encryption=clinic.tables["encryption"] + 'signers = ["keys/other.pub.asc"]\n')
    done = clinic.run("backup", config=config)
    assert done.code == 2
    assert "is none of the signers" in done.stderr
    assert clinic.records()[-1]["operation"] == "backup"
    assert clinic.run("list", "--json").ok().json == []


def test_stored_backups_are_verified_and_opened(lived_in: Installation) -> None:
    """Every part against its manifest, and with a key to the archive's end."""
    plain = lived_in.run("verify", "--all", "--json").ok().json
    assert [(each["state"], each["deep"]) for each in plain] == [("verified", False)] * 2
    [deep] = lived_in.run("verify", "clinic", "--deep", "--json").ok().json
    assert deep["deep"] is True
    assert deep["backup_id"] == plain[1]["backup_id"]


def test_a_store_without_a_backup_could_not_be_verified(clinic: Installation) -> None:
    """Exit code 3: nothing was shown to be wrong, and nothing was proved."""
    done = clinic.run("verify", "--json")
    assert (done.code, done.error["exit_code"]) == (3, 3)
    assert done.error["hint"] == "the store has none: run `backupd backup`"


def test_a_changed_backup_is_found(clinic: Installation) -> None:
    """One bit of one object: exit code 1, and recorded."""
    backup_id = clinic.back_up()
    assert clinic.store is not None
    sealed = clinic.store / "clinic" / backup_id / "database.dump.gpg"
    data = bytearray(sealed.read_bytes())
    data[len(data) // 2] ^= 1
    sealed.chmod(0o600)
    sealed.write_bytes(data)
    done = clinic.run("verify", "--json")
    assert done.code == 1
    assert "is not what its manifest says" in done.error["error"]
    last = clinic.records()[-1]
    assert (last["operation"], last["phase"], last["backup_id"]) == ("verify", "failed", backup_id)


@pytest.mark.parametrize("streams", [">&-", "2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_or_takes_no_notes_changes_no_outcome(lived_in: Installation, streams: str) -> None:
    """The work is done, and that nobody hears of it is no failure."""
    done = redirected(lived_in, streams, "audit", "verify")  # it has a result, and a note besides
    assert done.returncode == 0
    assert ("the trail is whole" in done.stdout) == (">&-" not in streams.replace("2>&-", ""))
    assert done.stderr == "" or "2>" not in streams


@pytest.mark.parametrize(
    ("command", "code"), [("list", 0), ("list --json", 0), ("verify", 0), ("audit export -", 0), ("--help", 0), ("check", 1)]
)
def test_a_reader_that_has_gone_changes_no_exit_code(lived_in: Installation, command: str, code: int) -> None:
    """`backupd verify | head`: what was proved is proved, and a problem that was found stays one."""
    config = lived_in.configure("no_drill.toml", drill='[drill]\nsecret_key = { file = "custody/missing" }\n')
    reading, writing = os.pipe()
    os.close(reading)
    argv = [sys.executable, "-m", "backupd", *command.split()]
    try:
        done = subprocess.run(
            argv, cwd=lived_in.directory, env=lived_in.environment(config), stdout=writing, stderr=subprocess.PIPE, timeout=240
        )
    finally:
        os.close(writing)
    assert done.returncode == code
    assert b"error" not in done.stderr


@pytest.mark.parametrize("group", ["", "audit", "columns", "keys"])
def test_a_group_without_a_command_shows_its_help(lived_in: Installation, group: str) -> None:
    """It is what a newcomer types first: the help as it is with -h, and the exit code of a usage error."""
    done = lived_in.run(*group.split())
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr == lived_in.run(*group.split(), "-h").ok().stdout


@pytest.mark.parametrize("command", [("list",), ("list", "--json"), ("audit", "export", "-"), ("--help",)], ids=" ".join)
def test_a_result_that_cannot_be_written_is_told(lived_in: Installation, command: tuple[str, ...]) -> None:
    """It may have been all that was wanted; what was done can be read in the trail."""
    done = redirected(lived_in, ">/dev/full", *command)
    assert done.returncode == 1
    assert "the result could not be written: No space left on device" in done.stderr
    assert "in the trail" in done.stderr
    assert "Exception" not in done.stderr


def redirected(clinic: Installation, streams: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """backupd with its streams as a shell makes them."""
    line = f'"$0" -m backupd "$@" {streams}'
    argv = ["sh", "-c", line, sys.executable, *arguments]
    return subprocess.run(argv, cwd=clinic.directory, env=clinic.environment(), capture_output=True, text=True, timeout=240)


def _reader(fifo: Path) -> int | None:
    """A descriptor to write to the fifo, once somebody reads it."""
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None


@contextmanager
def _waiting_for_a_key(directory: Path, *wrapper: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that has begun, started by way of `wrapper`: it reads a key that nobody writes. It ends with the context."""
    fifo = directory / "key"
    os.mkfifo(fifo)
    command = [*wrapper, sys.executable, "-m", "backupd", "keys", "show", str(fifo)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, cwd=directory, env=environment, stderr=subprocess.PIPE) as process:
        writing = wait_for(lambda: _reader(fifo), process)
        assert writing is not None, process.stderr.read() if process.stderr is not None else None
        try:
            yield process
        finally:
            os.close(writing)


def test_a_quit_leaves_no_core(tmp_path: Path) -> None:
    """Ctrl-\\ at the custodian's, where whoever is logged in has no limit: a core would hold the key that opens all."""
    # What runs in the background of a shell begins with this signal ignored.
    unlimited = ["env", "--default-signal=QUIT", "sh", "-c", 'ulimit -S -c "$(ulimit -H -c)"; exec "$@"', "sh"]
    with _waiting_for_a_key(tmp_path, *unlimited) as process:
        process.send_signal(signal.SIGQUIT)
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    assert (ended.si_status, ended.si_code) == (signal.SIGQUIT, os.CLD_KILLED)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_child_that_fails_is_seen_whatever_signals_are_ignored(tmp_path: Path) -> None:
    """With SIGCHLD ignored by a supervisor, a pg_dump that died would seem to have ended well."""
    with _waiting_for_a_key(tmp_path, "env", "--ignore-signal=CHLD") as process:
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        [ignored] = [int(line.split()[1], 16) for line in status if line.startswith("SigIgn:")]
        assert not ignored & 1 << signal.SIGCHLD - 1


@pytest.mark.parametrize(("chosen", "policy"), [("--other", os.SCHED_BATCH), ("--idle", os.SCHED_IDLE)])
def test_it_is_bulk_work_to_the_scheduler_where_nobody_has_chosen(tmp_path: Path, chosen: str, policy: int) -> None:
    """The programs of a backup wake each other all the time, and shall not take turns for it."""
    with _waiting_for_a_key(tmp_path, "chrt", chosen, "0") as process:
        assert os.sched_getscheduler(process.pid) == policy


def test_a_long_table_is_printed_in_pieces_and_loses_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    table(("backup",), [(f"number {row}",) for row in range(2500)], title="All")
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [each for each in shown if each.startswith("number")] == [f"number {row}" for row in range(2500)]
    assert (shown.count("backup"), shown.count("All")) == (3, 1)
    table(("backup",), [])
    assert "backup" in capsys.readouterr().out
