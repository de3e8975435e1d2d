"""`backupd demo`: the story of `backupd.demo`, told on a terminal, or a shell on the same ground."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from backupd.cli.session import VERDICT_STYLES, size

if TYPE_CHECKING:
    from rich.console import Console

    from backupd.audit.chain import Report as TrailReport
    from backupd.audit.records import Record
    from backupd.catalog import Entry
    from backupd.demo import Ground
    from backupd.drill import DrillReport
    from backupd.errors import BackupdError
    from backupd.manifest import Manifest
    from backupd.rotation import Report as Moved


@click.command("demo", short_help="Show all of it on a scratch database, in a minute.")
@click.option(
    "--shell", is_flag=True, help="Open a shell in the clinic instead, to try things; it is gone when the shell ends."
)
@click.option("--debug", is_flag=True, help="Show tracebacks, without secrets.")
def command(shell: bool, debug: bool) -> int:
    """Back up a small clinic, drill the backup, tamper with it, leak a secret, and show the trail of all that.

    Runs on a PostgreSQL of its own in memory, needs no configuration and leaves nothing behind.

    \b
    backupd demo
    backupd demo --shell
    """
    from rich.console import Console

    from backupd import demo, logs

    logs.configure(sys.stderr, json=False, debug=debug)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    if shell:
        with demo.ground() as ground:
            console.print(f"The clinic is in {ground.directory}, with its configuration. `exit` removes it.", markup=False)
            return _shell(ground)
    teller = Teller(console)
    demo.run(teller)
    console.print(
        f"\n[bold green]All of it worked[/], in {time.monotonic() - teller.started:.0f} seconds. Nothing was left behind."
    )
    console.print("Next: README.md, and `backupd keys generate -h`.", style="dim")
    return 0


def _shell(ground: Ground) -> int:
    """The user's own shell, with this very backupd and PostgreSQL's programs before all others."""
    from backupd.postgres import clients

    programs = [str(Path(sys.executable).parent), str(clients.choose_server(clients.find(), 0).directory)]
    path = os.pathsep.join([*programs, os.environ.get("PATH", os.defpath)])
    sys.stdout.flush()
    ours = signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for what runs in the shell; a child gets the default again
    try:
        done = subprocess.run(
            [os.environ.get("SHELL") or "/bin/sh"],
            cwd=ground.directory,
            env={**os.environ, **ground.environment, "PATH": path},
            check=False,
        )
    finally:
        signal.signal(signal.SIGINT, ours)
    return 0 if done.returncode == 0 else 1


class Teller:
    """The narrator in colour. Nothing that is printed was chosen by anyone but the demo itself."""

    def __init__(self, console: Console) -> None:
        self.started = time.monotonic()
        self._console = console
        self._number = 0

    def step(self, title: str, text: str) -> None:
        self._number += 1
        self._console.print(f"\n[bold cyan]{self._number}  {title}[/]")
        self._console.print(f"   [dim]{text}[/]")

    def clinic(self, stored: bytes, code: str) -> None:
        self._say(f"in the column:   [yellow]\\x{stored.hex()[:56]}…[/]  ({len(stored)} bytes, AES-256-GCM)")
        self._say(f"on the phone:    [green]{code[:3]} {code[3:]}[/]")

    def configuration(self, text: str) -> None:
        self._console.print()
        for line in text.splitlines():
            style = "bold" if line.startswith("[") else ""
            self._console.print(f"      {line}", style=style, markup=False, soft_wrap=True)

    def backup(self, made: Manifest) -> None:
        sealed = sum(artifact.size for artifact in made.artifacts)
        rows = sum(table.rows for table in made.expect.tables.values())
        seconds = (made.finished_at - made.started_at).total_seconds()
        key_ids = ", ".join(key_id for column in made.column_keys for key_id in column.key_ids)
        self._say(f"[green]✓[/] {made.backup_id}: {size(sealed)} sealed to {len(made.recipients)} keys in {seconds:.1f} s")
        self._say(f"  {rows} rows in {len(made.expect.tables)} tables are expected back; column keys in use: {key_ids}")
        self._notes(made.notes)

    def listing(self, entries: list[Entry]) -> None:
        for entry in entries:
            names = ", ".join(artifact.name for artifact in entry.proved().artifacts)
            self._say(f"  listed: {entry.source}/{entry.backup_id}  signed, {names}")

    def drill(self, report: DrillReport) -> None:
        for finding in report.findings:
            style = VERDICT_STYLES[finding.outcome.value]
            mark = {"PASS": "✓", "FAIL": "✗"}.get(finding.outcome.value, "?")
            self._console.print(f"   [{style}]{mark}[/] {finding.name:<11}", end=" ")
            self._console.print(finding.detail, markup=False)
        style = VERDICT_STYLES[report.verdict.value]
        self._say(f"verdict: [{style}]{report.verdict.value}[/]")

    def moved(self, report: Moved) -> None:
        figures = ", ".join(f"{name.replace('_', ' ')}: {number}" for name, number in report.figures.items() if number)
        told = {
            "add": f"{report.key_id} joins the keyring; it encrypts nothing yet",
            "promote": f"{report.key_id} encrypts from now on; the old key still opens",
            "rows": figures,
            "archive": f"{report.key_id} leaves the keyring for the archive; {figures}",
        }
        self._say(f"[green]✓[/] {report.action} {report.stage:<8} {told[report.stage]}")

    def login(self, who: str, code: str) -> None:
        self._say(f"  {who} logs in with [green]{code[:3]} {code[3:]}[/]; the same code again is refused")

    def told(self, text: str) -> None:
        self._say(text)

    def refused(self, error: BackupdError) -> None:
        self._console.print("   [bold red]refused:[/]", end=" ")
        self._console.print(error.message, markup=False)

    def trail(self, records: list[Record], report: TrailReport) -> None:
        styles = {"done": "green", "failed": "red", "refused": "yellow", "intent": "dim"}
        for record in records:
            style = styles.get(record.phase.value, "")
            done = " ".join(str(record.details[name]) for name in ("action", "stage", "key_id") if name in record.details)
            told = record.error or record.backup_id or done
            line = f"{record.seq:>3}  {record.at:%H:%M:%S}  {record.operation.value:<12} {record.phase.value:<8} {told}"
            self._console.print(f"   {line[:104]}", style=style, markup=False)
        head = report.head.head[:16] if report.head is not None else "-"
        self._say(f"[green]✓[/] {report.records} records, one chain; its head is {head}…")

    def _notes(self, notes: Iterable[str]) -> None:
        for note in notes:
            self._console.print(f"   [yellow]note:[/] {note}")

    def _say(self, text: str) -> None:
        self._console.print(f"   {text}")
