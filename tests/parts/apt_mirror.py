"""Which Debian mirror this machine uses, read from apt's own lists. It names no host itself and reaches no network."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.parts.process import PartFailedError


@dataclass(frozen=True, slots=True)
class Source:
    """One archive that apt may read binary packages from."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]


def debian_mirror(suite: str, apt: Path = Path("/etc/apt")) -> str:
    """The first archive that serves `suite`'s main; else the first that serves a main and is called debian."""
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    sources = [source for file in files if file.is_file() for source in read_sources(file)]
    usable = [source for source in sources if "main" in source.components and source.uri.startswith(("http://", "https://"))]
    for source in usable:
        if suite in source.suites:
            return source.uri
    for source in usable:
        if source.uri.rstrip("/").endswith("/debian"):
            return source.uri
    raise PartFailedError(f"apt's lists in {apt} name no Debian mirror, and the container tests need one")


def read_sources(file: Path) -> Iterator[Source]:
    """What one of apt's lists holds, in either of its formats (sources.list(5))."""
    text = file.read_text(errors="replace")
    if file.suffix == ".sources":
        for stanza in text.split("\n\n"):
            yield from _stanza(stanza)
    elif file.suffix == ".list":
        for line in text.splitlines():
            yield from _line(line)


def _stanza(stanza: str) -> Iterator[Source]:
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1].isspace():
            fields[name] = fields.get(name, "") + line
        else:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value
    if fields.get("enabled", "yes").strip().lower() == "no" or "deb" not in fields.get("types", "").split():
        return
    for uri in fields.get("uris", "").split():
        yield Source(uri, tuple(fields.get("suites", "").split()), tuple(fields.get("components", "").split()))


def _line(line: str) -> Iterator[Source]:
    words = shlex.split(line.partition("#")[0])
    if not words or words[0] != "deb":
        return
    rest = words[1:]
    if rest and rest[0].startswith("["):
        end = next(index for index, word in enumerate(rest) if word.endswith("]"))
        rest = rest[end + 1 :]
    if len(rest) >= 2:
        yield Source(rest[0], (rest[1],), tuple(rest[2:]))
