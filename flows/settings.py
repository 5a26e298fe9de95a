"""How a run works. Read from the environment and `.env`."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class FlowSettings(BaseSettings):
    """Settings of runs; every field is an environment variable `PATCHSTORE_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="PATCHSTORE_", env_file=".env", extra="ignore")

    batch_images: int = Field(512, ge=1, description="Images that one task run handles at most.")
    batch_pixels: int = Field(
        64_000_000, ge=1, description="Decoded pixels that one task run holds at most."
    )
    window: int = Field(
        3, ge=1, description="Batches in flight: one read, one computed, one written."
    )
    scan_threads: int = Field(4, ge=1, description="Threads that hash new files.")
    read_threads: int = Field(8, ge=1, description="Objects of a store that are read at a time.")
    retries: int = Field(6, ge=0, description="Tries after a transient failure of a task.")
    retry_delay_s: float = Field(
        1.0, gt=0, description="First delay; it doubles with each try, with jitter."
    )
    gpu_slot: str | None = Field(
        None,
        min_length=1,
        description="Prefect concurrency limit of which a slot is held during each forward pass.",
    )
    start_grace_s: int = Field(
        60,
        ge=60,
        le=86_400,
        description="Seconds that a scheduled run may take to start before another may.",
    )
    crashed_after_s: int = Field(
        90,
        ge=35,
        description="Seconds without a sign of life after which a scheduled run counts as crashed.",
    )
