"""Who computes which image: leases, fences, attempts, and the death of workers."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from db import catalog, ledger, reports
from db.catalog import SeenFile
from db.ledger import Reached


@pytest.fixture
def spec(store):
    return store.spec()


def states(store):
    return dict(store.sql("SELECT state, count(*) FROM patchstore.extraction GROUP BY state"))


def files(n):
    return {f"u{i:03}": str(i) for i in range(n)}


def test_a_lease_carries_what_its_worker_needs(store, spec):
    store.scan(spec, {"a": "1"})
    (lease,) = store.lease(spec)
    assert (lease.spec_id, lease.uri, lease.size_bytes) == (spec.id, "a", 1)
    assert len(lease.sha256) == 32


def test_two_leasers_at_once_never_get_the_same_image(store, spec):
    store.scan(spec, files(60))
    runs = [store.run(spec) for _ in range(4)]
    together = threading.Barrier(4)

    def take(run):
        together.wait()
        taken = []
        while batch := store.lease(spec, run, images=3):
            taken += batch
        return taken

    with ThreadPoolExecutor(4) as pool:
        leases = [lease for taken in pool.map(take, runs) for lease in taken]
    assert sorted(lease.uri for lease in leases) == sorted(files(60))
    assert len({lease.fence for lease in leases}) == 60


def test_a_lease_takes_no_more_images_than_asked_for(store, spec):
    store.scan(spec, files(5))
    run = store.run(spec)
    assert [len(store.lease(spec, run, images=2)) for _ in range(4)] == [2, 2, 1, 0]


def scan_sizes(store, spec, *sizes):
    started = catalog.start_scan(store.engine)
    seen = [
        SeenFile(f"u{i}", 1, "m", bytes([i]) * 32, width, height)
        for i, (width, height) in enumerate(sizes)
    ]
    catalog.record_files(store.engine, store.source(), spec, seen, started)


def test_a_batch_holds_no_more_pixels_than_its_limit(store, spec):
    scan_sizes(store, spec, (10, 10), (10, 10), (10, 10))
    assert [lease.uri for lease in store.lease(spec, pixels=200)] == ["u0", "u1"]


def test_an_image_beyond_the_pixel_limit_comes_alone(store, spec):
    scan_sizes(store, spec, (60_000, 60_000), (10, 10))
    run = store.run(spec)
    assert [lease.uri for lease in store.lease(spec, run, pixels=100)] == ["u0"]
    assert [lease.uri for lease in store.lease(spec, run, pixels=100)] == ["u1"]


def test_an_image_of_unknown_size_weighs_by_its_bytes(store, spec):
    scan_sizes(store, spec, *[(None, None)] * 3)
    assert len(store.lease(spec, pixels=2 * ledger.PIXELS_A_BYTE)) == 2


def test_a_run_gets_an_image_at_most_once(store, spec):
    store.scan(spec, {"a": "1"})
    run = store.run(spec)
    (lease,) = store.lease(spec, run)
    ledger.release_image(store.engine, lease)
    assert store.lease(spec, run) == []
    assert len(store.lease(spec)) == 1


def test_files_with_one_content_are_one_image_that_waits(store, spec):
    store.scan(spec, {"a": "1", "b": "1", "c": "2"})
    run, source = store.run(spec), store.source()
    assert ledger.count_waiting(store.engine, spec, source, run) == 2
    store.lease(spec, run, images=1)
    assert ledger.count_waiting(store.engine, spec, source, run) == 1


def test_images_that_were_tried_least_come_first(store, spec):
    store.scan(spec, files(3))
    (first,) = store.lease(spec, images=1)
    ledger.reclaim(store.engine, spec, 25)
    assert first.uri not in [lease.uri for lease in store.lease(spec, images=2)]
    assert [lease.uri for lease in store.lease(spec)] == [first.uri]
    assert store.scalar("SELECT max(attempts) FROM patchstore.extraction") == 2


def test_giving_an_image_back_is_no_attempt(store, spec):
    store.scan(spec, {"a": "1"})
    (lease,) = store.lease(spec)
    ledger.release_image(store.engine, lease)
    ledger.release_image(store.engine, lease)
    assert store.scalar("SELECT attempts FROM patchstore.extraction") == 0


def test_what_a_run_gives_back_was_no_attempt_and_what_it_has_done_stays(store, spec):
    store.scan(spec, files(3))
    run, other = store.run(spec), store.run(spec)
    done, _ = store.lease(spec, run, images=2)
    store.write(spec, done)
    store.lease(spec, other)
    ledger.give_back(store.engine, run)
    assert states(store) == {"done": 1, "pending": 1, "leased": 1}
    assert store.scalar("SELECT attempts FROM patchstore.extraction WHERE state = 'pending'") == 0
    assert store.lease(spec, run) == []


def test_an_image_is_read_where_it_was_seen_last(store, spec):
    store.scan(spec, {"a": "1"})
    store.scan(spec, {"b": "1"}, complete=False)  # whether a is still there cannot be told
    assert [lease.uri for lease in store.lease(spec)] == ["b"]


def test_a_lease_whose_answer_was_lost_is_found_again(store, spec):
    store.scan(spec, files(6))
    run, source = store.run(spec), store.source()
    first = store.lease(spec, run, images=2)
    unheard = store.lease(spec, run, images=2)
    find, reached = ledger.find_leases, ledger.Reached.by(first)
    assert find(store.engine, spec, source, run, reached) == unheard
    assert find(store.engine, spec, source, run, ledger.Reached.by(unheard)) == []
    assert find(store.engine, spec, source, store.run(spec), reached) == []


def test_batch_after_batch_a_run_gets_all_images_and_those_that_became_free_before(store, spec):
    store.scan(spec, files(7))
    other = store.lease(spec, images=2)  # the first ones
    run, source = store.run(spec), store.source()
    limits = ledger.LeaseLimits(2, 10**12, 600.0)
    got, reached = [], ledger.Reached()
    while leases := ledger.lease_batch(store.engine, spec, source, run, limits, reached):
        reached = ledger.Reached.by(leases)
        got += [lease.image_id for lease in leases]
        for lease in other:
            ledger.release_image(store.engine, lease)
        other = []
    assert sorted(got) == sorted({*got}) == list(range(1, 8))


def test_a_run_leases_only_what_its_source_shows_now(store, spec):
    store.scan(spec, {"a": "1", "gone": "2"})
    store.scan(spec, {"b": "3"}, root="file:///elsewhere")
    store.scan(spec, {"a": "1"})
    assert [lease.uri for lease in store.lease(spec)] == ["a"]


def test_leases_of_a_dead_run_are_free_at_once(store, spec):
    store.scan(spec, {"a": "1"})
    run = store.run(spec)
    with store.alive(run):
        store.lease(spec, run)
        assert ledger.reclaim(store.engine, spec, 25) == 0
    wait_for_death(store)
    assert ledger.reclaim(store.engine, spec, 25) == 1
    assert len(store.lease(spec)) == 1


def test_a_run_that_connects_again_does_not_wait_for_its_old_connection(store, spec):
    run = store.run(spec)
    with store.alive(run), store.engine.connect() as second:
        second.exec_driver_sql("SET lock_timeout = '1s'")
        ledger.show_alive(second, run)
        second.invalidate()


def test_a_term_that_is_over_frees_the_lease_of_a_living_run(store, spec):
    store.scan(spec, {"a": "1"})
    run = store.run(spec)
    with store.alive(run):
        store.lease(spec, run, term_s=0)
        assert ledger.reclaim(store.engine, spec, 25) == 1


def test_a_renewed_lease_is_not_free(store, spec):
    store.scan(spec, {"a": "1"})
    run = store.run(spec)
    with store.alive(run) as connection:
        store.lease(spec, run, term_s=0)
        ledger.renew_leases(connection, run, 60)
        assert ledger.reclaim(store.engine, spec, 25) == 0


def test_renewing_never_waits_for_a_writer(store, spec):
    store.scan(spec, {"a": "1"})
    run = store.run(spec)
    store.lease(spec, run)
    with store.engine.connect() as writer, store.engine.connect() as heart:
        writer.exec_driver_sql("SELECT 1 FROM patchstore.extraction FOR UPDATE")
        heart.exec_driver_sql("SET lock_timeout = '1s'")
        ledger.renew_leases(heart, run, 60)


def test_reclaiming_leaves_other_specs_alone(store, spec):
    other = store.spec("other")
    store.scan(spec, {"a": "1"})
    store.lease(spec)
    assert ledger.reclaim(store.engine, other, 25) == 0


def test_an_image_that_keeps_killing_its_worker_fails_with_that_reason(store, spec):
    store.scan(spec, {"a": "1"})
    for _ in range(3):
        assert len(store.lease(spec)) == 1
        assert ledger.reclaim(store.engine, spec, max_attempts=3) == 1
    assert store.lease(spec) == []
    (failure,) = reports.failures(store.engine)
    assert failure.reason == "gave up after 3 attempts that ended without an outcome"


def test_what_may_have_killed_its_worker_comes_alone(store, spec):
    store.scan(spec, files(4))
    for _ in range(ledger.SUSPECT):
        assert len(store.lease(spec)) == 4
        ledger.reclaim(store.engine, spec, max_attempts=9)
    store.scan(spec, files(6))
    run = store.run(spec)
    batches = [store.lease(spec, run) for _ in range(6)]
    assert [len(batch) for batch in batches] == [2, 1, 1, 1, 1, 0]
    assert [lease.attempts for batch in batches for lease in batch] == [1, 1, 3, 3, 3, 3]


def test_a_failure_keeps_its_reason(store, spec):
    store.scan(spec, {"a": "1"})
    (lease,) = store.lease(spec)
    assert ledger.fail_image(store.engine, lease, "broken: 100% 'x' :y\n\x00")
    (failure,) = reports.failures(store.engine)
    assert failure.reason == "broken: 100% 'x' :y\n\\0"
    assert (failure.uri, failure.attempts) == ("a", 1)


def test_a_lost_lease_can_neither_fail_nor_release(store, spec):
    store.scan(spec, {"a": "1"})
    (old,) = store.lease(spec)
    ledger.release_image(store.engine, old)
    (new,) = store.lease(spec)
    assert not ledger.fail_image(store.engine, old, "late")
    ledger.release_image(store.engine, old)
    assert states(store) == {"leased": 1}
    assert ledger.fail_image(store.engine, new, "in time")
    assert states(store) == {"failed": 1}


def test_retry_makes_failed_images_pending_with_fresh_attempts(store, spec):
    store.scan(spec, files(2))
    run = store.run(spec)
    for lease in store.lease(spec, run):
        ledger.fail_image(store.engine, lease, "x")
    assert store.lease(spec) == []
    assert ledger.retry_failed(store.engine, None, None) == 2
    assert store.sql("SELECT DISTINCT attempts FROM patchstore.extraction") == [(0,)]
    assert len(store.lease(spec, run)) == 2


def test_files_that_could_not_be_opened_are_retried_alone(store, spec):
    store.scan(spec, files(2))
    for lease, reason in zip(store.lease(spec), ("cannot be read: x", "broken"), strict=True):
        ledger.fail_image(store.engine, lease, reason)
    assert ledger.retry_failed(store.engine, None, None, unread_only=True) == 1
    assert [failure.reason for failure in reports.failures(store.engine)] == ["broken"]


def test_retry_leaves_what_no_file_shows_any_more(store, spec):
    store.scan(spec, {"a": "1", "b": "2"})
    for lease in store.lease(spec):
        ledger.fail_image(store.engine, lease, "x")
    store.scan(spec, {"b": "2"})
    assert ledger.retry_failed(store.engine, None, None) == 1


def test_retry_is_limited_to_a_spec_and_a_source(store, spec):
    other = store.spec("other")
    store.scan(spec, {"a": "1"})
    store.scan(other, {"a": "1"})
    store.scan(spec, {"b": "2"}, root="file:///elsewhere")
    for each, root in ((spec, None), (other, None), (spec, "file:///elsewhere")):
        for lease in store.lease(each, **({} if root is None else {"root": root})):
            ledger.fail_image(store.engine, lease, "x")
    assert ledger.retry_failed(store.engine, "no such spec", None) == 0
    assert ledger.retry_failed(store.engine, "tiny", "file:///elsewhere") == 1
    assert ledger.retry_failed(store.engine, "other", None) == 1
    assert states(store) == {"failed": 1, "pending": 2}


def test_a_run_that_died_is_marked_as_crashed_by_the_next(store, spec):
    dead, alive = store.run(spec), store.run(spec)
    store.sql("UPDATE patchstore.ingest_run SET started_at = now() - interval '1 hour'")
    with store.alive(alive):
        newest = store.run(spec)
        runs = {run.id: run.state for run in reports.last_runs(store.engine)}
    assert runs == {dead: "crashed", alive: "running", newest: "running"}


def test_a_run_that_was_taken_for_dead_and_connects_again_is_running(store, spec):
    run = store.run(spec)
    store.sql("UPDATE patchstore.ingest_run SET started_at = now() - interval '1 hour'")
    store.run(spec)
    with store.alive(run):
        runs = {run.id: (run.state, run.finished_at) for run in reports.last_runs(store.engine)}
    assert runs[run] == ("running", None)


def test_a_run_that_died_is_reported_as_crashed_before_any_other_begins(store, spec):
    store.run(spec)
    store.sql("UPDATE patchstore.ingest_run SET started_at = now() - interval '1 hour'")
    (report,) = reports.last_runs(store.engine)
    assert (report.state, report.finished_at) == ("crashed", None)


def test_what_was_noted_of_a_run_stays_when_it_ends(store, spec):
    run = store.run(spec)
    ledger.note_precision(store.engine, run, "bf16")
    for summary, kept in (
        (None, {"precision": "bf16"}),
        ('{"error": "away"}', {"precision": "bf16", "error": "away"}),
    ):
        ledger.finish_run(store.engine, run, "failed", summary)
        assert reports.last_runs(store.engine)[0].summary == kept


def test_a_finished_run_keeps_its_summary(store, spec):
    run = store.run(spec)
    ledger.finish_run(store.engine, run, "completed", '{"found": 1, "note": "100% :x"}')
    (report,) = reports.last_runs(store.engine)
    assert (report.state, report.summary) == ("completed", {"found": 1, "note": "100% :x"})
    assert report.finished_at >= report.started_at


def wait_for_death(store):
    """Until Postgres has seen the connection close; `pg_stat_activity` says when."""
    while store.scalar(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'"
    ):
        continue


def test_what_a_later_run_gave_back_is_not_handed_to_an_earlier_one(store):
    spec = store.spec()
    store.scan(spec, {"a": "1"})
    earlier, later = store.run(spec), store.run(spec)
    for run, leased in ((earlier, 1), (later, 1), (earlier, 0), (later, 0)):
        leases = store.lease(spec, run)
        assert len(leases) == leased
        for lease in leases:
            ledger.release_image(store.engine, lease)


def test_what_a_run_that_ends_gives_back_is_for_any_other(store):
    spec = store.spec()
    store.scan(spec, {"a": "1"})
    earlier, later = store.run(spec), store.run(spec)
    store.lease(spec, later)
    ledger.finish_run(store.engine, later, "failed", None)
    ledger.give_back(store.engine, later)
    assert len(store.lease(spec, earlier)) == 1


def test_a_file_that_did_not_hold_what_was_leased_is_opened_by_the_next_scan(store):
    spec = store.spec()
    store.scan(spec, {"a": "1"})
    (lease,) = store.lease(spec)
    ledger.release_image(store.engine, lease)
    assert catalog.known_files(store.engine, store.source(), ["a"])["a"].mark == ""


def test_a_lease_whose_file_another_scan_finds_gone_still_says_where_it_was(store):
    spec = store.spec()
    store.scan(spec, {"a": "1"})
    run = store.run(spec)
    store.lease(spec, run)
    store.scan(spec, {})
    (found,) = ledger.find_leases(store.engine, spec, store.source(), run, Reached())
    assert found.uri == "a"
