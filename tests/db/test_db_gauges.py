"""The numbers for monitoring are those of the ledger, and what is a counter never falls."""

import io

import numpy as np
import pytest
from PIL import Image

from db.engine import make_engine
from db.errors import TransientStoreError
from db.gauges import read_gauges
from db.index import build_index, index_name
from db.ledger import fail_image, finish_run
from db.prune import prune
from extractor.errors import ImageError
from extractor.grid import make_grid
from extractor.images import read_content, read_image


@pytest.fixture
def spec(store):
    return store.spec()


def source(store, root="file:///pictures"):
    (found,) = [s for s in read_gauges(store.engine).sources if s.source == root]
    return found


def of_spec(store):
    (found,) = read_gauges(store.engine).specs
    return found


def age_of_pending(store, hours):
    store.sql(
        "UPDATE patchstore.extraction SET updated_at = now() - make_interval(hours => :hours) "
        "WHERE state = 'pending'",
        hours=hours,
    )


def test_an_empty_store_has_no_rows_and_counters_at_zero(store):
    gauges = read_gauges(store.engine)
    assert (gauges.sources, gauges.specs, gauges.builds) == ([], [], [])
    assert (gauges.leased, gauges.written) == (0, 0)


def test_stored_images_and_patches_are_counted_by_spec(store, spec):
    store.ingest(spec, {"a": "1", "b": "2", "copy": "1"})
    found = of_spec(store)
    assert (found.images, found.patches) == (2, 6)
    assert found.table_bytes > 0
    assert found.index_bytes > 0


def test_the_backlog_is_what_waits_and_what_is_being_computed(store, spec):
    store.ingest(spec, {"done": "0"})
    store.scan(spec, {"done": "0", "a": "1", "b": "2", "c": "3"})
    assert source(store).waiting == 3
    store.lease(spec, images=1)
    assert source(store).waiting == 3


def test_an_image_belongs_to_the_backlog_of_each_source_that_was_run(store, spec):
    store.run(spec, root="file:///one")
    store.run(spec, root="file:///two")
    store.scan(spec, {"a": "same"}, root="file:///one")
    store.scan(spec, {"b": "same", "c": "other"}, root="file:///two")
    store.scan(spec, {"d": "third"}, root="file:///never-run")
    waiting = {s.source: s.waiting for s in read_gauges(store.engine).sources}
    assert waiting == {"file:///one": 1, "file:///two": 2}


def test_what_vanished_before_it_was_computed_waits_no_more(store, spec):
    store.run(spec)
    store.scan(spec, {"a": "1"})
    store.scan(spec, {})
    assert (source(store).waiting, source(store).oldest_s) == (0, 0)


def test_the_oldest_waiting_image_is_told_by_its_age(store, spec):
    store.run(spec)
    store.scan(spec, {"a": "1"})
    age_of_pending(store, hours=3)
    store.scan(spec, {"a": "1", "b": "2"})
    assert source(store).oldest_s == pytest.approx(3 * 3600, abs=600)


@pytest.mark.parametrize("state", ["completed", "completed_with_errors", "failed"])
def test_the_last_run_is_told_by_its_state(store, spec, state):
    finish_run(store.engine, store.run(spec), "completed", None)
    before = source(store).succeeded
    finish_run(store.engine, store.run(spec), state, None)
    found = source(store)
    assert found.state == state
    assert (found.succeeded == before) is (state == "failed")


def test_a_source_that_never_went_through_has_no_success(store, spec):
    finish_run(store.engine, store.run(spec), "failed", None)
    assert source(store).succeeded is None


def test_a_run_that_died_counts_as_crashed_before_the_next_one_says_so(store, spec):
    run = store.run(spec)
    store.sql("UPDATE patchstore.ingest_run SET started_at = now() - interval '2 minutes'")
    with store.alive(run):
        assert source(store).state == "running"
    assert source(store).state == "crashed"


def test_leases_of_a_dead_run_are_expired(store, spec):
    store.scan(spec, {"a": "1", "b": "2"})
    run = store.run(spec)
    with store.alive(run):
        store.lease(spec, run)
        assert of_spec(store).expired_leases == 0
    assert of_spec(store).expired_leases == 2


def png(size=(64, 64)):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)).save(
        file, "PNG"
    )
    return file.getvalue()


def reason_of(fail):
    """The text that an image fails with, from the code that fails it."""
    with pytest.raises(ImageError) as error:
        fail()
    return str(error.value)


REAL_REASONS = {
    "empty_file": lambda: read_image(b""),
    "not_an_image": lambda: read_image(b"shopping list"),
    "corrupt": lambda: read_image(png()[:2000]),
    "too_many_pixels": lambda: read_image(png(), max_pixels=100),
    "too_small": lambda: make_grid(9, 9, patch_size=48, stride=24, edge="drop"),
}
OTHER_REASONS = {
    "degenerate_features": "the network gave NaN for 3 of 9 patches; use the precision float32",
    "unreadable": "cannot be read: Input/output error",
    "decoder_error": "cannot be decoded: ZeroDivisionError: division by zero",
    "gave_up": "gave up after 25 attempts that ended without an outcome",
    "other": "what nobody has thought of",
}


@pytest.mark.parametrize("kind", [*REAL_REASONS, *OTHER_REASONS])
def test_failed_images_are_counted_by_the_kind_of_reason(store, spec, kind):
    reason = OTHER_REASONS.get(kind) or reason_of(REAL_REASONS[kind])
    store.scan(spec, {"a": "1"})
    (lease,) = store.lease(spec)
    fail_image(store.engine, lease, reason)
    failed = read_gauges(store.engine).failed
    assert {key: count for key, count in failed.items() if count} == {("tiny", kind): 1}
    assert {key[1] for key in failed} == {*REAL_REASONS, *OTHER_REASONS}


@pytest.mark.parametrize("start", [b"\0\0\0\x18ftypheic", b"<svg xmlns="])
def test_what_phones_and_browsers_write_is_no_image(store, spec, start):
    reason = reason_of(lambda: read_image(start + bytes(99)))
    store.scan(spec, {"a": "1"})
    (lease,) = store.lease(spec)
    fail_image(store.engine, lease, reason)
    failed = read_gauges(store.engine).failed
    assert {key: count for key, count in failed.items() if count} == {("tiny", "not_an_image"): 1}


def test_a_file_of_more_bytes_than_an_image_takes_has_too_many_pixels(store, spec):
    reason = reason_of(lambda: read_content(io.BytesIO(bytes(1601)), max_pixels=100))
    store.scan(spec, {"a": "1"})
    (lease,) = store.lease(spec)
    fail_image(store.engine, lease, reason)
    assert read_gauges(store.engine).failed["tiny", "too_many_pixels"] == 1


def test_a_failed_image_that_nobody_shows_any_more_is_not_counted(store, spec):
    store.scan(spec, {"a": "1"})
    fail_image(store.engine, store.lease(spec)[0], "the file is empty (0 bytes)")
    store.scan(spec, {})
    assert not any(read_gauges(store.engine).failed.values())


def test_files_that_cannot_be_opened_are_counted_by_source(store, spec):
    store.scan(spec, {"a": None, "b": None, "c": "1"})
    store.scan(spec, {"d": "2"}, root="file:///good")
    assert read_gauges(store.engine).unreadable == {"file:///pictures": 2, "file:///good": 0}


def test_counters_do_not_fall_when_images_are_pruned(store, spec):
    store.ingest(spec, {"a": "1", "b": "2"})
    before = read_gauges(store.engine)
    assert (before.leased, before.written) == (2, 6)
    store.scan(spec, {"a": "1"})
    assert prune(store.engine)["patches"] == 3
    after = read_gauges(store.engine)
    assert (after.leased, after.written) == (2, 6)
    assert after.specs[0].patches == 3


def test_an_index_is_valid_or_a_leftover(store, spec, admin):
    store.ingest(spec, {"a": "1"})
    assert (of_spec(store).indexed, of_spec(store).invalid_indexes) == (False, 0)
    build_index(store.engine, spec, threshold=0, memory_mb=16)
    assert (of_spec(store).indexed, of_spec(store).invalid_indexes) == (True, 0)
    index = f"patchstore.{index_name(spec)}"
    admin.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", (index,)
    )
    assert (of_spec(store).indexed, of_spec(store).invalid_indexes) == (False, 1)


def test_the_last_audit_counts(store, spec):
    assert (of_spec(store).recall, of_spec(store).audited) == (None, None)
    store.sql(
        "INSERT INTO patchstore.audit (spec_id, finished_at, recall, sampled, report) "
        "SELECT :spec, now() - make_interval(hours => age), recall, 10, '{}' "
        "  FROM (VALUES (2, 0.5), (1, 0.97)) audit(age, recall)",
        spec=spec.id,
    )
    assert of_spec(store).recall == pytest.approx(0.97)


def test_a_database_that_does_not_answer_in_time_is_an_error_of_the_store(store, spec):
    hasty = make_engine(store.engine.url, vectors=False, statement_timeout_s=0.1)
    with store.engine.connect() as blocker:
        blocker.exec_driver_sql("LOCK TABLE patchstore.extraction")
        with pytest.raises(TransientStoreError):
            read_gauges(hasty)
    hasty.dispose()
