"""What may stand in the configuration: its tables, their keys, defaults and limits.

The descriptions are the text of docs/configuration.md. Every table is frozen, strict about types and refuses unknown keys. No
table holds a secret; a secret is a `SecretRef`, and a connection string with a password in it is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from backupd.config.cron import check_cron
from backupd.config.problems import Hinted
from backupd.config.references import File, SecretRef, Table, Text, path
from backupd.config.servers import EntraIdentity, Vault, VaultIdentity

__all__ = ["Config", "SecretRef", "Source", "Table", "Totp"]

SOURCE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
MOST_RECIPIENTS = 16  # that a manifest may name
_HIGHEST_LEVEL = {"gzip": 9, "lz4": 12, "zstd": 22}  # pg_dump(1), --compress; each begins at 1


def _scalar(value: object) -> str | int | float | bool:
    if isinstance(value, str | int | float):
        return value
    raise Hinted("expected text, a number, true or false")


def _row_id(value: object) -> str:
    if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
        return str(value)
    raise Hinted("expected a row's id: a number, or text in quotes")


def _source_name(value: str) -> str:
    if not SOURCE_NAME.fullmatch(value):
        hint = "use up to 63 lower-case letters, digits, - _ and . and begin with a letter or digit"
        raise Hinted("cannot be the name of a source", hint)
    return value


SourceName = Annotated[str, AfterValidator(_source_name)]
Cron = Annotated[str, AfterValidator(check_cron)]
Scalar = Annotated[str | int | float | bool, PlainValidator(_scalar)]
Many = Field(strict=False)  # TOML has lists where these tables have tuples; what is in them stays strict


class Lock(Table):
    """Nobody can delete or change a backup for that long: S3 Object Lock, Azure immutability."""

    mode: Literal["governance", "compliance"] = Field(
        description="`governance` can be lifted by a special right, `compliance` by nobody."
    )
    days: int = Field(ge=1, le=36500, description="Days from the writing on.")


class Store(Table):
    """Where backups go."""

    url: Text = Field(
        description="`s3://bucket/prefix`, `azure://container/prefix` or `file:///directory`; never with credentials."
    )
    endpoint_url: Text | None = Field(None, description="An S3-compatible server, or the Azure storage account's blob service.")
    region: Text | None = Field(None, description="S3: the region, where the SDK does not know it.")
    profile: Text | None = Field(None, description="S3: a profile of the AWS configuration. Default: the SDK's own chain.")
    access_key_id: Text | None = Field(None, description="S3: static credentials, for servers without roles.")
    secret_access_key: SecretRef | None = Field(None, description="S3: the other half of `access_key_id`.")
    connection_string: SecretRef | None = Field(
        None, description="Azure: a connection string. Default: the workload's identity."
    )
    checksum: Literal["when_supported", "when_required"] = Field(
        "when_supported", description="S3: `when_required` for servers that refuse the checksums of AWS."
    )
    lock: Lock | None = Field(None, description="Write-once protection; the bucket must have been made for it.")

    @property
    def scheme(self) -> str:
        """`s3`, `azure` or `file`."""
        return self.url.split(":", 1)[0]

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = _split(value)
        if parts is None or parts.scheme not in ("s3", "azure", "file"):
            raise Hinted("names no store", "write s3://bucket/prefix, azure://container/prefix or file:///directory")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise Hinted("holds more than a place", "credentials are configured apart, never in the url")
        if parts.scheme == "file" and (parts.netloc or not parts.path.strip("/")):
            raise Hinted("names no directory", "write it with three slashes: file:///var/lib/backupd/store")
        if parts.scheme != "file" and not parts.netloc:
            raise Hinted("names no bucket or container", f"write {parts.scheme}://name/prefix")
        return value

    @field_validator("endpoint_url")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        parts = _split(value or "https://x")
        if parts is None or parts.scheme not in ("http", "https") or not parts.netloc:
            raise Hinted("is not the address of a server", "write https://host or https://host:port")
        if "@" in parts.netloc or parts.query:
            raise Hinted("holds more than an address", "credentials are configured apart, never in the url")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        needs = {
            "region": "s3",
            "profile": "s3",
            "access_key_id": "s3",
            "secret_access_key": "s3",
            "connection_string": "azure",
        }
        for key, scheme in needs.items():
            if getattr(self, key) is not None and self.scheme != scheme:
                raise Hinted(f"means nothing to a store at {self.scheme}://", f"remove {key}", key=key)
        for key in ("endpoint_url", "lock"):
            if getattr(self, key) is not None and self.scheme == "file":
                raise Hinted("means nothing to a store at file://", f"remove {key}, or use another store", key=key)
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise Hinted("access_key_id and secret_access_key come together", "give both, or neither")
        if self.profile and self.access_key_id:
            raise Hinted("profile and access_key_id exclude each other", "keep one of them")
        return self


class Encryption(Table):
    """Who can read backups, and who vouches for them."""

    recipients: Annotated[tuple[File, ...], Many] = Field(
        (), description="Public OpenPGP keys, a file each; at least two of them."
    )
    single_recipient: bool = Field(False, description="Allow one recipient: who loses that key loses every backup.")
    signing_key: SecretRef | None = Field(
        None, description="The secret key that signs manifests and the trail; it opens nothing."
    )
    signers: Annotated[tuple[File, ...], Many] = Field(
        (),
        description="Public keys whose signatures count. Default: that of `signing_key`. A host that only restores needs this.",
    )

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.signing_key is None and not self.signers:
            raise Hinted("is missing", "name the key that signs, or signers on a host that only restores", key="signing_key")
        if self.signing_key is not None and not self.recipients:
            raise Hinted("is missing", "name the public keys of operations and of an offline escrow", key="recipients")
        if len(set(self.recipients)) != len(self.recipients):
            raise Hinted("names a file twice", key="recipients")
        if len(self.recipients) > MOST_RECIPIENTS:
            raise Hinted(f"names more than {MOST_RECIPIENTS} keys", "fewer people who open backups will do", key="recipients")
        if len(self.recipients) == 1 and not self.single_recipient:
            raise Hinted(
                "one key is too few, for who loses it loses every backup",
                "add an escrow key that is kept offline, or set single_recipient = true",
                key="recipients",
            )
        return self


class Audit(Table):
    """Where the trail of everything done is kept."""

    url: Text = Field(description="`sqlite:////var/lib/backupd/audit.db` (four slashes: an absolute path) or `postgresql://…`.")
    password: SecretRef | None = Field(None, description="PostgreSQL: the password of the role in `url`.")

    @property
    def is_sqlite(self) -> bool:
        """Whether the trail is a file on this host; `sqlite_path` names it."""
        return self.url.startswith("sqlite:")

    @property
    def sqlite_path(self) -> Path:
        """The file of a trail in SQLite."""
        return Path(self.url.removeprefix("sqlite:///"))

    @field_validator("url")
    @classmethod
    def _url(cls, value: str, info: ValidationInfo) -> str:
        if value.startswith("sqlite:///") and len(value) > len("sqlite:////"):
            return f"sqlite:///{path(value.removeprefix('sqlite:///'), info)}"
        if not value.startswith(("postgresql://", "postgres://")):
            raise Hinted("names no trail", "write sqlite:////var/lib/backupd/audit.db or postgresql://role@host/database")
        return _without_password(value)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.is_sqlite and self.password is not None:
            raise Hinted("means nothing to a trail in SQLite", "remove password", key="password")
        return self


class Retention(Table):
    """How many of the newest daily, weekly, monthly and yearly backups stay."""

    daily: int = Field(0, ge=0, description="Days.")
    weekly: int = Field(0, ge=0, description="Weeks.")
    monthly: int = Field(0, ge=0, description="Months.")
    yearly: int = Field(0, ge=0, description="Years.")

    @model_validator(mode="after")
    def _keeps(self) -> Self:
        if not (self.daily or self.weekly or self.monthly or self.yearly):
            raise Hinted("would keep nothing", "leave retention out to keep everything")
        return self


class Canary(Table):
    """An account made for drills, whose secret is also kept elsewhere: both must give the same code."""

    id: Annotated[str, PlainValidator(_row_id)] = Field(description="The row's id.")
    secret: SecretRef = Field(description="Its TOTP secret in base32, kept apart from the database.")


class Former(Table):
    """Where the secrets were before, while `backupd columns encrypt` moves them over. Remove this table when it has."""

    column: Text = Field(description="The column they are moved from.")
    cipher: Literal["plaintext", "fernet", "pgcrypto"] = Field(description="How they are kept there.")
    keys: SecretRef | None = Field(None, description="Its Fernet keys, or its pgcrypto passphrase.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.cipher == "plaintext") != (self.keys is None):
            told = "means nothing to plaintext" if self.keys is not None else f"is missing: what opens {self.cipher}?"
            raise Hinted(told, "fernet and pgcrypto have keys, plaintext has none", key="keys")
        return self


class Totp(Table):
    """A column that holds second-factor secrets. A drill opens every one of them and shows that it yields codes."""

    table: Text = Field(description='`users` or `schema.users`, quoted where SQL wants that: `public."Users"`.')
    id_column: Text = Field(description="The primary key.")
    column: Text = Field(description="The encrypted secrets.")
    enrolled: Text | None = Field(
        None,
        description="A boolean column: the rows for which it is true must have a secret. With one of text a restore test "
        "fails, and its report quotes a value.",
    )
    cipher: Literal["aes-256-gcm", "fernet", "pgcrypto"] = Field(description="How the column is encrypted.")
    keys: SecretRef = Field(description="The column keys; they may have nothing in common with the keys that open backups.")
    archive: SecretRef | None = Field(
        None,
        description="The keyring of retired column keys, which old backups are still opened with. No application reads it.",
    )
    rotate_days: int = Field(365, ge=1, description="`check` raises an alarm when the current column key is older.")
    former: Former | None = Field(None, description="The column that the secrets are moved from.")
    issuer: Text | None = Field(None, description="The issuer that applications show.")
    algorithm: Literal["SHA1", "SHA256", "SHA512"] = Field("SHA1", description="RFC 6238's hash.")
    digits: int = Field(6, ge=6, le=8, description="Digits of a code.")
    period: int = Field(30, ge=1, le=3600, description="Seconds that a code is good for.")
    canary: Canary | None = Field(None, description="A canary account.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for key in ("archive", "former"):
            if getattr(self, key) is not None and self.cipher != "aes-256-gcm":
                raise Hinted(f"means nothing to a {self.cipher} column", "name the aes-256-gcm column beside it", key=key)
        if self.former is not None and self.former.column == self.column:
            raise Hinted("is the column itself", "encrypted values go to a column of their own", key="former")
        return self


class Sql(Table):
    """A question that a restored database must answer as expected."""

    name: Text = Field(description="What the check is called in reports.")
    query: Text = Field(description="One SELECT.")
    expect: Annotated[tuple[Annotated[tuple[Scalar, ...], Many], ...], Many] = Field(description="The rows: a list of lists.")


class Source(Table):
    """A database to protect; its name is what commands, reports and the store call it."""

    dsn: Text = Field(description="`postgresql://role@host/database` or `host=… dbname=…`, without a password.")
    password: SecretRef | None = Field(None, description="The password of the role in `dsn`.")
    schedule: Cron | None = Field(None, description="When the daemon makes backups: cron, in UTC.")
    retention: Retention | None = Field(None, description="Which backups stay. Default: all.")
    expectations: Literal["rows", "digests", "off"] = Field(
        "rows", description="What a restore must show: row counts, row digests of every table, or nothing."
    )
    compression: Text = Field("auto", description="`auto`, `none`, or pg_dump's method and level, such as `zstd:3`.")
    lock_timeout_s: int = Field(30, ge=1, le=86400, description="How long a backup waits for a lock on a table, in seconds.")
    deadline_minutes: int = Field(720, ge=1, le=44_640, description="How long a backup may take before it is stopped.")
    clients: File | None = Field(None, description="The directory of pg_dump and pg_restore. Default: the newest installed.")
    globals: bool = Field(True, description="Whether roles are backed up too.")
    totp: Annotated[tuple[Totp, ...], Many] = Field(
        (), description="Columns with second-factor secrets. `totp = []` says that there are none."
    )
    sql: Annotated[tuple[Sql, ...], Many] = Field((), description="Questions of your own for a drill.")
    columns_dsn: Text | None = Field(
        None, description="As `dsn`, with the role that `columns encrypt` and `columns rotate` write with."
    )
    columns_password: SecretRef | None = Field(None, description="The password of the role in `columns_dsn`.")

    @field_validator("dsn", "columns_dsn")
    @classmethod
    def _dsn(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.startswith(("postgresql://", "postgres://")) and not re.match(r"\s*\w+\s*=", value):
            raise Hinted("is not a connection string", "write postgresql://role@host/database or host=… dbname=…")
        return _without_password(value)

    @field_validator("compression")
    @classmethod
    def _compression(cls, value: str) -> str:
        match = re.fullmatch(r"auto|none|(gzip|lz4|zstd)(?::([0-9]{1,2}))?", value)
        if match is None:
            raise Hinted("is no compression", "use auto, none, or one of gzip, lz4 and zstd, with a level as in zstd:3")
        method, level = match.groups()
        if level is not None and not 1 <= int(level) <= _HIGHEST_LEVEL[method]:
            raise Hinted(f"is no level of {method}", f"use {method}:1 to {method}:{_HIGHEST_LEVEL[method]}")
        return value

    @model_validator(mode="after")
    def _once(self) -> Self:
        if len({(each.table, each.column) for each in self.totp}) != len(self.totp):
            raise Hinted("a column is there twice", key="totp")
        if len({each.name for each in self.sql}) != len(self.sql):
            raise Hinted("a name is there twice", key="sql")
        if self.columns_password is not None and self.columns_dsn is None:
            raise Hinted("is the password of nobody", "write columns_dsn beside it", key="columns_password")
        return self


class Drill(Table):
    """The restore test, and what was promised."""

    schedule: Cron | None = Field(None, description="When the daemon drills: cron, in UTC.")
    secret_key: SecretRef | None = Field(None, description="The secret key of a recipient, there for the length of a drill.")
    max_age_days: int = Field(92, ge=1, description="An older last drill is a failing state.")
    rto_minutes: int = Field(60, ge=1, description="How long a restore may take.")
    rpo_hours: int = Field(26, ge=1, description="How old the newest backup may be.")
    directory: File | None = Field(
        None,
        description="Where a scratch cluster may lie when shared memory has no room; its data is then on that disk.",
    )
    vault: VaultIdentity | None = Field(None, description="Who opens backups and columns. Default: who makes backups.")
    azure_key_vault: EntraIdentity | None = Field(None, description="Who opens backups and columns, to Azure Key Vault.")


class Limits(Table):
    """What a run may use."""

    upload_concurrency: int = Field(2, ge=1, le=16, description="Parts on their way at once; each is held in memory.")


class Config(Table):
    """The whole file."""

    store: Store
    encryption: Encryption
    audit: Audit
    sources: dict[SourceName, Source] = Field(default_factory=dict)
    drill: Drill = Drill()
    limits: Limits = Limits()
    vault: Vault | None = None
    azure_key_vault: EntraIdentity | None = None

    _path: Path = PrivateAttr(Path())
    _digest: str = PrivateAttr("")

    @model_validator(mode="after")
    def _served(self) -> Self:
        if self.vault is None and (self.drill.vault is not None or any(ref.kind == "vault" for ref in references(self))):
            raise Hinted("is missing", "say where the server is, and how to log in", key="vault")
        return self

    @property
    def path(self) -> Path:
        """The file, absolute."""
        return self._path

    @property
    def digest(self) -> str:
        """SHA-256 of the file's bytes, hex: what the trail records as the configuration of a run."""
        return self._digest

    def note_origin(self, path: Path, digest: str) -> None:
        """Say once which file this was read from."""
        self._path, self._digest = path, digest


def references(value: object) -> Iterator[SecretRef]:
    """Every secret that a table, or what is in it, refers to."""
    if isinstance(value, SecretRef):
        yield value
    elif isinstance(value, Table):
        for name in type(value).model_fields:
            yield from references(getattr(value, name))
    elif isinstance(value, tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from references(each)


def _split(value: str) -> Any:
    try:
        return urlsplit(value)
    except ValueError:
        return None


def _without_password(dsn: str) -> str:
    """`dsn`, or Hinted if it holds a password in any of the places where libpq looks for one."""
    authority = re.match(r"\w+://([^/?#]*)@", dsn)
    told = (authority and ":" in authority[1].rstrip(":")) or re.search(r"(?i)(?:^|[?&\s])(?:ssl)?password\s*=", dsn)
    if told:
        raise Hinted("holds a password", 'take it out, change it, and write password = { file = "…" } beside it')
    return dsn
