"""The keys that rows are rewritten with, looked at again and again while that goes on.

Until a rewritten row's key is seen in the keyring, its owner's secret hangs on this process alone. So a key that is no longer
there, or another one, ends the run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from backupd.columns import KeysUnusable
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.errors import BackupdError, SecretChanged, SecretUnavailable
from backupd.redact import Secret
from backupd.rotation import SecretColumn, keyrings
from backupd.rotation.keyrings import Both


@dataclass(slots=True)
class Watched:
    """The column's keyring with `key_id` as the current key, and the archive; `cipher` writes with it and reads with all."""

    column: SecretColumn
    key_id: str
    key: Secret
    cipher: AesGcm
    look_s: float
    _passes: int = 0
    _looked: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, column: SecretColumn, both: Both, look_s: float) -> Watched:
        """As it was just fetched, to be looked at every `look_s` seconds within a pass."""
        keyring = both.kept.keyring
        return cls(column, keyring.current, keyring.key(keyring.current), AesGcm(both.reading), look_s)

    def during(self, passes: int) -> AesGcm:
        """The cipher; before it is used in a new pass, and at times within one, the keys are looked at again.

        Raises as `look` does.
        """
        if passes != self._passes or time.monotonic() - self._looked >= self.look_s:
            self.look()
            self._passes = passes
        return self.cipher

    def look(self) -> None:
        """Raises SecretChanged when the key is gone, another one, or not the current one, and when nobody can say."""
        try:
            both = keyrings.both(self.column)
            reading = both.reading
        except (SecretUnavailable, KeysUnusable) as error:
            raise SecretChanged(
                f"while rows were rewritten: {error.message}",
                f"rows are under the key {self.key_id!r} by now: let a keyring with it be read again, then run the stage again",
            ) from error
        keyring = both.kept.keyring
        if keyring.keys.get(self.key_id) != self.key:
            raise SecretChanged(
                f"the keyring was replaced while rows were rewritten: {self.key_id!r} is"
                f" {'another key now' if self.key_id in keyring.keys else 'not in it any more'}",
                self._way_out(both),
            )
        if keyring.current != self.key_id:
            raise SecretChanged(
                f"{self.key_id!r} is not the keyring's current key any more: somebody made it {keyring.current!r}",
                "nothing is lost; bring the rows under that one:"
                f" `backupd columns rotate {self.column.source} --to {keyring.current} --stage rows --apply`",
            )
        if both.archive is not None and both.archive.keyring.keys.get(self.key_id) != self.key:
            raise SecretChanged(
                f"the archive was replaced while rows were rewritten: it has not the key {self.key_id!r}",
                "nothing is lost, the keyring has it; look who replaced the archive, and run the stage again",
            )
        self.cipher = AesGcm(reading)
        self._looked = time.monotonic()

    def _way_out(self, both: Both) -> str:
        """What to do about a key that is gone; without an archive it joins the keyring again, if it can."""
        if both.archive is not None and both.archive.keyring.keys.get(self.key_id) == self.key:
            return "rows need the key that was there, and the archive has it: put back the keyring of before"
        try:
            if self.key_id not in both.kept.keyring.keys:
                alone = Keyring(self.key_id, {self.key_id: self.key})
                both.kept.replace(both.kept.keyring.joined(alone), "")
                return (
                    "it was put back as a key that only reads, for rows need it; look who changed the keyring, then `promote`"
                )
        except BackupdError:  # then by hand, as below
            pass
        return "put back the keyring of before at once: rows need its key, and no archive has it"
