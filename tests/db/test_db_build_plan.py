"""What an index build may use: enough for its graph, no more than allowed, and the build has it."""

import logging
import shutil

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from db import build_plan, index
from db.build_plan import MIB, WORKER_MB, BuildPlan, plan_build
from db.index import M, build_index, drop_leftovers, is_indexed, rebuild_index
from db.storage import BUILD_ROW, estimate_build_bytes

ROWS = 4_000
dims, rows = st.integers(1, 4_000), st.integers(0, 10**9)
memory, workers = st.integers(1, 1 << 21), st.integers(0, 64)


@given(dims, rows, memory, workers)
def test_a_plan_keeps_to_the_limits(dim, rows, memory_mb, workers):
    plan = plan_build(dim, rows, memory_mb=memory_mb, workers=workers)
    assert 0 < plan.memory_mb <= memory_mb
    assert 0 <= plan.workers <= workers
    assert not plan.workers or plan.memory_mb >= WORKER_MB * (plan.workers + 1)
    assert plan.fits == (estimate_build_bytes(dim, rows) <= plan.memory_mb * MIB)


@given(dims, rows, memory, workers, st.integers(0, 10**9))
def test_more_rows_never_get_less(dim, rows, memory_mb, workers, more):
    few = plan_build(dim, rows, memory_mb=memory_mb, workers=workers)
    many = plan_build(dim, rows + more, memory_mb=memory_mb, workers=workers)
    assert many.needed_mb >= few.needed_mb
    assert many.memory_mb >= few.memory_mb
    assert many.workers >= few.workers


@given(dims, st.integers(0, 10**7))
def test_the_graph_fits_wherever_it_may(dim, rows):
    plan = plan_build(dim, rows, memory_mb=1 << 21, workers=0)
    assert plan.fits
    assert plan.memory_mb - plan.needed_mb <= WORKER_MB


def test_few_rows_have_no_workers():
    assert plan_build(512, 5_000, memory_mb=1024, workers=8).workers == 0
    assert plan_build(512, 25_000, memory_mb=1024, workers=8).workers == 2
    assert plan_build(512, 10**6, memory_mb=1024, workers=8).workers == 8


@pytest.mark.parametrize("fits", [True, False])
def test_the_graph_fits_into_what_is_estimated_and_not_into_nine_tenths_without_the_slack(
    store, fits
):
    """pgvector itself says whether it fitted."""
    spec, notices = with_rows(store, ROWS), []
    bare = ROWS * (2 * spec.dim + BUILD_ROW)
    needed_kb = (estimate_build_bytes(spec.dim, ROWS) if fits else int(0.9 * bare)) // 1024
    with psycopg.connect(dsn(store), autocommit=True) as connection:
        connection.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        connection.execute(f"SET maintenance_work_mem = {needed_kb}")
        connection.execute(
            f"CREATE INDEX ON {spec.partition} USING hnsw ({spec.metric.index_key(spec.dim)}) "
            f"WITH (m = {M}, ef_construction = {2 * M})"
        )
    assert any("no longer fits" in notice for notice in notices) != fits


def test_a_build_has_what_its_plan_says_and_the_connection_keeps_nothing_of_it(store, caplog):
    spec = with_rows(store, 3)
    seen = settings_of_builds(store.engine)
    before = settings(store)
    caplog.set_level(logging.INFO, "db.index")
    assert build_index(store.engine, spec, threshold=0, memory_mb=1024)
    assert rebuild_index(store.engine, spec, memory_mb=2)
    assert seen == [["32MB", "0"], ["2MB", "0"]]
    assert settings(store) == before
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "index of tiny, 3 rows of 4: the graph takes 5 MiB, the build gets 32 MiB and workers: 0",
        "index of tiny, 3 rows of 4: the graph takes 5 MiB, the build gets 2 MiB and workers: 0; "
        "raise PATCHSTORE_MAINTENANCE_WORK_MEM_MB, for it is slow on disk",
    ]
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]


def test_workers_are_as_many_as_rows_repay_and_the_server_lets(store, admin, monkeypatch):
    spec = with_rows(store, 3)
    monkeypatch.setattr(build_plan, "ROWS_A_WORKER", 1)
    seen = settings_of_builds(store.engine)
    build_index(store.engine, spec, threshold=0, memory_mb=1024)
    admin.execute(f'ALTER DATABASE "{admin.info.dbname}" SET max_parallel_workers = 1')
    store.engine.dispose()
    rebuild_index(store.engine, spec, memory_mb=1024)
    assert seen == [["96MB", "2"], ["64MB", "1"]]


@pytest.mark.parametrize("again", [False, True])
def test_without_the_shared_memory_for_workers_the_index_is_built_without_them(
    store, admin, monkeypatch, caplog, again
):
    spec = with_rows(store, 30)
    if again:
        build_index(store.engine, spec, threshold=0, memory_mb=64)
    admin.execute(f'ALTER DATABASE "{admin.info.dbname}" SET min_parallel_table_scan_size = 0')
    store.engine.dispose()
    too_much = shutil.disk_usage("/dev/shm").total // MIB + 1024
    monkeypatch.setattr(index, "plan_build", lambda *_, **__: BuildPlan(1, too_much, 1))
    if again:
        assert rebuild_index(store.engine, spec, memory_mb=64)
    else:
        assert build_index(store.engine, spec, threshold=0, memory_mb=64)
    assert is_indexed(store.engine, spec)
    assert f"the server has no {too_much} MiB of shared memory (/dev/shm)" in caplog.text
    assert not drop_leftovers(store.engine, spec)


def with_rows(store, count):
    spec = store.spec()
    store.load(spec, {"a": store.vectors(count)})
    return spec


def settings(store):
    return store.sql(
        "SELECT current_setting('maintenance_work_mem'), "
        "current_setting('max_parallel_maintenance_workers')"
    )


def settings_of_builds(engine):
    """Fills up with memory and workers as they are when a build begins."""
    seen = []

    @event.listens_for(engine, "before_cursor_execute")
    def look(connection, cursor, statement, *_):
        if statement.startswith(("CREATE INDEX", "REINDEX")):
            names = "maintenance_work_mem", "max_parallel_maintenance_workers"
            seen.append([cursor.execute(f"SHOW {name}").fetchone()[0] for name in names])

    return seen


def dsn(store):
    return store.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
