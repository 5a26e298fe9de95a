"""With which memory and how many workers an HNSW index is built."""

import math
from dataclasses import dataclass

from .storage import estimate_build_bytes

MIB = 1 << 20
WORKER_MB = 32  # Postgres takes no worker where a process would have less
# A worker starts in no time, but the graph of few rows is small, and all wait for its locks: at
# 3,000 rows of 512 dimensions workers gain nothing, at 10,000 the first saves a third.
ROWS_A_WORKER = 10_000


@dataclass(frozen=True)
class BuildPlan:
    """What an index build may use.

    Attributes:
        needed_mb: memory that holds the whole graph.
        memory_mb: `maintenance_work_mem`; with workers, shared memory that is taken at once.
        workers: processes besides the one that builds.
    """

    needed_mb: int
    memory_mb: int
    workers: int

    @property
    def fits(self) -> bool:
        """Whether the whole graph is built in memory, far faster than on disk."""
        return self.memory_mb >= self.needed_mb

    def __str__(self) -> str:
        """Such as `the graph takes 183 MiB, the build gets 183 MiB and workers: 1`."""
        text = f"the graph takes {self.needed_mb} MiB, "
        text += f"the build gets {self.memory_mb} MiB and workers: {self.workers}"
        if self.fits:
            return text
        return f"{text}; raise PATCHSTORE_MAINTENANCE_WORK_MEM_MB, for it is slow on disk"


def plan_build(dim: int, rows: int, *, memory_mb: int, workers: int) -> BuildPlan:
    """What the build of so many rows repays, within the limits.

    Args:
        dim: of the vectors.
        rows: how many.
        memory_mb: that it may use at most.
        workers: that it may have at most.
    """
    needed_mb = math.ceil(estimate_build_bytes(dim, rows) / MIB)
    helpful = min(workers, rows // ROWS_A_WORKER, memory_mb // WORKER_MB - 1)
    helpful = max(helpful, 0)
    return BuildPlan(needed_mb, min(memory_mb, max(needed_mb, WORKER_MB * (helpful + 1))), helpful)
