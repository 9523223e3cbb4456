"""`[copies.NAME]` of the operator's file. Every server start loads this, so it does no I/O and imports only pydantic."""

import math
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator

from snapshot_mcp.contract.keep_free import UNITS

S3_SCHEME = "s3://"
LOOPBACK = {"127.0.0.1", "::1", "localhost"}

MIN_BANDWIDTH = 64 << 10
"""Bytes a second: with less a first copy would never end, and a server would hang up on a piece."""

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)(/s)?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9._/=-]{0,500}")


def parse_bytes(value: object) -> object:
    """Parse `"500GiB"` or `"20MiB/s"`; return anything else unchanged, for pydantic to reject."""
    if not isinstance(value, str):
        return value
    amount = _AMOUNT.fullmatch(value.strip().casefold())
    if amount is None or amount[2] not in UNITS:
        raise ValueError('should be an amount such as "500GiB" or "20MiB/s"')
    return math.ceil(float(amount[1]) * UNITS[amount[2]])


ByteCount = Annotated[int, BeforeValidator(parse_bytes)]


class StoreSettings(BaseModel):
    """Where copies are, and how to get in: a folder, or an S3-compatible object store."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    to: str = Field(min_length=1, max_length=4000)
    """A folder, or `s3://BUCKET/PREFIX`."""
    endpoint: str = ""
    """The URL of an object store that is not Amazon's."""
    region: str = "us-east-1"
    access_key_id: SecretStr | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None
    instance_metadata: bool = False
    """Ask the machine's cloud for credentials, which any program on it can do; not unless this says so."""

    @property
    def is_s3(self) -> bool:
        """Whether it is an object store."""
        return self.to.startswith(S3_SCHEME)

    @property
    def folder(self) -> Path:
        """The folder, if it is one."""
        return Path(self.to.removeprefix("file://")).expanduser()

    @property
    def bucket(self) -> str:
        """The bucket of an object store."""
        return self.to.removeprefix(S3_SCHEME).partition("/")[0]

    @property
    def prefix(self) -> str:
        """The prefix of all names in it."""
        return self.to.removeprefix(S3_SCHEME).partition("/")[2].strip("/")

    @property
    def place(self) -> str:
        """What tells this place from others, without credentials."""
        return f"{self.endpoint.rstrip('/')}#{self.to.rstrip('/')}" if self.is_s3 else str(self.folder)

    @model_validator(mode="after")
    def _is_a_place(self) -> "StoreSettings":
        if not self.is_s3:
            if "://" in self.to and not self.to.startswith("file:///"):
                raise ValueError("`to` should be a folder or s3://BUCKET/PREFIX")
            try:
                if not self.folder.is_absolute():
                    raise ValueError("`to` should be a whole path")
            except RuntimeError:
                raise ValueError("the home directory that `~` stands for is unknown; write the whole path") from None
            return self
        if not _BUCKET.fullmatch(self.bucket) or not _PREFIX.fullmatch(self.prefix) or ".." in self.to:
            raise ValueError(
                "`to` should be s3://BUCKET/PREFIX: a bucket has 3 to 63 small letters, digits, '-' and '.'"
            )
        if not self.instance_metadata and not (self.access_key_id and self.secret_access_key):
            raise ValueError("an object store needs access_key_id and secret_access_key, or instance_metadata = true")
        return self

    @field_validator("endpoint")
    @classmethod
    def _is_safe(cls, endpoint: str) -> str:
        if not endpoint:
            return endpoint
        parts = urlsplit(endpoint)
        if parts.scheme not in {"https", "http"} or not parts.hostname or parts.username or parts.query:
            raise ValueError("should be a URL such as https://s3.example.org, without a name or password in it")
        if parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise ValueError("should be https: over http anybody on the way can read and change what is sent")
        return endpoint


class CopySettings(StoreSettings):
    """One copy: a place, what goes there, and how long it stays."""

    zones: tuple[str, ...] = ()
    """The embedded zones that are copied; all by default."""
    disks: tuple[str, ...] = ()
    """Ids or exact names of the disks; all by default."""
    keep_deleted_days: int = Field(default=30, ge=1, le=3650)
    """How long what was deleted here stays there, from its deletion on."""
    bandwidth: ByteCount | None = Field(default=None, ge=MIN_BANDWIDTH)
    """Most bytes a second that are sent."""
    ceiling: ByteCount | None = Field(default=None, ge=1)
    """Most bytes that are stored there."""
    encryption: Literal["age", "none"] | None = None
    """How the bytes are sealed: `age` by default in an object store, `none` in a folder."""

    lock: Literal["governance", "compliance"] | None = None
    """Lock each object for `keep_deleted_days` from when it was sent (S3 Object Lock), against whoever has the keys too."""

    @model_validator(mode="after")
    def _can_lock(self) -> "CopySettings":
        if self.lock and (not self.is_s3 or self.instance_metadata):
            raise ValueError("`lock` needs an object store with access_key_id and secret_access_key")
        return self

    @property
    def is_sealed(self) -> bool:
        """Whether what is stored there is encrypted."""
        return (self.encryption or ("age" if self.is_s3 else "none")) == "age"

    def takes(self, zone: str) -> bool:
        """Return whether a zone is copied."""
        return not self.zones or zone in self.zones
