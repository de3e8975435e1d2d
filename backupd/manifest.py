"""What a backup is: the signed list of its artifacts, of where it came from and of what a restore of it must show.

Format 1 is one JSON object. `render` and `parse` are each other's inverse, and `parse` is strict: a missing, unknown, doubled
or wrongly typed member is a `Tampered`, for the text was signed by this program. Pure: no clock, no files, no gpg.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from backupd.errors import Tampered

FORMAT = 1
BACKUP_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}")
SOURCE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
LARGEST_PART = 5 << 30  # bytes: no store takes more at once, and whoever fetches a part holds it in memory
MOST_PARTS = 100_000
MOST_RECIPIENTS = 16  # a custodian reads them all
_ARTIFACT_NAME = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")  # a name in every kind of store, and at the end of none a dot
_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6}){0,3}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LARGEST_HEAD = 64 << 10  # bytes: session keys for more recipients than anyone has
_RECIPIENT = re.compile(r"[0-9A-F]{40}")
_LONGEST_DATABASE = 255  # characters; PostgreSQL's names have 63 bytes, unless it was built for longer ones
_LONGEST_ERROR = 300
_OPTIONAL = {"optional": True}  # of a member that is left out where it is None: manifests from before it are still read


class Kind(StrEnum):
    """What an artifact holds once it is unsealed."""

    DATABASE = "database"
    GLOBALS = "globals"


ARTIFACTS: Mapping[Kind, str] = {Kind.DATABASE: "database.dump.gpg", Kind.GLOBALS: "globals.sql.gpg"}  # their only names


class Level(StrEnum):
    """How much a backup notes of what a restore must show: counts, row digests of every table, or nothing."""

    ROWS = "rows"
    DIGESTS = "digests"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Source:
    """The database a backup was made of. `server_version` is `17.10`; the system identifier is the cluster's own."""

    name: str
    database: str
    system_identifier: str
    server_version: str


@dataclass(frozen=True, slots=True)
class Moment:
    """The snapshot: when it was taken by the server's clock, and the server's write position then (`0/1A2B3C`)."""

    taken_at: datetime
    lsn: str


@dataclass(frozen=True, slots=True)
class Tools:
    """What made the backup."""

    backupd: str
    pg_dump: str
    gpg: str
    compression: str


@dataclass(frozen=True, slots=True)
class Part:
    """A run of ciphertext bytes: the unit of upload, of hashing and of fetching."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Head:
    """The first bytes of a sealed stream, up to the end of its session-key packets: what a custodian needs to release its
    session key, and by which that release is bound to this stream."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """One sealed stream; `name` is relative to the backup. The parts' sizes add up to `size`.

    `head` is None in backups from before it was noted: no session key can be released for those.
    """

    name: str
    kind: Kind
    size: int
    sha256: str
    parts: tuple[Part, ...]
    head: Head | None = field(default=None, metadata=_OPTIONAL)


@dataclass(frozen=True, slots=True)
class Table:
    """A table's rows, and the order-free digest of them where one was taken. `kind` is pg_class.relkind's letter."""

    rows: int
    kind: str
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class LargeObjects:
    """How many large objects, and the order-free digest of their ids and contents where one was taken."""

    count: int
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Expectations:
    """What a restore must show. Tables and sequences are named `"schema"."name"` as `format('%I.%I')` quotes them.

    A sequence's value is None when it was never used. `roles` are those that own or are granted something here.
    """

    level: Level
    tables: Mapping[str, Table] = field(default_factory=dict)
    sequences: Mapping[str, int | None] = field(default_factory=dict)
    large_objects: LargeObjects | None = None
    extensions: Mapping[str, str] = field(default_factory=dict)
    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ColumnKeys:
    """The key ids that occur in one encrypted column: these keys must live as long as this backup does."""

    table: str
    column: str
    cipher: str
    key_ids: tuple[str, ...]
    rows: int


@dataclass(frozen=True, slots=True)
class Predecessor:
    """The backup of the same source before this one; the digest is of its stored manifest's bytes."""

    backup_id: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One backup. `notes` are warnings of the run, one line each, for whoever reads the backup later."""

    backup_id: str
    source: Source
    snapshot: Moment
    started_at: datetime
    finished_at: datetime
    tools: Tools
    recipients: tuple[str, ...]
    artifacts: tuple[Artifact, ...]
    expect: Expectations
    column_keys: tuple[ColumnKeys, ...] = ()
    previous: Predecessor | None = None
    notes: tuple[str, ...] = ()
    format: int = FORMAT

    def artifact(self, kind: Kind) -> Artifact:
        """The only artifact of this kind; Tampered when there is none or more than one."""
        found = [artifact for artifact in self.artifacts if artifact.kind is kind]
        if len(found) != 1:
            raise Tampered(f"the manifest of {self.backup_id} lists {len(found)} artifacts of kind {kind.value}, not one")
        return found[0]


def render(manifest: Manifest) -> str:
    """The manifest's text: sorted keys, one member a line, ASCII, so that a cleartext signature has nothing to fold or trim."""
    return json.dumps(_plain(manifest), indent=1, sort_keys=True, ensure_ascii=True) + "\n"


def parse(text: str) -> Manifest:
    """The manifest that `text` says. Raises Tampered for everything that `render` would not have written."""
    try:
        raw = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
        known = isinstance(raw, dict) and raw.get("format")
        if known != FORMAT:
            raise Tampered(
                f"a manifest of format {str(known)[:40]}, and this version reads format {FORMAT}",
                "a newer backupd wrote it: update this one",
            )
        manifest = typing.cast(Manifest, _read(Manifest, raw, "manifest"))
        _consistent(manifest)
    except (ValueError, OverflowError, RecursionError) as error:
        raise Tampered(
            f"not a manifest: {str(error)[:_LONGEST_ERROR]}",
            "restore another with --backup ID, and find out who wrote this one",
        ) from error
    return manifest


def _consistent(manifest: Manifest) -> None:
    if not BACKUP_ID.fullmatch(manifest.backup_id):
        raise ValueError("backup_id is malformed")
    if not SOURCE_NAME.fullmatch(manifest.source.name):
        raise ValueError("the source's name is malformed")
    for version in (manifest.source.server_version, manifest.tools.pg_dump):
        if not _VERSION.fullmatch(version):
            raise ValueError("a version of PostgreSQL is malformed")
    if len(manifest.source.database) > _LONGEST_DATABASE:
        raise ValueError("the database's name is too long")
    recipients = manifest.recipients
    if not 1 <= len(recipients) <= MOST_RECIPIENTS or len(set(recipients)) != len(recipients):
        raise ValueError(f"the recipients are doubled, none or more than {MOST_RECIPIENTS}")
    if not all(_RECIPIENT.fullmatch(each) for each in recipients):
        raise ValueError("a recipient is no fingerprint")
    names = [artifact.name for artifact in manifest.artifacts]
    if len(set(names)) != len(names) or any(len(name) > 100 or not _ARTIFACT_NAME.fullmatch(name) for name in names):
        raise ValueError("names of artifacts are doubled or malformed")
    for artifact in manifest.artifacts:
        if not 1 <= len(artifact.parts) <= MOST_PARTS or any(not 1 <= part.size <= LARGEST_PART for part in artifact.parts):
            raise ValueError(f"{artifact.name} has a part that is empty or too large, no part, or too many")
        if sum(part.size for part in artifact.parts) != artifact.size:
            raise ValueError(f"the parts of {artifact.name} do not add up to its size")
        head = artifact.head
        if head is not None and not 1 <= head.size <= min(artifact.size, _LARGEST_HEAD):
            raise ValueError(f"{artifact.name} has a head that is empty or too large")
        heads = () if head is None else (head.sha256,)
        for digest in (artifact.sha256, *heads, *(part.sha256 for part in artifact.parts)):
            if not _DIGEST.fullmatch(digest):
                raise ValueError(f"{artifact.name} has a malformed digest")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        found = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        optional = _optional(value.__class__)
        return {name: _plain(each) for name, each in found.items() if each is not None or name not in optional}
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is there twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of a manifest")


def _read(kind: Any, raw: Any, where: str) -> Any:
    """`raw`, as the type `kind` of a field of the dataclasses above; ValueError says where it does not fit."""
    if dataclasses.is_dataclass(kind):
        return _read_fields(typing.cast(type, kind), raw, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if raw is None else _read(arguments[0], raw, where)
    if origin is tuple:
        if not isinstance(raw, list):
            raise ValueError(f"{where} is no list")
        return tuple(_read(arguments[0], each, f"{where}[{index}]") for index, each in enumerate(raw))
    if origin is Mapping:
        if not isinstance(raw, dict):
            raise ValueError(f"{where} is no object")
        return {key: _read(arguments[1], each, f"{where}.{key}") for key, each in raw.items()}
    return _read_scalar(kind, raw, where)


@functools.cache  # a manifest has up to 100,000 parts
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


@functools.cache
def _optional(kind: type) -> frozenset[str]:
    """The members that are left out where they are None, and so are never null."""
    return frozenset(each.name for each in dataclasses.fields(kind) if each.metadata.get("optional"))


def _read_fields(kind: type, raw: Any, where: str) -> Any:
    hints, optional = _hints(kind), _optional(kind)
    if not isinstance(raw, dict) or set(raw) | optional != set(hints):
        wrong = sorted((set(raw) | optional) ^ set(hints)) if isinstance(raw, dict) else []
        raise ValueError(f"{where} has missing or unknown members {', '.join(wrong)[:200]}".rstrip())
    if any(raw.get(name, raw) is None for name in optional):
        raise ValueError(f"{where} has a member that is null and would be left out")
    return kind(**{name: _read(hints[name], each, f"{where}.{name}") for name, each in raw.items()})


def _read_scalar(kind: Any, raw: Any, where: str) -> Any:
    if kind is datetime and isinstance(raw, str) and raw.endswith("Z"):
        return datetime.fromisoformat(raw)
    if isinstance(kind, type) and issubclass(kind, StrEnum) and isinstance(raw, str):
        return kind(raw)
    if type(raw) is kind and kind in (str, int):
        return raw
    raise ValueError(f"{where} is no {getattr(kind, '__name__', kind)}")
