"""The ingest flow: scan a source, compute what is missing, keep the index.

The database is the truth of what is done. The flow may die at any line: the next run finds the
leases of a dead run free and goes on.
"""

import json
import time
from collections import Counter, deque
from dataclasses import asdict
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from sqlalchemy import Engine

from db.catalog import ScanCounts, open_source
from db.index import build_index
from db.ledger import LeaseLimits, finish_run, reclaim, start_run
from db.reports import failures, status
from db.server import connect
from db.settings import StoreSettings
from db.specs import StoredSpec, get_spec
from extractor.allocator import keep_freed_memory
from extractor.settings import ExtractorSettings
from extractor.spec import FeatureSpec

from .artifacts import publish_failures, publish_summary
from .batch import Batch
from .environment import let_libraries_log
from .gpu import gpu_slot
from .heartbeat import Heartbeat
from .naming import named
from .progress import Listener, Summary, listener
from .request import IngestRequest, Precision
from .scan import scan
from .settings import FlowSettings
from .sources import FolderSource
from .tasks import compute_features, extract_patches, lease_images, upsert_features

if TYPE_CHECKING:
    from .models import Model

STEPS = 3


def run_name() -> str:
    """`ingest shelf-photos 2026-11-23 14:00`."""
    source = IngestRequest.model_validate(flow_run.parameters["request"]).source
    return named("ingest", PurePath(source).name or source)


@flow(
    name="ingest",
    flow_run_name=run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=STEPS * FlowSettings().window),  # type: ignore[arg-type]
    persist_result=False,
)
def ingest(request: IngestRequest) -> State[Any]:
    """Brings the vectors of a folder up to date.

    Returns:
        Completed, or Completed named `CompletedWithErrors` where some images failed.
    """
    keep_freed_memory()
    let_libraries_log()
    ears = listener()
    ears.started()
    begun = time.monotonic()
    engine = connect()
    folder = FolderSource(request.source)
    stored = get_spec(engine, request.spec)
    source_id = open_source(engine, folder.root)
    run_id = start_run(engine, source_id, stored)
    try:
        with Heartbeat(engine, run_id, StoreSettings().lease_s):
            summary = _ingest(engine, folder, source_id, stored, run_id, request.precision, ears)
    except BaseException:
        finish_run(engine, run_id, "failed", None)
        raise
    summary.seconds = round(time.monotonic() - begun, 3)
    summary.patches_per_second = round(summary.patches / summary.seconds, 1)
    return _finish(engine, folder, source_id, stored, run_id, summary, ears)


def _ingest(
    engine: Engine,
    folder: FolderSource,
    source_id: int,
    stored: StoredSpec,
    run_id: int,
    precision: Precision,
    ears: Listener,
) -> Summary:
    settings = FlowSettings()
    store = StoreSettings()
    ears.phase("scanning")
    counts = scan(engine, folder, source_id, stored, settings.scan_threads)
    found = ", ".join(f"{count} {what}" for what, count in asdict(counts).items())
    get_run_logger().info("scanned %s: %s", folder.root, found)
    reclaim(engine, stored, store.max_attempts)
    pending = _standing(engine, source_id, stored)["pending"]
    summary = _summary(counts, folder)
    if pending:
        ears.phase("loading the network")
        from .models import Model  # torch takes seconds, and most runs find nothing to do

        model = Model(engine, stored, precision, images=pending, slot=gpu_slot)
        ears.queued(pending)
        ears.phase("computing")
        limits = LeaseLimits(settings.batch_images, settings.batch_pixels, store.lease_s)
        summary.patches = _compute(
            engine, folder, source_id, stored, run_id, model, limits, settings.window, ears
        )
        summary.precision = None if model.way is None else str(model.way)
    build_index(
        engine,
        stored,
        threshold=store.index_threshold,
        memory_mb=store.maintenance_work_mem_mb,
        on_progress=ears.share,
    )
    return summary


def _compute(
    engine: Engine,
    folder: FolderSource,
    source_id: int,
    stored: StoredSpec,
    run_id: int,
    model: "Model",
    limits: LeaseLimits,
    window: int,
    ears: Listener,
) -> int:
    """Keeps a window of batches in flight: while one is computed, others are read and written."""
    spec = FeatureSpec.model_validate(stored.recipe)
    max_pixels = ExtractorSettings().max_pixels
    in_flight: deque[tuple[Batch, list[PrefectFuture[int]]]] = deque()
    patches = 0
    number = 0
    while leases := lease_images(engine, stored, source_id, run_id, limits):
        number += 1
        batch = Batch(number, leases)
        read = extract_patches.submit(batch, folder, spec, max_pixels, return_state=False)
        computed = compute_features.submit(batch, model, return_state=False, wait_for=[read])
        written = upsert_features.submit(
            batch, engine, stored, ears, return_state=False, wait_for=[computed]
        )
        in_flight.append((batch, [read, computed, written]))
        if len(in_flight) >= window:
            patches += _settle(*in_flight.popleft())
    while in_flight:
        patches += _settle(*in_flight.popleft())
    return patches


def _settle(batch: Batch, futures: list[PrefectFuture[int]]) -> int:
    """Waits for a batch; raises what stopped it, for then its images are not written."""
    for future in futures:
        future.wait()
    for future in futures:
        future.result()
    return batch.patches


def _finish(
    engine: Engine,
    folder: FolderSource,
    source_id: int,
    stored: StoredSpec,
    run_id: int,
    summary: Summary,
    ears: Listener,
) -> State[Any]:
    standing = _standing(engine, source_id, stored)
    summary.done = standing["done"]
    summary.failed = standing["failed"]
    summary.pending = standing["pending"] + standing["leased"]
    failed = failures(engine, source_id=source_id, spec=stored.name)
    summary.reasons = dict(Counter(failure.reason for failure in failed).most_common(10))
    troubled = bool(summary.failed or summary.unlisted)
    state = "completed_with_errors" if troubled else "completed"
    finish_run(engine, run_id, state, json.dumps(summary.as_json()))
    publish_summary(folder.root, stored.name, summary)
    publish_failures(folder.root, stored.name, failed)
    ears.finished(summary)
    message = f"{summary.new} new, {summary.changed} changed, {summary.failed} failed"
    if troubled:
        return Completed(name="CompletedWithErrors", message=message)
    return Completed(message=message)


def _summary(counts: ScanCounts, folder: FolderSource) -> Summary:
    return Summary(
        found=counts.found,
        new=counts.new,
        changed=counts.changed,
        moved=counts.moved,
        unchanged=counts.unchanged,
        vanished=counts.vanished,
        others=folder.others,
        unlisted=folder.unlisted,
    )


def _standing(engine: Engine, source_id: int, stored: StoredSpec) -> dict[str, int]:
    (row,) = status(engine, source_id=source_id, spec=stored.name)
    return {
        "done": row.done,
        "failed": row.failed,
        "pending": row.pending,
        "leased": row.leased,
    }
