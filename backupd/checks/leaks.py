"""Whether the dump, opened and decompressed, holds a second factor, a column key or a canary in clear.

A search that finds nothing proves nothing, unless it would have found something. So it counts only after a control: in a copy
of the stream's first bytes a planted seed and a planted key, in every spelling, are found by the same code, whole and cut in
two; and only if the stream was a dump with as many rows as the manifest says. (In pg_dump's own format, compressed, no search
ever finds anything.)
"""

from __future__ import annotations

import re
import secrets
from base64 import b32encode as base32
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from backupd.checks import Drilled, Figure, Finding, Outcome, TotpColumn
from backupd.checks.column import opened
from backupd.checks.scanner import Hit, Report, Scanner, Wanted, looks_like_a_seed
from backupd.checks.totp import in_clear
from backupd.columns import ColumnError, SeedInvalid, totp
from backupd.columns.keyring import FernetKeys, Keyring
from backupd.errors import BackupdError, CouldNotVerify
from backupd.manifest import Kind, Level, Manifest
from backupd.redact import Secret, printable

NAME = "leaks"
_DUMP = b"PostgreSQL database dump"  # how pg_restore's SQL begins, whatever its version
_SAMPLE = 16 << 10
_SHOWN = 3
_NOT_LOOKED_INTO = "not looked into: values that are compressed, encrypted or encoded twice, and what line ends or pages break"


@dataclass(frozen=True, slots=True)
class Leaks:
    """The check `leaks`. A shape in clear is a FAIL even when a custodian is down; without known secrets nothing is a PASS."""

    name: str = NAME

    def run(self, drilled: Drilled) -> Finding:
        wanted = Wanted()
        doubts = [doubt for column in drilled.columns for doubt in _gather(drilled, column, wanted)]
        markers = Markers.plant(wanted)
        reports = {}
        for kind in (Kind.DATABASE, Kind.GLOBALS):
            if any(artifact.kind is kind for artifact in drilled.manifest.artifacts):
                reports[kind] = _scan(drilled, kind, wanted, markers, doubts)
        hits, places, size = Counter[Hit](), Counter[str](), 0
        for report in reports.values():
            hits += report.hits
            places += report.places
            size += report.size
        doubts += _unread(drilled.manifest, reports.get(Kind.DATABASE, Report()))
        figures: dict[str, Figure] = {
            "bytes_scanned": size,
            "tables_scanned": sum(report.tables for report in reports.values()),
            "rows_scanned": sum(report.rows for report in reports.values()),
            "seeds_known": wanted.seeds - 1,
            "markers_planted": len(markers.spellings) * len(reports),
            **{f"hits: {hit.value}": hits[hit] for hit in Hit},
        }
        if hits:
            what = ", ".join(f"{hit.value} ({hits[hit]})" for hit in Hit if hits[hit])
            where = ", ".join(f"{printable(place)[:80]} ({count})" for place, count in places.most_common(_SHOWN))
            more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
            return Finding(NAME, Outcome.FAIL, f"HAZARD: the dump holds secrets in clear: {what}; in {where}{more}", figures)
        if doubts:
            return Finding(NAME, Outcome.COULD_NOT_VERIFY, "; ".join(doubts), figures)
        detail = f"no seed, key or canary in {size} bytes of SQL, and every planted marker was found; {_NOT_LOOKED_INTO}"
        return Finding(NAME, Outcome.PASS, detail, figures)


@dataclass(frozen=True, slots=True)
class Markers:
    """Secrets of no one's, made for one scan, in the spellings that they must be found in."""

    spellings: tuple[tuple[Hit, bytes], ...] = field(repr=False)

    @classmethod
    def plant(cls, wanted: Wanted) -> Markers:
        """New markers, the known ones among them made known to `wanted`."""
        known, key, unknown = secrets.token_bytes(20), secrets.token_bytes(32), secrets.token_bytes(20)
        while not looks_like_a_seed(base32(unknown)):  # one in a hundred does not
            unknown = secrets.token_bytes(20)
        wanted.seed(base32(known), known)
        wanted.key(key)
        text = base32(known)
        return cls(
            (
                (Hit.SEED, text),
                (Hit.SEED, text.lower()),
                (Hit.SEED, b" ".join(re.findall(b"....", text))),
                (Hit.SEED, b"\\\\x" + known.hex().encode()),
                (Hit.SEED, b"\\\\x" + text.hex().encode()),
                (Hit.SEED, b64encode(known)),
                (Hit.SEED, b"seed1" + text.lower() + b"s"),
                (Hit.SEED, b"\\\\x00ff" + known.hex().encode() + b"00"),
                (Hit.SEED, b"SELECT pg_catalog.lowrite(0, '\\x7b22" + text.hex().encode() + b"227d');"),
                (Hit.SEED, b64encode(b"secret=" + text + b"&digits=6")),
                (Hit.KEY, b"\\\\x" + key.hex().encode()),
                (Hit.KEY, b64encode(key)),
                (Hit.KEY, urlsafe_b64encode(key)),
                (Hit.SHAPE, base32(unknown)),
            )
        )

    def missed(self, wanted: Wanted, sample: bytes) -> int:
        """How many markers a scan does not find when they stand at the end of `sample`, in one chunk or across two."""
        before = sample + b"\n1\t"
        blank = _hits(wanted, before, b"\n")
        missed = 0
        for hit, spelling in self.spellings:
            middle = len(spelling) // 2
            whole = _hits(wanted, before + spelling + b"\n")
            cut = _hits(wanted, before + spelling[:middle], spelling[middle:] + b"\n")
            missed += not whole[hit] == cut[hit] == blank[hit] + 1
        return missed


def _hits(wanted: Wanted, *chunks: bytes) -> Counter[Hit]:
    scanner = Scanner(wanted)
    for chunk in chunks:
        scanner.feed(chunk)
    return scanner.close().hits


def _scan(drilled: Drilled, kind: Kind, wanted: Wanted, markers: Markers, doubts: list[str]) -> Report:
    """Scan one artifact, and say in `doubts` why its scan proves nothing, if so."""
    scanner, head = Scanner(wanted), b""
    with drilled.unsealed(kind) as chunks:
        for chunk in chunks:
            if len(head) < _SAMPLE:
                head += chunk[:_SAMPLE]
            scanner.feed(chunk)
    if kind is Kind.DATABASE and _DUMP not in head[:_SAMPLE]:
        doubts.append("the scan is blind: what it read is not the SQL of a dump")
    missed = markers.missed(wanted, head[:_SAMPLE])
    if missed:
        planted = f"{len(markers.spellings)} markers planted in the {kind.value}"
        doubts.append(f"the scan is blind: it does not find {missed} of {planted}")
    return scanner.close()


def _unread(manifest: Manifest, report: Report) -> Iterator[str]:
    """Whether the scan saw fewer rows than the dump holds. More are no wonder: an extension's tables are not counted."""
    if manifest.expect.level is Level.OFF:
        return
    expected = sum(table.rows for table in manifest.expect.tables.values() if table.kind != "m")  # a view's rows are not dumped
    if report.rows < expected:
        yield f"the scan is blind: it saw {report.rows} rows, and the backup holds {expected}"


def _gather(drilled: Drilled, column: TotpColumn, wanted: Wanted) -> Iterator[str]:
    """Make the secrets of one column known, and say why some are not. What does not decrypt is for the check `totp` to say."""
    if column.canary is not None:
        try:
            _know(column.canary.seed.fetch(), wanted)
        except CouldNotVerify as error:
            yield f"the canary of {column.name} was not looked for: {error.message}"
    try:
        for key in keys_of(column.cipher, column.fetch_keys()):
            if not wanted.key(key.reveal()):
                yield f"a key of {column.name} is too short to be looked for"
        with opened(drilled.connection, column) as reader:
            for row in reader.rows():
                if row.value is None:
                    continue
                if in_clear(row.value):
                    _know(Secret(row.value, "column value"), wanted)
                    continue
                try:
                    _know(reader.cipher.decrypt(reader.cell(row), row.value), wanted)
                except ColumnError:
                    continue
    except BackupdError as error:
        yield f"the seeds of {column.name} were not looked for: {error.message}"


def _know(seed: Secret, wanted: Wanted) -> None:
    try:
        wanted.seed(seed.text().encode(), totp.decode_seed(seed).key.reveal())
    except SeedInvalid:
        wanted.key(seed.reveal())  # no seed, but somebody encrypted it


def keys_of(cipher: str, kept: Secret) -> list[Secret]:
    """The keys themselves, as bytes, and as the text that they are kept as. Raises KeysUnusable."""
    if cipher == "aes-256-gcm":
        return list(Keyring.parse(kept).keys.values())
    if cipher == "fernet":
        return [Secret(urlsafe_b64decode(key.reveal()), key.label) for key in FernetKeys.parse(kept).keys]
    return [Secret(kept.text(), kept.label)]
