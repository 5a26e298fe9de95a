"""The HNSW index of a spec: built after the first load, anew after much churn, in nobody's way."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    with _locked(engine, spec) as connection:
        # It may have been built while this caller was on its way to the lock.
        if connection is None or is_indexed(engine, spec):
            return False
        name = index_name(spec)
        # Only a killed build can have left this behind: nobody else holds the lock.
        connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS patchstore.{name}"))
        connection.execute(
            text(
                "SELECT patchstore.prepare_nearest(s) FROM patchstore.feature_spec s WHERE id = :id"
            ),
            {"id": spec.id},
        )
        create = (
            f"CREATE INDEX CONCURRENTLY {name} ON {spec.partition} "
            f"USING hnsw ({spec.metric.index_key(spec.dim)}) "
            f"WITH (m = {M}, ef_construction = {EF_CONSTRUCTION})"
        )
        _build(engine, connection, spec, create, memory_mb, on_progress)
        # By these the planner compares the index with a scan, and a filter with its own index.
        connection.execute(
            text(f"ANALYZE {spec.partition}, patchstore.extraction, patchstore.image_location")
        )
    return True


def rebuild_index(
    engine: Engine,
    spec: StoredSpec,
    *,
    memory_mb: int,
    on_progress: Callable[[str, float], None] | None = None,
) -> bool:
    """Builds the index anew beside the old one, which answers until then; then vacuums.

    Idempotent and killable: what a killed call left behind is dropped first.

    Returns:
        False where there is no index, or another process is building it.
    """
    with _locked(engine, spec) as connection:
        if connection is None or not is_indexed(engine, spec):
            return False
        _drop_leftovers(connection, spec)
        rebuild = f"REINDEX INDEX CONCURRENTLY patchstore.{index_name(spec)}"
        _build(engine, connection, spec, rebuild, memory_mb, on_progress)
        # In this order: of the new index there is next to nothing to vacuum.
        connection.execute(text(f"VACUUM (ANALYZE) {spec.partition}"))
    return True


def drop_leftovers(engine: Engine, spec: StoredSpec) -> int:
    """Drops what killed rebuilds left, which every write would go on maintaining; how many."""
    with _locked(engine, spec) as connection:
        return 0 if connection is None else _drop_leftovers(connection, spec)


def churn(engine: Engine, spec: StoredSpec) -> float:
    """Rows deleted since the index was built, as a share of those that there are.

    A replaced image's rows count as deleted. Vacuum takes their entries out of the index, but
    neither its pages nor the detours that its graph has grown. The server counts; after a crash, or
    when someone resets its statistics, it begins again at 0.
    """
    with store_errors(), engine.connect() as connection:
        deleted = _rows_deleted(connection, spec)
        before = connection.execute(
            text("SELECT rows_deleted FROM patchstore.index_build WHERE spec_id = :spec"),
            {"spec": spec.id},
        ).scalar()
    since = deleted - (before or 0)
    return (since if since >= 0 else deleted) / max(count_rows(engine, spec), 1)


@contextmanager
def _locked(engine: Engine, spec: StoredSpec) -> Iterator[Connection | None]:
    """A connection in autocommit that alone may build the spec's index; None where another may."""
    with store_errors(), engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        lock = {"class": 0x70617469, "spec": spec.id}
        if not connection.execute(
            text("SELECT pg_try_advisory_lock(:class, :spec)"), lock
        ).scalar_one():
            logger.info("another process is building the index of %s", spec.name)
            yield None
            return
        try:
            yield connection
        finally:
            if not connection.invalidated:  # a lost connection has released all by itself
                connection.execute(text("SELECT pg_advisory_unlock(:class, :spec)"), lock)
                connection.execute(text("RESET maintenance_work_mem"))


def _build(
    engine: Engine,
    connection: Connection,
    spec: StoredSpec,
    statement: str,
    memory_mb: int,
    on_progress: Callable[[str, float], None] | None,
) -> None:
    """Runs what builds an index, tells how it goes, and records from where its churn counts."""
    connection.execute(text(f"SET maintenance_work_mem = '{int(memory_mb)}MB'"))
    pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    deleted = _rows_deleted(connection, spec)  # those deleted meanwhile are in the new index
    done = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(engine, int(pid), done, on_progress), daemon=True
    )
    watcher.start()
    try:
        connection.execute(text(statement))
    finally:
        done.set()
        watcher.join()
    connection.execute(
        text(
            "INSERT INTO patchstore.index_build (spec_id, rows_deleted) VALUES (:spec, :deleted) "
            "ON CONFLICT (spec_id) DO UPDATE SET built_at = now(), rows_deleted = :deleted"
        ),
        {"spec": spec.id, "deleted": deleted},
    )


def _rows_deleted(connection: Connection, spec: StoredSpec) -> int:
    counted = connection.execute(
        text(
            "SELECT n_tup_del + n_tup_upd FROM pg_stat_user_tables "
            "WHERE relid = to_regclass(:partition)"
        ),
        {"partition": spec.partition},
    ).scalar()
    return int(counted or 0)


def _drop_leftovers(connection: Connection, spec: StoredSpec) -> int:
    names = connection.execute(
        text(
            "SELECT indexrelid::regclass::text FROM pg_index i "
            "JOIN pg_class c ON c.oid = i.indexrelid "
            "WHERE i.indrelid = to_regclass(:partition) AND NOT i.indisvalid "
            r"  AND c.relname ~ '_cc(new|old)\d*$'"
        ),
        {"partition": spec.partition},
    ).scalars()
    leftovers = list(names)
    for name in leftovers:
        connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {name}"))
    return len(leftovers)


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
