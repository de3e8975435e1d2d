"""How a keyring's custodian is read, and given a new one by compare and swap. No key is ever shown, nor to be typed."""

from __future__ import annotations

from dataclasses import dataclass

from backupd.columns.keyring import Keyring
from backupd.custody import Custodian, keeper
from backupd.errors import ConfigError
from backupd.redact import Secret


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


def fetched(custodian: Custodian) -> Kept:
    """The keyring that this custodian keeps. Raises SecretUnavailable and KeysUnusable."""
    seen = custodian.fetch()
    return Kept(custodian, Keyring.parse(seen), seen)
