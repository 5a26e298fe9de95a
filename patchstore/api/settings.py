"""What the environment may say to `patchstore serve`."""

import os

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

_LONGEST_S = 2**31 // 1000  # Postgres counts milliseconds in 32 bits, from 1


class ServeSettings(BaseSettings):
    """Settings of the service; every field is an environment variable `PATCHSTORE_<FIELD>`."""

    model_config = SettingsConfigDict(
        env_prefix="PATCHSTORE_",
        env_file=".env",
        # A secret may be a file named as its variable, in lower case.
        secrets_dir=os.environ.get("PATCHSTORE_SECRETS_DIR") or None,
        extra="ignore",
    )

    api_tokens: SecretStr = Field(
        SecretStr(""), description="SCOPE:TOKEN, with @EXPIRY if it ends, separated by spaces."
    )
    api_max_upload_mb: float = Field(
        20.0, gt=0, allow_inf_nan=False, description="Size of a request, in MB."
    )
    api_uploads_at_once_mb: float = Field(
        256.0, gt=0, allow_inf_nan=False, description="Size of all requests in hand, in MB."
    )
    api_max_pixels: int = Field(50_000_000, ge=1, description="Pixels of an uploaded picture.")
    api_pixels_at_once: int = Field(
        100_000_000, ge=1, description="Pixels that are decoded at the same time; more wait."
    )
    api_connections: int = Field(8, ge=1, description="Connections to the database at most.")
    api_statement_timeout_s: float = Field(
        10.0, ge=0.001, le=_LONGEST_S, description="Seconds for one statement."
    )
    api_request_timeout_s: float = Field(
        30.0, gt=0, le=_LONGEST_S, description="Seconds for one request."
    )
    api_batch_size: int = Field(16, ge=1, description="Questions in one forward pass.")
    api_max_waiting: int = Field(
        256, ge=1, description="Requests, and their patches, that may wait; more are refused."
    )

    @property
    def max_upload_bytes(self) -> int:
        """`api_max_upload_mb` in bytes."""
        return int(self.api_max_upload_mb * 1_000_000)

    @property
    def uploads_at_once_bytes(self) -> int:
        """`api_uploads_at_once_mb` in bytes."""
        return int(self.api_uploads_at_once_mb * 1_000_000)
