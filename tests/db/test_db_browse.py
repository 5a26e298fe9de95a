"""What is in the store, image by image, and the metadata that people give it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import text

from db import browse
from db.errors import InvalidQuestion, NotFound, TransientStoreError
from db.index import build_index


@pytest.fixture
def spec(store):
    return store.spec()


def ids_of(store, spec):
    """Image ids by the URI where each is."""
    return {image.uri: image.image_id for image in browse.list_images(store.engine)}


def metadata_of(store):
    return dict(store.sql("SELECT uri, metadata FROM patchstore.image_location"))


def test_images_come_by_id_a_page_at_a_time(store, spec):
    store.ingest(spec, {f"u{n}": str(n) for n in range(7)})
    pages, after = [], 0
    while page := browse.list_images(store.engine, after=after, limit=3):
        pages.append(page)
        after = page[-1].image_id
    assert [len(page) for page in pages] == [3, 3, 1]
    found = [image.image_id for page in pages for image in page]
    assert found == sorted({*found})
    assert {image.uri for page in pages for image in page} == {f"u{n}" for n in range(7)}


def test_an_image_at_two_places_is_listed_once(store, spec):
    store.ingest(spec, {"a/1": "same", "b/1": "same", "b/2": "other"})
    assert [i.uri for i in browse.list_images(store.engine)].count("a/1") == 1
    assert len(browse.list_images(store.engine)) == 2
    assert {i.uri for i in browse.list_images(store.engine, prefix="b/")} == {"b/1", "b/2"}


@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        ("a", {"a%b", "a_b", "axb"}),
        ("a%", {"a%b"}),
        ("a_", {"a_b"}),
        ("", {"a%b", "a_b", "axb", "B"}),
        ("b", set()),
        ("a%b and more", set()),
    ],
)
def test_a_prefix_is_no_pattern(store, spec, prefix, found):
    store.ingest(spec, {uri: uri for uri in ("a%b", "a_b", "axb", "B")})
    assert {i.uri for i in browse.list_images(store.engine, prefix=prefix)} == found


def test_a_prefix_longer_than_the_index_keeps_is_compared_whole(store, spec):
    long = "x" * 300
    store.ingest(spec, {long + "a": "1", long + "b": "2"})
    assert [i.uri for i in browse.list_images(store.engine, prefix=long + "b")] == [long + "b"]


def test_a_filter_is_containment(store, spec):
    store.ingest(spec, {uri: uri for uri in "abc"})
    browse.set_metadata_many(
        store.engine,
        [("a", {"shelf": 3, "tags": ["x", "y"]}), ("b", {"shelf": "3"}), ("c", {})],
    )

    def filtered(filter, **options):
        return [i.uri for i in browse.list_images(store.engine, filter=filter, **options)]

    assert filtered({"shelf": 3}) == ["a"]
    assert filtered({"tags": ["y"]}) == ["a"]
    assert filtered({"shelf": "3"}, prefix="b") == ["b"]
    assert filtered({"shelf": "3"}, prefix="a") == []
    assert filtered({"shelf": None}) == []
    assert sorted(filtered({})) == ["a", "b", "c"]


def test_images_can_be_those_that_have_patches_under_a_spec(store, spec):
    other = store.spec("other")
    store.ingest(spec, {"a": "1", "b": "2"})
    store.ingest(other, {"c": "3"}, root="file:///elsewhere")
    assert [i.uri for i in browse.list_images(store.engine, spec=other)] == ["c"]


def test_vanished_and_unreadable_files_are_not_listed(store, spec):
    store.ingest(spec, {"a": "1", "b": "2", "broken": None})
    store.scan(spec, {"a": "1", "broken": None})
    assert [i.uri for i in browse.list_images(store.engine)] == ["a"]


@pytest.fixture
def crowd(store, spec):
    """20,000 locations; one in a thousand is on shelf 7, one in two hundred under /rare."""
    source = store.source()
    store.sql(
        """
        WITH i AS (
            INSERT INTO patchstore.image (sha256, size_bytes)
            SELECT sha256(n::text::bytea), 1 FROM generate_series(1, 20000) n RETURNING id)
        INSERT INTO patchstore.image_location
               (source_id, uri, size_bytes, mark, image_id, metadata)
        SELECT :source, CASE WHEN id % 200 = 0 THEN '/rare/' ELSE '/often/' END || id, 1, '', id,
               CASE WHEN id % 1000 = 0 THEN '{"shelf" : 7}'::jsonb
                    WHEN id % 2 = 0 THEN '{"shelf" : 1}' ELSE '{}' END
          FROM i
        """,
        source=source,
    )
    store.sql("ANALYZE patchstore.image_location")
    return store


@pytest.mark.parametrize(
    ("options", "index"),
    [
        ({"filter": {"shelf": 7}}, "ix_image_location_metadata"),
        ({"prefix": "/rare/"}, "ix_image_location_prefix"),
        ({}, "ix_image_location_image_id"),
    ],
)
def test_a_page_is_found_by_an_index(crowd, monkeypatch, options, index):
    found = browse.list_images(crowd.engine, **options)
    assert len(found) in (20, 100)
    monkeypatch.setattr(browse, "_image", lambda row: row[0])
    monkeypatch.setattr(browse, "text", lambda statement: text("EXPLAIN " + statement))
    plan = "\n".join(browse.list_images(crowd.engine, **options))
    assert index in plan
    assert "Seq Scan on image_location" not in plan


def test_an_image_is_shown_where_it_is_now(store, spec):
    store.ingest(spec, {"a": "1", "b": "1"})
    (image_id,) = {*ids_of(store, spec).values()}
    image = browse.get_image(store.engine, image_id)
    assert (image.uri, image.width, image.size_bytes, image.current) == ("a", 10, 1, True)
    assert (image.mark, image.metadata, len(image.sha256)) == ("mark of 1", {}, 64)
    store.scan(spec, {"b": "1"})
    assert browse.get_image(store.engine, image_id).uri == "b"


def test_a_changed_file_shows_its_old_image_until_the_new_one_is_done(store, spec):
    store.ingest(spec, {"a": "old"})
    old = ids_of(store, spec)["a"]
    store.scan(spec, {"a": "new"})
    new = ids_of(store, spec)["a"]
    assert new != old
    assert not browse.get_image(store.engine, old).current
    assert browse.get_image(store.engine, new).current
    store.ingest(spec, {"a": "new"})
    with pytest.raises(NotFound):
        browse.get_image(store.engine, old)
    assert browse.get_image(store.engine, new).current


def test_a_file_that_cannot_be_read_any_more_shows_its_old_image_as_not_current(store, spec):
    store.ingest(spec, {"a": "old"})
    old = ids_of(store, spec)["a"]
    store.scan(spec, {"a": None})
    assert browse.list_patches(store.engine, spec, old)
    assert browse.get_image(store.engine, old).current is False


@pytest.mark.parametrize("image_id", [0, -1, 10**9, 2**63 - 1])
def test_an_unknown_image_is_not_found(store, spec, image_id):
    for ask in (browse.get_image, lambda e, i: browse.set_metadata(e, i, {})):
        with pytest.raises(NotFound) as error:
            ask(store.engine, image_id)
        assert error.value.rule == "image_unknown"


def test_a_vanished_image_is_not_found(store, spec):
    store.ingest(spec, {"a": "1"})
    image_id = ids_of(store, spec)["a"]
    store.scan(spec, {})
    with pytest.raises(NotFound):
        browse.get_image(store.engine, image_id)
    with pytest.raises(NotFound):
        browse.set_metadata(store.engine, image_id, {})
    assert browse.list_patches(store.engine, spec, image_id) == []


def test_patches_are_those_of_one_spec_row_by_row(store, spec):
    other = store.spec("other", dim=8)
    for one in (spec, other):
        store.ingest(one, {"a": "1", "b": "2"})
    image_id = ids_of(store, spec)["a"]
    patches = browse.list_patches(store.engine, other, image_id)
    assert [p.box for p in patches] == [(0, 0, 8, 8), (8, 0, 8, 8), (16, 0, 8, 8)]
    assert {(p.spec, p.image_id, p.scale) for p in patches} == {("other", image_id, 1.0)}
    assert browse.get_patch_row(store.engine, patches[1].patch_id) == patches[1]


def test_a_patch_that_is_not_searchable_is_not_found(store, spec):
    store.ingest(spec, {"a": "1"})
    (patch, *_) = browse.list_patches(store.engine, spec, ids_of(store, spec)["a"])
    store.scan(spec, {})
    for patch_id in (patch.patch_id, 10**9):
        with pytest.raises(NotFound) as error:
            browse.get_patch_row(store.engine, patch_id)
        assert error.value.rule == "patch_unknown"


def test_metadata_is_set_wherever_the_image_is_now(store, spec):
    store.ingest(spec, {"a": "1", "b": "1", "gone": "1", "other": "2"})
    store.scan(spec, {"a": "1", "b": "1", "other": "2"})
    browse.set_metadata(store.engine, ids_of(store, spec)["a"], {"shelf": 3})
    browse.set_metadata(store.engine, ids_of(store, spec)["a"], {"row": 1})
    assert metadata_of(store) == {"a": {"row": 1}, "b": {"row": 1}, "gone": {}, "other": {}}


def test_many_are_set_by_uri_and_the_unknown_ones_told_in_order(store, spec):
    store.ingest(spec, {"a": "1", "b": "2", "c": "3"})
    given = [("z", {}), ("a", {"n": 1}), ("y", {}), ("b", {"n": 2}), ("z", {})]
    assert browse.set_metadata_many(store.engine, given) == ["z", "y"]
    assert metadata_of(store) == {"a": {"n": 1}, "b": {"n": 2}, "c": {}}
    assert browse.set_metadata_many(store.engine, []) == []


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize(("merge", "left"), [(False, {"x": 3}), (True, {"old": 0, "n": 2, "x": 3})])
def test_a_uri_given_twice_means_the_same_however_the_work_is_cut(
    store, spec, monkeypatch, chunk, merge, left
):
    monkeypatch.setattr(browse, "CHUNK", chunk)
    store.ingest(spec, {"a": "1", "b": "2"})
    browse.set_metadata_many(store.engine, [("a", {"old": 0, "n": 1})])
    given = [("a", {"n": 2}), ("b", {}), ("a", {"x": 3})]
    assert browse.set_metadata_many(store.engine, given, merge=merge) == []
    assert metadata_of(store)["a"] == left


def test_a_uri_of_two_sources_is_set_in_both(store, spec):
    for root in ("file:///one", "file:///two"):
        store.ingest(spec, {"a": "1"}, root=root)
    browse.set_metadata_many(store.engine, [("a", {"n": 1})])
    assert store.sql("SELECT metadata FROM patchstore.image_location") == [({"n": 1},)] * 2


def test_a_file_that_comes_back_has_the_metadata_that_was_set_meanwhile(store, spec):
    store.ingest(spec, {"a": "1"})
    store.scan(spec, {})
    assert browse.set_metadata_many(store.engine, [("a", {"n": 1})]) == []
    store.scan(spec, {"a": "1"})
    assert [i.metadata for i in browse.list_images(store.engine)] == [{"n": 1}]
    assert browse.known_uris(store.engine, ["a", "z"]) == {"a"}
    assert browse.get_metadata(store.engine, "a") == {"n": 1}
    with pytest.raises(NotFound):
        browse.get_metadata(store.engine, "z")


def test_what_postgres_cannot_hold_is_refused(store, spec):
    store.ingest(spec, {"a": "1"})
    with pytest.raises(InvalidQuestion):
        browse.set_metadata_many(store.engine, [("a", {"n": "\0"})])
    assert metadata_of(store) == {"a": {}}


def test_callers_that_set_the_same_at_once_do_not_meet_in_a_deadlock(store, spec, monkeypatch):
    monkeypatch.setattr(browse, "ATTEMPTS", 1)  # none of them needs a second try
    uris = [f"u{n}" for n in range(60)]
    store.ingest(spec, {uri: uri[-1] for uri in uris})  # ten images at six places each
    images = [*{*ids_of(store, spec).values()}]
    start = threading.Barrier(6)

    def many(step):
        start.wait()
        for n in range(10):
            browse.set_metadata_many(store.engine, [(u, {"n": n}) for u in uris[::step]])

    def single(step):
        start.wait()
        for n in range(10):
            for image_id in images[::step]:
                browse.set_metadata(store.engine, image_id, {"n": n})

    with ThreadPoolExecutor(6) as pool:
        runs = [pool.submit(call, step) for call in (many, single) for step in (1, -1, 1)]
        for run in runs:
            run.result()
    assert {tuple(m.items()) for m in metadata_of(store).values()} == {(("n", 9),)}


def test_the_victim_of_a_deadlock_tries_again(store, spec, admin):
    """Another program locks the same two rows in the other order, and waits more patiently."""
    store.ingest(spec, {"a": "1", "b": "2"})
    lock = "SELECT 1 FROM patchstore.image_location WHERE uri = %s FOR UPDATE"
    with psycopg.connect(admin.info.dsn) as other, ThreadPoolExecutor(1) as pool:
        other.execute("SET deadlock_timeout = '60s'")
        other.execute(lock, ["b"])
        setting = pool.submit(browse.set_metadata_many, store.engine, [("a", {}), ("b", {"n": 1})])
        while not admin.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall():
            assert not setting.done()
        other.execute(lock, ["a"])
        other.commit()
        assert setting.result() == []
    assert metadata_of(store) == {"a": {}, "b": {"n": 1}}


def test_an_error_that_stays_is_told(store, spec, monkeypatch):
    store.ingest(spec, {"a": "1"})
    tries = []

    def lost(*arguments):
        tries.append(arguments)
        raise TransientStoreError("the connection is lost")

    monkeypatch.setattr(browse, "_set_chunk", lost)
    with pytest.raises(TransientStoreError):
        browse.set_metadata_many(store.engine, [("a", {})])
    assert len(tries) == browse.ATTEMPTS


def test_the_counts_are_those_of_the_ledger(store, spec):
    other = store.spec("other", dim=8, metric="l2")
    store.ingest(spec, {"a": "1", "b": "1", "c": "2", "x": None})
    store.scan(spec, {"a": "1", "b": "1", "c": "2", "p": "3", "l": "4", "x": None})
    store.lease(spec, images=1)
    store.ingest(other, {"z": "9"}, root="file:///elsewhere")
    build_index(store.engine, other, threshold=0, memory_mb=16)
    stats = browse.stats(store.engine)
    assert (stats.sources, stats.locations, stats.images) == (2, 7, 5)
    assert stats.size_bytes > 1_000_000
    one, two = stats.specs
    assert (one.spec, one.dim, one.metric, one.indexed) == ("tiny", 4, "cosine", False)
    assert (one.images, one.patches, one.pending, one.leased, one.failed) == (2, 6, 1, 1, 0)
    assert (two.spec, two.metric, two.indexed, two.patches) == ("other", "l2", True, 3)


def test_an_empty_store_has_counts_of_zero(store):
    stats = browse.stats(store.engine)
    assert (stats.sources, stats.locations, stats.images, stats.specs) == (0, 0, 0, [])
