"""The HNSW index: built once, in nobody's way, and exactly the one that searches ask for."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sqlalchemy import event

from db import build_progress, index
from db.engine import driver_connection, make_engine
from db.errors import TransientStoreError
from db.index import (
    build_index,
    churn,
    count_rows,
    drop_leftovers,
    index_definition,
    index_name,
    is_indexed,
    is_outgrown,
    rebuild_index,
)
from db.metric import METRICS
from db.search import SearchOptions, search


@pytest.fixture
def spec(store):
    spec = store.spec()
    store.load(spec, {f"u{i}": store.vectors(50, seed=i) for i in range(4)})
    return spec


def build(store, spec, threshold=0, **more):
    return build_index(store.engine, spec, threshold=threshold, memory_mb=16, **more)


def oid(store, spec):
    return store.scalar("SELECT to_regclass(:name)::oid", name=f"patchstore.{index_name(spec)}")


def options(store, spec):
    return store.scalar("SELECT reloptions FROM pg_class WHERE oid = :oid", oid=oid(store, spec))


def test_it_is_built_once(store, spec):
    assert build(store, spec)
    first = oid(store, spec)
    assert not build(store, spec)
    assert (oid(store, spec), is_indexed(store.engine, spec)) == (first, True)


def test_up_to_the_threshold_none_is_built(store, spec):
    assert count_rows(store.engine, spec) == 200
    assert not build(store, spec, threshold=200)
    assert not is_indexed(store.engine, spec)
    assert build(store, spec, threshold=199)


@pytest.mark.parametrize(("many", "width"), [(201, 200), (200, 400)])
def test_the_graph_of_many_rows_weighs_more_candidates(many, width, store, spec, monkeypatch):
    monkeypatch.setattr(index, "MANY_ROWS", many)
    assert build(store, spec)
    assert f"ef_construction={width}" in options(store, spec)


def test_vectors_too_long_to_index_are_searched_exactly(store):
    spec = store.spec("long", dim=4_001)
    store.load(spec, {"a": np.ones((3, 4_001), np.float32)})
    assert not build(store, spec)
    assert len(search(store.engine, spec, np.ones(4_001, np.float32), SearchOptions(2)).hits) == 2


def test_the_longest_vectors_that_can_be_indexed_are(store):
    spec = store.spec("long", dim=4_000)
    store.load(spec, {"a": store.vectors(3, 4_000)})
    assert build(store, spec)
    assert len(search(store.engine, spec, store.vectors(1, 4_000)[0], SearchOptions(2)).hits) == 2


@pytest.mark.parametrize("metric", METRICS)
def test_operator_class_and_expression_are_the_metrics(store, metric):
    spec = store.spec(metric, metric=metric)
    store.load(spec, {"a": store.vectors(3)})
    build(store, spec)
    definition = store.scalar("SELECT pg_get_indexdef(CAST(:oid AS oid))", oid=oid(store, spec))
    plain = METRICS[metric].index_key(spec.dim).replace("(", "").replace(")", "")
    assert f"USING hnsw {plain} WITH" in definition.replace("(", "").replace(")", "")
    assert METRICS[metric].operator_class == f"halfvec_{metric}_ops"
    operator = store.scalar("SELECT distance_operator FROM patchstore.feature_spec")
    assert METRICS[metric].operator == operator
    assert (
        METRICS[metric].order_by(4, "$1") == f"(embedding::halfvec(4)) {operator} ($1::halfvec(4))"
    )


def test_what_a_killed_build_left_behind_is_replaced(store, spec, admin):
    build(store, spec)
    left = oid(store, spec)
    admin.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s", (left,))
    assert not is_indexed(store.engine, spec)
    assert len(search(store.engine, spec, store.vectors(1)[0], SearchOptions(5)).hits) == 5
    assert build(store, spec)
    assert is_indexed(store.engine, spec)
    assert oid(store, spec) != left


def test_a_builder_that_comes_late_to_the_lock_leaves_the_index_alone(store, spec, monkeypatch):
    build(store, spec)
    first = oid(store, spec)
    seen = [False]  # what it saw before the other builder was ready
    monkeypatch.setattr(index, "is_indexed", lambda *a: seen.pop() if seen else is_indexed(*a))
    assert not build(store, spec)
    assert oid(store, spec) == first


def test_two_builders_at_once_build_one(store, spec):
    with ThreadPoolExecutor(3) as pool:
        built = list(pool.map(lambda _: build(store, spec), range(3)))
    assert sum(built) == 1
    assert is_indexed(store.engine, spec)


class HeldBuild:
    """A build that is stopped in the middle by a transaction of the test's."""

    def __init__(self, store, spec, build=build, **more):
        self.blocker = store.engine.connect()
        self.blocker.exec_driver_sql(f"LOCK TABLE {spec.partition} IN ROW EXCLUSIVE MODE")
        self.pool = ThreadPoolExecutor(1)
        self.result = self.pool.submit(build, store, spec, **more)
        while not store.sql("SELECT 1 FROM pg_stat_progress_create_index WHERE phase ~ 'waiting'"):
            assert not self.result.done()

    def finish(self):
        self.blocker.close()
        self.pool.shutdown()
        return self.result.result()


def test_while_it_is_built_others_write_search_and_do_not_build(store, spec):
    held = HeldBuild(store, spec)
    store.ingest(spec, {"new": "new"}, root="file:///elsewhere")
    assert "new" in store.shown(spec)
    assert len(search(store.engine, spec, store.vectors(1)[0], SearchOptions(5)).hits) == 5
    assert not build(store, spec)
    assert held.finish()
    assert len(search(store.engine, spec, store.vectors(1)[0], SearchOptions(300)).hits) == 203


def test_a_build_that_is_killed_can_be_tried_again(store, spec, admin):
    held = HeldBuild(store, spec)
    admin.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_progress_create_index")
    with pytest.raises(TransientStoreError):
        held.finish()
    assert not is_indexed(store.engine, spec)
    assert build(store, spec)


def test_limits_of_the_role_or_the_database_end_no_build(store, spec):
    engine = make_engine(store.engine.url, statement_timeout_s=60, lock_timeout_s=30)
    seen = []

    def look(connection, _cursor, statement, *_more):
        if statement.startswith("CREATE INDEX"):
            limits = "SELECT current_setting('statement_timeout'), current_setting('lock_timeout')"
            seen.append(driver_connection(connection).execute(limits).fetchone())

    event.listen(engine, "before_cursor_execute", look)
    assert build_index(engine, spec, threshold=0, memory_mb=16)
    assert seen == [("0", "0")]
    engine.dispose()


def test_progress_is_shown_by_phase_and_share(store, spec, monkeypatch):
    monkeypatch.setattr(build_progress, "POLL_S", 0.001)
    seen, enough = [], threading.Event()

    def note(phase, share):
        seen.append((phase, share))
        enough.set()

    held = HeldBuild(store, spec, on_progress=note)
    assert enough.wait(60)
    assert held.finish()
    assert all(phase and 0 <= share <= 1 for phase, share in seen)


def test_a_listener_that_fails_does_not_stop_the_build(store, spec, monkeypatch):
    monkeypatch.setattr(build_progress, "POLL_S", 0.001)
    enough = threading.Event()

    def fail(phase, share):
        enough.set()
        raise RuntimeError("the terminal is gone")

    held = HeldBuild(store, spec, on_progress=fail)
    assert enough.wait(60)
    assert held.finish()
    assert is_indexed(store.engine, spec)


def rebuild(store, spec):
    return rebuild_index(store.engine, spec, memory_mb=16)


def delete_half(admin, spec):
    """Deletes half of the rows, and lets the server count it now rather than in a while."""
    admin.execute(
        f"SELECT pg_stat_force_next_flush(); DELETE FROM {spec.partition} WHERE id % 2 = 0"
    )


def test_churn_is_the_share_of_rows_deleted_since_the_index_was_built(store, spec, admin):
    build(store, spec)
    assert churn(store.engine, spec) == 0
    delete_half(admin, spec)
    assert churn(store.engine, spec) == pytest.approx(0.5)
    assert rebuild(store, spec)
    assert churn(store.engine, spec) == 0


def test_churn_counts_from_zero_after_the_server_forgot_its_counts(store, spec, admin):
    delete_half(admin, spec)
    build(store, spec)
    admin.execute("SELECT pg_stat_reset()")
    assert churn(store.engine, spec) == 0


def test_a_rebuilt_index_is_another_one_under_the_same_name(store, spec):
    build(store, spec)
    first = oid(store, spec)
    assert rebuild(store, spec)
    assert is_indexed(store.engine, spec)
    assert oid(store, spec) != first
    assert len(search(store.engine, spec, store.vectors(1)[0], SearchOptions(200)).hits) == 200


def test_an_index_that_its_store_has_outgrown_is_rebuilt_for_as_many_rows(store, spec, monkeypatch):
    assert not is_outgrown(store.engine, spec)  # there is none
    build(store, spec)
    assert not is_outgrown(store.engine, spec)
    monkeypatch.setattr(index, "MANY_ROWS", 200)
    assert is_outgrown(store.engine, spec)
    assert rebuild(store, spec)
    assert "ef_construction=400" in options(store, spec)
    assert not is_outgrown(store.engine, spec)


def test_an_index_built_for_more_rows_than_there_are_is_not_outgrown(store, spec, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(index, "MANY_ROWS", 200)
        build(store, spec)
    assert not is_outgrown(store.engine, spec)


@pytest.mark.parametrize(("old_is_gone", "dropped"), [(False, 1), (True, 0)])
def test_a_new_index_that_a_killed_rebuild_left_takes_its_place(
    store, spec, admin, old_is_gone, dropped
):
    build(store, spec)
    new = f"{index_name(spec)}_ccnew"
    admin.execute(f"CREATE INDEX {new} {index_definition(spec, 200)}")
    if old_is_gone:
        admin.execute(f"DROP INDEX patchstore.{index_name(spec)}")
    left = store.scalar(f"SELECT 'patchstore.{new}'::regclass::oid")
    assert is_indexed(store.engine, spec)
    assert drop_leftovers(store.engine, spec) == dropped
    assert oid(store, spec) == left
    assert store.scalar(f"SELECT to_regclass('patchstore.{new}')") is None


def test_what_is_not_there_is_not_rebuilt(store, spec):
    assert not rebuild(store, spec)
    assert not is_indexed(store.engine, spec)


def test_while_it_is_rebuilt_searches_go_by_the_old_one(store, spec):
    build(store, spec)
    held = HeldBuild(store, spec, rebuild)
    assert is_indexed(store.engine, spec)
    assert not search(store.engine, spec, store.vectors(1)[0], SearchOptions(5)).exact
    assert not rebuild(store, spec)
    assert held.finish()


def test_a_killed_rebuild_leaves_the_old_index_and_the_next_one_cleans_up(store, spec, admin):
    build(store, spec)
    held = HeldBuild(store, spec, rebuild)
    admin.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_progress_create_index")
    with pytest.raises(TransientStoreError):
        held.finish()
    assert is_indexed(store.engine, spec)
    assert drop_leftovers(store.engine, spec) == 1
    assert drop_leftovers(store.engine, spec) == 0
    assert rebuild(store, spec)


@pytest.mark.parametrize(("rows", "expected"), [(1_000, 200), (700_000, 700), (10_000_000, 1_000)])
def test_an_index_of_more_rows_is_searched_more_widely(store, spec, rows, expected):
    build(store, spec)
    store.sql(f"UPDATE pg_class SET reltuples = {rows} WHERE oid = '{spec.partition}'::regclass")
    assert store.scalar(f"SELECT patchstore.usual_ef_search({spec.id})") == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 200),
        ({"filter": {"a": 1}}, 400),
        ({"prefix": "a"}, 400),
        ({"image_ids": [1]}, 400),
        ({"touching": [0, 0, 1, 1]}, 400),
        ({"other_than": [1]}, 200),
        ({"filter": {"a": 1}, "ef_search": 60}, 60),
    ],
    ids=str,
)
def test_where_much_is_left_out_the_index_is_searched_more_widely(store, spec, options, expected):
    asked = {"query": str([1.0] * spec.dim), "k": 5, **options}
    found = store.scalar(
        "SELECT (patchstore.check_question(s, jsonb_populate_record(NULL::patchstore.question,"
        " CAST(:asked AS jsonb)))).ef_search FROM patchstore.feature_spec s WHERE id = :spec",
        asked=json.dumps(asked),
        spec=spec.id,
    )
    assert found == expected
