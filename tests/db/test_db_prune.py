"""What is taken away for good: vanished files, and specs that nobody needs any more."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import db.prune
from db.aliases import promote
from db.errors import InUse, TransientStoreError
from db.index import build_index
from db.ledger import finish_run
from db.prune import count_vanished, forget_source, prune, prune_records, remove_spec
from db.reports import status
from db.search import search
from db.specs import list_specs


@pytest.fixture
def spec(store):
    return store.spec()


def test_prune_deletes_for_good_and_once(store, spec):
    store.ingest(spec, {"a": "1", "b": "2"})
    store.scan(spec, {"b": "2"})
    assert prune(store.engine) == {
        "locations": 1,
        "patches": 3,
        "extractions": 1,
        "images": 1,
    }
    assert set(prune(store.engine).values()) == {0}
    assert store.shown(spec) == {"b"}


def test_prune_keeps_what_vanished_only_lately_and_it_returns_as_it_was(store, spec):
    store.ingest(spec, {"a": "1", "b": "2"})
    store.scan(spec, {"b": "2"})
    assert set(prune(store.engine, keep_days=1).values()) == {0}
    assert count_vanished(store.engine) == 1
    store.scan(spec, {"a": "1", "b": "2"})
    assert store.shown(spec) == {"a", "b"}
    assert count_vanished(store.engine) == 0


def test_prune_deletes_what_vanished_longer_ago_than_is_kept(store, spec):
    store.ingest(spec, {"a": "1", "b": "2"})
    store.scan(spec, {"b": "2"})
    store.sql(
        "UPDATE patchstore.image_location SET vanished_at = vanished_at - interval '25 hours'"
    )
    assert prune(store.engine, keep_days=1)["images"] == 1


def test_prune_keeps_a_content_that_another_file_shows(store, spec):
    store.ingest(spec, {"a": "1", "b": "1"})
    store.scan(spec, {"b": "1"})
    assert prune(store.engine)["images"] == 0
    assert store.shown(spec) == {"b"}


def test_prune_keeps_the_old_content_while_the_new_one_waits(store, spec):
    store.ingest(spec, {"a": "1"})
    store.scan(spec, {"a": "2"})
    assert prune(store.engine)["images"] == 0
    assert store.shown(spec) == {"a"}


def test_prune_deletes_the_old_content_once_the_new_one_is_done(store, spec):
    store.ingest(spec, {"a": "1"})
    store.ingest(spec, {"a": "2"})
    assert prune(store.engine)["images"] == 1
    assert store.scalar("SELECT count(*) FROM patchstore.patch_feature") == 3


def test_prune_leaves_what_is_being_computed(store, spec):
    store.scan(spec, {"a": "1"})
    run = store.run(spec)
    with store.alive(run):
        (lease,) = store.lease(spec, run)
        store.scan(spec, {})
        assert prune(store.engine)["images"] == 0
        store.write(spec, lease)
    assert prune(store.engine)["patches"] == 3


def test_prune_does_not_wait_for_a_run_that_died(store, spec):
    other = store.spec("other")
    store.scan(spec, {"a": "1"})
    store.ingest(other, {"a": "1"})
    (lease,) = store.lease(spec)
    store.scan(other, {})
    assert prune(store.engine)["patches"] == 3
    assert store.write(spec, lease) == [lease]
    assert store.scalar("SELECT count(*) FROM patchstore.image") == 0


def test_the_old_content_of_a_file_that_vanished_only_lately_is_kept(store, spec):
    store.ingest(spec, {"a": "1"})
    store.scan(spec, {"a": "2"})
    store.scan(spec, {})
    assert set(prune(store.engine, keep_days=1).values()) == {0}
    store.scan(spec, {"a": "2"})
    assert store.shown(spec) == {"a"}


def test_prune_never_holds_a_location_while_it_waits_for_one_before_it(store, spec):
    store.ingest(spec, {"a": "1", "b": "2"})
    store.ingest(spec, {"b": "3"})  # a has vanished, of b the old content is kept
    lock = "SELECT FROM patchstore.image_location WHERE uri = '{}' FOR UPDATE"
    with store.engine.begin() as other, ThreadPoolExecutor(1) as pool:
        other.exec_driver_sql(lock.format("a"))
        pruning = pool.submit(prune, store.engine, 0)
        with pytest.raises(TimeoutError):
            pruning.result(timeout=0.5)
        other.exec_driver_sql(lock.format("b"))
        other.commit()
        pruning.result()
    assert store.shown(spec) == {"b"}


def test_a_pruned_file_that_returns_is_new(store, spec):
    store.ingest(spec, {"a": "1"})
    store.scan(spec, {})
    prune(store.engine)
    counts = store.ingest(spec, {"a": "1"})
    assert (counts.found, counts.new) == (1, 1)
    assert store.shown(spec) == {"a"}


def test_prune_and_scan_at_once_neither_fail_nor_lose_a_file(store, spec):
    store.ingest(spec, {"a": "1"})
    errors = []

    def keep(action):
        try:
            for turn in range(15):
                action(turn)
        except Exception as error:
            errors.append(error)

    threads = [
        threading.Thread(target=keep, args=(lambda _: prune(store.engine),)),
        threading.Thread(
            target=keep, args=(lambda n: store.scan(spec, {"a": "1"} if n % 2 else {"b": "1"}),)
        ),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.scan(spec, {"b": "1"}).found == 1
    assert store.scalar("SELECT count(*) FROM patchstore.extraction") == 1


def old_run(store, spec, state="completed", days=100):
    """Records a run that ended so many days ago; returns its id."""
    run = store.run(spec)
    finish_run(store.engine, run, state, None)
    store.sql(
        "UPDATE patchstore.ingest_run SET finished_at = now() - make_interval(days => :days) "
        "WHERE id = :run",
        days=days,
        run=run,
    )
    return run


def recorded_runs(store):
    return [row[0] for row in store.sql("SELECT id FROM patchstore.ingest_run ORDER BY id")]


def test_records_of_old_runs_are_deleted_once(store, spec):
    old_run(store, spec)
    kept = [old_run(store, spec, days=80), old_run(store, spec)]  # the last one, however old
    assert prune_records(store.engine, 90) == {"runs": 1, "audits": 0}
    assert prune_records(store.engine, 90) == {"runs": 0, "audits": 0}
    assert recorded_runs(store) == kept


def test_the_record_of_the_last_run_that_went_through_is_kept(store, spec):
    good, _, bad = (old_run(store, spec, state) for state in ("completed", "failed", "failed"))
    prune_records(store.engine, 90)
    assert recorded_runs(store) == [good, bad]


def test_the_record_of_a_run_is_kept_as_long_as_an_image_that_it_computed(store, spec):
    computed = old_run(store, spec)
    store.scan(spec, {"a": "1"})
    store.write_all(spec, store.lease(spec, computed))
    old_run(store, spec)
    prune_records(store.engine, 90)
    assert computed in recorded_runs(store)
    store.scan(spec, {})
    prune(store.engine)
    prune_records(store.engine, 90)
    assert computed not in recorded_runs(store)


def test_the_record_of_a_run_that_goes_on_is_kept(store, spec):
    going = store.run(spec)
    store.sql("UPDATE patchstore.ingest_run SET started_at = '2000-01-01'")
    with store.alive(going):
        old_run(store, spec)
        prune_records(store.engine, 0)
        assert going in recorded_runs(store)


def test_records_of_old_audits_are_deleted_but_the_last_of_each_spec(store, spec):
    for year in (2001, 2002):
        store.sql(
            "INSERT INTO patchstore.audit (spec_id, finished_at, sampled, report) "
            "VALUES (:spec, make_date(:year, 1, 1), 0, '{}')",
            spec=spec.id,
            year=year,
        )
    assert prune_records(store.engine, 90)["audits"] == 1
    assert store.scalar("SELECT extract(year FROM finished_at)::int FROM patchstore.audit") == 2002


def test_prune_goes_on_in_small_transactions_to_the_end(store, spec, monkeypatch):
    monkeypatch.setattr(db.prune, "IMAGES", 2)
    store.ingest(spec, {str(n): str(n) for n in range(5)})
    store.scan(spec, {})
    assert prune(store.engine) == {"locations": 5, "patches": 15, "extractions": 5, "images": 5}


def test_a_removed_spec_leaves_nothing_and_the_others_as_they_were(store, spec):
    other = store.spec("other")
    for each in (spec, other):
        store.ingest(each, {"a": "1"})
        build_index(store.engine, each, threshold=0, memory_mb=16)
    assert remove_spec(store.engine, spec) == 3
    assert [s.name for s in list_specs(store.engine)] == ["other"]
    assert store.shown(other) == {"a"}
    left = "SELECT relname FROM pg_class WHERE relname LIKE 'patch_feature_s1%'"
    assert store.sql(left) == []
    assert store.sql("SELECT FROM pg_proc WHERE proname ~ '_s1$'") == []
    assert store.scalar("SELECT count(*) FROM patchstore.ingest_run") == 1


def test_a_spec_that_an_alias_stands_for_is_not_removed(store, spec):
    store.ingest(spec, {"a": "1"})
    promote(store.engine, spec, "live")
    with pytest.raises(InUse, match="what searches by live ask"):
        remove_spec(store.engine, spec)
    assert store.shown(spec) == {"a"}


def test_a_spec_that_a_run_is_computing_is_not_removed(store, spec):
    run = store.run(spec)
    with store.alive(run), pytest.raises(InUse, match=f"being computed by run {run} on "):
        remove_spec(store.engine, spec)


def test_a_spec_is_not_removed_under_a_live_run_whatever_is_recorded_of_it(store, spec):
    run = store.run(spec)
    with store.alive(run):
        store.sql("UPDATE patchstore.ingest_run SET state = 'crashed'")
        with pytest.raises(InUse, match="being computed"):
            remove_spec(store.engine, spec)


def test_a_removal_waits_for_a_search_and_keeps_no_other_from_starting(store, spec, monkeypatch):
    monkeypatch.setattr(db.prune, "LOCK_TIMEOUT_MS", 20)
    monkeypatch.setattr(db.prune, "LOCK_TRIES", 10_000)
    other = store.spec("other")
    store.ingest(spec, {"a": "1"})
    store.ingest(other, {"a": "1"})
    with store.engine.connect() as reading, ThreadPoolExecutor(1) as pool:
        reading.exec_driver_sql("SELECT count(*) FROM patchstore.patches").all()
        removal = pool.submit(remove_spec, store.engine, spec)
        for _ in range(20):
            assert search(store.engine, other, store.vectors(1)[0]).hits
        assert not removal.done()
        reading.rollback()
        assert removal.result() == 3


def test_a_removal_that_finds_no_moment_changes_nothing(store, spec, monkeypatch):
    monkeypatch.setattr(db.prune, "LOCK_TIMEOUT_MS", 1)
    monkeypatch.setattr(db.prune, "LOCK_TRIES", 2)
    store.ingest(spec, {"a": "1"})
    with store.engine.connect() as reading:
        reading.exec_driver_sql("SELECT count(*) FROM patchstore.patches").all()
        with pytest.raises(TransientStoreError, match="lock timeout"):
            remove_spec(store.engine, spec)
    assert store.shown(spec) == {"a"}


def test_a_forgotten_source_leaves_nothing_of_its_own(store, spec):
    store.ingest(spec, {"a": "1", "b": "2"})
    store.ingest(spec, {"a": "1", "b": "3"})  # whose old content is still there
    store.ingest(spec, {"c": "2"}, root="/other")
    assert forget_source(store.engine, store.source()) == {
        "locations": 2,
        "patches": 6,
        "extractions": 2,
        "images": 2,
    }
    assert store.shown(spec) == {"c"}
    assert [row.source for row in status(store.engine)] == ["/other"]
    assert store.scalar("SELECT count(*) FROM patchstore.ingest_run") == 1


def test_an_image_that_another_source_shows_stays(store, spec):
    store.ingest(spec, {"a": "1"})
    store.ingest(spec, {"b": "1"}, root="/other")
    assert forget_source(store.engine, store.source())["patches"] == 0
    assert store.shown(spec) == {"b"}


def test_a_source_that_a_run_is_computing_is_not_forgotten(store, spec):
    store.ingest(spec, {"a": "1"})
    run = store.run(spec)
    with store.alive(run), pytest.raises(InUse, match=f"being computed by run {run} on "):
        forget_source(store.engine, store.source())
    assert store.shown(spec) == {"a"}


def test_forgetting_takes_locks_in_the_order_of_everybody(store, spec):
    store.ingest(spec, {"a": "1"})
    store.ingest(spec, {"c": "1"}, root="/other")
    store.ingest(spec, {"a": "2"})  # the first content is the other source's alone now
    lock = "SELECT FROM patchstore.extraction WHERE image_id = {} FOR UPDATE"
    with store.engine.begin() as other, ThreadPoolExecutor(1) as pool:
        other.exec_driver_sql(lock.format(1))
        forgetting = pool.submit(forget_source, store.engine, store.source())
        with pytest.raises(TimeoutError):
            forgetting.result(timeout=0.5)
        other.exec_driver_sql(lock.format(2))
        other.commit()
        assert forgetting.result()["images"] == 1
    assert store.shown(spec) == {"c"}


def test_what_another_run_is_computing_of_a_forgotten_source_is_left_to_it(store, spec):
    store.scan(spec, {"a": "1"})
    store.scan(spec, {"b": "1"}, root="file:///elsewhere")
    run = store.run(spec, "file:///elsewhere")
    with store.alive(run):
        (lease,) = store.lease(spec, run, root="file:///elsewhere")
        store.scan(spec, {}, root="file:///elsewhere")
        assert forget_source(store.engine, store.source())["images"] == 0
        store.write(spec, lease)
    assert prune(store.engine)["patches"] == 3


def test_what_a_dead_run_had_leased_of_a_forgotten_source_goes_with_it(store, spec):
    store.scan(spec, {"a": "1"})
    store.lease(spec)
    assert forget_source(store.engine, store.source())["images"] == 1
