"""Whether what opens a backup and what opens a column are two things: neither does the other's work, and no byte is shared.

Each refusal has its control: the same attempt with the right key succeeds. Of plaintext that an attempt gives, five bytes are
looked at.
"""

from __future__ import annotations

import os
import re
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from subprocess import PIPE

from backupd.checks import Drilled, Figure, Finding, Outcome, Sealed, TotpColumn
from backupd.checks.column import Reader, Row, opened
from backupd.checks.leaks import keys_of
from backupd.checks.scanner import Wanted
from backupd.columns import Cipher, ColumnError
from backupd.columns.ciphers import open_cipher
from backupd.columns.keyring import Keyring
from backupd.columns.pgcrypto import PgCrypto
from backupd.custody.separation import place_of
from backupd.errors import CouldNotVerify, KeyUnusable, Refused
from backupd.openpgp import Home
from backupd.pipeline import Pipeline
from backupd.redact import Secret

NAME = "separation"
HEAD_BYTES = 64 << 10  # of a sealed stream; gpg gives nothing out of less than some 16 KiB
_ARCHIVE = b"PGDMP"  # how every archive of pg_dump's custom format begins
_LOOKED_AT = 1000  # rows, for values that open with the column's own keys
_ROWS = 5  # values of a column that the backup's key is tried on


@dataclass(frozen=True, slots=True)
class Separation:
    """The check `separation`."""

    name: str = NAME

    def run(self, drilled: Drilled) -> Finding:
        figures: dict[str, Figure] = {"columns": len(drilled.columns), "attempts_on_backup": 0, "attempts_on_columns": 0}
        if not drilled.columns:
            return Finding(NAME, Outcome.PASS, "there is no column key to keep apart from the backup's", figures)
        tried = _Tried()
        backup_keys = _backup_keys(drilled.sealed)
        for column in drilled.columns:
            try:
                _try(drilled, column, backup_keys, tried)
            except CouldNotVerify as error:
                tried.doubts.append(f"{column.name}: {error.message}")
        figures |= {"attempts_on_backup": tried.on_backup, "attempts_on_columns": tried.on_columns}
        if tried.problems:
            return Finding(NAME, Outcome.FAIL, "; ".join(tried.problems), figures)
        if not opens_with(drilled.sealed.home, drilled.sealed.head, session_key=drilled.sealed.session_key):
            tried.doubts.append("the backup's own key does not open its first bytes either, so the refusals show nothing")
        if tried.doubts:
            return Finding(NAME, Outcome.COULD_NOT_VERIFY, "; ".join(tried.doubts), figures)
        counts = f"({tried.on_backup} attempts), nor its key a column ({tried.on_columns} attempts)"
        return Finding(NAME, Outcome.PASS, f"no column key opens the backup {counts}", figures)


@dataclass(slots=True)
class _Tried:
    """What was tried, and what came of it."""

    on_backup: int = 0
    on_columns: int = 0
    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def _try(drilled: Drilled, column: TotpColumn, backup_keys: list[Secret], tried: _Tried) -> None:
    if place_of(drilled.sealed.key.locator) in map(place_of, column.locators):
        tried.problems.append(f"the keys of {column.name} and of the backup are kept in the same place")
    kept = column.fetch_keys()
    column_keys = [kept, *keys_of(column.cipher, kept)]
    if _shares_bytes(column_keys, backup_keys):
        tried.problems.append(f"the keys of {column.name} and of the backup share bytes")
    results = list(_on_backup(drilled.sealed, column_keys))
    tried.on_backup += len(results)
    if any(results):
        tried.problems.append(f"a key of {column.name} opens the backup")
    results = list(_on_column(drilled, column, backup_keys))
    tried.on_columns += len(results)
    if any(results):
        tried.problems.append(f"the backup's key opens {column.name}")


def opens_with(home: Home, head: bytes, *, session_key: Secret | None = None, passphrase: Secret | None = None) -> bool:
    """Whether gpg comes to an archive in a sealed stream that begins with `head`, with what the home holds or what is given.

    Neither its exit code nor its reports tell: a cut-off stream fails with every key, and a wrong session key makes noise that
    begins as a message does once in fifty times (seen with gpg 2.2.40).
    """
    fds: list[int] = []
    options = ["--output", "-"]
    try:
        if session_key is not None:
            fds.append(_pipe_with(session_key.reveal().strip()))
            options += ["--override-session-key-fd", str(fds[-1])]
        if passphrase is not None:
            fds.append(_pipe_with(passphrase.reveal()))
            options += ["--pinentry-mode", "loopback", "--passphrase-fd", str(fds[-1])]
        command = home.command("gpg", *options, "--decrypt", pass_fds=tuple(fds))
        with Pipeline([command], stdin=PIPE, stdout=PIPE, deadline_s=120) as pipeline:
            with suppress(BrokenPipeError):  # it may refuse before it has read everything; `head` fits into the pipe
                pipeline.write(head)
            pipeline.close_stdin()
            first = bytearray(len(_ARCHIVE))
            pipeline.read_into(memoryview(first))
    finally:
        for fd in fds:
            os.close(fd)
    return bytes(first) == _ARCHIVE


def _pipe_with(value: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, value + b"\n")
    os.close(writing)
    return reading


def _backup_keys(sealed: Sealed) -> list[Secret]:
    keys = [sealed.key.fetch()]
    if sealed.session_key is not None:
        keys.append(sealed.session_key)
    raw = [_session_bytes(key) for key in keys]
    return keys + [Secret(each, "session key") for each in raw if each]


def _session_bytes(key: Secret) -> bytes:
    """The 32 bytes of a session key as gpg writes it (`9:` and hex), or nothing."""
    match = re.fullmatch(rb"\s*9:([0-9A-Fa-f]{64})\s*", key.reveal())
    return bytes.fromhex(match[1].decode()) if match else b""


def _shares_bytes(column_keys: list[Secret], backup_keys: list[Secret]) -> bool:
    """Whether a key of one side lies, in any spelling, in one of the other."""
    backup = [each for key in backup_keys for each in (key.reveal(), _without_armour(key.reveal()))]
    column = [each.reveal() for each in column_keys]
    return _any_in(column, backup) or _any_in(backup, column)


def _any_in(needles: list[bytes], haystacks: list[bytes]) -> bool:
    wanted = Wanted()
    for needle in needles:
        wanted.key(needle.strip(b"\r\n"))
    raw = {needle for needle in needles if len(needle) >= 8}
    return any(word in haystack for word in {*wanted.keys, *raw} for haystack in haystacks)


def _without_armour(key: bytes) -> bytes:
    """The packets of an armoured OpenPGP key (RFC 4880, 6.2); nothing for anything else."""
    match = re.search(rb"-----BEGIN [^\n]*\n(?:[^\n]+\n)*\s*\n(.*?)\n?(?:=[^\n]{4}\n)?-----END", key, re.DOTALL)
    with suppress(ValueError):
        return b64decode(match[1]) if match else b""
    return b""


def _on_backup(sealed: Sealed, column_keys: list[Secret]) -> Iterator[bool]:
    """Attempts to open the backup with a column's keys: as session key, as passphrase, as OpenPGP secret key."""
    with Home() as empty:
        for key in column_keys:
            raw = key.reveal()
            if len(raw) == 32:
                yield opens_with(empty, sealed.head, session_key=Secret(b"9:" + raw.hex().upper().encode(), "session key"))
            if _session_bytes(key):
                yield opens_with(empty, sealed.head, session_key=key)
            for spelling in {raw.strip(), b64encode(raw), raw.hex().encode()}:
                if len(spelling) <= 255 and b"\n" not in spelling:  # gpg's passphrases are lines
                    yield opens_with(empty, sealed.head, passphrase=Secret(spelling, "passphrase"))
    with Home() as other:
        try:
            other.import_secret(column_keys[0])
        except KeyUnusable:
            yield False  # as it should be: it is no OpenPGP key
        except Refused as error:
            raise CouldNotVerify(error.message, error.hint) from error
        else:
            yield opens_with(other, sealed.head)


def _on_column(drilled: Drilled, column: TotpColumn, backup_keys: list[Secret]) -> Iterator[bool]:
    """Attempts to open the column's first values with the backup's keys. CouldNotVerify when its own open none either."""
    with opened(drilled.connection, column) as reader:
        rows = [row for row in islice(reader.rows(), 1000) if row.value is not None and _opens(reader, reader.cipher, row)][
            :_ROWS
        ]
        if not rows:
            raise CouldNotVerify(f"no value of {column.name} opens with its own keys, so a refusal shows nothing")
        for key in backup_keys:
            ciphers = _as_column_keys(reader, key, rows)
            yield any(_opens(reader, cipher, row) for cipher in ciphers for row in rows)


def _as_column_keys(reader: Reader, key: Secret, rows: list[Row]) -> list[Cipher]:
    """The backup's key as keys of this column's cipher, where it can be one."""
    found: list[Cipher] = []
    decrypt = reader.cipher.open if isinstance(reader.cipher, PgCrypto) else None
    raw = key.reveal()
    ids = {reader.cipher.key_id(row.value) or "" for row in rows if row.value is not None}
    spellings = [key, *(Keyring(id_, {id_: key}).render() for id_ in ids if len(raw) == 32 and id_)]
    spellings += [Secret(urlsafe_b64encode(raw), key.label)] if len(raw) == 32 else []
    for spelling in spellings:
        with suppress(ColumnError):  # KeysUnusable: this is none
            found.append(open_cipher(reader.column.cipher, spelling, decrypt))
    return found


def _opens(reader: Reader, cipher: Cipher, row: Row) -> bool:
    try:
        cipher.decrypt(reader.cell(row), row.value or b"")
    except ColumnError:
        return False
    return True
