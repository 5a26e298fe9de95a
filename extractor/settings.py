"""What the environment may say to the extractor."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from .images import DEFAULT_MAX_PIXELS


class ExtractorSettings(BaseSettings):
    """Device, batch size and pixel limit, from `PATCHSTORE_*` or `.env`."""

    model_config = SettingsConfigDict(env_prefix="PATCHSTORE_", env_file=".env", extra="ignore")

    device: str = "auto"
    batch_size: int = Field(default=32, ge=1)
    max_pixels: int = Field(default=DEFAULT_MAX_PIXELS, ge=1)
