"""The HNSW index of a spec: built once, after the first load, without blocking anybody."""

import logging
import threading
from collections.abc import Callable

from sqlalchemy import Connection, Engine, text

from .engine import store_errors
from .metric import MAX_INDEXED_DIM
from .specs import StoredSpec

logger = logging.getLogger(__name__)

# Chosen by recall: docs/benchmarks.md.
M = 16
EF_CONSTRUCTION = 200
POLL_S = 0.5
# Of a row of pg_stat_progress_create_index: how much of its phase is done, 0 to 1.
SHARE_DONE = """CASE
    WHEN tuples_total > 0 THEN tuples_done::float / tuples_total
    WHEN blocks_total > 0 THEN blocks_done::float / blocks_total
    ELSE 0 END"""


def index_name(spec: StoredSpec) -> str:
    """The name of the spec's HNSW index, without its schema."""
    return f"patch_feature_s{spec.id}_hnsw"


def count_rows(engine: Engine, spec: StoredSpec) -> int:
    """How many patches the ledger says the spec has; reads no vector."""
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT coalesce(sum(patch_count), 0) FROM patchstore.extraction "
                "WHERE spec_id = :spec"
            ),
            {"spec": spec.id},
        )
        return int(rows.scalar_one())


def is_indexed(engine: Engine, spec: StoredSpec) -> bool:
    """Whether a valid index stands."""
    with store_errors(), engine.connect() as connection:
        return bool(
            connection.execute(
                text("SELECT patchstore.is_indexed(:spec)"), {"spec": spec.id}
            ).scalar_one()
        )


def build_index(
    engine: Engine,
    spec: StoredSpec,
    *,
    threshold: int,
    memory_mb: int,
    on_progress: Callable[[str, float], None] | None = None,
) -> bool:
    """Builds the index where it is due and missing; True if it was built now.

    Idempotent and killable: what a killed build left behind is dropped first. Two callers at once
    build one index.

    Args:
        engine: the store.
        spec: whose partition.
        threshold: rows from which on an index pays; fewer are searched exactly.
        memory_mb: `maintenance_work_mem` of the build, MiB; three times faster if it fits.
        on_progress: called now and then with the phase and its share done, 0 to 1.
    """
    if spec.dim > MAX_INDEXED_DIM or count_rows(engine, spec) <= threshold:
        return False
    if is_indexed(engine, spec):
        return False
    with store_errors(), engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        lock = {"class": 0x70617469, "spec": spec.id}
        if not connection.execute(
            text("SELECT pg_try_advisory_lock(:class, :spec)"), lock
        ).scalar_one():
            logger.info("another process is building the index of %s", spec.name)
            return False
        try:
            if is_indexed(engine, spec):  # built while this caller was on its way to the lock
                return False
            _build(engine, connection, spec, memory_mb, on_progress)
        finally:
            if not connection.invalidated:  # a lost connection has released all by itself
                connection.execute(text("SELECT pg_advisory_unlock(:class, :spec)"), lock)
                connection.execute(text("RESET maintenance_work_mem"))
    return True


def _build(
    engine: Engine,
    connection: Connection,
    spec: StoredSpec,
    memory_mb: int,
    on_progress: Callable[[str, float], None] | None,
) -> None:
    name = index_name(spec)
    # Only a killed build can have left this behind: nobody else holds the lock.
    connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS patchstore.{name}"))
    connection.execute(
        text("SELECT patchstore.prepare_nearest(s) FROM patchstore.feature_spec s WHERE id = :id"),
        {"id": spec.id},
    )
    connection.execute(text(f"SET maintenance_work_mem = '{int(memory_mb)}MB'"))
    pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    done = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(engine, int(pid), done, on_progress), daemon=True
    )
    watcher.start()
    try:
        connection.execute(
            text(
                f"CREATE INDEX CONCURRENTLY {name} ON {spec.partition} "
                f"USING hnsw ({spec.metric.index_key(spec.dim)}) "
                f"WITH (m = {M}, ef_construction = {EF_CONSTRUCTION})"
            )
        )
        # By these the planner compares the index with a scan, and a filter with its own index.
        connection.execute(
            text(f"ANALYZE {spec.partition}, patchstore.extraction, patchstore.image_location")
        )
    finally:
        done.set()
        watcher.join()


def _watch(
    engine: Engine,
    pid: int,
    done: threading.Event,
    on_progress: Callable[[str, float], None] | None,
) -> None:
    if on_progress is None:
        return
    try:
        _poll(engine, pid, done, on_progress)
    except Exception:  # the build goes on, whether somebody looks at it or not
        logger.warning("the progress of the index build is not shown any more", exc_info=True)


def _poll(
    engine: Engine, pid: int, done: threading.Event, on_progress: Callable[[str, float], None]
) -> None:
    with engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        while not done.wait(POLL_S):
            row = connection.execute(
                text(
                    f"SELECT phase, {SHARE_DONE} AS share "
                    "FROM pg_stat_progress_create_index WHERE pid = :pid"
                ),
                {"pid": pid},
            ).one_or_none()
            if row is not None:
                on_progress(str(row.phase), float(row.share))
