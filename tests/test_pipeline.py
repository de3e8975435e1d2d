"""Programs joined by pipes: the bytes arrive, and one death is the death of all."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backupd.errors import Interrupted, ProcessFailed
from backupd.pipeline import Command, Pipeline, run
from backupd.redact import Secret

ENV = {"PATH": os.environ["PATH"], "LC_ALL": "C"}


def sh(script: str, name: str = "sh", **env: str) -> Command:
    """A small program in the shell's language."""
    return Command(name, ("/bin/sh", "-c", script), {**ENV, **env})


def python(script: str, name: str = "python") -> Command:
    """The same in Python's."""
    return Command(name, (sys.executable, "-I", "-c", script), ENV)


def drain(pipeline: Pipeline) -> int:
    """All that the pipeline gives, counted."""
    total = 0
    buffer = memoryview(bytearray(1 << 16))
    while count := pipeline.read_into(buffer):
        total += count
    return total


def running(pid: int) -> bool:
    """Whether there is a process of this id that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def descriptors() -> set[str]:
    """The open descriptors of this process."""
    return {each.name for each in Path("/proc/self/fd").iterdir()}


def test_bytes_go_from_one_program_to_the_next() -> None:
    with Pipeline([sh("seq 1000000"), sh("tr 0-9 1-90")], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as pipeline:
        assert drain(pipeline) == 6_888_896
        pipeline.finish()


def test_a_read_is_short_only_at_the_end() -> None:
    script = "import os\nfor _ in range(1000): os.write(1, b'x' * 777)"
    sizes = []
    with Pipeline([python(script)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as pipeline:
        buffer = memoryview(bytearray(100_000))
        while count := pipeline.read_into(buffer):
            sizes.append(count)
        pipeline.finish()
    assert sizes == [100_000] * 7 + [77_000]


def test_what_is_written_arrives() -> None:
    with Pipeline([sh("cat"), sh("wc -c")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as pipeline:
        for _ in range(10):
            pipeline.write(memoryview(bytes(1 << 20)))
        pipeline.close_stdin()
        buffer = memoryview(bytearray(100))
        count = pipeline.read_into(buffer)
        pipeline.finish()
    assert int(bytes(buffer[:count])) == 10 << 20


@pytest.mark.parametrize(
    ("first", "second", "culprit"),
    [
        ("echo sick >&2; exit 3", "cat; exit 0", "first ended with exit code 3: sick"),
        ("echo sick >&2; exit 3", "cat >/dev/null; echo short input >&2; exit 2", "first ended with exit code 3: sick"),
        ("kill -KILL $$", "cat >/dev/null; exit 2", "first was ended by SIGKILL"),
        ("exec seq 10000000", "echo full >&2; exit 4", "second ended with exit code 4: full"),
        ("sleep 1000", "exit 5", "second ended with exit code 5"),
        ("trap '' PIPE; seq 10000000; echo 'Broken pipe' >&2; exit 1", "exit 6", "second ended with exit code 6"),
    ],
)
def test_the_error_names_the_program_that_failed_first(first: str, second: str, culprit: str) -> None:
    with Pipeline([sh(first, "first"), sh(second, "second")], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as pipeline:
        drain(pipeline)
        with pytest.raises(ProcessFailed) as caught:
            pipeline.finish()
        assert not any(running(pid) for pid in pipeline.pids())
    assert caught.value.message == culprit


def test_leaving_the_block_ends_all_programs() -> None:
    with Pipeline([sh("sleep 1000"), sh("sleep 1000")], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as pipeline:
        pids = pipeline.pids()
        assert all(running(pid) for pid in pids)
    assert not any(running(pid) for pid in pids)


def test_a_program_that_ignores_a_polite_end_is_ended_for_certain() -> None:
    script = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(1, flush=True)\ntime.sleep(1000)"
    with Pipeline([python(script)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as pipeline:
        assert pipeline.read_into(memoryview(bytearray(1))) == 1
        pids = pipeline.pids()
    assert not running(pids[0])


def test_the_deadline_ends_a_stuck_program() -> None:
    with Pipeline(
        [sh("exec sleep 1000", "stuck")], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, deadline_s=0.2
    ) as pipeline:
        drain(pipeline)
        with pytest.raises(ProcessFailed, match="stuck ran past the deadline"):
            pipeline.finish()


def test_waiting_for_the_end_has_its_own_limit() -> None:
    with Pipeline([sh("exec >&-; exec sleep 1000", "stuck")], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as pipeline:
        drain(pipeline)
        with pytest.raises(ProcessFailed, match="stuck ran past the deadline"):
            pipeline.finish(timeout_s=0.2)


def test_a_grandchild_that_keeps_stderr_open_is_not_waited_for() -> None:
    started = time.monotonic()
    completed = run(sh("(exec sleep 60 >/dev/null </dev/null) & echo done"), timeout_s=30)
    assert completed.stdout == b"done\n"
    assert time.monotonic() - started < 30


def test_only_the_end_of_a_long_stderr_is_kept_and_no_secret_of_it() -> None:
    secret = Secret("correct-horse-battery")
    script = "seq 100000 >&2; echo password is correct-horse-battery >&2; printf '\\033[31mred' >&2; exit 1"
    with pytest.raises(ProcessFailed) as caught:
        run(sh(script), timeout_s=30)
    said = caught.value.stderr
    assert len(said.splitlines()) == 25
    assert secret.text() not in said
    assert "\x1b" not in said


def test_a_program_that_is_not_there_is_an_error_of_ours() -> None:
    with pytest.raises(ProcessFailed, match="nothing could not be started: No such file or directory") as caught:
        run(Command("nothing", ("/nonexistent/nothing",), ENV), timeout_s=5)
    assert caught.value.hint == "is /nonexistent/nothing installed?"


def test_one_missing_program_ends_those_that_started() -> None:
    before = descriptors()
    with pytest.raises(ProcessFailed):
        Pipeline(
            [sh("sleep 1000"), Command("nothing", ("/nonexistent",), ENV)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
    assert descriptors() == before


def test_the_environment_is_only_what_was_given_and_is_not_shown() -> None:
    command = sh("env", PGPASSWORD="open-sesame-1234")
    names = {line.split(b"=")[0] for line in run(command, timeout_s=10).stdout.splitlines()}
    assert names == {b"PATH", b"LC_ALL", b"PGPASSWORD", b"PWD"}
    assert "open-sesame" not in repr(command)


def test_a_large_input_and_output_do_not_wait_for_each_other() -> None:
    assert len(run(sh("cat"), bytes(5 << 20), timeout_s=60).stdout) == 5 << 20


def test_input_that_is_not_read_is_no_error() -> None:
    assert run(sh("exec <&-; echo ok"), bytes(5 << 20), timeout_s=60).stdout == b"ok\n"


def test_an_interruption_ends_the_children_too() -> None:
    """Whatever is raised inside the block, BaseExceptions too. (No real SIGINT: jobs in the background ignore it.)"""
    pids: list[int] = []

    def interrupted() -> None:
        with Pipeline([sh("exec sleep 1000")], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as pipeline:
            pids.extend(pipeline.pids())
            raise Interrupted("interrupted by SIGTERM")

    with pytest.raises(Interrupted):
        interrupted()
    assert pids
    assert not any(running(pid) for pid in pids)


def test_nothing_is_left_open() -> None:
    before = descriptors()
    for _ in range(5):
        run(sh("cat"), b"x", timeout_s=10)
    assert descriptors() == before
