"""What is taken away for good: vanished files, and specs that nobody needs any more."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import db.prune
from db.aliases import promote
from db.errors import SpecInUse, TransientStoreError
from db.index import build_index
from db.prune import prune, remove_spec
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
    (lease,) = store.lease(spec)
    store.scan(spec, {})
    assert prune(store.engine)["images"] == 0
    store.write(spec, lease)
    assert prune(store.engine)["patches"] == 3


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
    assert store.sql("SELECT FROM pg_proc WHERE proname = 'nearest_s1'") == []
    assert store.scalar("SELECT count(*) FROM patchstore.ingest_run") == 1


def test_a_spec_that_an_alias_stands_for_is_not_removed(store, spec):
    store.ingest(spec, {"a": "1"})
    promote(store.engine, spec, "live")
    with pytest.raises(SpecInUse, match="what searches by live ask"):
        remove_spec(store.engine, spec)
    assert store.shown(spec) == {"a"}


def test_a_spec_that_a_run_is_computing_is_not_removed(store, spec):
    run = store.run(spec)
    with store.alive(run), pytest.raises(SpecInUse, match=f"being computed by run {run} on "):
        remove_spec(store.engine, spec)


def test_a_removal_waits_for_a_search_and_keeps_no_other_from_starting(store, spec, monkeypatch):
    monkeypatch.setattr(db.prune, "LOCK_TIMEOUT_MS", 20)
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
