"""Whether every enrolled second factor still works: its seed decrypts with the column's own keys and makes codes that verify.

Holds one seed at a time. What it reports is counts, key ids and row ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from backupd.checks import Canary, Drilled, Figure, Finding, Outcome, TotpColumn
from backupd.checks.column import Reader, Row, opened
from backupd.columns import ColumnError, SeedInvalid, UnknownKey, totp
from backupd.columns.totp import Parameters
from backupd.errors import BackupdError, CouldNotVerify
from backupd.manifest import Manifest
from backupd.postgres.session import Connection, translated
from backupd.redact import Secret, printable

NAME = "totp"
AT = datetime(2026, 1, 1, tzinfo=UTC)  # any one moment serves: a code is a function of seed and time, and nothing waits for it
_SHOWN = 5


@dataclass(slots=True)
class _Seen:
    """What one column showed. `failures` are row ids by what is wrong with them."""

    values: int = 0
    enrolled: int = 0
    verified: int = 0
    key_ids: Counter[str] = field(default_factory=Counter)
    failures: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    canary: Secret | None = None
    waiting: int = 0  # in the former column
    archived: tuple[str, ...] = ()  # of the keys that opened values, those that the archive alone has

    def fail(self, what: str, row_id: str) -> None:
        self.counts[what] += 1
        shown = self.failures.setdefault(what, [])
        if len(shown) < _SHOWN:
            shown.append(printable(row_id)[:40])

    def problems(self) -> Iterator[str]:
        for what, row_ids in self.failures.items():
            count = self.counts[what]
            yield f"{what} in {count} row{'s'[: count > 1]} ({', '.join(row_ids)}{', …' if count > len(row_ids) else ''})"


@dataclass(frozen=True, slots=True)
class Totp:
    """The check `totp`. FAIL as soon as one enrolled seed of one column does not work."""

    name: str = NAME

    def run(self, drilled: Drilled) -> Finding:
        problems, doubts, notes, figures = list[str](), list[str](), list[str](), dict[str, Figure]()
        verified = 0
        for column in drilled.columns:
            try:
                seen = _look(drilled, column)
            except CouldNotVerify as error:
                doubts.append(f"{column.name}: {error.message}")
                continue
            except BackupdError as error:
                problems.append(f"{column.name}: {error.message}")
                continue
            figures |= _figures(column, seen)
            verified += seen.verified
            notes += _behind(column, seen)
            problems += [f"{column.name}: {each}" for each in (*seen.problems(), *_lost(drilled.manifest, column, seen))]
            wrong, unsure = _canary(column, seen)
            problems += wrong
            doubts += unsure
            if seen.waiting:
                doubts.append(f"{column.name}: {seen.waiting} values are still in its former column, and nobody looked at them")
            if not seen.enrolled:
                doubts.append(f"{column.name} has no enrolled row, which proves nothing")
        doubts += _unconfigured(drilled)
        if not drilled.columns and not drilled.none_claimed:
            doubts += _unnamed(drilled.connection)
        figures = {"columns": len(drilled.columns), "verified": verified, **figures}
        if problems or doubts:
            outcome = Outcome.FAIL if problems else Outcome.COULD_NOT_VERIFY
            return Finding(NAME, outcome, "; ".join(problems + doubts), figures)
        if not drilled.columns:
            return Finding(NAME, Outcome.PASS, "nothing was shown: no column of second factors is configured", figures)
        shown = f"all {verified} enrolled seeds decrypt, make codes and refuse wrong ones"
        return Finding(NAME, Outcome.PASS, "; ".join((shown, *notes)), figures)


def flaw(seed: Secret, parameters: Parameters) -> str | None:
    """What is wrong with this seed, or None: it is base32, its code of one moment verifies, and a wrong code is refused."""
    try:
        key = totp.decode_seed(seed).key
    except SeedInvalid as error:
        return error.message
    if not totp.verify(key, totp.code(key, AT, parameters), AT, parameters):
        return "the right code does not verify"
    if totp.verify(key, totp.wrong_code(key, AT, parameters), AT, parameters):
        return "a wrong code verifies"
    return None


def in_clear(value: bytes) -> bool:
    """Whether a column's value is a seed that nobody encrypted: base32 in one case. (Base64 is in both, a Fernet token too.)"""
    if value not in (value.upper(), value.lower()):
        return False
    try:
        return len(totp.decode_seed(Secret(value, "column value")).key) >= totp.SHORTEST
    except SeedInvalid:
        return False


def _look(drilled: Drilled, column: TotpColumn) -> _Seen:
    seen = _Seen()
    with opened(drilled.connection, column) as reader:
        seen.waiting = reader.waiting()
        for row in reader.rows():
            seen.values += row.value is not None
            seen.enrolled += row.enrolled
            what = _judge(reader, row, seen)
            if what is not None:
                seen.fail(what, row.row_id)
    seen.archived = tuple(sorted(column.archived_ids() & set(seen.key_ids)))
    return seen


def _judge(reader: Reader, row: Row, seen: _Seen) -> str | None:
    """What is wrong with this row, or None. A value that is not enrolled, yet or any more, has to be encrypted all the same."""
    column = reader.column
    is_canary = column.canary is not None and row.row_id == column.canary.row_id
    if row.value is None:
        return "enrolled without a seed" if row.enrolled else None
    if in_clear(row.value):
        return "HAZARD: a seed in clear"
    try:
        key_id = reader.cipher.key_id(row.value)
        if not row.enrolled and not is_canary:
            return None
        seed = reader.cipher.decrypt(reader.cell(row), row.value)
    except UnknownKey as error:
        where = "the keyring" if column.archive is None else "the keyring and the archive"
        return f"the key {error.key_id!r} is missing from {where}"
    except ColumnError as error:
        return error.message
    seen.key_ids[key_id or "(not told)"] += 1
    if is_canary:
        seen.canary = seed
    wrong = flaw(seed, column.parameters)
    seen.verified += row.enrolled and wrong is None
    return wrong


def _behind(column: TotpColumn, seen: _Seen) -> Iterator[str]:
    if seen.archived:
        yield (
            f"{column.name} needs the archived key{'s'[: len(seen.archived) > 1]} {', '.join(seen.archived)}: after a restore,"
            " bring its rows under the current key before the application starts, with `backupd columns rotate`"
        )


def _lost(manifest: Manifest, column: TotpColumn, seen: _Seen) -> Iterator[str]:
    for noted in manifest.column_keys:
        if (noted.table, noted.column) == (column.table, column.column) and noted.rows > seen.values:
            yield f"the manifest counts {noted.rows} values, the restored column {seen.values}"


def _unconfigured(drilled: Drilled) -> Iterator[str]:
    """Columns that were second factors when the backup was made, and that nobody looks at now."""
    known = {(column.table, column.column) for column in drilled.columns}
    for noted in drilled.manifest.column_keys:
        if (noted.table, noted.column) not in known:
            yield f"the manifest names {printable(noted.table)}.{printable(noted.column)}, and the configuration does not"


# Names that applications give to what makes codes; not those of the codes themselves, of times or of flags.
_TELLING = r"(totp|otp|mfa|2fa|two_?factor|second_?factor|authenticator)_?(secret|seed|key)"
_NAMED_SO = """
SELECT format('%%I.%%I.%%I', n.nspname, c.relname, a.attname)
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
   AND a.attnum > 0 AND NOT a.attisdropped AND a.attname ~* %s
 ORDER BY 1 LIMIT 3
"""


def _unnamed(connection: Connection) -> Iterator[str]:
    """Columns that are called like second factors, where the configuration names none and does not say that there are none."""
    with translated("look for columns of second factors"):
        rows = connection.execute(_NAMED_SO, (_TELLING,)).fetchall()
    for (name,) in rows:
        yield f"{printable(name)} looks like second factors, and the configuration names no column (or says `totp = []`)"


def _canary(column: TotpColumn, seen: _Seen) -> tuple[list[str], list[str]]:
    """What the canary account shows: problems, and reasons why it shows nothing."""
    if column.canary is None:
        return [], []
    if seen.canary is None:
        return [f"{column.name}: the canary account {printable(column.canary.row_id)} has no seed that decrypts"], []
    try:
        same = _same_code(seen.canary, column.canary, column.parameters)
    except CouldNotVerify as error:
        return [], [f"{column.name}: {error.message}"]
    except SeedInvalid as error:
        return [f"{column.name}: of the canary, {error.message}"], []
    return ([] if same else [f"{column.name}: the canary account's code is not the one of the seed kept apart"]), []


def _same_code(restored: Secret, canary: Canary, parameters: Parameters) -> bool:
    kept = totp.decode_seed(canary.seed.fetch()).key
    found = totp.decode_seed(restored).key
    return found == kept and totp.code(found, AT, parameters) == totp.code(kept, AT, parameters)


def _figures(column: TotpColumn, seen: _Seen) -> dict[str, Figure]:
    return {
        f"{column.name} values": seen.values,
        f"{column.name} enrolled": seen.enrolled,
        f"{column.name} verified": seen.verified,
        f"{column.name} failed": sum(seen.counts.values()),
        **{f"{column.name} key {key_id}": count for key_id, count in sorted(seen.key_ids.items())},
    }
