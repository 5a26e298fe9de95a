"""What a scan makes of the files it sees."""

import hashlib
import threading
from datetime import timedelta

import pytest

from db import catalog, reports
from db.catalog import SeenFile


def counted(counts):
    return {name: n for name, n in vars(counts).items() if n}


@pytest.fixture
def spec(store):
    return store.spec()


def test_first_sight_is_new(store, spec):
    assert counted(store.scan(spec, {"a": "1", "b": "2"})) == {"found": 2, "new": 2}


def test_a_second_scan_finds_everything_unchanged(store, spec):
    store.scan(spec, {"a": "1", "b": "2"})
    assert counted(store.scan(spec, {"a": "1", "b": "2"})) == {"found": 2, "unchanged": 2}


def test_a_touched_file_with_the_same_content_is_unchanged(store, spec):
    store.ingest(spec, {"a": "1"})
    assert counted(store.scan(spec, {"a": "1"}, touched=True)) == {"found": 1, "unchanged": 1}
    assert store.lease(spec) == []


def test_a_renamed_file_has_moved_and_none_has_vanished(store, spec):
    store.ingest(spec, {"a": "1"})
    assert counted(store.scan(spec, {"b": "1"})) == {"found": 1, "moved": 1}
    assert store.shown(spec) == {"b"}
    assert store.lease(spec) == []


def test_a_copy_has_moved_and_is_not_computed(store, spec):
    store.ingest(spec, {"a": "1"})
    counts = store.scan(spec, {"a": "1", "b": "1"})
    assert counted(counts) == {"found": 2, "unchanged": 1, "moved": 1}
    assert store.lease(spec) == []


def test_two_files_of_one_content_are_both_new_and_computed_once(store, spec):
    assert counted(store.scan(spec, {"a": "1", "b": "1"})) == {"found": 2, "new": 2}
    assert len(store.lease(spec)) == 1
    assert store.status(spec).leased == 2


def test_a_changed_file_is_changed(store, spec):
    store.ingest(spec, {"a": "1"})
    assert counted(store.scan(spec, {"a": "2"})) == {"found": 1, "changed": 1}


def test_a_vanished_file_is_counted_once(store, spec):
    store.scan(spec, {"a": "1", "b": "2"})
    assert counted(store.scan(spec, {"a": "1"})) == {"found": 1, "unchanged": 1, "vanished": 1}
    assert counted(store.scan(spec, {"a": "1"})) == {"found": 1, "unchanged": 1}


@pytest.mark.parametrize("touched", [True, False])
def test_a_clock_that_is_set_back_during_a_scan_makes_no_file_vanish(
    store, spec, monkeypatch, touched
):
    store.ingest(spec, {"a": "1"})
    ahead = catalog.start_scan(store.engine) + timedelta(hours=1)
    monkeypatch.setattr(catalog, "start_scan", lambda _engine: ahead)
    assert store.scan(spec, {"a": "1", "b": "2"}, touched=touched).vanished == 0
    assert store.shown(spec) == {"a"}


def test_a_file_that_comes_back_is_known(store, spec):
    store.ingest(spec, {"a": "1"})
    store.scan(spec, {})
    assert counted(store.scan(spec, {"a": "1"})) == {"found": 1, "moved": 1}
    assert store.shown(spec) == {"a"}


def test_an_incomplete_scan_marks_nothing_as_vanished(store, spec):
    store.ingest(spec, {"a": "1", "b": "2"})
    assert store.scan(spec, {"a": "1"}, complete=False).vanished == 0
    assert store.shown(spec) == {"a", "b"}


def test_an_unreadable_file_is_found_and_failed_with_its_reason(store, spec):
    store.run(spec)
    assert counted(store.scan(spec, {"a": None})) == {"found": 1, "new": 1}
    (failure,) = reports.failures(store.engine)
    assert (failure.uri, failure.reason) == ("a", "cannot be read: no permission")
    assert store.status(spec).failed == 1


def test_an_unreadable_file_is_looked_at_again_and_recovers(store, spec):
    store.run(spec)
    store.scan(spec, {"a": None})
    known = catalog.known_files(store.engine, store.source(), ["a"])
    assert not known["a"].readable
    assert counted(store.ingest(spec, {"a": "1"})) == {"found": 1, "changed": 1}
    assert reports.failures(store.engine) == []
    assert store.status(spec).done == 1


def test_a_second_spec_queues_every_live_image_without_reading_a_file(store, spec):
    store.ingest(spec, {"a": "1", "b": "2"})
    other = store.spec("other", dim=8)
    assert counted(store.scan(other, {"a": "1", "b": "2"})) == {"found": 2, "unchanged": 2}
    assert len(store.lease(other)) == 2


def test_sources_do_not_see_each_others_files_vanish(store, spec):
    store.ingest(spec, {"a": "1"})
    store.ingest(spec, {"b": "2"}, root="file:///elsewhere")
    assert store.scan(spec, {}, root="file:///elsewhere").vanished == 1
    assert store.shown(spec) == {"a"}


def test_a_content_known_from_another_source_is_not_computed_again(store, spec):
    store.ingest(spec, {"a": "1"})
    counts = store.scan(spec, {"b": "1"}, root="file:///elsewhere")
    assert counted(counts) == {"found": 1, "moved": 1}
    assert store.lease(spec, root="file:///elsewhere") == []


def test_opening_a_source_twice_gives_one_id(store):
    assert store.source("file:///x") == store.source("file:///x") != store.source("file:///y")


def test_a_scan_of_nothing_is_no_error(store, spec):
    assert counted(store.scan(spec, {})) == {}


@pytest.mark.parametrize(
    "uri",
    [
        'file:///it\'s "quoted" 100% :colon :uri %(percent)s \\back\nslash{brace}',
        "file:///日本語/😀.png",
        "file:///" + "".join(f"{i:x}" for i in range(4_000)),  # more than a btree entry holds
    ],
    ids=["punctuation", "unicode", "long"],
)
def test_any_uri_goes_the_whole_way(store, spec, uri):
    store.ingest(spec, {uri: "1"})
    assert counted(store.scan(spec, {uri: "1"})) == {"found": 1, "unchanged": 1}
    assert store.shown(spec) == {uri}


def test_a_reason_with_a_nul_byte_is_kept_without_it(store, spec):
    started = catalog.start_scan(store.engine)
    file = catalog.SeenFile("a", 0, "m", None, error="bad header b'\x00\x01'")
    catalog.record_files(store.engine, store.source(), spec, [file], started)
    assert store.scalar("SELECT error FROM patchstore.image_location").startswith("bad header")


def test_two_scans_of_one_folder_at_once_agree(store, spec):
    files = {f"u{i:03}": str(i % 50) for i in range(200)}
    backwards = dict(reversed(files.items()))
    errors = []

    def scan(seen):
        try:
            for _ in range(3):
                store.scan(spec, seen, touched=True)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=scan, args=(seen,)) for seen in (files, backwards)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.scalar("SELECT count(*) FROM patchstore.image_location") == 200
    assert store.scalar("SELECT count(*) FROM patchstore.extraction") == 50


INNER, OUTER = "file:///ne/in", "file:///ne"
BEFORE = {f"{INNER}/0": "1", f"{INNER}/1": "2"}


def shown(store, spec) -> set[str]:
    """The contents that searches show."""
    rows = store.sql(
        "SELECT i.sha256 FROM patchstore.extraction e JOIN patchstore.image i ON i.id = e.image_id "
        "WHERE e.visible AND e.spec_id = :spec",
        spec=spec.id,
    )
    digests = {bytes(digest) for (digest,) in rows}
    return {name for name in "1234" if hashlib.sha256(name.encode()).digest() in digests}


def test_what_a_source_around_another_finds_changed_or_gone_is_not_shown_by_that(store):
    spec = store.spec()
    store.ingest(spec, BEFORE, root=INNER)
    store.ingest(spec, {f"{INNER}/0": "3"}, root=OUTER)
    assert shown(store, spec) == {"3"}
    store.ingest(spec, {f"{INNER}/0": "3"}, root=INNER)
    assert shown(store, spec) == {"3"}


def test_what_a_source_inside_another_finds_changed_or_gone_is_not_shown_by_that(store):
    spec = store.spec()
    elsewhere = {f"{OUTER}/2": "4"}
    store.ingest(spec, BEFORE | elsewhere, root=OUTER)
    store.ingest(spec, {f"{INNER}/0": "3"}, root=INNER)
    assert shown(store, spec) == {"3", "4"}


@pytest.mark.parametrize("outer", [{}, {f"{OUTER}/2": "4"}])
def test_what_a_source_does_not_list_of_another_is_shown_by_that(store, outer):
    spec = store.spec()
    store.ingest(spec, BEFORE, root=INNER)  # a link leads there, which the one around passes by
    store.ingest(spec, outer, root=OUTER)
    assert shown(store, spec) == {"1", "2", *outer.values()}


def test_what_cannot_be_read_by_one_source_is_shown_by_another(store):
    spec = store.spec()
    store.ingest(spec, BEFORE, root=INNER)
    store.ingest(spec, {f"{INNER}/0": None, f"{INNER}/1": "2"}, root=OUTER)
    assert shown(store, spec) == {"1", "2"}


def test_content_that_was_gone_is_not_shown_again_under_another_spec(store):
    first, second = store.spec("first"), store.spec("second")
    for spec in (first, second):
        store.ingest(spec, {"a": "1"})
    store.scan(first, {})
    store.ingest(first, {"a": "2"})
    assert shown(store, first) == {"2"}
    assert shown(store, second) == set()


def test_a_file_that_is_known_to_hold_no_image_does_not_show_what_it_held(store):
    spec = store.spec()
    store.ingest(spec, {"a": "1"})
    seen = SeenFile("a", 0, "", None, error="no such file: a link that leads nowhere")
    source, started = store.source(), catalog.start_scan(store.engine)
    catalog.record_files(store.engine, source, spec, [seen], started)
    assert shown(store, spec) == set()
