"""The ingest flow: scan a source, compute what is missing, keep the index.

The database is the truth of what is done. The flow may die at any line: the next run finds the
leases of a dead run free and goes on.
"""

import json
import time
from collections import Counter, deque
from dataclasses import asdict
from datetime import datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

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

from .artifacts import outcome, publish, tag_run
from .batch import Batch
from .environment import let_libraries_log
from .heartbeat import Heartbeat
from .live import LiveProgress
from .progress import Listener, Summary, listener
from .scan import scan
from .settings import FlowSettings
from .sources import FolderSource
from .stages import Tally
from .tasks import compute_features, extract_patches, lease_images, upsert_features

if TYPE_CHECKING:
    from .models import Model

Precision = Literal["auto", "float32", "bf16", "fp16"]
STEPS = 3


def run_name() -> str:
    """`ingest shelf-photos 2026-11-23 14:00`."""
    parameters: dict[str, Any] = flow_run.parameters
    folder = PurePath(str(parameters["source"])).name or str(parameters["source"])
    return f"ingest {folder} {datetime.now():%Y-%m-%d %H:%M}"


@flow(
    name="ingest",
    flow_run_name=run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=STEPS * FlowSettings().window),  # type: ignore[arg-type]
    persist_result=False,
)
def ingest(source: str, spec: str, precision: Precision = "auto") -> State[Any]:
    """Brings the vectors of a folder up to date.

    Args:
        source: the folder.
        spec: name of a spec in the store.
        precision: what the forward pass computes in; `auto` checks and takes the fastest good one.

    Returns:
        Completed, or Completed named `CompletedWithErrors` where some images failed.
    """
    keep_freed_memory()
    let_libraries_log()
    ears = listener()
    ears.started()
    begun = time.monotonic()
    engine = connect()
    folder = FolderSource(source)
    stored = get_spec(engine, spec)
    tag_run(folder.root, stored.name)
    source_id = open_source(engine, folder.root)
    run_id = start_run(engine, source_id, stored)
    tally = Tally()
    try:
        with Heartbeat(engine, run_id, StoreSettings().lease_s):
            summary = _ingest(engine, folder, source_id, stored, run_id, precision, ears, tally)
    except BaseException:
        finish_run(engine, run_id, "failed", None)
        raise
    summary.seconds = round(time.monotonic() - begun, 3)
    summary.patches_per_second = round(summary.patches / summary.seconds, 1)
    return _finish(engine, folder, source_id, stored, run_id, summary, ears, tally)


def _ingest(
    engine: Engine,
    folder: FolderSource,
    source_id: int,
    stored: StoredSpec,
    run_id: int,
    precision: Precision,
    ears: Listener,
    tally: Tally,
) -> Summary:
    settings = FlowSettings()
    store = StoreSettings()
    ears.phase("scanning")
    with tally.clock.timed("scan"):
        counts = scan(engine, folder, source_id, stored, settings.scan_threads)
    found = ", ".join(f"{count} {what}" for what, count in asdict(counts).items())
    get_run_logger().info("scanned %s: %s", folder.root, found)
    reclaim(engine, stored, store.max_attempts)
    pending = _standing(engine, source_id, stored)["pending"]
    summary = _summary(counts, folder)
    if pending:
        ears.phase("loading the network")
        with tally.clock.timed("load"):
            from .models import Model  # torch takes seconds, and most runs find nothing to do

            model = Model(engine, stored, precision)
        ears.queued(pending)
        ears.phase("computing")
        limits = LeaseLimits(settings.batch_images, settings.batch_pixels, store.lease_s)
        tally.begin(pending)
        with LiveProgress(tally, model.utilization) as live:
            _compute(engine, folder, source_id, stored, run_id, model, limits, ears, tally)
            summary.device_busy = tally.finish_computing(model.clock)
        summary.patches = tally.patches
        summary.precision = model.precision
        summary.gpu_utilization = live.utilization
    with tally.clock.timed("index"):
        build_index(
            engine,
            stored,
            threshold=store.index_threshold,
            memory_mb=store.maintenance_work_mem_mb,
            on_progress=ears.share,
        )
    summary.stage_seconds = tally.stage_seconds()
    return summary


def _compute(
    engine: Engine,
    folder: FolderSource,
    source_id: int,
    stored: StoredSpec,
    run_id: int,
    model: "Model",
    limits: LeaseLimits,
    ears: Listener,
    tally: Tally,
) -> None:
    """Keeps a window of batches in flight: while one is computed, others are read and written."""
    spec = FeatureSpec.model_validate(stored.recipe)
    max_pixels = ExtractorSettings().max_pixels
    window = FlowSettings().window
    in_flight: deque[tuple[Batch, list[PrefectFuture[int]]]] = deque()
    number = 0
    while leases := lease_images(engine, stored, source_id, run_id, limits):
        number += 1
        batch = Batch(number, leases)
        read = extract_patches.submit(batch, folder, spec, max_pixels, return_state=False)
        computed = compute_features.submit(
            batch, model, tally.sheet, return_state=False, wait_for=[read]
        )
        written = upsert_features.submit(
            batch, engine, stored, ears, return_state=False, wait_for=[computed]
        )
        in_flight.append((batch, [read, computed, written]))
        if len(in_flight) >= window:
            tally.add(_settle(*in_flight.popleft()))
    while in_flight:
        tally.add(_settle(*in_flight.popleft()))


def _settle(batch: Batch, futures: list[PrefectFuture[int]]) -> Batch:
    """Waits for a batch; raises what stopped it, for then its images are not written."""
    for future in futures:
        future.wait()
    for future in futures:
        future.result()
    return batch


def _finish(
    engine: Engine,
    folder: FolderSource,
    source_id: int,
    stored: StoredSpec,
    run_id: int,
    summary: Summary,
    ears: Listener,
    tally: Tally,
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
    publish(folder.root, stored.name, summary, failed, tally)
    ears.finished(summary)
    message = outcome(summary)
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
