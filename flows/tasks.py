"""The three steps as Prefect tasks: names a person can read, and retries of transient errors only.

Arrays travel inside the `Batch`; parameters and results that Prefect sees are small.
"""

from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import task_run
from prefect.tasks import Task, exponential_backoff
from sqlalchemy import Engine

from db.ledger import Lease, LeaseLimits, Reached, find_leases, lease_batch
from db.specs import StoredSpec
from extractor.spec import FeatureSpec

from . import batch as steps
from .batch import Batch
from .contact_sheet import ContactSheet
from .errors import is_transient
from .progress import Listener
from .settings import FlowSettings
from .sources import Source

if TYPE_CHECKING:
    from .models import Model

SETTINGS = FlowSettings()


def retry_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether Prefect should try again: never for a user's mistake or a broken image."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)


RETRIES: dict[str, Any] = {
    "retries": SETTINGS.retries,
    "retry_delay_seconds": exponential_backoff(SETTINGS.retry_delay_s),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": retry_transient,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


@task(name="lease_images", task_run_name="lease images", **RETRIES)
def lease_images(
    engine: Engine,
    spec: StoredSpec,
    source_id: int,
    run_id: int,
    limits: LeaseLimits,
    reached: Reached,
) -> list[Lease]:
    """Leases the next batch; empty when nothing is left for this run."""
    again = int(task_run.run_count) > 1  # the try before may have leased some, and not heard of it
    unheard = find_leases(engine, spec, source_id, run_id, reached) if again else []
    return unheard or lease_batch(engine, spec, source_id, run_id, limits, reached)


@task(name="extract_patches", task_run_name="read {batch}", **RETRIES)
def extract_patches(batch: Batch, source: Source, spec: FeatureSpec, max_pixels: int) -> int:
    """Reads and decodes a batch; returns the number of patches."""
    last_try = int(task_run.run_count) > SETTINGS.retries
    with batch.clock.timed("read"):
        return steps.extract_patches(batch, source, spec, max_pixels, last_try=last_try)


@task(name="compute_features", task_run_name="compute {batch}", **RETRIES)
def compute_features(batch: Batch, model: "Model", sheet: ContactSheet) -> int:
    """Runs the forward pass of a batch; returns the number of vectors."""
    with batch.clock.timed("compute"):
        return steps.compute_features(batch, model.extract, sheet)


@task(name="upsert_features", task_run_name="write {batch}", **RETRIES)
def upsert_features(batch: Batch, engine: Engine, spec: StoredSpec, listener: Listener) -> int:
    """Writes a batch; returns the number of rows."""
    with batch.clock.timed("write"):
        return steps.upsert_features(batch, engine, spec, listener.image)
