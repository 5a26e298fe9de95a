"""What the environment may say to the extractor."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from .images import DEFAULT_MAX_PIXELS


class ExtractorSettings(BaseSettings):
    """Device, batch size and limits, from `PATCHSTORE_*` or `.env`.

    `dense_tile` is the side of the largest square that a dense network is given, in pixels: 2,048
    are 0.6 GB for a ResNet-18 in float32.
    """

    model_config = SettingsConfigDict(env_prefix="PATCHSTORE_", env_file=".env", extra="ignore")

    device: str = "auto"
    batch_size: int = Field(default=32, ge=1)
    dense_tile: int = Field(default=2048, ge=256)
    max_pixels: int = Field(default=DEFAULT_MAX_PIXELS, ge=1)
