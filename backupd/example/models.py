"""The users' table, with an encrypted second factor."""

from __future__ import annotations

import os

from sqlalchemy import BigInteger, Identity, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from backupd.columns.live import LiveKeyring
from backupd.columns.sqlalchemy import sealed
from backupd.custody import SecretRef, open_custodian
from backupd.redact import Secret


def _fetch() -> Secret:
    """From the custodian that KEYRING names: KIND:NAME, such as file:/etc/clinic/keyring.json, or KIND:NAME#FIELD."""
    kind, _, place = os.environ["KEYRING"].partition(":")
    name, _, field = place.partition("#")
    return open_custodian(SecretRef(kind, name, field or None), os.environ).fetch()


keys = LiveKeyring(_fetch)


class User:
    """What every version of the table has. `last_totp_step` makes each code good for one login."""

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]
    is_totp_enabled: Mapped[bool] = mapped_column(default=False)
    last_totp_step: Mapped[int | None] = mapped_column(BigInteger)
    totp_secret_sealed: Mapped[bytes | None]
    totp_secret = sealed("totp_secret_sealed", keys)


class SealedBase(DeclarativeBase):
    """The tables as they are when every secret is encrypted."""


class SealedUser(User, SealedBase):
    __tablename__ = "users"


class MovingBase(DeclarativeBase):
    """The tables as they are while secrets are moved from the column that held them in clear."""


class MovingUser(User, MovingBase):
    __tablename__ = "users"
    totp_secret_in_clear: Mapped[str | None] = mapped_column("totp_secret", String(64))
    totp_secret = sealed("totp_secret_sealed", keys, former="totp_secret_in_clear")
