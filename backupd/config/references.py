"""What every table of the file is, and how one refers to a secret: never its value, always where it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, model_validator

from backupd.config.problems import Hinted

PLACES = ("file", "env", "credential", "vault", "azure")
SERVED = ("vault", "azure")  # these know versions and wrapped values
_REFERENCE_HINT = (
    'write where it is kept, such as { file = "/etc/backupd/secret" }; docs/configuration.md names the other places'
)


def path(value: object, info: ValidationInfo) -> Path:
    """A path in the file is relative to the file's directory."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise Hinted("expected a path in quotes")
    return Path((info.context or {}).get("directory", Path()), value)


def _version(value: object) -> str:
    if (isinstance(value, int) and not isinstance(value, bool) and value > 0) or (isinstance(value, str) and value):
        return str(value)
    raise Hinted("expected a version: a number from 1, or Key Vault's text in quotes")


Text = Annotated[str, Field(min_length=1)]
File = Annotated[Path, PlainValidator(path)]


class Table(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)


class SecretRef(Table):
    """Where a secret is kept: a table with exactly one of `file`, `env`, `credential`, `vault` and `azure`."""

    file: File | None = Field(None, description="A file that only its owner may read (mode 0600 or 0400).")
    env: Text | None = Field(None, description="An environment variable; warned about, since child processes see it.")
    credential: Text | None = Field(None, description="A systemd credential (`LoadCredential=` in the unit).")
    vault: Text | None = Field(None, description="`MOUNT/PATH` of a KV version 2 engine in the server of `[vault]`.")
    azure: Text | None = Field(None, description="A secret in Azure Key Vault, `https://NAME.vault.azure.net/secrets/NAME`.")
    field: Text | None = Field(
        None, description="The member to take, where the secret is a JSON object. In Vault it is `value` if none is named."
    )
    version: Annotated[str, PlainValidator(_version)] | None = Field(
        None, description="`vault` and `azure`: one version. Default: the newest."
    )
    unwrap: Text | None = Field(
        None,
        description="The key that the value is wrapped by: `MOUNT/KEY` of a Transit engine, "
        "or `https://NAME.vault.azure.net/keys/NAME/VERSION`.",
    )

    @property
    def kind(self) -> str:
        """One of `PLACES`."""
        return next(place for place in PLACES if getattr(self, place) is not None)

    @property
    def name(self) -> str:
        """The absolute path, or what else the place calls it."""
        return str(getattr(self, self.kind))

    @model_validator(mode="before")
    @classmethod
    def _one_place(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise Hinted("expected a reference to a secret, not the secret itself", _REFERENCE_HINT)
        named = [place for place in PLACES if place in value]
        if len(named) > 1 or (not named and not set(value) - {"field", "version", "unwrap"}):
            raise Hinted(f"expected exactly one of {', '.join(PLACES)}", _REFERENCE_HINT)
        for key in ("version", "unwrap"):
            if key in value and named and named[0] not in SERVED:
                raise Hinted(f"means nothing to {named[0]}", f"remove {key}", key=key)
        return value
