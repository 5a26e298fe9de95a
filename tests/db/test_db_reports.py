"""What operators ask, on a small store where every answer is known."""

import numpy as np
import pytest

from db import ledger, reports
from db.index import build_index
from db.storage import estimate_bytes


@pytest.fixture
def spec(store):
    """Two done files of one content, one failed, one pending, one leased, one unreadable."""
    spec = store.spec()
    run = store.run(spec)
    store.scan(spec, {"f": "failed"})
    (lease,) = store.lease(spec, run)
    ledger.fail_image(store.engine, lease, "truncated")
    store.ingest(spec, {"a": "1", "b": "1", "f": "failed"})
    store.scan(spec, {"a": "1", "b": "1", "f": "failed", "l": "leased", "x": None})
    store.lease(spec)
    store.scan(spec, {"a": "1", "b": "1", "f": "failed", "l": "leased", "p": "2", "x": None})
    return spec


def test_status_counts_every_file_once(store, spec):
    (status,) = reports.status(store.engine)
    assert (status.source, status.spec) == ("file:///pictures", "tiny")
    assert (status.found, status.done, status.failed) == (6, 2, 2)
    assert (status.pending, status.leased, status.patches) == (1, 1, 3)


def test_status_counts_the_patches_of_two_files_with_one_content_once(store, spec):
    store.ingest(spec, {"a": "1", "b": "1", "c": "2"})
    status = store.status(spec)
    assert (status.done, status.patches) == (3, 6)
    assert store.scalar("SELECT count(*) FROM patchstore.patches") == 6


def test_status_can_be_asked_for_one_source_and_spec(store, spec):
    store.ingest(store.spec("other"), {"z": "9"}, root="file:///elsewhere")
    source = reports.source_id(store.engine, "file:///elsewhere")
    assert len(reports.status(store.engine)) == 2
    (one,) = reports.status(store.engine, source_id=source)
    assert (one.spec, one.found) == ("other", 1)
    assert reports.status(store.engine, source_id=source, spec="tiny") == []


def test_an_unknown_source_has_no_id(store):
    assert reports.source_id(store.engine, "file:///nowhere") is None


def test_failures_name_file_reason_and_attempts(store, spec):
    assert [(f.uri, f.reason, f.attempts) for f in reports.failures(store.engine)] == [
        ("f", "truncated", 1),
        ("x", "cannot be read: no permission", 0),
    ]
    assert reports.failures(store.engine, spec="other") == []


def test_the_last_runs_come_newest_first_and_no_more_than_asked(store):
    spec = store.spec()
    runs = [store.run(spec) for _ in range(5)]
    reported = reports.last_runs(store.engine, limit=3)
    assert [run.id for run in reported] == runs[:1:-1]
    assert {run.state for run in reported} == {"running"}


def test_the_matrix_comes_in_stretches_ordered_by_file_and_box(store):
    spec = store.spec()
    store.ingest(spec, {"b": "1", "a": "2", "c": "3"})
    stretches = list(reports.patch_matrix(store.engine, spec, rows=2))
    assert [len(rows.uris) for rows in stretches] == [2, 2, 2, 2, 1]
    assert all(rows.vectors.dtype == np.float32 for rows in stretches)
    assert all(rows.boxes.dtype == np.int32 for rows in stretches)
    assert [uri for rows in stretches for uri in rows.uris] == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    vectors = np.concatenate([rows.vectors for rows in stretches])
    assert (vectors == np.concatenate([store.content(c) for c in "213"])).all()
    assert np.concatenate([rows.boxes for rows in stretches])[:3].tolist() == [
        [0, 0, 8, 8],
        [8, 0, 8, 8],
        [16, 0, 8, 8],
    ]


def test_the_matrix_of_an_empty_spec_is_empty(store):
    assert list(reports.patch_matrix(store.engine, store.spec())) == []


def test_a_reader_who_stops_halfway_leaves_the_store_usable(store):
    spec = store.spec()
    store.ingest(spec, {"a": "1"})
    stretches = reports.patch_matrix(store.engine, spec, rows=1)
    next(stretches)
    stretches.close()
    assert store.shown(spec) == {"a"}


@pytest.mark.parametrize("dim", [512, 1024])
def test_the_estimate_is_near_what_postgres_takes(store, dim):
    spec = store.spec("big", dim=dim)
    store.load(spec, {f"u{i}": store.vectors(100, dim, i) for i in range(20)})

    def stored():
        return store.scalar(f"SELECT pg_total_relation_size('{spec.partition}')")

    assert estimate_bytes(dim, 2_000, index_threshold=2_000) == pytest.approx(stored(), rel=0.25)
    build_index(store.engine, spec, threshold=0, memory_mb=64)
    assert estimate_bytes(dim, 2_000, index_threshold=0) == pytest.approx(stored(), rel=0.25)
