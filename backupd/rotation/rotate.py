"""A column's values change over to another key, while applications read and write them.

    add      the key joins the keyring, and the archive; nobody encrypts with it yet
             → every application that fetches the keyring at its start alone is started anew, and can read the key
    promote  it becomes the current key: what is written from now on names it
             → the same once more, so that nobody writes under the old key any more
    rows     every value under another key is rewritten

Applications that fetch the keyring anew when they meet an unknown key need nothing in between; for them `all` does all three.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

from backupd.audit.records import Operation
from backupd.audit.trail import Run, Trail
from backupd.columns import KeysUnusable, aes_gcm
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.errors import ConfigError, Refused, Tampered
from backupd.postgres import column_rows
from backupd.postgres.column_rows import Row, Table
from backupd.postgres.dsn import Dsn
from backupd.postgres.session import Connection
from backupd.redact import printable
from backupd.rotation import NOBODY_ELSE, Moved, Pace, Report, RowsLeft, SecretColumn, Sharing, cells, keyrings
from backupd.rotation.batches import Rewriting
from backupd.rotation.keyrings import Both, Kept
from backupd.rotation.watch import Watched


class Stage(StrEnum):
    """In this order; ALL is the three of them in a row."""

    ADD = "add"
    PROMOTE = "promote"
    ROWS = "rows"
    ALL = "all"


_SAMPLE = 100  # rows that are opened before anything is done
_FETCH = "let every application fetch the keyring anew (one that fetches it at its start alone: start it anew)"


def plan(column: SecretColumn, dsn: Dsn, key_id: str, trail: Trail, sharing: Sharing = NOBODY_ELSE) -> Report:
    """What is to be done next for the column to be under `key_id`, and how many rows are under another key. Changes nothing.

    Raises what the stage that is next would.
    """
    _require(column, key_id)
    details = {"action": "rotate", "column": column.name, "stage": "plan", "key_id": key_id}
    with trail.recording(Operation.COLUMNS, source=column.source, **details), cells.primary(dsn) as connection:
        both = keyrings.both(column)
        keyring = both.kept.keyring
        place = _Place(connection, cells.table(connection, column), column)
        stage = _due(keyring, key_id)
        if stage is Stage.ADD:
            _require_free(place, both, key_id, sharing)
        rows = column_rows.count(connection, place.table, column.column, but=aes_gcm.head(key_id))
    figures = {"rows_under_other_keys": rows}
    if stage is Stage.ROWS and not rows:
        return Report(column, "rotate", "done", False, figures, key_id=key_id, next=_retire(keyring))
    return Report(column, "rotate", stage.value, False, figures, key_id=key_id, next=f"--stage {stage.value} --apply")


def rotate(
    column: SecretColumn,
    dsn: Dsn,
    key_id: str,
    stage: Stage,
    trail: Trail,
    pace: Pace,
    moved: Moved = lambda _: None,
    sharing: Sharing = NOBODY_ELSE,
) -> Report:
    """One stage, or all. The keyring is read when nobody else works on the column, and changed when its table lets us work.

    A new key is added for all that `sharing` names: its id is used nowhere there, and it goes into each of their archives.

    Raises RowsLeft when rows could not be rewritten, ConfigError for a stage whose turn it is not, Refused for an id that was
    used, SecretChanged and CustodyError of the keyring's place, Tampered, Busy, SourceError.
    """
    _require(column, key_id)
    details = {"action": "rotate", "column": column.name, "stage": stage.value, "key_id": key_id}
    with (
        trail.recording(Operation.COLUMNS, source=column.source, **details) as run,
        cells.primary(dsn) as connection,
    ):
        place = _Place(connection, cells.table(connection, column), column)
        with column_rows.exclusive(connection, place.table, column.column):
            cells.require_writable(connection, place.table, column)
            both = keyrings.both(column)
            if stage in (Stage.ADD, Stage.ALL):
                both = _add(place, both, key_id, sharing)
            both = _secured(place, both, key_id, sharing)
            if stage in (Stage.PROMOTE, Stage.ALL):
                both = replace(both, kept=_promote(both.kept, key_id))
            if both.archive is not None:
                both = replace(both, archive=keyrings.following(both.archive, both.kept.keyring))
            if stage in (Stage.ROWS, Stage.ALL):
                return _rows(place, both, key_id, stage, run, pace, moved)
    following = "promote" if stage is Stage.ADD else "rows"
    return Report(column, "rotate", stage.value, True, key_id=key_id, next=f"{_FETCH}; then --stage {following} --apply")


@dataclass(frozen=True, slots=True)
class _Place:
    """The column's rows, while nobody else works on them by way of backupd."""

    connection: Connection
    table: Table
    column: SecretColumn

    def under(self, key_id: str, limit: int | None = None) -> Iterator[Row]:
        """The rows whose value names this key."""
        head = aes_gcm.head(key_id)
        return column_rows.rows(self.connection, self.table, self.column.column, head, limit)


def _require_free(place: _Place, both: Both, key_id: str, sharing: Sharing) -> None:
    """Raise unless nobody knows a key of this id, which the keyring has not: a second one would lock people out."""
    if key_id in both.kept.keyring.retired:
        raise ConfigError(f"the key {key_id!r} was retired", "choose a new id: an id stands for one key, for ever")
    if any(key_id in archive.keyring.keys for archive in _archives(both, sharing)):
        raise Refused(
            f"the keyring has no key {key_id!r}, and the archive has one: another of that id would lock people out",
            "if an older keyring was put back, put back the newer one; or choose a new id: the archive's key reads the rows",
        )
    with ExitStack() as held:
        places = [place]
        for column, dsn in sharing.others:
            connection = held.enter_context(cells.primary(dsn))
            table = column_rows.find(connection, column.table, column.id_column)
            if column.column in table.columns:  # else it is still to be added
                places.append(_Place(connection, table, column))
        for each in places:
            if any(True for _ in each.under(key_id, 1)):
                raise Refused(
                    f"rows of {printable(each.column.name)} name a key {key_id!r} that the keyring has not:"
                    " another of that id would lock their owners out",
                    "find the keyring that has it (an older one was put back, or there are two), or choose a new id",
                )
    if backups := sharing.backups(key_id):
        raise Refused(
            f"the keyring has no key {key_id!r}, and backups name one, the newest {max(backups)}:"
            " with another of that id nobody could read what they hold",
            "if an older keyring was put back, put back the newer one; or choose a new id",
        )


def _archives(both: Both, sharing: Sharing) -> list[Kept]:
    """Of this column and of the others, each once."""
    found = [both.archive] if both.archive is not None else []
    for column, _ in sharing.others:
        if column.archive is not None and not any(keyrings.one_place(column.archive, each.custodian) for each in found):
            found.append(keyrings.archive(column, column.archive))
    return found


def _add(place: _Place, both: Both, key_id: str, sharing: Sharing) -> Both:
    kept = both.kept
    if key_id in kept.keyring.keys:
        return both
    _require_free(place, both, key_id, sharing)
    fresh = Keyring.generate(key_id, datetime.now(UTC).date())
    added = kept.replace(
        kept.keyring.joined(fresh),
        f"there, add to `keys` a member {key_id!r} with what `openssl rand -base64 32` prints, to `created` today's date for"
        " it, and leave `current` as it is; then go on with the next stage",
    )
    return replace(both, kept=added)


def _secured(place: _Place, both: Both, key_id: str, sharing: Sharing) -> Both:
    """The key is in the archives too before a row is written under it, and opens what names it. Raises Tampered."""
    if key_id not in both.kept.keyring.keys:
        return both
    archives = [keyrings.archived(each, both.kept.keyring, key_id) for each in _archives(both, sharing)]
    if both.archive is not None:
        both = replace(both, archive=archives[0])
    rows = list(place.under(key_id, _SAMPLE))
    if rows and len(list(cells.closed(place.column, AesGcm(both.reading), rows))) == len(rows):
        raise Tampered(
            f"rows of {printable(place.column.name)} name the key {key_id!r}, and the keyring's key of that id opens none"
            f" of the {len(rows)} that were tried",
            "nothing was written. Find the keyring that they were written with: there are two keys of one id",
        )
    return both


def _promote(kept: Kept, key_id: str) -> Kept:
    if key_id not in kept.keyring.keys:
        raise ConfigError(f"the keyring has no key {key_id!r} yet", "the stage `add` comes first")
    if kept.keyring.current == key_id:
        return kept
    return kept.replace(kept.keyring.promoted(key_id), f"there, set `current` to {key_id!r}; then go on with the next stage")


def _rows(place: _Place, both: Both, key_id: str, stage: Stage, run: Run, pace: Pace, moved: Moved) -> Report:
    column, keyring = place.column, both.kept.keyring
    if keyring.current != key_id:
        due = _due(keyring, key_id)
        raise ConfigError(f"{key_id!r} is not the keyring's current key", f"the stage `{due.value}` comes first")
    watched = Watched.of(column, both, pace.look_s)

    def recode(row: Row) -> bytes:
        cipher = watched.during(tally.passes)
        cell = cells.cell(column, row.row_id)
        plaintext = cipher.decrypt(cell, row.value)
        new = cipher.encrypt(cell, plaintext)
        if cipher.decrypt(cell, new) != plaintext:
            raise Tampered(f"what was encrypted for row {row.row_id} does not decrypt", "nothing was written: report this")
        return new

    head = aes_gcm.head(key_id)
    rewriting = Rewriting(place.connection, place.table, column.column, column.column, recode, head, pace, moved)
    tally = rewriting.tally
    try:
        rewriting.run()
        watched.look()
        for row_id, reason in cells.closed(column, watched.cipher, place.under(key_id)):
            tally.leave(row_id, reason)
    finally:
        run.note(rows_rewritten=tally.done, overtaken=tally.overtaken, rows_left=tally.left_rows)
    figures = {"rows_rewritten": tally.done, "overtaken": tally.overtaken}
    following = "look at the rows that were left; then --stage rows --apply" if tally.left_rows else _retire(keyring)
    report = Report(column, "rotate", stage.value, True, figures, tally.left, tally.left_rows, key_id=key_id, next=following)
    if report.left_rows:
        raise RowsLeft(report)
    return report


def _due(keyring: Keyring, key_id: str) -> Stage:
    if key_id not in keyring.keys:
        return Stage.ADD
    return Stage.PROMOTE if keyring.current != key_id else Stage.ROWS


def _retire(keyring: Keyring) -> str:
    """What to do with the keys that no row names any more."""
    others = [key_id for key_id in keyring.keys if key_id != keyring.current]
    return f"{_FETCH}; then `backupd columns retire` for {', '.join(others)}" if others else ""


def _require(column: SecretColumn, key_id: str) -> None:
    if column.cipher != "aes-256-gcm":
        raise ConfigError(
            f"{column.name} is encrypted with {column.cipher}, whose keys have no ids",
            "move it over to aes-256-gcm: `backupd columns encrypt`",
        )
    try:
        Keyring.generate(key_id)
    except KeysUnusable as error:
        raise ConfigError(error.message, error.hint) from error
