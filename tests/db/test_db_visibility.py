"""What searches show while files change, fail, vanish and return."""

import numpy as np
import pytest

from db import ledger
from db.prune import prune
from db.search import SearchOptions, search


@pytest.fixture
def spec(store):
    return store.spec()


def same(shown, expected):
    return shown.shape == expected.shape and np.allclose(np.sort(shown, 0), np.sort(expected, 0))


def test_a_changed_file_shows_its_old_content_until_the_new_one_is_done(store, spec):
    store.ingest(spec, {"a": "1"})
    store.scan(spec, {"a": "2"})
    assert same(store.shown_vectors(spec), store.content("1"))
    (lease,) = store.lease(spec)
    assert same(store.shown_vectors(spec), store.content("1"))
    store.write(spec, lease, store.content("2"))
    assert same(store.shown_vectors(spec), store.content("2"))
    assert store.shown(spec) == {"a"}


def test_a_file_that_changes_twice_shows_its_old_content_until_the_last_is_done(store, spec):
    store.ingest(spec, {"a": "1"})
    store.scan(spec, {"a": "2"})
    store.scan(spec, {"a": "3"})
    assert same(store.shown_vectors(spec), store.content("1"))
    (lease,) = store.lease(spec)
    store.write(spec, lease, store.content("3"))
    assert same(store.shown_vectors(spec), store.content("3"))


def test_a_file_that_changes_twice_and_back_shows_what_it_is(store, spec):
    store.ingest(spec, {"a": "1"})
    store.scan(spec, {"a": "2"})
    store.scan(spec, {"a": "1"})
    assert same(store.shown_vectors(spec), store.content("1"))
    assert store.lease(spec) == []


def test_a_second_change_to_a_known_content_hides_the_old_one(store, spec):
    store.ingest(spec, {"a": "1", "b": "2"})
    store.scan(spec, {"a": "unfinished", "b": "2"})
    store.scan(spec, {"a": "2", "b": "2"})
    assert same(store.shown_vectors(spec), store.content("2"))


def test_a_late_writer_of_a_replaced_content_shows_nothing(store, spec):
    store.ingest(spec, {"a": "1"})
    store.scan(spec, {"a": "2"})
    (lease,) = store.lease(spec)
    store.scan(spec, {"a": "3"})
    store.write(spec, lease)
    assert same(store.shown_vectors(spec), store.content("1"))


def test_a_new_content_that_fails_hides_the_old_one(store, spec):
    store.ingest(spec, {"a": "1"})
    store.scan(spec, {"a": "2"})
    (lease,) = store.lease(spec)
    assert ledger.fail_image(store.engine, lease, "truncated")
    assert store.shown(spec) == set()


def test_a_new_content_that_cannot_be_read_just_now_leaves_the_old_one_to_all_who_ask(store, spec):
    store.ingest(spec, {"a": "1"})
    store.scan(spec, {"a": "2"})
    (lease,) = store.lease(spec)
    assert ledger.fail_image(store.engine, lease, f"{ledger.UNREAD}Input/output error")
    assert store.status(spec).failed == 1
    assert same(store.shown_vectors(spec), store.content("1"))
    asked = (
        "similar_patches('tiny', CAST(:vector AS vector)",
        "similar_to_patch('tiny', 'a', 0, 0",
    )
    vector = str(store.content("1")[0].tolist())
    for call in asked:
        for options in ("", ", exact => true", ", filter => '{}'", ", prefix => 'a'"):
            hits = store.sql(f"SELECT uri FROM patchstore.{call}{options})", vector=vector)
            assert set(hits) == {("a",)}, call + options
    assert ledger.retry_failed(store.engine, spec.name, None, unread_only=True) == 1
    (lease,) = store.lease(spec)
    store.write(spec, lease, store.content("2"))
    assert same(store.shown_vectors(spec), store.content("2"))


def test_a_new_content_that_kills_its_workers_hides_the_old_one(store, spec):
    store.ingest(spec, {"a": "1"})
    store.scan(spec, {"a": "2"})
    store.lease(spec)
    assert ledger.reclaim(store.engine, spec, max_attempts=1) == 1
    assert store.status(spec).failed == 1
    assert store.shown(spec) == set()


def test_a_retried_content_shows_the_old_one_again(store, spec):
    store.ingest(spec, {"a": "1"})
    store.scan(spec, {"a": "2"})
    (lease,) = store.lease(spec)
    ledger.fail_image(store.engine, lease, "truncated")
    assert ledger.retry_failed(store.engine, None, None) == 1
    assert same(store.shown_vectors(spec), store.content("1"))


def test_a_vanished_file_leaves_the_searches_at_once(store, spec):
    store.ingest(spec, {"a": "1", "b": "2"})
    store.scan(spec, {"b": "2"})
    assert store.shown(spec) == {"b"}
    assert {
        hit.uri for hit in search(store.engine, spec, store.vectors(1)[0], SearchOptions(10)).hits
    } == {"b"}


def test_a_changed_file_that_vanishes_takes_its_old_content_with_it(store, spec):
    store.ingest(spec, {"a": "1"})
    store.scan(spec, {"a": "2"})
    store.scan(spec, {})
    assert store.shown(spec) == set()


def test_a_file_that_returns_is_shown_without_recomputation(store, spec):
    store.ingest(spec, {"a": "1"})
    store.scan(spec, {})
    store.scan(spec, {"a": "1"})
    assert store.lease(spec) == []
    assert same(store.shown_vectors(spec), store.content("1"))


def test_a_copy_keeps_a_content_shown_when_the_first_file_vanishes(store, spec):
    store.ingest(spec, {"a": "1", "b": "1"})
    assert store.shown(spec) == {"a"}
    store.scan(spec, {"b": "1"})
    assert store.shown(spec) == {"b"}


def test_a_written_image_whose_file_vanished_meanwhile_is_done_but_not_shown(store, spec):
    store.scan(spec, {"a": "1"})
    (lease,) = store.lease(spec)
    store.scan(spec, {})
    store.write(spec, lease)
    assert store.shown(spec) == set()
    assert store.scalar("SELECT state FROM patchstore.extraction") == "done"


def test_each_spec_shows_its_own_progress(store, spec):
    other = store.spec("other", dim=8)
    for each in (spec, other):
        store.ingest(each, {"a": "1"})
    store.scan(spec, {"a": "2"})
    store.scan(other, {"a": "2"})
    for lease in store.lease(other):
        store.write(other, lease, store.content("2", 8))
    assert same(store.shown_vectors(spec), store.content("1"))
    assert same(store.shown_vectors(other), store.content("2", 8))


def test_a_hit_names_the_file_that_still_shows_the_old_content(store, spec):
    """Two copies change; one's new content is done: the old one is found at the other only."""
    store.ingest(spec, {"a": "1", "b": "1"})
    store.scan(spec, {"a": "2", "b": "3"})
    first = next(lease for lease in store.lease(spec) if lease.uri == "a")
    store.write(spec, first, store.content("2"))
    old = search(store.engine, spec, store.content("1")[0], SearchOptions(1)).hits
    assert [hit.uri for hit in old] == ["b"]


def test_a_change_of_metadata_is_seen_and_touches_no_vector(store, spec):
    store.ingest(spec, {"a": "1"})
    before = store.sql("SELECT id, xmin::text FROM patchstore.patch_feature ORDER BY id")
    metadata = '{"it\'s": ["100%", null, {"ключ": ":x \\\\ \\n"}]}'
    store.sql("UPDATE patchstore.image_location SET metadata = CAST(:m AS jsonb)", m=metadata)
    (hit, *_) = search(store.engine, spec, store.vectors(1)[0], SearchOptions(3)).hits
    assert hit.metadata == {"it's": ["100%", None, {"ключ": ":x \\ \n"}]}
    assert store.sql("SELECT id, xmin::text FROM patchstore.patch_feature ORDER BY id") == before


def test_an_unreadable_file_counts_as_failed_and_is_shown_again_when_it_reads(store, spec):
    store.ingest(spec, {"a": "1"})
    store.scan(spec, {"a": None})
    assert store.status(spec).failed == 1
    counts = store.scan(spec, {"a": "1"})
    assert (counts.found, counts.changed) == (1, 1)
    assert same(store.shown_vectors(spec), store.content("1"))
    assert prune(store.engine)["images"] == 0
