"""How a store is reached: credentials, endpoints, checksums, and the lock that is put on what is written.

Values only. Secrets are asked for their text when a client is made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from backupd.redact import Secret

Checksum = Literal["when_supported", "when_required"]


@dataclass(frozen=True, slots=True)
class Lock:
    """Objects may not be deleted or changed for `days` after their writing.

    `governance` can be lifted by those with a special right, `compliance` by nobody. (Azure calls them unlocked and locked.)
    """

    mode: Literal["governance", "compliance"]
    days: int

    def until(self) -> datetime:
        """The end of a lock that begins now; whole seconds, because the servers keep no more."""
        return datetime.now(UTC).replace(microsecond=0) + timedelta(days=self.days)


@dataclass(frozen=True, slots=True)
class S3Keys:
    """Static S3 credentials, for servers without roles."""

    access_key_id: str
    secret_access_key: Secret = field(repr=False)
    session_token: Secret | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class S3Access:
    """Which S3 server, as whom. `checksum` is `when_required` for servers that refuse the SHA-256 checksums of AWS."""

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    keys: S3Keys | None = None
    checksum: Checksum = "when_supported"


@dataclass(frozen=True, slots=True)
class AzureLogin:
    """Exactly one way into a storage account; the last two also need the store's `endpoint_url`."""

    connection_string: Secret | None = field(default=None, repr=False)
    sas_token: Secret | None = field(default=None, repr=False)
    account_key: Secret | None = field(default=None, repr=False)
