"""Log lines hold no secret, whichever way they come; a line that cannot be made safe is replaced, and logging never raises."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from backupd import logs
from backupd.errors import SourceDenied
from backupd.redact import REDACTED, Secret

ROOT = Path(__file__).parent.parent
SEED = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """`configure` is for a whole process; each test gives the process back as it found it."""
    root, ours = logging.getLogger(), logging.getLogger("backupd")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    logging.captureWarnings(False)
    root.handlers, root.level, ours.level = handlers, *levels
    root.manager._clear_cache()  # type: ignore[attr-defined]  # setLevel() does so too
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    structlog.reset_defaults()


def lines(write: Callable[[], object], *, debug: bool = False) -> list[dict[str, Any]]:
    """What `write` logs, as JSON lines read back."""
    stream = io.StringIO()
    logs.configure(stream, json=True, debug=debug)
    write()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def people(write: Callable[[], object], *, debug: bool = False) -> str:
    """What `write` logs, as people read it."""
    stream = io.StringIO()
    logs.configure(stream, json=False, debug=debug)
    write()
    return stream.getvalue()


def in_a_new_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )


log = logs.get("clinic")


def test_a_json_line_says_what_when_where_and_how_grave() -> None:
    (line,) = lines(lambda: log.info("backup is %s", "complete", source="clinic", parts=3))
    assert line.pop("timestamp").endswith("Z")
    assert line == {"level": "info", "event": "backup is complete", "logger": "backupd.clinic", "source": "clinic", "parts": 3}


def test_a_line_for_people_is_one_line() -> None:
    shown = people(lambda: log.warning("backup is late", source="clinic", hours=3, note="two words", empty=""))
    assert shown[19:] == 'Z warning  backup is late  source=clinic hours=3 note="two words" empty=""\n'


def test_names_that_others_chose_cannot_forge_lines_or_steer_the_terminal() -> None:
    shown = people(lambda: log.info("found a\nb", table="x\x1b[2J\n2026 error forged"))
    assert shown.count("\n") == 1
    assert "\x1b" not in shown
    assert "found a\\nb" in shown


def test_fields_and_text_lose_their_secrets() -> None:
    """By the field's name, by the text's shape, and because the secret lives."""
    secret = Secret("correct horse battery")
    (line,) = lines(
        lambda: log.info(
            f"seed {SEED}",
            password="hunter2",
            held=secret,
            inner={"token": "x"},
            note="it is correct horse battery",
            **{SEED: 1},
        )
    )
    assert line["event"] == f"seed {REDACTED}"
    assert line["password"] == line["held"] == line["inner"]["token"] == REDACTED
    assert line["note"] == f"it is {REDACTED}"
    assert line[REDACTED] == 1
    assert len(secret) == 21


def test_what_was_bound_before_is_scrubbed_too() -> None:
    bound = log.bind(dsn="postgresql://u:hunter2@db/clinic")
    (line,) = lines(lambda: bound.info("connect"))
    assert line["dsn"] == f"postgresql://u:{REDACTED}@db/clinic"


def test_the_standard_library_goes_through_the_same_chain() -> None:
    (line,) = lines(lambda: logging.getLogger("psycopg").error("connect %s", "password=hunter2"))
    assert line["event"] == f"connect password={REDACTED}"
    assert line["logger"] == "psycopg"


def test_psycopg_does_not_warn_of_connections_that_we_cut() -> None:
    """Whatever of it matters is raised, and told as an error."""
    assert lines(lambda: logging.getLogger("psycopg").warning("error ignored in rollback")) == []


def test_direct_users_of_structlog_go_through_the_same_chain() -> None:
    def write() -> None:
        log.info("first")
        structlog.get_logger("backupd.other").info("second", password="hunter2")

    _, line = lines(write)
    assert (line["event"], line["password"]) == ("second", REDACTED)


def test_warnings_of_python_go_through_the_same_chain() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        (line,) = lines(lambda: warnings.warn("password=hunter2", UserWarning, stacklevel=1))
    assert "hunter2" not in json.dumps(line)
    assert line["level"] == "warning"


@pytest.mark.parametrize("name", ["botocore.auth", "boto3", "urllib3.connectionpool", "gnupg", "azure.core", "backupdx"])
def test_libraries_are_not_heard_below_warning_even_with_debug(name: str) -> None:
    """Even where the library's own level says otherwise: its debug lines hold signatures and what passes through pipes."""
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    try:
        assert lines(lambda: logger.debug("headers"), debug=True) == []
        assert lines(lambda: logger.info("headers"), debug=True) == []
        assert len(lines(lambda: logger.warning("retrying"), debug=True)) == 1
    finally:
        logger.setLevel(logging.NOTSET)


def test_our_own_debug_lines_come_with_debug_only() -> None:
    assert lines(lambda: log.debug("part 1")) == []
    assert [line["event"] for line in lines(lambda: log.debug("part 1"), debug=True)] == ["part 1"]


# ------------------------------------------------------------------------------------------------------------ exceptions


def fail(error: Exception) -> Callable[[], None]:
    def write() -> None:
        local = "a local that is not shown"
        try:
            raise error
        except Exception:  # whatever the test raised: what is logged of it is the point
            log.exception("failed", length=len(local))

    return write


def test_an_exception_is_its_message_and_hint_without_debug() -> None:
    (line,) = lines(fail(SourceDenied("no right to read users", "grant it")))
    assert (line["error"], line["error_type"], line["hint"]) == ("no right to read users", "SourceDenied", "grant it")
    assert "exception" not in line


def test_with_debug_a_traceback_comes_without_locals() -> None:
    (line,) = lines(fail(ValueError(f"bad seed {SEED}")), debug=True)
    assert "raise error" in line["exception"]
    assert f"bad seed {REDACTED}" in line["exception"]
    assert "a local that is not shown" not in line["exception"]


def test_a_traceback_for_people_is_indented_under_its_line() -> None:
    shown = people(fail(ValueError("x\x1by")), debug=True)
    assert "\n    ValueError: x\\x1by\n" in shown


class StatementError(Exception):
    """Shaped like SQLAlchemy's: the values of the statement travel along."""

    def __init__(self, message: str, params: object) -> None:
        super().__init__(message)
        self.params = params


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "params", [{"pw": "opensesame"}, ("alice", "opensesame"), [{"a": ["opensesame"]}], {"pw": b"opensesame"}]
)
def test_the_values_of_a_failed_statement_do_not_appear(debug: bool, params: object) -> None:
    """Neither in the parameters that SQLAlchemy appends, nor where PostgreSQL repeats them in the detail."""
    error = StatementError(
        f"duplicate\nDETAIL: Key (pw)=(opensesame) exists.\n[SQL: …]\n[parameters: {params!r}]\n(End)", params
    )
    outer = RuntimeError("could not store opensesame")
    outer.__cause__ = error
    for each in (error, outer):
        (line,) = lines(fail(each), debug=debug)
        assert "opensesame" not in json.dumps(line)


def test_logging_an_exception_that_is_no_more_is_no_failure() -> None:
    (line,) = lines(lambda: log.exception("nothing is being handled"))
    assert line["event"] == "nothing is being handled"


# ------------------------------------------------------------------------------------------------------------- fail-safe


class Rude:
    def __str__(self) -> str:
        raise RuntimeError("hunter2")

    __repr__ = __str__


def test_a_line_that_fails_on_its_way_is_replaced_and_says_so() -> None:
    for write in (
        lambda: logging.getLogger("x").error("password is hunter2 %d", "text"),
        lambda: logging.getLogger("x").error("%s", Rude()),
        lambda: log.error("hunter2 %d", "text"),
    ):
        (line,) = lines(write)
        assert line["event"] == "a log line was withheld, because it could not be made safe"
        assert line["level"] == "error"
        assert "hunter2" not in json.dumps(line)


def test_an_object_that_cannot_be_shown_costs_its_field_only() -> None:
    (line,) = lines(lambda: log.info("kept", value=Rude()))
    assert (line["event"], line["value"]) == ("kept", "<Rude that cannot be shown>")


def test_a_json_line_is_json_even_when_a_secret_is_part_of_its_grammar() -> None:
    """A password that is `"level": "info"` would tear the line apart; the line is withheld instead."""
    secret = Secret('"level": "info"')
    (line,) = lines(lambda: log.info("x"))
    assert "withheld" in line["event"]
    assert len(secret) == 15


def test_a_stream_that_is_gone_does_not_stop_the_work() -> None:
    stream = io.StringIO()
    logs.configure(stream, json=True, debug=False)
    stream.close()
    log.info("nobody reads this")


def test_a_stream_of_another_encoding_gets_escapes() -> None:
    raw = io.BytesIO()
    logs.configure(io.TextIOWrapper(raw, encoding="ascii", write_through=True), json=False, debug=False)
    log.info("Zürich \ud800")
    assert b"Z\\xfcrich \\ud800" in raw.getvalue()


def test_without_configuration_lines_are_scrubbed_text_in_the_applications_logging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="backupd"):
        log.info("rotating", column="totp_secret", password="hunter2", dsn="postgresql://u:hunter2@h/d")
    assert caplog.messages == [f"rotating  column=totp_secret password={REDACTED} dsn=postgresql://u:{REDACTED}@h/d"]


# ------------------------------------------------------------------------------------------- in a process of their own


def test_exceptions_that_nobody_caught_are_scrubbed_in_every_thread() -> None:
    done = in_a_new_process(f"""
        import sys, threading
        from backupd import logs
        logs.configure(sys.stderr, json=True, debug=True)
        def work():
            raise ValueError("in a thread: {SEED}")
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        class Late:
            def __del__(self):
                raise ValueError("in a finalizer: {SEED}")
        late = Late()
        del late
        raise RuntimeError("in the main thread: password=hunter2")
    """)
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["error"] for line in said] == [
        f"in a thread: {REDACTED}",
        f"in a finalizer: {REDACTED}",
        f"in the main thread: password={REDACTED}",
    ]
    assert SEED not in done.stderr
    assert "hunter2" not in done.stderr
    assert done.returncode == 1


def test_importing_and_configuring_the_logs_imports_neither_structlog_nor_rich() -> None:
    done = in_a_new_process("""
        import sys
        from backupd import logs
        log = logs.get("x")
        logs.configure(sys.stderr, json=False, debug=False)
        print(sorted({"structlog", "rich", "pydantic"} & set(sys.modules)))
    """)
    assert (done.stdout, done.stderr) == ("[]\n", "")
