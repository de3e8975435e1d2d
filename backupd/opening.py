"""A stored artifact's way back to plaintext: parts, each proved, into gpg, and gpg's plaintext into whatever reads it.

The one path that restores, deep verifications and drills share. No byte of a part reaches gpg before its digest was compared,
and what came out counts only when every program ended well and gpg said that the message was whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from subprocess import DEVNULL, PIPE
from threading import Thread

from backupd import transfer
from backupd.catalog import name_of
from backupd.errors import ProcessFailed, Refused, SecretUnavailable, Tampered
from backupd.manifest import Artifact, Manifest
from backupd.openpgp import Home, messages
from backupd.openpgp.messages import Unsealing
from backupd.pipeline import Command, Pipeline
from backupd.redact import Secret
from backupd.stores import Store
from backupd.transfer import Progress


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """What opens one backup and no other: a session key for each of its artifacts, by the SHA-256 of the artifact's head.

    They were released for the backup whose manifest, as it is stored, has the digest `manifest_sha256`.
    """

    source: str
    backup_id: str
    manifest_sha256: str
    by_head: Mapping[str, Secret] = field(repr=False)

    def of(self, manifest: Manifest, artifact: Artifact) -> Secret:
        """The session key of an artifact. Raises Refused when these were released for something else."""
        key = None if artifact.head is None else self.by_head.get(artifact.head.sha256)
        if (manifest.source.name, manifest.backup_id) != (self.source, self.backup_id) or key is None:
            raise Refused(
                f"{artifact.name} of {manifest.backup_id} of {manifest.source.name} is not what the session keys were released"
                f" for, which is {self.backup_id} of {self.source}",
                "have them released for this backup: `backupd keys request`",
            )
        return key


@dataclass(frozen=True, slots=True)
class Opening:
    """What opens backups: a home that holds a secret key they are sealed to, or the session keys of one."""

    home: Home
    session_keys: SessionKeys | None = None

    def require(self, manifest: Manifest, sha256: str) -> None:
        """Nothing, when this may open the backup of this manifest, whose stored bytes have this digest; or Refused.

        Whether a secret key opens it, gpg alone can tell, later.
        """
        if self.session_keys is None:
            return
        for artifact in manifest.artifacts:
            self.session_keys.of(manifest, artifact)
        if sha256 != self.session_keys.manifest_sha256:
            raise Refused(
                f"the manifest of {manifest.backup_id} is another than the one that the session keys were released for",
                "find out who replaced it: `backupd check`",
            )

    def session_key(self, manifest: Manifest, artifact: Artifact) -> Secret | None:
        """The artifact's session key, or None where a secret key opens it. Raises Refused."""
        return None if self.session_keys is None else self.session_keys.of(manifest, artifact)


def feed(
    manifest: Manifest,
    artifact: Artifact,
    store: Store,
    opening: Opening,
    reader: Command,
    *,
    forgiven: Callable[[ProcessFailed], bool] = lambda _: False,
    deadline_s: float | None = None,
    progress: Progress = lambda _: None,
) -> None:
    """Send the artifact's plaintext into `reader`, whose output is thrown away, and wait for its end.

    Raises Tampered for a part or a message that is not what it should be, SecretUnavailable without a key that opens it,
    Refused for session keys of another backup, and ProcessFailed for a program that failed of its own; the reader's failure is
    let pass if it is `forgiven`.
    """
    with (
        messages.unseal(opening.home, session_key=opening.session_key(manifest, artifact)) as unsealing,
        Pipeline([unsealing.command, reader], stdin=PIPE, stdout=DEVNULL, deadline_s=deadline_s) as pipeline,
    ):
        _write(pipeline, _parts(manifest, artifact, store, progress))
        try:
            _finish(pipeline, unsealing, manifest, opening)
        except ProcessFailed as error:
            if error.program != reader.name or not forgiven(error):
                raise
            _judge(unsealing, manifest, opening)


def read(
    manifest: Manifest,
    artifact: Artifact,
    store: Store,
    opening: Opening,
    readers: Sequence[Command] = (),
    *,
    chunk: int = 1 << 20,
) -> Iterator[bytes]:
    """The artifact's plaintext, or what the last of `readers` makes of it, in chunks of at most `chunk` bytes.

    What was given out counts only when the iterator has come to its end: it raises what `feed` raises.
    """
    failures: list[BaseException] = []
    with (
        messages.unseal(opening.home, session_key=opening.session_key(manifest, artifact)) as unsealing,
        Pipeline([unsealing.command, *readers], stdin=PIPE, stdout=PIPE) as pipeline,
    ):
        writer = Thread(target=_write_beside, args=(pipeline, _parts(manifest, artifact, store), failures), daemon=True)
        writer.start()
        try:
            buffer = memoryview(bytearray(chunk))
            while count := pipeline.read_into(buffer):
                yield bytes(buffer[:count])
        except BaseException:
            pipeline.kill()  # whoever read has gone: so must what it read from, or the writer would wait for ever
            raise
        finally:
            writer.join()
        if failures:
            raise failures[0]
        _finish(pipeline, unsealing, manifest, opening)


def _parts(manifest: Manifest, artifact: Artifact, store: Store, progress: Progress = lambda _: None) -> Iterator[bytes]:
    return transfer.fetch(store, name_of(manifest.source.name, manifest.backup_id, ""), artifact, progress=progress)


def _write(pipeline: Pipeline, parts: Iterator[bytes]) -> None:
    with suppress(BrokenPipeError):  # a program is gone: `finish` says which, and why
        for part in parts:
            pipeline.write(part)


def _write_beside(pipeline: Pipeline, parts: Iterator[bytes], failures: list[BaseException]) -> None:
    """`_write` on a thread of its own: what it raises is kept, and ends the programs before they can take it for the end."""
    try:
        _write(pipeline, parts)
        pipeline.close_stdin()
    except BaseException as error:  # handed to the reading thread, whatever it is
        failures.append(error)
        pipeline.kill()


def _finish(pipeline: Pipeline, unsealing: Unsealing, manifest: Manifest, opening: Opening) -> None:
    try:
        pipeline.finish()
    except ProcessFailed as error:
        if error.program == unsealing.command.name and error.status is not None and error.status > 0:
            _judge(unsealing, manifest, opening)  # knows better than the last line of stderr what was wrong
        raise
    _judge(unsealing, manifest, opening)


def _judge(unsealing: Unsealing, manifest: Manifest, opening: Opening) -> None:
    """gpg names subkeys, which nobody keeps a list of, and asks for a key where a session key is wrong."""
    try:
        unsealing.judge()
    except (SecretUnavailable, Tampered) as error:
        if opening.session_keys is not None:  # the sealed bytes were proved before: a part that was changed is not why
            raise Tampered(
                f"the released session keys do not open {manifest.backup_id}",
                "the release was forged, or the backup is no whole one: ask the custodian, and have it released anew",
            ) from error
        if isinstance(error, Tampered):
            raise
        raise SecretUnavailable(
            f"no secret key here opens this; it is sealed to {', '.join(manifest.recipients)}",
            "give the secret key of one of these: `backupd keys show` tells which is which",
        ) from error
