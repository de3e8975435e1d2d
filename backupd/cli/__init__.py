"""The command line: one file per command. Only here: click, rich and exit codes.

Commands are imported when they are run, so that `backupd --help` starts at once. Every error of backupd's becomes one line of
what, one of `hint:`, and its exit code; a traceback is shown with `--debug` only, and scrubbed.

    0 done, PASS    1 failed, FAIL    2 usage or configuration    3 could not verify    4 refused by policy    130 interrupted
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from backupd import __version__, interrupts
from backupd.cli import streams
from backupd.errors import BackupdError, Explained, Interrupted

# The name, its module, and its line in `backupd --help`: that must not import them all.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "Show all of it on a scratch database, in a minute."),
    "check": ("check", "Look whether everything a backup needs is in order."),
    "backup": ("backup", "Back up one, some or all sources."),
    "list": ("list", "List the backups in the store."),
    "verify": ("verify", "Prove that stored backups are what was written."),
    "restore": ("restore", "Restore a backup into an empty database."),
    "restore-test": ("restore_test", "Restore a backup into a scratch database and prove it."),
    "audit": ("audit", "Look into the trail of everything done."),
    "columns": ("columns", "Encrypt columns of second factors, and change their keys."),
    "keys": ("keys", "Make, show and use OpenPGP keys."),
}
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Commands(click.Group):
    """The table above as a click group."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"backupd.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            ctx.fail(f"no command is called {args[0]!r}" + (f"; did you mean {near[0]}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=Commands,
    context_settings=CONTEXT,
    epilog="Exit codes: 0 done or PASS, 1 failed or FAIL, 2 usage or configuration, 3 could not verify, 4 refused,"
    " 130 interrupted.",
)
@click.version_option(__version__, "--version", prog_name="backupd")
def app() -> None:
    """Encrypted, recorded and proved backups of PostgreSQL databases that hold second factors.

    \b
    backupd demo                                  all of it, on a scratch database
    backupd check -c /etc/backupd/backupd.toml    is everything in order?
    backupd backup -c /etc/backupd/backupd.toml   back up every source
    backupd restore-test                          restore the newest backup and prove it
    """


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and end the process with its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    streams.prepare()
    _leave_no_core()
    _work_in_long_turns()
    # Where whoever started us left it ignored, no exit code of a child is kept, and subprocess takes each for 0.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    gc.set_threshold(50_000, 20, 100)  # a command is short, and most of what it allocates are modules that stay
    interrupts.listen()
    code = 1
    try:
        code = _run(arguments)
    except Interrupted as error:  # one more, while the first was told
        code = error.exit_code
    finally:
        interrupts.over = True
        code = _settle(arguments) or code
    gc.freeze()  # or the interpreter would look through all that was loaded, for what to throw away before it ends
    sys.exit(code)


def _settle(arguments: list[str]) -> int:
    """Clear up what a signal kept from it. From then on a signal ends the process at once: nothing is left to be cleared up."""
    try:
        interrupts.settle()
    except BackupdError as error:
        return show(error, arguments)
    finally:
        for number in interrupts.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
    return 0


def _leave_no_core() -> None:
    """No core dump of this process, or of one it starts: it would hold keys, and anybody's Ctrl-\\ would make it.

    A limit of one byte is what the kernel refuses for files and for the pipe of a core pattern; none at all is for files alone.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard != 0:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def _work_in_long_turns() -> None:
    """Ask the scheduler to treat this process, and all that it starts, as bulk work: SCHED_BATCH in sched(7).

    The programs of a backup wake each other for every few KiB. One that is marked so waits its turn when it is woken, and finds
    more to do then: fewer turns are taken, and the application's programs keep theirs.
    """
    with contextlib.suppress(OSError):  # a filter of system calls refuses it, as the units' does
        if os.sched_getscheduler(0) == os.SCHED_OTHER:  # else somebody has chosen
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _run(arguments: list[str]) -> int:
    try:
        result = app.main(arguments, prog_name="backupd", standalone_mode=False)
        sys.stdout.flush()  # now, while a failure can still be told
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        return _usage(error, arguments)
    except (click.Abort, KeyboardInterrupt):
        return show(Interrupted("interrupted"), arguments)
    except (BackupdError, Interrupted) as error:
        if "--debug" in arguments:
            _traceback()
        return show(error, arguments)
    except Exception as error:
        if "--debug" in arguments:
            _traceback()
        return show(_unexpected(error), arguments)
    return result if isinstance(result, int) else 0


def show(error: Explained, arguments: Sequence[str]) -> int:
    """Print an error, two lines for people or an object for machines, to stderr; its exit code."""
    from backupd.redact import printable, scrub

    message, hint = printable(scrub(error.message)), None if error.hint is None else printable(scrub(error.hint))
    problems = [
        (printable(scrub(str(each))), printable(scrub(each.hint)) if each.hint else None)
        for each in getattr(error, "problems", ())
    ]
    if "--json" in arguments:
        told: dict[str, object] = {"error": message, "hint": hint, "exit_code": error.exit_code}
        if problems:
            told["problems"] = [{"problem": what, "hint": remedy} for what, remedy in problems]
        print(json.dumps(told), file=sys.stderr)
        return error.exit_code
    click.echo(click.style("error: ", fg="red", bold=True) + message, err=True)
    if len(problems) > 1:
        _show_each(problems)
    if hint:
        click.echo(click.style("hint: ", fg="yellow") + hint, err=True)
    return error.exit_code


def _show_each(problems: Sequence[tuple[str, str | None]]) -> None:
    """Each with its own hint below it; a hint that several have, below the last of them."""
    remaining = [remedy for _, remedy in problems]
    for what, remedy in problems:
        click.echo(f"  {what}", err=True)
        remaining.pop(0)
        if remedy is not None and remedy not in remaining:
            click.echo("    " + click.style("hint: ", fg="yellow") + remedy, err=True)


def _usage(error: click.ClickException, arguments: list[str]) -> int:
    from backupd.errors import ConfigError

    context = getattr(error, "ctx", None)
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # before 8.2 click shows the help by itself
        click.echo(error.format_message(), err=True)
        return error.exit_code
    path = context.command_path if context is not None else "backupd"
    hint = f"`{path} -h` shows what it takes"
    if isinstance(error, click.NoSuchOption) and context is not None and isinstance(context.command, click.Group):
        hint = f"options stand after the command, as in `backupd check -c FILE`; {hint}"
    return show(ConfigError(error.format_message(), hint), arguments)


def _unexpected(error: Exception) -> BackupdError:
    return BackupdError(f"unexpected {type(error).__name__}: {error}", "run it again with --debug, and report what it shows")


def _traceback() -> None:
    import traceback

    from backupd.redact import scrub

    print(scrub(traceback.format_exc()), file=sys.stderr)
