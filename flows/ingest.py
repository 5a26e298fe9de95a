"""The ingest flow: scan a source, compute what is missing, keep the index.

The database is the truth of what is done. The flow may die at any line: the next run finds the
leases of a dead run free and goes on.
"""

import json
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field
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
from db.errors import StoreError
from db.ledger import (
    LeaseLimits,
    Reached,
    count_waiting,
    finish_run,
    give_back,
    note_precision,
    reclaim,
    refresh_statistics,
    retry_failed,
    start_run,
)
from db.reports import Failure, failures, status
from db.reports import source_id as known_source
from db.server import connect
from db.settings import StoreSettings
from db.specs import StoredSpec, get_spec
from extractor.allocator import keep_freed_memory
from extractor.errors import one_line
from extractor.settings import ExtractorSettings
from extractor.spec import FeatureSpec

from .artifacts import outcome, publish, tag_run
from .batch import Batch
from .environment import let_libraries_log
from .errors import FlowError, SourceError, is_of_the_run
from .gpu import gpu_slot
from .heartbeat import Heartbeat
from .indexing import keep_index
from .live import LiveProgress
from .naming import COMPLETED_WITH_ERRORS, named
from .progress import Listener, Summary, listener
from .request import IngestRequest, Precision
from .scan import scan
from .settings import FlowSettings
from .sources import Source, root_of, source_at
from .stages import Tally
from .tasks import compute_features, extract_patches, lease_images, upsert_features

if TYPE_CHECKING:
    from .models import Model

STEPS = 3
MANY_IMAGES = 5000  # to compute: what leases them is planned by what there was before the scan
FIRST_IMAGES = 8  # of the first batch, for which the device waits

_InFlight = deque[tuple[Batch, list[PrefectFuture[int]]]]


@dataclass(frozen=True)
class _Run:
    """What a run is about, and what it has come to so far."""

    engine: Engine
    folder: Source
    source_id: int
    stored: StoredSpec
    id: int
    ears: Listener
    tally: Tally = field(default_factory=Tally)

    def standing(self) -> dict[str, int]:
        """Where the source's files stand under the spec."""
        (row,) = status(self.engine, source_id=self.source_id, spec=self.stored.name)
        return {
            "done": row.done,
            "failed": row.failed,
            "pending": row.pending,
            "leased": row.leased,
        }


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
    ExtractorSettings()  # what it refuses is told before a long scan, and not after
    engine = connect()
    try:
        folder = source_at(request.source, may_be_gone=request.allow_empty)
    except SourceError as error:
        _note_refusal(engine, request, error)
        raise
    if folder.gone and known_source(engine, folder.root) is None:
        raise SourceError(f"{request.source} does not exist, and was never ingested")
    stored = get_spec(engine, request.spec)
    tag_run(folder.root, stored.name)
    source_id = open_source(engine, folder.root)
    run = _Run(engine, folder, source_id, stored, start_run(engine, source_id, stored), ears)
    try:
        with Heartbeat(engine, run.id, StoreSettings().lease_s):
            summary = _ingest(run, request)
        summary.seconds = round(time.monotonic() - begun, 3)
        summary.patches_per_second = round(summary.patches / summary.seconds, 1)
        failed = _finish(run, summary)
    except BaseException as error:
        _note_failure(run, error)
        raise
    publish(folder.root, stored.name, summary, failed, run.tally)
    ears.finished(summary)
    name = COMPLETED_WITH_ERRORS if summary.is_troubled else "Completed"
    return Completed(name=name, message=outcome(summary))


def _ingest(run: _Run, request: IngestRequest) -> Summary:
    clock = run.tally.clock
    run.ears.phase("scanning")
    with clock.timed("scan"):
        threads = FlowSettings().scan_threads
        counts = scan(
            run.engine,
            run.folder,
            run.source_id,
            run.stored,
            threads,
            max_pixels=ExtractorSettings().max_pixels,
            allow_empty=request.allow_empty,
        )
    found = ", ".join(f"{count} {what}" for what, count in asdict(counts).items())
    get_run_logger().info("scanned %s: %s", run.folder.root, found)
    reclaim(run.engine, run.stored, StoreSettings().max_attempts)
    if again := retry_failed(run.engine, run.stored.name, run.folder.root, unread_only=True):
        get_run_logger().info("%d images that could not be read are tried again", again)
    summary = _summary(counts, run.folder)
    if pending := count_waiting(run.engine, run.stored, run.source_id, run.id):
        _compute_pending(run, summary, pending, request.precision)
    if request.build_index:
        with clock.timed("index"):
            keep_index(run.engine, run.stored)
    summary.stage_seconds = run.tally.stage_seconds()
    return summary


def _compute_pending(run: _Run, summary: Summary, pending: int, precision: Precision) -> None:
    if pending >= MANY_IMAGES:
        refresh_statistics(run.engine)
    run.ears.phase("loading the network")
    with run.tally.clock.timed("load"):
        from .models import Model  # torch takes seconds, and most runs find nothing to do

        model = Model(
            run.engine,
            run.stored,
            precision,
            images=pending,
            slot=gpu_slot,
            on_way=lambda way: note_precision(run.engine, run.id, str(way)),
        )
    run.ears.queued(pending)
    run.ears.phase("computing")
    run.tally.begin(pending)
    with LiveProgress(run.tally, model.utilization) as live:
        try:
            _compute(run, model)
        except BaseException:
            run.ears.phase("stopping")
            model.abandon()  # Prefect waits for the tasks that have begun
            raise
        summary.device_busy = run.tally.finish_computing(model.clock)
    summary.patches = run.tally.patches
    summary.precision = None if model.way is None else str(model.way)
    summary.gpu_utilization = live.utilization


def _compute(run: _Run, model: "Model") -> None:
    """Keeps a window of batches in flight: while one is computed, others are read and written."""
    settings = FlowSettings()
    term_s = StoreSettings().lease_s
    spec = FeatureSpec.model_validate(run.stored.recipe)
    max_pixels = ExtractorSettings().max_pixels
    in_flight: _InFlight = deque()
    number = 0
    images = min(FIRST_IMAGES, settings.batch_images)
    reached = Reached()
    while leases := lease_images(
        run.engine,
        run.stored,
        run.source_id,
        run.id,
        LeaseLimits(images, settings.batch_pixels, term_s),
        reached,
    ):
        number += 1
        reached = Reached.by(leases)
        images = run.tally.next_batch(images, settings.batch_images)
        batch = Batch(number, leases)
        beside = 0 if batch.is_suspect else settings.window - 1
        _settle_all_but(beside, run, in_flight)
        read = extract_patches.submit(batch, run.folder, spec, max_pixels, return_state=False)
        computed = compute_features.submit(
            batch, model, run.tally.sheet, return_state=False, wait_for=[read]
        )
        written = upsert_features.submit(
            batch, run.engine, run.stored, run.ears, return_state=False, wait_for=[computed]
        )
        in_flight.append((batch, [read, computed, written]))
        _settle_all_but(beside, run, in_flight)
    _settle_all_but(0, run, in_flight)


def _why(error: BaseException) -> str:
    """What stopped a run, in one line."""
    if not isinstance(error, Exception):  # Ctrl-C, a signal, Prefect's cancellation
        return "interrupted"
    return one_line(error, 500)


def _settle_all_but(last: int, run: _Run, in_flight: _InFlight) -> None:
    """Waits for the first batches, until no more than the last so many are in flight."""
    while len(in_flight) > last:
        run.tally.add(_settle(*in_flight.popleft()))


def _settle(batch: Batch, futures: list[PrefectFuture[int]]) -> Batch:
    """Waits for a batch; raises what stopped it, for then its images are not written."""
    for future in futures:
        future.wait()
    for future in futures:
        future.result()
    return batch


def _note_failure(run: _Run, error: BaseException) -> None:
    """Records why a run ended; what it had leased was no attempt where no image can be to blame."""
    try:
        finish_run(run.engine, run.id, "failed", json.dumps({"error": _why(error)}))
        if is_of_the_run(error):
            give_back(run.engine, run.id)
    except StoreError as second:  # the first one is what a person must hear of
        get_run_logger().warning("run %d could not be recorded as failed: %s", run.id, second)


def _note_refusal(engine: Engine, request: IngestRequest, error: SourceError) -> None:
    """Records a run that found no source, where there was one before: `status` must not say
    completed of an earlier one."""
    with suppress(FlowError, StoreError):  # the first one is what a person must hear of
        source_id = known_source(engine, root_of(request.source))
        if source_id is not None:
            run_id = start_run(engine, source_id, get_spec(engine, request.spec))
            finish_run(engine, run_id, "failed", json.dumps({"error": _why(error)}))


def _finish(run: _Run, summary: Summary) -> list[Failure]:
    """Completes the summary and records the run as completed; returns what failed of its source."""
    standing = run.standing()
    summary.done = standing["done"]
    summary.failed = standing["failed"]
    summary.pending = standing["pending"] + standing["leased"]
    summary.elsewhere = standing["leased"]
    failed = failures(run.engine, source_id=run.source_id, spec=run.stored.name)
    summary.reasons = dict(Counter(failure.reason for failure in failed).most_common(10))
    state = "completed_with_errors" if summary.is_troubled else "completed"
    finish_run(run.engine, run.id, state, json.dumps(summary.as_json()))
    return failed


def _summary(counts: ScanCounts, folder: Source) -> Summary:
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
