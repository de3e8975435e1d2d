"""What operations use: an intent before anything is done, an outcome after it, and everything that can be asked of a trail.

    run = trail.intent(Operation.BACKUP, "clinic")     # durable on return; raises TrailError, and then nothing may be done
    …
    run.done(backup_id=…, parts=12)                    # or failed, refused, interrupted

It never decides what an operation does, and it never stores a secret: all text is scrubbed on its way in.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import BinaryIO

from backupd.audit import Checkpoint, Stored, TrailError, TrailStore, chain
from backupd.audit.records import (
    NO_PREDECESSOR,
    Actor,
    Detail,
    Operation,
    Phase,
    Record,
    clean_details,
    clean_text,
    digest,
    parse,
    render,
)
from backupd.errors import BackupdError, Explained, Interrupted, Refused, Tampered

_NO_DETAILS: Mapping[str, Detail] = {}


class Trail:
    """A store, and in whose name we write to it. `clock` gives aware times."""

    def __init__(self, store: TrailStore, actor: Actor, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._store = store
        self._actor = _clean_actor(actor)
        self._clock = clock

    @property
    def where(self) -> str:
        return self._store.where

    def intent(
        self,
        operation: Operation,
        source: str | None = None,
        details: Mapping[str, Detail] = _NO_DETAILS,
        *,
        backup_id: str | None = None,
    ) -> Run:
        """Record that an operation is about to begin; durable on return. Raises TrailError: then it must not begin."""
        run_id = uuid.uuid4().hex
        try:
            record = self.write(run_id, operation, Phase.INTENT, source, backup_id, details)
        except BackupdError as error:
            message = f"{operation.value} was not begun, because it cannot be recorded: {error.message}"
            raise TrailError(message, error.hint or "make the trail writable; `backupd check` looks at it") from error
        return Run(self, record)

    @contextmanager
    def recording(
        self, operation: Operation, *, source: str | None = None, backup_id: str | None = None, **details: Detail
    ) -> Iterator[Run]:
        """An intent before the block, and after it the outcome, whatever ended it; what the block `note`s goes into that.

        When the block fails and its outcome cannot be recorded either, the block's own error is the one that leaves. When it
        did what it should and that cannot be recorded, a TrailError says both.
        """
        run = self.intent(operation, source, details, backup_id=backup_id)
        try:
            yield run
        except BaseException as error:
            with suppress(BackupdError):
                run.end_by(error)
            raise
        try:
            run.end_by(None)
        except BackupdError as error:
            what = " ".join(each for each in (operation.value, run.backup_id or source) if each)
            message = f"{what} was done, and its outcome could not be recorded: {error.message}"
            raise TrailError(message, f"{error.hint or 'make the trail writable'}; then run `backupd audit verify`") from error

    def event(
        self,
        operation: Operation,
        source: str | None = None,
        details: Mapping[str, Detail] = _NO_DETAILS,
        *,
        backup_id: str | None = None,
        run: Run | None = None,
        error: BaseException | str | None = None,
    ) -> Record:
        """Record something that stands alone (a changed configuration, a notification), or happened in the middle of `run`."""
        run_id = uuid.uuid4().hex if run is None else run.run_id
        return self.write(run_id, operation, Phase.EVENT, source, backup_id, details, error)

    def write(
        self,
        run_id: str,
        operation: Operation,
        phase: Phase,
        source: str | None,
        backup_id: str | None,
        details: Mapping[str, Detail],
        error: BaseException | str | None = None,
    ) -> Record:
        """Append one record, scrubbed. Operations use `intent`, the `Run` it returns, and `event`."""
        of_source = None if source is None else clean_text(source)
        of_backup = None if backup_id is None else clean_text(backup_id)
        cleaned = clean_details(details)
        line = None if error is None else clean_text(_describe(error))

        def make(head: Stored | None) -> bytes:
            return render(
                Record(
                    seq=1 if head is None else head.seq + 1,
                    at=self._clock(),  # inside the store's lock, so that one host's times do not go backwards
                    run_id=run_id,
                    operation=operation,
                    phase=phase,
                    actor=self._actor,
                    source=of_source,
                    backup_id=of_backup,
                    details=cleaned,
                    error=line,
                    # Of the bytes as they are now: a change that is hidden behind a stored hash is not carried on.
                    previous=NO_PREDECESSOR if head is None else digest(head.data),
                )
            )

        return parse(self._store.append(make).data)

    def records(self, start: int = 1) -> Iterator[Record]:
        """The records from number `start` on. Raises Tampered at the first that is none; `verify` goes on and says more."""
        for stored in self._store.read(start):
            try:
                yield parse(stored.data)
            except Tampered as error:
                raise Tampered(f"record {stored.seq} of the trail: {error.message}", "run `backupd audit verify`") from error

    def head(self) -> Checkpoint | None:
        """The trail's end, to be kept elsewhere; None when there is no record. Raises Tampered when the last is none."""
        stored = self._store.head()
        return None if stored is None else Checkpoint(stored.seq, digest(stored.data), parse(stored.data).at)

    def verify(self, expected: Checkpoint | None = None, living: Collection[str] = ()) -> chain.Report:
        """Check the whole chain; see `chain.verify`. Without `expected`, a cut-off end and a full rewrite cannot be seen."""
        return chain.verify(self._store.read(), expected, living)

    def backups(self, source: str) -> dict[str, bool]:
        """The ids of the backups of `source` that the trail knows, and whether it says of each that it was done. One pass."""
        seen: dict[str, bool] = {}
        for record in self.records():
            if record.operation is Operation.BACKUP and record.source == source and record.backup_id is not None:
                seen[record.backup_id] = seen.get(record.backup_id, False) or record.phase is Phase.DONE
        return seen

    def kept_in(self, store: str) -> int:
        """How many backups the trail says were done in the store of this URL. Backups of before it noted that do not count."""
        done = (each for each in self.records() if (each.operation, each.phase) == (Operation.BACKUP, Phase.DONE))
        return len({each.backup_id for each in done if each.details.get("store") == store})

    def published(self, backup_id: str) -> str | None:
        """The SHA-256 of the manifest that the run of this backup published, in hex; None where the trail does not tell.

        The first record counts: a later one with the same id is no proof. Raises Tampered.
        """
        for record in self.records():
            if (record.operation, record.phase, record.backup_id) == (Operation.BACKUP, Phase.DONE, backup_id):
                told = record.details.get("manifest_sha256")
                return told if isinstance(told, str) else None
        return None

    def export(self, to: BinaryIO) -> Checkpoint | None:
        """Write the trail as JSON lines that a stranger can check without backupd, and return the checkpoint of its end.

        Each line is {"seq":…,"sha256":"…","record":…}, the record being the stored bytes as they are. So this prints, for each
        line, the hash that the line itself and the next line's `previous` must hold:

            while IFS= read -r line; do r=${line#*\\"record\\":}; printf %s "${r%?}" | sha256sum; done < trail.jsonl

        Bytes that are no record are exported as {"seq":…,"sha256":"…","damaged":"<base64>"}.
        """
        head: Checkpoint | None = None
        for stored in self._store.read():
            label = b'{"seq":%d,"sha256":%s,' % (stored.seq, json.dumps(stored.sha256).encode())
            try:
                head = Checkpoint(stored.seq, digest(stored.data), parse(stored.data).at)
                to.write(label + b'"record":' + stored.data + b"}\n")
            except Tampered:
                head = None
                to.write(label + b'"damaged":"' + base64.b64encode(stored.data) + b'"}\n')
        return head

    def excess_rights(self) -> list[str]:
        """What could be done to the trail beyond reading and appending, one line each: for `check` to warn of."""
        return self._store.excess_rights()


class Run:
    """An operation that was begun. It ends once; ending it twice is a bug. A run that never ends is an orphan in the trail."""

    def __init__(self, trail: Trail, intent: Record) -> None:
        self._trail = trail
        self.intent = intent
        self.backup_id = intent.backup_id
        self.outcome: Record | None = None
        self.notes: dict[str, Detail] = {}

    def note(self, **details: Detail) -> None:
        """Details for the outcome, known before it is."""
        self.notes |= details

    def end_by(self, error: BaseException | None) -> Record:
        """The outcome that this error stands for, or done when there is none, with what was noted."""
        match error:
            case None:
                phase = Phase.DONE
            case Refused():
                phase = Phase.REFUSED
            case Interrupted() | KeyboardInterrupt():
                phase = Phase.INTERRUPTED
            case _:
                phase = Phase.FAILED
        return self._end(phase, None, self.notes, error)

    @property
    def run_id(self) -> str:
        return self.intent.run_id

    def done(self, *, backup_id: str | None = None, **details: Detail) -> Record:
        """It did what it should."""
        return self._end(Phase.DONE, backup_id, details, None)

    def failed(self, error: BaseException | str, *, backup_id: str | None = None, **details: Detail) -> Record:
        """It did not."""
        return self._end(Phase.FAILED, backup_id, details, error)

    def refused(self, error: BaseException | str, *, backup_id: str | None = None, **details: Detail) -> Record:
        """A rule forbids it, and nothing was done."""
        return self._end(Phase.REFUSED, backup_id, details, error)

    def interrupted(self, error: BaseException | str, *, backup_id: str | None = None, **details: Detail) -> Record:
        """A signal, or a deadline, ended it."""
        return self._end(Phase.INTERRUPTED, backup_id, details, error)

    def _end(
        self, phase: Phase, backup_id: str | None, details: Mapping[str, Detail], error: BaseException | str | None
    ) -> Record:
        if self.outcome is not None:
            raise RuntimeError(f"the run {self.run_id} has ended already")
        self.backup_id = backup_id or self.backup_id
        begun = self.intent
        self.outcome = self._trail.write(self.run_id, begun.operation, phase, begun.source, self.backup_id, details, error)
        return self.outcome


def _describe(error: BaseException | str) -> str:
    if isinstance(error, str):
        return error
    return error.message if isinstance(error, Explained) else f"{type(error).__name__}: {error}"


def _clean_actor(actor: Actor) -> Actor:
    return Actor(
        user=clean_text(actor.user),
        host=clean_text(actor.host),
        via=actor.via,
        operator=None if actor.operator is None else clean_text(actor.operator),
        reason=None if actor.reason is None else clean_text(actor.reason),
    )
