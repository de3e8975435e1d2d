"""What every command shares: its options, the service they wire, and how results are shown to people and to machines."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backupd.errors import ConfigError

if TYPE_CHECKING:
    from backupd.audit.records import Actor
    from backupd.config.models import Config
    from backupd.service import Service
    from backupd.transfer import Progress

CONFIG = "BACKUPD_CONFIG"
# Not looked at by click: to it a key that may not be read is a mistake of usage, to us it is a secret that is not to be had.
SECRET_FILE = click.Path(readable=False, path_type=Path)
COPIED = {"backup", "fingerprint"}  # columns of what people copy out of a table
ROWS_AT_ONCE = 1000  # of one table: rich takes some ten KB for a row, and strangers decide how many backups are listed
PIPED_WIDTH = 160  # characters, of tables that go to no terminal, unless COLUMNS says otherwise
Cell = tuple[str, str]  # text and rich style
Row = Sequence[str | Cell]


@dataclass(frozen=True, slots=True)
class Session:
    """The common options of one run of a command."""

    config: Path | None
    json: bool
    debug: bool
    operator: str | None
    reason: str | None

    @contextmanager
    def service(self) -> Iterator[Service]:
        """The wired parts of the configuration. Raises ConfigError."""
        from backupd import logs, service

        logs.configure(sys.stderr, json=self.json, debug=self.debug)
        with service.Service(self.load(), self.actor(), os.environ) as wired:
            yield wired

    def actor(self) -> Actor:
        """Who runs this command, and how."""
        from backupd import service
        from backupd.audit.records import Via

        via = Via(os.environ.get("BACKUPD_VIA", Via.CLI.value)) if os.environ.get("BACKUPD_VIA") in set(Via) else Via.CLI
        return service.actor(os.environ, via, self.operator, self.reason)

    def load(self) -> Config:
        """The configuration file. Raises ConfigError."""
        from backupd.config import load

        if self.config is None:
            raise ConfigError("no configuration was named", f"give -c FILE, or set {CONFIG}")
        return load(self.config)

    def result(self, value: object, table: Callable[[], None]) -> None:
        """Print a result: `value` as JSON with --json, or else whatever `table` prints."""
        if self.json:
            text = json.dumps(value, ensure_ascii=False, default=str)
            try:
                text.encode(sys.stdout.encoding)
            except UnicodeEncodeError:  # half a character, which whoever forges a record can put in it; or a terminal of old
                text = json.dumps(value, default=str)  # the same in ASCII
            print(text)
        else:
            table()

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        """A bar on a terminal's stderr, counting bytes; nothing at all elsewhere."""
        if self.json or not sys.stderr.isatty():
            yield lambda _: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda count: bar.advance(task, count)


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command; the function gets them as a Session, its first argument."""

    @click.option("-c", "--config", type=click.Path(path_type=Path), envvar=CONFIG, help=f"The configuration; or {CONFIG}.")
    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and errors as JSON on stderr.")
    @click.option("--debug", is_flag=True, help="Show tracebacks and debug lines, without secrets.")
    @click.option("--operator", help="The person behind this run, for the trail.")
    @click.option("--reason", help="Why, for the trail.")
    @functools.wraps(function)
    def wrapped(
        config: Path | None, as_json: bool, debug: bool, operator: str | None, reason: str | None, **arguments: Any
    ) -> Any:
        return function(Session(config, as_json, debug, operator, reason), **arguments)

    return wrapped


def table(columns: Sequence[str], rows: Sequence[Row], *, title: str | None = None) -> None:
    """A table for people on stdout. Others may have chosen a cell's text: control characters and markup are not obeyed.

    Ids and fingerprints are never broken over two lines: people copy them.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from backupd.redact import printable

    console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH)
    for start in range(0, max(1, len(rows)), ROWS_AT_ONCE):
        shown = Table(box=box.SIMPLE_HEAD, title=title if not start else None, title_justify="left", pad_edge=False)
        for column in columns:
            shown.add_column(column, overflow="fold", no_wrap=column in COPIED)
        for row in rows[start : start + ROWS_AT_ONCE]:
            cells = [(cell, "") if isinstance(cell, str) else cell for cell in row]
            shown.add_row(*(Text(printable(text), style) for text, style in cells))
        console.print(shown)


def size(count: int) -> str:
    """Bytes for people: `1.8 GB`."""
    value, units = float(count), ("B", "kB", "MB", "GB", "TB")
    for unit in units:
        if value < 1000 or unit == units[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("the last unit returns")


def duration(seconds: float | None) -> str:
    """Seconds for people: `4.2 s`, `3 min 20 s`, `2 h 5 min`, `11 d`."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if seconds < 172_800:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{int(seconds // 86_400)} d"


VERDICT_STYLES: Mapping[str, str] = {"PASS": "bold green", "FAIL": "bold red", "COULD NOT VERIFY": "bold yellow"}
