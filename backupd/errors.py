"""Every error that backupd raises on purpose, with the exit code each one ends the command line with.

    BackupdError                 1  something failed
    ├── ConfigError              2  the configuration or a command's arguments are wrong
    │   ├── ExtraMissing         2  a package that only some need is not installed
    │   └── KeyUnusable          2  an OpenPGP key that cannot do its work: expired, revoked, secret where public is due
    ├── CouldNotVerify           3  nothing was shown to be wrong, and nothing was proved
    │   └── SecretUnavailable    3  a custodian did not give its secret
    │       └── Denied           3  because a server that answers says no: to the login, or to what was asked
    ├── Refused                  4  backupd will not do this: policy, not failure
    │   └── Busy                 4  another run holds the source
    ├── CustodyError             1  a custodian did not take a new value
    │   └── SecretChanged        1  because it holds another one than was seen
    ├── Tampered                 1  stored bytes, a signature or a trail are not what they were
    ├── audit.TrailError         1  the trail cannot be written or read
    ├── columns.ColumnError      1  a value of a column cannot be read; its own tree is in that room
    ├── ProcessFailed            1  a program of ours ended badly
    ├── SourceError              1  PostgreSQL refused, or could not be reached
    │   ├── SourceUnreachable    1
    │   ├── SourceFull           1  the server's disk is full
    │   └── SourceDenied         1
    └── StoreError               1  the object store did
        ├── ObjectMissing        1
        ├── ObjectExists         1  create-only, and the name is taken
        ├── StoreDenied          1
        ├── StoreFull            1
        └── StoreUnavailable     1  worth another try
    Interrupted (BaseException)  130  a signal asked the run to end

A message is one line that says what; a hint is one line that says what to do. Neither ever holds a secret. `Interrupted` is
no `Exception`, so that no check, retry or clean-up takes a signal for a failure of its own and goes on.
"""

from __future__ import annotations

from typing import ClassVar


class Explained:
    """A message and a hint, each one line; what an error and an interruption have in common."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)  # type: ignore[call-arg]  # always beside an exception, whose argument this is
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class BackupdError(Explained, Exception):
    """Something failed; the message says what, the hint what to do about it."""


class ConfigError(BackupdError):
    """The configuration, or the arguments of a command, cannot be used."""

    exit_code = 2


class ExtraMissing(ConfigError):
    """What is to be used needs packages that belong to an extra of backupd's, and they are not there."""

    def __init__(self, needing: str, extra: str) -> None:
        super().__init__(
            needing,
            f"install the extra `{extra}` from where this backupd came: in its clone `pip install '.[{extra}]'`,"
            f" with a wheel `pip install 'FILE.whl[{extra}]'`",
        )


class KeyUnusable(ConfigError):
    """An OpenPGP key that cannot do what it is configured for."""


class CouldNotVerify(BackupdError):
    """Nothing was shown to be wrong, and nothing was proved: never a pass."""

    exit_code = 3


class SecretUnavailable(CouldNotVerify):
    """A custodian did not give the secret it was asked for."""


class Denied(SecretUnavailable):
    """A server that answers says no, to the login or to what was asked: no outage, and nothing that passes by itself."""


class CustodyError(BackupdError):
    """A custodian did not take the value it was given to keep; it holds what it held."""


class SecretChanged(CustodyError):
    """Somebody else has put another value there since it was read. Read it again, and decide again."""


class Refused(BackupdError):
    """What was asked for is against a rule that protects data."""

    exit_code = 4


class Busy(Refused):
    """Another run holds the lock of this source."""


class Tampered(BackupdError):
    """Bytes, a signature or a record are not what was written."""


class ProcessFailed(BackupdError):
    """A program ended with an exit code that is not 0, or by a signal.

    `status` is its exit code, or minus the signal's number, or None when it never started or was ended at a deadline; `stderr`
    holds its last lines, already free of secrets.
    """

    def __init__(
        self, message: str, hint: str | None = None, *, program: str = "", status: int | None = None, stderr: str = ""
    ) -> None:
        super().__init__(message, hint)
        self.program = program
        self.status = status
        self.stderr = stderr


class SourceError(BackupdError):
    """PostgreSQL said no."""


class SourceUnreachable(SourceError):
    """There is no connection to be had, or it was lost."""


class SourceFull(SourceError):
    """The server has no room left; a restore meets that."""


class SourceDenied(SourceError):
    """The role lacks a right, or the password is wrong."""


class StoreError(BackupdError):
    """The object store said no."""


class ObjectMissing(StoreError):
    """There is no object of that name."""


class ObjectExists(StoreError):
    """Objects are written once, and this one is there already."""


class StoreDenied(StoreError):
    """The store's credentials lack the right."""


class StoreFull(StoreError):
    """The store has no room."""


class StoreUnavailable(StoreError):
    """The store did not answer, or answered that it cannot now; another try may succeed."""


class Interrupted(Explained, BaseException):
    """A signal asked the run to end."""

    exit_code = 130
