"""Registration, enrolment of a second factor, and login. Knows nothing of HTTP.

Each step is a short transaction of its own: none is open while a password is hashed, which takes long on purpose.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Engine, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from backupd.columns import totp
from backupd.example.models import User
from backupd.redact import Secret

ISSUER = "Example Clinic"


class Denied(Exception):
    """Wrong. What of it was wrong is told to nobody."""


class Conflict(Exception):
    """The account is not in the state for this."""


@dataclass(frozen=True, slots=True)
class Accounts:
    """The accounts of one database. `scrypt_log2n` is the cost of a password: memory of 1 KiB times 2 to that."""

    engine: Engine
    model: type[User]
    scrypt_log2n: int = 15
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def register(self, email: str, password: Secret) -> int:
        """A new account, without a second factor; its id. Raises Conflict when the address is taken."""
        user = self.model()
        user.email, user.password_hash = email, hash_password(password, self.scrypt_log2n)
        try:
            with self._session() as session, session.begin():
                session.add(user)
        except IntegrityError:
            raise Conflict("this address is registered") from None
        return user.id

    def enrol(self, email: str, password: Secret) -> Secret:
        """A new second factor, not in force before it is confirmed: the address for the authenticator, shown this once.

        Raises Denied, and Conflict when a second factor is in force: then a stolen password could replace it.
        """
        user_id = self._authenticated(email, password).id
        seed = totp.new_seed()
        uri = totp.provisioning_uri(seed, email, ISSUER)  # first, for it refuses some names
        with self._session() as session, session.begin():
            user = session.get_one(self.model, user_id, with_for_update=True)
            if user.is_totp_enabled:
                raise Conflict("a second factor is in force")
            user.totp_secret = seed
            user.last_totp_step = None
        return uri

    def confirm(self, email: str, password: Secret, code: str) -> None:
        """Put the second factor in force, with the first code of its authenticator. Raises Denied, Conflict."""
        user = self._authenticated(email, password)
        if user.is_totp_enabled or user.totp_secret is None:
            raise Conflict("there is nothing to confirm")
        self._spend(user, user.totp_secret, code)
        with self._session() as session, session.begin():
            session.execute(update(self.model).where(self.model.id == user.id).values(is_totp_enabled=True))

    def login(self, email: str, password: Secret, code: str) -> int:
        """The id of the user who has this password and this code, which is good once. Raises Denied."""
        user = self._authenticated(email, password)
        if not user.is_totp_enabled or user.totp_secret is None:
            raise Denied
        self._spend(user, user.totp_secret, code)
        return user.id

    def _authenticated(self, email: str, password: Secret) -> User:
        with self._session() as session, session.begin():
            user = session.scalar(select(self.model).where(self.model.email == email))
        # Without a user, as long as with one: the time that an answer takes must not tell which addresses are registered.
        expected = user.password_hash if user is not None else f"scrypt${self.scrypt_log2n}${'00' * 16}${'00' * 32}"
        if not check_password(password, expected) or user is None:
            raise Denied
        return user

    def _spend(self, user: User, secret: Secret, code: str) -> None:
        """Accept a code, for this one time. Raises Denied."""
        seed = totp.decode_seed(secret)
        step = totp.accepted_step(seed.key, code, self.clock(), after=user.last_totp_step)
        if step is None:
            raise Denied
        # Compared and set in one statement: of two requests with the same code one finds no row.
        spend = (
            update(self.model)
            .where(self.model.id == user.id, func.coalesce(self.model.last_totp_step, -1) < step)
            .values(last_totp_step=step)
            .returning(self.model.id)
        )
        with self._session() as session, session.begin():
            if session.scalar(spend) is None:
                raise Denied

    def _session(self) -> Session:
        return Session(self.engine, expire_on_commit=False)


def hash_password(password: Secret, log2n: int) -> str:
    """scrypt (RFC 7914) with its cost and salt beside it, so that the cost can be raised later."""
    salt = os.urandom(16)
    return f"scrypt${log2n}${salt.hex()}${_scrypt(password, log2n, salt).hex()}"


def check_password(password: Secret, hashed: str) -> bool:
    """Whether this is the password, in constant time."""
    _, log2n, salt, expected = hashed.split("$")
    return hmac.compare_digest(_scrypt(password, int(log2n), bytes.fromhex(salt)), bytes.fromhex(expected))


def _scrypt(password: Secret, log2n: int, salt: bytes) -> bytes:
    n = 1 << log2n
    return hashlib.scrypt(password.reveal(), salt=salt, n=n, r=8, p=1, maxmem=2 * 128 * 8 * n, dklen=32)
