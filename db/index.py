"""The HNSW index of a spec: built after the first load, anew after much churn, in nobody's way."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from psycopg.errors import DiskFull, OutOfMemory
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from .build_plan import BuildPlan, plan_build
from .build_progress import OnProgress, watching
from .engine import store_errors
from .metric import MAX_INDEXED_DIM
from .specs import StoredSpec

logger = logging.getLogger(__name__)

# Chosen by recall: docs/benchmarks.md.
M = 16
EF_CONSTRUCTION = 200
# A graph of 1,000,000 rows built with 200 does not reach one patch in a hundred, however wide the
# search; with 400 it reaches all. At 100,000 rows 200 does.
MANY_ROWS = 250_000
EF_CONSTRUCTION_OF_MANY = 400
# That a role or a database may have; a build takes as long as it takes.
_LIMITS = ("statement_timeout", "lock_timeout")
_OWN_WORKERS = "max_parallel_maintenance_workers"
# What the server lets a build have.
WORKERS = """least(current_setting('max_parallel_maintenance_workers')::integer,
    current_setting('max_parallel_workers')::integer,
    current_setting('max_worker_processes')::integer)"""


def index_name(spec: StoredSpec) -> str:
    """The name of the spec's HNSW index, without its schema."""
    return f"patch_feature_s{spec.id}_hnsw"


def _new_name(spec: StoredSpec) -> str:
    """Of an index that is to take the place of the one that stands."""
    return f"{index_name(spec)}_ccnew"


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


def is_outgrown(engine: Engine, spec: StoredSpec) -> bool:
    """Whether an index was built for so few rows that no search reaches all of today's."""
    with store_errors(), engine.connect() as connection:
        options = connection.execute(
            text("SELECT reloptions FROM pg_class WHERE oid = to_regclass(:name)"),
            {"name": f"patchstore.{index_name(spec)}"},
        ).scalar()
    if options is None:
        return False
    width = dict(option.split("=") for option in options).get("ef_construction", 0)
    return int(width) < _ef_construction(count_rows(engine, spec))


def build_index(
    engine: Engine,
    spec: StoredSpec,
    *,
    threshold: int,
    memory_mb: int,
    on_progress: OnProgress | None = None,
) -> bool:
    """Builds the index where it is due and missing; True if it was built now.

    Idempotent and killable: what a killed build left behind is dropped first. Two callers at once
    build one index.

    Args:
        engine: the store.
        spec: whose partition.
        threshold: rows from which on an index pays; fewer are searched exactly.
        memory_mb: what the build may use at most, MiB; it takes what its graph needs.
        on_progress: called now and then with the phase and its share done, 0 to 1.
    """
    rows = count_rows(engine, spec)
    if not is_due(spec, rows, threshold) or is_indexed(engine, spec):
        return False
    with _locked(engine, spec) as connection:
        # It may have been built while this caller was on its way to the lock.
        if connection is None or is_indexed(engine, spec):
            return False
        _drop_leftovers(connection, spec)
        create = f"CREATE INDEX CONCURRENTLY {index_name(spec)} {index_definition(spec, rows)}"
        _build(engine, connection, spec, create, memory_mb, on_progress)
        # By these the planner compares the index with a scan, and a filter with its own index.
        connection.execute(
            text(f"ANALYZE {spec.partition}, patchstore.extraction, patchstore.image_location")
        )
    return True


def is_due(spec: StoredSpec, rows: int, threshold: int) -> bool:
    """Whether a spec of so many rows is to have an index: it can, and one would pay."""
    return spec.dim <= MAX_INDEXED_DIM and rows > threshold


def index_definition(spec: StoredSpec, rows: int) -> str:
    """What follows the name in CREATE INDEX, for an index that is built over so many rows.

    It keeps these settings for rows that are added later, until it is rebuilt.
    """
    key = spec.metric.index_key(spec.dim)
    width = _ef_construction(rows)
    return f"ON {spec.partition} USING hnsw ({key}) WITH (m = {M}, ef_construction = {width})"


def _ef_construction(rows: int) -> int:
    return EF_CONSTRUCTION if rows < MANY_ROWS else EF_CONSTRUCTION_OF_MANY


def rebuild_index(
    engine: Engine,
    spec: StoredSpec,
    *,
    memory_mb: int,
    on_progress: OnProgress | None = None,
) -> bool:
    """Builds the index anew beside the old one, which answers until then; then vacuums.

    No REINDEX, which would keep what the old one was built with. Idempotent and killable: what a
    killed call left behind is finished or dropped first.

    Returns:
        False where there is no index, or another process is building it.
    """
    with _locked(engine, spec) as connection:
        if connection is None or not is_indexed(engine, spec):
            return False
        _drop_leftovers(connection, spec)
        definition = index_definition(spec, count_rows(engine, spec))
        create = f"CREATE INDEX CONCURRENTLY {_new_name(spec)} {definition}"
        _build(engine, connection, spec, create, memory_mb, on_progress)
        _put_in_place(connection, spec)
        # In this order: of the new index there is next to nothing to vacuum.
        connection.execute(text(f"VACUUM (ANALYZE) {spec.partition}"))
    return True


def drop_leftovers(engine: Engine, spec: StoredSpec) -> int:
    """Drops what killed builds left, which every write would go on maintaining; how many.

    A new index that stands, but was not yet put in the old one's place, is.
    """
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
            for limit in _LIMITS:
                connection.execute(text(f"SET {limit} = 0"))
            yield connection
        finally:
            if not connection.invalidated:  # a lost connection has released all by itself
                connection.execute(text("SELECT pg_advisory_unlock(:class, :spec)"), lock)
                for setting in (*_LIMITS, "maintenance_work_mem", _OWN_WORKERS):
                    connection.execute(text(f"RESET {setting}"))


def _build(
    engine: Engine,
    connection: Connection,
    spec: StoredSpec,
    statement: str,
    memory_mb: int,
    on_progress: OnProgress | None,
) -> None:
    """Runs what builds an index, tells how it goes, and records from where its churn counts."""
    workers = connection.execute(text(f"SELECT {WORKERS}")).scalar_one()
    rows = count_rows(engine, spec)
    plan = plan_build(spec.dim, rows, memory_mb=memory_mb, workers=workers)
    level = logging.INFO if plan.fits else logging.WARNING
    logger.log(level, "index of %s, %d rows of %d: %s", spec.name, rows, spec.dim, plan)
    deleted = _rows_deleted(connection, spec)  # those deleted meanwhile are in the new index
    with watching(engine, connection, on_progress):
        _run(connection, spec, statement, plan)
    connection.execute(
        text(
            "INSERT INTO patchstore.index_build (spec_id, rows_deleted) VALUES (:spec, :deleted) "
            "ON CONFLICT (spec_id) DO UPDATE SET built_at = now(), rows_deleted = :deleted"
        ),
        {"spec": spec.id, "deleted": deleted},
    )


def _run(connection: Connection, spec: StoredSpec, statement: str, plan: BuildPlan) -> None:
    """Builds by the plan; without workers where the server has too little shared memory for them.

    Nobody but the server knows how much it has: a container's own default is 64 MiB.
    """
    try:
        _run_as(connection, statement, plan)
    except OperationalError as error:
        if not plan.workers or not isinstance(error.orig, DiskFull | OutOfMemory):
            raise
        logger.warning(
            "the server has no %d MiB of shared memory (/dev/shm) for workers, "
            "so the index is built without them; give it more (of a container: shm_size)",
            plan.memory_mb,
        )
        _drop_leftovers(connection, spec)
        _run_as(connection, statement, replace(plan, workers=0))


def _run_as(connection: Connection, statement: str, plan: BuildPlan) -> None:
    connection.execute(text(f"SET maintenance_work_mem = '{plan.memory_mb}MB'"))
    connection.execute(text(f"SET {_OWN_WORKERS} = {plan.workers}"))
    connection.execute(text(statement))


def _rows_deleted(connection: Connection, spec: StoredSpec) -> int:
    counted = connection.execute(
        text(
            "SELECT n_tup_del + n_tup_upd FROM pg_stat_user_tables "
            "WHERE relid = to_regclass(:partition)"
        ),
        {"partition": spec.partition},
    ).scalar()
    return int(counted or 0)


def _put_in_place(connection: Connection, spec: StoredSpec) -> int:
    """Drops the old index where a new one stands, and gives that its name; how many were dropped.

    Searches take either in between.
    """
    new = connection.execute(
        text("SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(:name) AND indisvalid"),
        {"name": f"patchstore.{_new_name(spec)}"},
    ).scalar()
    if new is None:
        return 0
    old = connection.execute(
        text("SELECT count(to_regclass(:name))"), {"name": f"patchstore.{index_name(spec)}"}
    ).scalar_one()
    connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS patchstore.{index_name(spec)}"))
    connection.execute(
        text(f"ALTER INDEX patchstore.{_new_name(spec)} RENAME TO {index_name(spec)}")
    )
    return int(old)


def _drop_leftovers(connection: Connection, spec: StoredSpec) -> int:
    """Drops half-built indexes. Only killed builds have left them: nobody else holds the lock."""
    names = connection.execute(
        text(
            "SELECT indexrelid::regclass::text FROM pg_index i "
            "JOIN pg_class c ON c.oid = i.indexrelid "
            "WHERE i.indrelid = to_regclass(:partition) AND NOT i.indisvalid "
            r"  AND (c.relname = :name OR c.relname ~ '_cc(new|old)\d*$')"
        ),
        {"partition": spec.partition, "name": index_name(spec)},
    ).scalars()
    leftovers = list(names)
    for name in leftovers:
        connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {name}"))
    return len(leftovers) + _put_in_place(connection, spec)
