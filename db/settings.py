"""Where the store is, and how it behaves. Read from the environment and `.env`."""

import os
from pathlib import Path

import platformdirs
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

MOST_DAYS = 36_500  # Postgres' intervals end somewhere


class StoreSettings(BaseSettings):
    """Settings of the store; every field is an environment variable `PATCHSTORE_<FIELD>`."""

    model_config = SettingsConfigDict(
        env_prefix="PATCHSTORE_",
        env_file=".env",
        # A secret may be a file named as its variable, in lower case.
        secrets_dir=os.environ.get("PATCHSTORE_SECRETS_DIR") or None,
        extra="ignore",
    )

    database_url: SecretStr | None = Field(
        None, description="Postgres with pgvector; unset means the embedded server under `home`."
    )
    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("patchstore")),
        description="Folder of everything that the embedded set-up writes.",
    )
    index_threshold: int = Field(
        50_000, ge=0, description="Rows of a spec from which on an HNSW index is built."
    )
    lease_s: float = Field(120.0, gt=0, description="Seconds a lease lasts when nobody renews it.")
    max_attempts: int = Field(
        25, ge=1, description="Leases after which an image that kills its worker counts as failed."
    )
    maintenance_work_mem_mb: int = Field(
        1024, ge=1, description="Memory an index build may use at most, in MiB."
    )
    reindex_churn: float = Field(
        0.3,
        gt=0,
        description="Share of a spec's rows replaced since its index was built, above which "
        "`reindex --if-needed` builds it anew.",
    )

    keep_vanished_days: float = Field(
        7,
        ge=0,
        le=MOST_DAYS,
        description="Days after which `prune` deletes what vanished: a disk may come back.",
    )
    keep_records_days: float = Field(
        90,
        ge=0,
        le=MOST_DAYS,
        description="Days after which `prune` deletes the records of runs and audits.",
    )

    @property
    def is_embedded(self) -> bool:
        """Whether the store is the embedded server."""
        return not (self.database_url and self.database_url.get_secret_value())

    def resolved_home(self) -> Path:
        """`home` as an absolute path."""
        # Unlike pathlib's, it leaves the `~` of a person who does not exist.
        return Path(os.path.expanduser(self.home)).resolve()  # noqa: PTH111
