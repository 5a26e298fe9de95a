"""What is taken away for good: vanished files, and specs that nobody needs any more."""

import threading

import pytest

from db.prune import prune


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
