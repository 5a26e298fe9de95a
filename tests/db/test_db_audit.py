"""What an audit sees of a store in which somebody has been at the rows."""

import numpy as np
import pytest

from db.audit import (
    LedgerCheck,
    check_ledger,
    count_orphans,
    measure_recall,
    record_audit,
    requeue,
    sample_files,
    sample_patches,
)
from db.index import build_index, index_name
from db.ledger import note_precision


@pytest.fixture
def spec(store):
    spec = store.spec()
    store.ingest(spec, {"a": "1", "b": "2"})
    return spec


def image(store, uri):
    return store.scalar("SELECT image_id FROM patchstore.images WHERE uri = :uri", uri=uri)


def test_a_sound_store_has_nothing_to_report(store, spec):
    assert check_ledger(store.engine, spec) == LedgerCheck()


def test_rows_that_are_missing_are_found(store, spec):
    one = image(store, "a")
    store.sql(f"DELETE FROM {spec.partition} WHERE image_id = {one} AND x = 0")
    store.sql(f"DELETE FROM {spec.partition} WHERE image_id <> {one}")
    assert check_ledger(store.engine, spec).miscounted == [one, image(store, "b")]


def test_rows_of_an_image_that_is_not_done_are_found(store, spec):
    one = image(store, "a")
    store.sql(
        "UPDATE patchstore.extraction SET state = 'failed', error = 'x', patch_count = NULL, "
        "visible = false WHERE image_id = :image",
        image=one,
    )
    assert check_ledger(store.engine, spec) == LedgerCheck(unrecorded=[one])


def test_rows_of_an_image_that_does_not_exist_are_found(store, spec):
    store.sql(f"UPDATE {spec.partition} SET image_id = 999 WHERE image_id = {image(store, 'a')}")
    assert check_ledger(store.engine, spec) == LedgerCheck(
        miscounted=[image(store, "a")], unknown=[999]
    )


def test_what_is_queued_again_is_computed_by_the_next_run_and_sound_then(store, spec):
    store.sql(f"UPDATE {spec.partition} SET image_id = 999 WHERE image_id = {image(store, 'a')}")
    wrong = check_ledger(store.engine, spec).images()
    assert requeue(store.engine, spec, wrong) == 1
    assert requeue(store.engine, spec, wrong) == 1
    assert store.shown(spec) == {"b"}
    assert store.status(spec).pending == 1
    store.ingest(spec, {"a": "1", "b": "2"})
    assert store.shown(spec) == {"a", "b"}
    assert check_ledger(store.engine, spec) == LedgerCheck()


def test_an_image_that_is_being_computed_is_not_queued_again(store, spec):
    store.scan(spec, {"a": "1", "b": "2", "c": "3"})
    (lease,) = store.lease(spec)
    assert requeue(store.engine, spec, [lease.image_id]) == 0
    store.write(spec, lease)
    assert "c" in store.shown(spec)


def test_orphans_are_contents_that_no_file_shows(store, spec):
    assert count_orphans(store.engine) == 0
    store.scan(spec, {"a": "new", "b": "2"})
    assert count_orphans(store.engine) == 0  # searches show the old content still
    store.ingest(spec, {"a": "new"})
    assert count_orphans(store.engine) == 2


@pytest.mark.parametrize(("count", "found"), [(1, 1), (4, 4), (5, 5), (100, 6)])
def test_a_sample_takes_from_as_many_images_as_there_are(store, spec, count, found):
    sample = sample_patches(store.engine, spec, count)
    assert len({patch.patch_id for patch in sample}) == len(sample) == found
    assert len({patch.image_id for patch in sample}) == min(count, 2)


def test_a_sampled_patch_says_where_it_is_from_and_in_which_precision(store, spec):
    run = store.scalar("SELECT run_id FROM patchstore.extraction LIMIT 1")
    note_precision(store.engine, run, "bf16")  # and the run was killed
    sample = sample_patches(store.engine, spec, 6)
    (patch,) = [p for p in sample if p.uri == "a" and p.box == (8, 0, 8, 8)]
    np.testing.assert_array_equal(patch.vector, store.content("1")[1])
    assert (patch.scale, patch.precision) == (1.0, "bf16")


def test_what_searches_do_not_show_is_not_sampled(store, spec):
    store.scan(spec, {"b": "2"})
    assert {patch.uri for patch in sample_patches(store.engine, spec, 10)} == {"b"}
    assert sample_files(store.engine, spec, 10) == [("file:///pictures", "b")]


def test_a_file_that_is_known_to_be_unreadable_is_not_looked_for(store, spec):
    store.scan(spec, {"a": "1", "b": "2", "dangling": None})
    assert {uri for _, uri in sample_files(store.engine, spec, 10)} == {"a", "b"}


def test_files_are_those_of_the_spec(store, spec):
    store.ingest(store.spec("other"), {"c": "3"}, root="file:///elsewhere")
    assert {uri for _, uri in sample_files(store.engine, spec, 10)} == {"a", "b"}


def test_without_an_index_there_is_no_recall(store, spec):
    assert measure_recall(store.engine, spec, store.vectors(1)) is None


@pytest.fixture(scope="module")
def wide(module_store):
    """4,000 vectors in 48 dimensions, in an index of the usual kind."""
    spec = module_store.spec("wide", dim=48)
    module_store.load(spec, {f"u{n}": module_store.vectors(400, 48, n) for n in range(10)})
    build_index(module_store.engine, spec, threshold=0, memory_mb=64)
    return spec


def test_a_good_index_finds_nearly_all(module_store, wide):
    assert measure_recall(module_store.engine, wide, module_store.vectors(20, 48, 99)) > 0.98


def test_a_poor_index_is_found_out(module_store, wide):
    name = index_name(wide)
    module_store.sql(f"DROP INDEX patchstore.{name}")
    module_store.sql(
        f"CREATE INDEX {name} ON {wide.partition} USING hnsw ({wide.metric.index_key(48)}) "
        "WITH (m = 2, ef_construction = 4)"
    )
    assert measure_recall(module_store.engine, wide, module_store.vectors(20, 48, 99)) < 0.9


def test_equally_far_patches_are_equally_right(store):
    spec = store.spec()
    store.load(spec, {"a": np.tile(store.vectors(1), (100, 1))})
    build_index(store.engine, spec, threshold=0, memory_mb=16)
    assert measure_recall(store.engine, spec, store.vectors(1)) == 1


def test_an_index_of_which_everything_has_vanished_has_no_recall(store, spec):
    build_index(store.engine, spec, threshold=0, memory_mb=16)
    store.scan(spec, {})
    assert measure_recall(store.engine, spec, store.vectors(1)) is None


def test_an_audit_is_kept(store, spec):
    record_audit(store.engine, spec, recall=0.5, sampled=3, report={"problems": []})
    (row,) = store.sql("SELECT spec_id, recall, sampled, report FROM patchstore.audit")
    assert row == (spec.id, 0.5, 3, {"problems": []})
