"""What the libpq programs write to stderr, less what must not be shown: they quote statements, and with them rows.

It says nothing of what a complaint means; dump.py and archive.py do.
"""

from __future__ import annotations

import re

from backupd.redact import printable, scrub

# Words before a quoted text that make it a name. Whatever else is quoted may be a row's value.
_NAMED = (
    "role|relation|table|schema|extension|type|function|database|column|constraint|index|parameter|language|sequence|trigger"
    "|view|domain|policy|collation|operator|tablespace|publication|library|encoding|user|attribute|server at|server on socket"
)
_STATEMENT = re.compile(r"(?:detail: )?(?:Query was|Command was|The command was|Statement was): ")


def lines(program: str, stderr: str) -> list[str]:
    """The program's own lines, each without its name: no statements, no details or context of the server's, no values."""
    start = f"{program}: "
    own = (line.removeprefix(start) for line in stderr.splitlines() if line.startswith(start))
    return [masked(line) for line in own if not _STATEMENT.match(line)]


def masked(line: str) -> str:
    """One line, at most 300 characters, in which only names are still quoted."""

    def mask(match: re.Match[str]) -> str:
        return match[0] if match[1] else '"…"'

    return printable(re.sub(rf'((?:\b(?:{_NAMED}) )?)"[^"]*"?', mask, scrub(line)))[:300]
