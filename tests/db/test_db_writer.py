"""Images' vectors: all of an image's or none, and only from the lease's holder."""

import threading

import numpy as np
import pytest
from sqlalchemy import event

from db import audit, browse, ledger, prune, writer
from db.errors import StoreError, TransientStoreError
from db.writer import ImagePatches, replace_patches


@pytest.fixture
def spec(store):
    return store.spec()


@pytest.fixture
def lease(store, spec):
    store.scan(spec, {"a": "1"})
    (lease,) = store.lease(spec)
    return lease


def rows(store):
    return store.scalar("SELECT count(*) FROM patchstore.patch_feature")


def states(store):
    return store.sql("SELECT state, patch_count, attempts FROM patchstore.extraction ORDER BY 1")


def test_vectors_and_boxes_come_back_as_they_were_written(store, spec, lease):
    vectors = store.vectors(5)
    store.write(spec, lease, vectors)
    stored = store.sql("SELECT x, y, width, height, scale FROM patchstore.patches ORDER BY x")
    assert [row[:4] for row in stored] == [tuple(box) for box in store.boxes(5)[0].tolist()]
    assert (store.shown_vectors(spec) == vectors).all()
    assert states(store) == [("done", 5, 1)]


def test_the_rows_of_a_large_image_are_sent_in_blocks(store, spec, lease, monkeypatch):
    monkeypatch.setattr(writer, "BLOCK_ROWS", 2)
    test_vectors_and_boxes_come_back_as_they_were_written(store, spec, lease)


def test_a_late_writer_with_an_old_fence_changes_nothing(store, spec, lease):
    ledger.release_image(store.engine, lease)
    (again,) = store.lease(spec)
    assert store.write(spec, lease) == [lease]
    assert rows(store) == 0
    assert store.write(spec, again, store.vectors(2)) == []
    assert store.write(spec, lease, store.vectors(4)) == [lease]
    assert rows(store) == 2


def test_a_writer_whose_image_another_has_leased_changes_nothing(store, spec, lease):
    assert ledger.reclaim(store.engine, spec, 25) == 1
    assert store.lease(spec) != []
    assert store.write(spec, lease) == [lease]
    assert (rows(store), states(store)) == (0, [("leased", None, 2)])


@pytest.mark.parametrize("give_back", ["reclaim", "release_image", "give_back"])
def test_what_was_given_back_meanwhile_and_leased_by_nobody_counts(store, spec, lease, give_back):
    arguments = {"reclaim": (spec, 25), "release_image": (lease,), "give_back": (1,)}[give_back]
    getattr(ledger, give_back)(store.engine, *arguments)
    assert [state for state, *_ in states(store)] == ["pending"]
    assert store.write(spec, lease) == []
    assert [state for state, *_ in states(store)] == ["done"]
    assert store.lease(spec) == []


def test_a_writer_of_a_failed_image_changes_nothing(store, spec, lease):
    ledger.fail_image(store.engine, lease, "truncated")
    assert store.write(spec, lease) == [lease]
    assert states(store) == [("failed", None, 1)]


def test_a_write_repeated_after_a_lost_answer_changes_nothing(store, spec, lease):
    store.write(spec, lease)
    before = store.sql("SELECT id FROM patchstore.patch_feature ORDER BY 1")
    store.write(spec, lease)
    assert store.sql("SELECT id FROM patchstore.patch_feature ORDER BY 1") == before


def test_rows_that_were_there_are_replaced(store, spec, lease):
    store.write(spec, lease, store.vectors(5))
    store.sql("UPDATE patchstore.extraction SET state = 'pending', patch_count = NULL, "
              "visible = false")  # fmt: skip
    (again,) = store.lease(spec)
    store.write(spec, again, store.vectors(2, seed=1))
    assert (store.shown_vectors(spec) == store.vectors(2, seed=1)).all()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("boxes", np.zeros((3, 3), np.int32), r"boxes has shape \(3, 3\), expected \(3, 4\)"),
        ("boxes", np.ones((3, 4), np.float64), "boxes have dtype float64, expected int32"),
        ("boxes", np.ones((3, 4), np.int64), "boxes have dtype int64, expected int32"),
        ("scales", np.ones(2, np.float32), r"scales has shape \(2,\), expected \(3,\)"),
        ("scales", np.ones(3, np.int32), "scales have dtype int32, expected float32"),
        ("vectors", np.ones((3, 5), np.float32), r"vectors has shape \(3, 5\), expected \(3, 4\)"),
        ("vectors", np.ones(12, np.float32), r"vectors has shape \(12,\), expected \(3, 4\)"),
        ("vectors", np.ones((3, 4), np.float64), "vectors have dtype float64, expected float32"),
        ("vectors", np.full((3, 4), np.nan, np.float32), "vector 0 has a value"),
        ("vectors", np.full((3, 4), -np.inf, np.float32), "vector 0 has a value"),
        ("vectors", np.full((3, 4), 70_000, np.float32), "beyond 65504"),
    ],
)
def test_arrays_of_another_make_are_refused(store, spec, lease, name, value, message):
    boxes, scales = store.boxes(3)
    arrays = {"boxes": boxes, "scales": scales, "vectors": store.vectors(3), name: value}
    with pytest.raises(ValueError, match=message):
        replace_patches(store.engine, spec, [ImagePatches(lease, **arrays)])
    assert states(store) == [("leased", None, 1)]


def test_an_image_without_patches_is_refused(store, spec, lease):
    with pytest.raises(ValueError, match="without patches"):
        store.write(spec, lease, np.empty((0, 4), np.float32))


def test_vectors_that_are_not_contiguous_are_written_right(store, spec, lease):
    vectors = np.asfortranarray(store.vectors(6))[::2]
    store.write(spec, lease, vectors)
    assert (store.shown_vectors(spec) == vectors).all()


@pytest.mark.parametrize(
    "box", [(-1, 0, 8, 8), (0, 0, 0, 8), (0, 0, 8, -1)], ids=["outside", "empty", "negative"]
)
def test_a_box_outside_the_image_leaves_nothing(store, spec, lease, box):
    boxes, scales = store.boxes(3)
    boxes[2] = box
    with pytest.raises(StoreError, match="ck_patch_feature_box"):
        patches = ImagePatches(lease, boxes, scales, store.vectors(3))
        replace_patches(store.engine, spec, [patches])
    assert (rows(store), states(store)) == (0, [("leased", None, 1)])


def test_the_size_of_an_image_is_kept_where_no_scan_could_tell_it(store, spec):
    store.scan(spec, {"a": "1", "b": "2"})
    store.sql("UPDATE patchstore.image SET width = NULL, height = NULL WHERE id = 1")
    leases = store.lease(spec)
    arrays = (*store.boxes(3), store.vectors(3))
    replace_patches(store.engine, spec, [ImagePatches(each, *arrays, (40, 30)) for each in leases])
    found = store.sql("SELECT width, height FROM patchstore.image ORDER BY id")
    assert found == [(40, 30), (10, 10)]


def test_the_same_box_twice_leaves_nothing(store, spec, lease):
    boxes, scales = store.boxes(3)
    boxes[2] = boxes[0]
    with pytest.raises(StoreError, match="duplicate key"):
        patches = ImagePatches(lease, boxes, scales, store.vectors(3))
        replace_patches(store.engine, spec, [patches])
    assert rows(store) == 0


def test_a_lost_lease_takes_no_other_image_with_it(store, spec):
    store.scan(spec, {uri: uri for uri in "abc"})
    leases = store.lease(spec)
    ledger.release_image(store.engine, leases[1])
    (again,) = store.lease(spec)
    assert store.write_all(spec, leases) == [leases[1]]
    assert states(store) == [("done", 3, 1), ("done", 3, 1), ("leased", None, 1)]
    assert again.image_id == leases[1].image_id
    assert store.shown(spec) == {leases[0].uri, leases[2].uri}


def test_images_that_an_earlier_try_finished_are_not_written_again(store, spec):
    store.scan(spec, {uri: uri for uri in "ab"})
    first, second = store.lease(spec)
    store.write(spec, first, store.vectors(2))
    assert store.write_all(spec, [first, second]) == []
    assert states(store) == [("done", 2, 1), ("done", 3, 1)]


def test_a_writer_killed_in_the_middle_leaves_nothing_and_may_try_again(
    store, spec, admin, monkeypatch
):
    store.scan(spec, {uri: uri for uri in "abc"})
    leases = store.lease(spec)
    encode = writer.encoded_rows

    def kill(spec, image):
        if image.lease == leases[2]:
            admin.execute(
                "SELECT pg_terminate_backend(l.pid, 5000) FROM pg_locks l "
                "WHERE l.relation = 'patchstore.patch_feature_s1'::regclass "
                "AND l.mode = 'RowExclusiveLock' AND l.pid <> pg_backend_pid()"
            )
        return encode(spec, image)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "encoded_rows", kill)
        with pytest.raises(TransientStoreError):
            store.write_all(spec, leases)
    assert (rows(store), set(states(store))) == (0, {("leased", None, 1)})
    store.write_all(spec, leases)
    assert (rows(store), set(states(store))) == (9, {("done", 3, 1)})


def test_writers_and_scans_in_opposite_order_never_deadlock(store, spec):
    """Files that go back and forth between contents: each replaces the other."""
    other = store.spec("other", dim=8)
    pairs = {f"u{i}": (f"x{i}", f"y{i}") for i in range(8)}
    files = [{uri: pair[turn] for uri, pair in pairs.items()} for turn in (0, 1)]
    for each in (spec, other):
        store.ingest(each, files[0])
    errors = []

    def keep(action):
        try:
            for turn in range(6):
                action(turn)
        except Exception as error:
            errors.append(error)

    def compute(each):
        store.write_all(each, store.lease(each))

    def redo(turn):
        store.scan(spec, files[turn % 2])
        store.sql(
            "UPDATE patchstore.extraction SET state = 'failed', error = 'x', patch_count = NULL, "
            "visible = false WHERE (spec_id, image_id) IN (SELECT spec_id, image_id FROM "
            "patchstore.extraction WHERE state = 'done' ORDER BY image_id, spec_id "
            "LIMIT 4 FOR UPDATE SKIP LOCKED)"
        )
        ledger.retry_failed(store.engine, None, None)

    threads = [
        threading.Thread(target=keep, args=(action,))
        for action in (lambda _: compute(spec), lambda _: compute(other), redo)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_every_statement_about_vectors_names_their_spec(store, spec):
    """Their keys begin with it: before Postgres 18 others read the whole partition."""
    statements = []
    event.listen(
        store.engine, "before_cursor_execute", lambda *given: statements.append(given[2].lower())
    )
    store.ingest(spec, {"a": "1", "b": "2"})
    (patch, image) = store.sql("SELECT id, image_id FROM patchstore.patch_feature LIMIT 1")[0]
    browse.get_patch_row(store.engine, patch)
    audit.requeue(store.engine, spec, [image])
    store.scan(spec, {})
    prune.prune(store.engine)
    about = [
        each
        for each in statements
        if "patch_feature" in each and each.startswith(("delete", "update", "select p.id"))
    ]
    assert len(about) >= 5
    assert [each for each in about if "spec_id" not in each] == []
