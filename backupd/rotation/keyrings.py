"""How a keyring's custodian and its archive are read, and given a new one by compare and swap.

No key is ever shown, nor to be typed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from backupd.columns.keyring import Keyring
from backupd.custody import Custodian, keeper
from backupd.custody.separation import place_of
from backupd.errors import ConfigError, SecretUnavailable, Tampered
from backupd.redact import Secret, printable
from backupd.rotation import SecretColumn

BEGIN = "an archive begins as a copy of the keyring, in a place that no application reads: copy it there once"


@dataclass(frozen=True, slots=True)
class Kept:
    """A keyring, and the secret as its custodian gave it: what the next value is swapped against."""

    custodian: Custodian
    keyring: Keyring
    seen: Secret

    def replace(self, new: Keyring, by_hand: str) -> Kept:
        """Put `new` there, read it back, and return it. Raises ConfigError that says `by_hand` where that cannot be done.

        Raises SecretChanged when somebody else was faster, CustodyError and SecretUnavailable.
        """
        try:
            place = keeper(self.custodian)
        except ConfigError as error:
            raise ConfigError(error.message, by_hand) from error
        place.replace(new.render(), self.seen)
        return fetched(self.custodian)


@dataclass(frozen=True, slots=True)
class Both:
    """A column's keyring, and the archive of its retired keys where one is configured.

    `reading` is what rows are read with: one that came back with an old backup names a key that only the archive has.
    """

    kept: Kept
    archive: Kept | None
    reading: Keyring


def fetched(custodian: Custodian) -> Kept:
    """The keyring that this custodian keeps. Raises SecretUnavailable and KeysUnusable."""
    seen = custodian.fetch()
    return Kept(custodian, Keyring.parse(seen), seen)


def both(column: SecretColumn) -> Both:
    """The column's keyring and archive.

    Raises SecretUnavailable; KeysUnusable, also when one id names two keys; ConfigError where they are one place.
    """
    kept = fetched(column.keys)
    if column.archive is None:
        return Both(kept, None, kept.keyring)
    retired = archive(column, column.archive)
    return Both(kept, retired, kept.keyring.together(retired.keyring))


def archive(column: SecretColumn, custodian: Custodian) -> Kept:
    """The column's archive. Raises as `both` does."""
    if one_place(custodian, column.keys):
        raise ConfigError(
            f"the archive of {printable(column.name)} is its keyring",
            "keep it in another place: a key that leaves the keyring would be lost",
        )
    try:
        return fetched(custodian)
    except SecretUnavailable as error:
        raise SecretUnavailable(error.message, f"{error.hint}; {BEGIN}" if error.hint else BEGIN) from error


def archived(archive: Kept, keyring: Keyring, key_id: str) -> Kept:
    """The archive with this key of the keyring in it, seen there.

    Raises KeysUnusable when it has another key of that id, Tampered when it does not give the key back, and as `replace` does.
    """
    key = keyring.key(key_id)
    created = {key_id: keyring.created[key_id]} if key_id in keyring.created else {}
    together = archive.keyring.together(Keyring(key_id, {key_id: key}, created=created))
    if key_id not in archive.keyring.keys:
        archive = archive.replace(together, f"there, add the key {key_id!r} as it stands in the keyring; then run this again")
    if archive.keyring.keys.get(key_id) != key:
        raise Tampered(f"the archive does not give back the key {key_id!r}", "nothing was taken from the keyring")
    return archive


def following(archive: Kept, keyring: Keyring) -> Kept:
    """The archive with the keyring's current key as its own, seen there.

    Nothing encrypts with an archive. But where the keyring is lost its archive is the copy that is brought back, and would
    bring a retired key into use again. An archive that cannot be written here stays as it is. Raises as `archived` does.
    """
    try:
        archive = archived(archive, keyring, keyring.current)
        if archive.keyring.current == keyring.current:
            return archive
        return archive.replace(archive.keyring.promoted(keyring.current), "")
    except ConfigError:
        return archive


def one_place(first: Custodian, second: Custodian) -> bool:
    """Whether both are the same secret, whatever version of it is named and whatever links two paths lead through."""
    (one, member), (other, its_member) = (_taken_apart(each.locator) for each in (first, second))
    if member != its_member:
        return False
    if one == other:
        return True
    if not (one.startswith("file:") and other.startswith("file:")):
        return False
    paths = [each.removeprefix("file:") for each in (one, other)]
    with suppress(OSError):  # one that is not there yet: then where its links lead to has to do
        return Path(paths[0]).samefile(paths[1])
    return len({os.path.realpath(each) for each in paths}) == 1


def _taken_apart(locator: str) -> tuple[str, str]:
    return place_of(locator), locator.partition("#")[2]
