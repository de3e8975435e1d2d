"""A keyring in a running application: fetched from where it is kept, and fetched again when there is a new one.

A rotation then needs no restart. A value under a key that is not there has the keyring fetched at once; besides, it is fetched
when it is older than `max_age_s`, so that an application which only writes leaves the old key too. Wait that long between the
end of a rotation and the retirement of its old key.

Custodian and network may fail: what is there goes on serving, and a warning is logged. A keyring that is older than what is
there (a file copied back, a replica behind) is not taken, and an error is logged: newer rows could not be read with it, and a
retired key would be written under again. Any number of threads may use one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable

from backupd.columns import Cell, KeysUnusable, UnknownKey, aes_gcm
from backupd.columns.aes_gcm import AesGcm
from backupd.columns.keyring import Keyring
from backupd.errors import BackupdError
from backupd.redact import Secret, secret_due

MAX_AGE_S = 300.0
PAUSE_S = 5.0
_log = logging.getLogger(__name__)


class _Older(KeysUnusable):
    """The custodian gave a keyring from before the one that is held."""


class LiveKeyring:
    """The cipher `aes-256-gcm` with whatever keys its custodian gives now."""

    def __init__(
        self,
        fetch: Callable[[], Secret],
        *,
        max_age_s: float = MAX_AGE_S,
        pause_s: float = PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`fetch` returns the keyring's JSON as a Secret: a custodian's `fetch`, or any function of yours. Nothing is fetched
        yet. Raises TypeError for what is no function.

        After a fetch that failed, or did not bring the key that a value named, none follows for `pause_s`: values under keys
        that do not exist must not turn into requests.
        """
        if not callable(fetch):
            raise TypeError(f"a LiveKeyring takes a function that returns the keyring, not {type(fetch).__name__}")
        self._fetch = fetch
        self._max_age_s = max_age_s
        self._pause_s = pause_s
        self._clock = clock
        self._fetching = threading.Lock()
        self._not_before = clock()
        # One attribute, so that a thread sees a keyring together with its time or not at all.
        self._held: tuple[AesGcm, float] | None = None
        _LIVING.add(self)

    def load(self) -> Keyring:
        """The keyring, fetched if it was not yet. Call it at start, so that an application without keys does not start.

        Raises what `fetch` raises, KeysUnusable, and TypeError when it returned no Secret. Every other method does too while
        nothing was fetched.
        """
        return self._cipher().keyring

    def encrypt(self, cell: Cell, plaintext: Secret) -> bytes:
        """The envelope of `plaintext` for this cell, under the current key."""
        return self._cipher().encrypt(cell, plaintext)

    def decrypt(self, cell: Cell, data: bytes) -> Secret:
        """What was encrypted into this cell. Raises Malformed, UnknownKey (also RetiredKey) or NotAuthentic."""
        cipher = self._cipher()
        try:
            return cipher.decrypt(cell, data)
        except UnknownKey as error:
            newest = self._with_key(error.key_id)
            if newest is cipher:
                raise
        return newest.decrypt(cell, data)

    def key_id(self, data: bytes) -> str:
        """The id of the key that this value names; needs no key. Raises Malformed."""
        return aes_gcm.key_id(data)

    def after_fork(self) -> None:
        """In the child of a fork, where a thread that was fetching is not, and its lock would never be released."""
        self._fetching = threading.Lock()

    def _cipher(self) -> AesGcm:
        held = self._held
        if held is None:
            with self._fetching:
                return (self._held or self._fetched())[0]
        now = self._clock()
        # One thread fetches; the others do not wait, for what they have has not become wrong by its age.
        if now - held[1] >= self._max_age_s and now >= self._not_before and self._fetching.acquire(blocking=False):
            try:
                return self._fetched_or(held[0])
            finally:
                self._fetching.release()
        return held[0]

    def _with_key(self, key_id: str) -> AesGcm:
        """The newest cipher: one with this key, if another thread or the custodian has it."""
        with self._fetching:
            newest = (self._held or self._fetched())[0]
            if key_id in newest.keyring.keys or self._clock() < self._not_before:
                return newest
            newest = self._fetched_or(newest)
            if key_id not in newest.keyring.keys:
                self._not_before = self._clock() + self._pause_s
            return newest

    def _fetched_or(self, before: AesGcm) -> AesGcm:
        try:
            return self._fetched()[0]
        except Exception as error:
            self._not_before = self._clock() + self._pause_s
            # Another's message may hold anything.
            reason = error.message if isinstance(error, BackupdError) else type(error).__name__
            level = logging.ERROR if isinstance(error, _Older) else logging.WARNING
            _log.log(level, "the column keyring could not be fetched anew, the one that is there serves on: %s", reason)
            return before

    def _fetched(self) -> tuple[AesGcm, float]:
        keyring = Keyring.parse(_secret(self._fetch()))
        if self._held is not None:
            _check_not_older(keyring, self._held[0].keyring)
        self._held = (AesGcm(keyring), self._clock())
        return self._held


_LIVING: weakref.WeakSet[LiveKeyring] = weakref.WeakSet()


def _after_fork() -> None:
    for keys in list(_LIVING):
        keys.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _secret(fetched: object) -> Secret:
    if isinstance(fetched, Secret):
        return fetched
    error = secret_due("what a LiveKeyring's function returns", fetched)
    del fetched  # the keys in clear, for whatever logs the local variables of this frame
    raise error


def _check_not_older(keyring: Keyring, held: Keyring) -> None:
    """A key leaves a keyring by being retired, and does not come back. Raises _Older, which names the keys."""
    hint = "put the newest keyring back; if this one is meant, start the application anew"
    gone = [key_id for key_id, key in held.keys.items() if keyring.keys.get(key_id) != key and key_id not in keyring.retired]
    if gone:
        raise _Older(f"what was fetched is another keyring, or an older one: without the key {', '.join(gone)}", hint)
    back = [key_id for key_id in held.retired if key_id in keyring.keys]
    if back:
        raise _Older(f"what was fetched is an older keyring: it has the key {', '.join(back)}, which is retired", hint)
