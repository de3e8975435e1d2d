"""Writes the reference documents from what they document: `python docs/generate.py [--check] [NAME …]`.

With `--check` it only says what is stale, and exits with 1. Owns docs/configuration.md, from the configuration's types, and
docs/cli.md, from the command line's own help.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

_NOTE = "<!-- Written by docs/generate.py; change the source and run it again. -->\n"
_WIDTH = 100

_ABOUT = """\
One TOML file, named with `--config` or `BACKUPD_CONFIG`. `config/backupd.toml` is an example with every usual setting
explained. Unknown keys are errors; all errors are reported at once. Relative paths are relative to the file.
"""
_SECRETS = """\
## Secrets

The file never holds a secret. A key of type *secret* is a table that says where it is kept, with exactly one of `file`, `env`,
`credential`, `vault` and `azure`. [custodians.md](custodians.md) is about choosing one, and about who may read what.

```toml
password = { file = "/etc/backupd/clinic.password" }
keys = { credential = "keyring.json", field = "totp" }
secret_key = { vault = "secret/backup/operations", unwrap = "transit/operations" }
```
"""

# ------------------------------------------------------------------------------------------------------- configuration


def configuration() -> str:
    """docs/configuration.md."""
    from backupd.config.models import Config, SecretRef

    parts = [
        "# Configuration\n",
        _NOTE,
        _ABOUT,
        *_sections("", Config),
        _SECRETS,
        _table(SecretRef),
    ]
    return "\n".join(parts)


def _sections(prefix: str, model: Any) -> Iterator[str]:
    """A heading, a sentence and a table for each table of the file, outer before inner."""
    for name, field in model.model_fields.items():
        inner, many, named = _inner(field.annotation)
        if inner is None:
            continue
        place = f"{prefix}{name}" + (".NAME" if named else "")
        yield f"## `{f'[[{place}]]' if many else f'[{place}]'}`\n"
        yield f"{(inner.__doc__ or '').strip()}\n"
        yield _table(inner)
        yield from _sections(f"{place}.", inner)


def _table(model: Any) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        inner, _, _ = _inner(field.annotation)
        kind = "table, below" if inner is not None else _kind(field.annotation, name)
        default = "required" if field.is_required() else _default(field.default)
        meaning = field.description or (inner.__doc__ or "").strip().split("\n")[0]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{name}`", kind, default, meaning)) + " |")
    return "\n".join(rows) + "\n"


def _inner(annotation: Any) -> tuple[Any, bool, bool]:
    """The table that a key holds, whether a list of them, and whether by name; (None, …) for a key that holds a value."""
    from backupd.config.models import SecretRef, Table

    annotation = _bare(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    many, named = origin is tuple, origin is dict
    if many or named:
        annotation = _bare(arguments[1] if named else arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, Table) and annotation is not SecretRef:
        return annotation, many, named
    return None, False, False


def _kind(annotation: Any, name: str) -> str:
    from backupd.config.models import SecretRef

    annotation = _bare(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        return "list of lists" if typing.get_origin(_bare(typing.get_args(annotation)[0])) is tuple else "list of paths"
    if annotation is SecretRef:
        return "[secret](#secrets)"
    words: dict[Any, str] = {str: "text", int: "number", bool: "`true`, `false`", Path: "path"}
    return "schedule" if name == "schedule" else words[annotation]


def _bare(annotation: Any) -> Any:
    while type(None) in typing.get_args(annotation) or typing.get_origin(annotation) is typing.Annotated:
        annotation = next(each for each in typing.get_args(annotation) if each is not type(None))
    return annotation


def _default(value: object) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if isinstance(value, int | str) else "its own"


# -------------------------------------------------------------------------------------------------------- command line


def command_line() -> str:
    """docs/cli.md: the help of every command, as `-h` shows it."""
    import click

    import backupd.cli

    root = next(value for value in vars(backupd.cli).values() if isinstance(value, click.Group))
    sections = ["# Command line\n", _NOTE]
    for path, text in _helps(root, "backupd", None):
        sections.append(f"## {path}\n\n```text\n{text}\n```\n")
    return "\n".join(sections)


def _helps(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
    import click

    settings = {**command.context_settings, "terminal_width": _WIDTH, "max_content_width": _WIDTH}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield context.command_path, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                yield from _helps(found, child, context)


# ------------------------------------------------------------------------------------------------------------- writing

DOCUMENTS: dict[str, Callable[[], str]] = {"configuration.md": configuration}
if (DOCS.parent / "backupd" / "cli" / "__init__.py").exists():
    DOCUMENTS["cli.md"] = command_line


def _is_current(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


def main(arguments: list[str]) -> int:
    """Writes the named documents, or all; with `--check` writes none and returns 1 when one is stale."""
    check, names = "--check" in arguments, [each for each in arguments if each != "--check"] or list(DOCUMENTS)
    if unknown := set(names) - set(DOCUMENTS):
        sys.stderr.write(f"no such document: {', '.join(sorted(unknown))}; there are {', '.join(DOCUMENTS)}\n")
        return 2
    stale = 0
    for name in names:
        text = DOCUMENTS[name]()
        if _is_current(DOCS / name, text):
            continue
        stale += 1
        if check:
            sys.stderr.write(f"docs/{name} is stale: run python docs/generate.py\n")
        else:
            (DOCS / name).write_text(text, encoding="utf-8")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
