"""Scans, writers and prune that meet at one moment: what searches show is right afterwards."""

import threading
from contextlib import contextmanager
from functools import partial

import pytest

from db import browse, ledger, prune


@pytest.fixture
def spec(store):
    return store.spec()


@pytest.fixture
def image_of(store):
    """The id of the image that a file shows."""
    return lambda uri: store.scalar(
        "SELECT image_id FROM patchstore.image_location WHERE uri = :uri", uri=uri
    )


@contextmanager
def held(store, image):
    """Holds an image's row of the ledger, as a writer does; what it is for is begun inside."""
    with store.engine.connect() as connection:
        ledger.lock_images(connection, [image])
        yield
        connection.rollback()


class Started:
    """A call on a thread that waits for a lock by the time this is made."""

    def __init__(self, store, call, *arguments, waiting):
        self._error = None
        self._thread = threading.Thread(target=self._run, args=(call, *arguments))
        self._thread.start()
        while (
            store.scalar(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            < waiting
        ):
            assert self._thread.is_alive(), self._error

    def _run(self, call, *arguments):
        try:
            call(*arguments)
        except Exception as error:
            self._error = error

    def result(self):
        self._thread.join()
        if self._error:
            raise self._error


def test_a_writer_that_waits_for_a_scan_hides_what_the_scan_let_it_replace(store, spec, image_of):
    store.ingest(spec, {"A": "X", "C": "W"})
    store.scan(spec, {"A": "X", "C": "W", "B": "Y", "D": "Z"})
    leases = {lease.uri: lease for lease in store.lease(spec)}
    with held(store, image_of("D")):
        copied = {"A": "Y", "C": "Z", "B": "Y", "D": "Z"}  # its refresh has Y and waits for Z
        scan = Started(store, store.scan, spec, copied, waiting=1)
        write = Started(store, store.write, spec, leases["B"], waiting=2)
    scan.result(), write.result()
    assert store.visible() == store.expected_visible()
    assert store.shown(spec) == {"A", "C"}  # one name an image


def test_two_scans_at_once_record_one_after_the_other(store, spec, image_of):
    store.ingest(spec, {"A": "X", "B": "Y"})
    store.scan(spec, {"A": "X"})
    with held(store, image_of("A")):
        first = Started(store, store.scan, spec, {"A": "Y"}, waiting=1)
        second = Started(store, store.scan, spec, {"A": "Z"}, waiting=2)
    first.result(), second.result()
    assert store.visible() == store.expected_visible()
    assert store.shown(spec) == {"A"}


def test_a_file_that_changes_twice_stays_in_the_searches_of_a_spec_that_is_behind(store, spec):
    store.ingest(spec, {"A": "X"})
    new = store.spec("new", dim=5)
    store.ingest(new, {"A": "X"})
    store.ingest(new, {"A": "Y"})
    store.scan(new, {"A": "Z"})
    assert (store.shown(spec), store.shown(new)) == ({"A"}, {"A"})
    for lease in store.lease(new):
        store.write(new, lease)
    prune.prune(store.engine)
    assert (store.shown(spec), store.shown(new)) == ({"A"}, {"A"})
    store.ingest(spec, {"A": "Z"})
    assert prune.prune(store.engine)["images"] == 1
    assert store.visible() == store.expected_visible()


def test_the_last_content_that_a_spec_shows_is_kept_where_another_spec_has_only_an_older(
    store, spec
):
    store.ingest(spec, {"A": "X"})
    new = store.spec("new", dim=5)
    store.ingest(new, {"A": "Y"})
    store.scan(new, {"A": "Z"})
    assert store.shown(new) == {"A"}


@pytest.mark.parametrize("touched", [False, True])
def test_a_scan_and_who_sets_metadata_lock_files_in_one_order(store, spec, monkeypatch, touched):
    """The order on disk is not that of the names."""
    later = {f"z{i}": f"z{i}" for i in range(9)}
    files = later | {f"a{i}": f"a{i}" for i in range(9)}
    store.scan(spec, later)
    store.scan(spec, files)
    monkeypatch.setattr(browse, "ATTEMPTS", 1)
    labels = [(uri, {"shelf": 1}) for uri in files]
    with store.engine.connect() as connection:
        connection.exec_driver_sql(
            "SELECT 1 FROM patchstore.image_location WHERE uri = 'z5' FOR UPDATE"
        )
        scan = Started(store, partial(store.scan, touched=touched), spec, files, waiting=1)
        label = Started(store, browse.set_metadata_many, store.engine, labels, waiting=2)
        connection.rollback()
    scan.result(), label.result()


def test_a_scan_and_a_retry_lock_the_ledger_in_one_order(store, spec, image_of):
    files = {f"f{i}": f"f{i}" for i in range(9)}
    store.scan(spec, files)
    for lease in sorted(store.lease(spec), key=lambda lease: -lease.image_id):
        ledger.fail_image(store.engine, lease, "bad")  # the order on disk is now the other way
    with held(store, image_of("f5")):
        retried = Started(store, ledger.retry_failed, store.engine, None, None, waiting=1)
        scanned = Started(store, store.scan, spec, {}, waiting=2)
    retried.result(), scanned.result()


def test_prune_leaves_what_a_retry_is_about_to_show_again(store, spec, image_of):
    store.ingest(spec, {"A": "X"})
    store.scan(spec, {"A": "Y", "B": "W"})
    for lease in store.lease(spec):
        ledger.fail_image(store.engine, lease, "bad")
    with held(store, image_of("B")):
        retried = Started(store, ledger.retry_failed, store.engine, None, None, waiting=1)
        pruned = Started(store, prune.prune, store.engine, waiting=2)
    retried.result(), pruned.result()
    assert store.visible() == store.expected_visible()
    assert store.shown(spec) == {"A"}
