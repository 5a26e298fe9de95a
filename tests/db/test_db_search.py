"""What the SQL functions answer, against brute force in numpy."""

import numpy as np
import psycopg
import pytest
from pgvector import Vector
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from db.engine import store_errors
from db.errors import InvalidQuestion, NotFound, StoreError
from db.index import build_index, is_indexed
from db.prune import remove_spec
from db.reports import patch_matrix
from db.search import (
    SearchOptions,
    find_content,
    find_images,
    find_patch,
    search,
    search_many,
)
from db.writer import ImagePatches, replace_patches

IMAGES, PATCHES, DIM = 40, 50, 16
METRICS = ("cosine", "l2", "ip")
ONES = "array_fill(1, ARRAY[16])::vector"


def distances(metric, vectors, query):
    vectors, query = vectors.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return np.linalg.norm(vectors - query, axis=-1)
    if metric == "ip":
        return -(vectors @ query)
    norms = np.linalg.norm(vectors, axis=-1) * np.linalg.norm(query)
    return 1 - (vectors @ query) / norms


class Gallery:
    """2,000 patches a spec; each metric twice: `exact-...` without an index, `indexed-...` with."""

    def __init__(self, store):
        self.store, self.engine = store, store.engine
        rng = np.random.default_rng(7)
        centres = rng.normal(size=(IMAGES, 1, DIM))
        self.vectors = (centres + 0.7 * rng.normal(size=(IMAGES, PATCHES, DIM))).astype(np.float32)
        self.query = rng.normal(size=DIM).astype(np.float32)
        self.specs, self.ids = {}, {}
        images = {f"u{i:02}": self.vectors[i] for i in range(IMAGES)}
        for kind in ("exact", "indexed"):
            for metric in METRICS:
                name = f"{kind}-{metric}"
                self.specs[name] = store.spec(name, dim=DIM, metric=metric)
                self.ids = store.load(self.specs[name], images)
                if kind == "indexed":
                    build_index(self.engine, self.specs[name], threshold=0, memory_mb=16)

    def nearest(self, metric, k, without=()):
        found = [
            (float(d), f"u{i:02}", (8 * j, 0, 8, 8))
            for i, row in enumerate(distances(metric, self.vectors, self.query))
            for j, d in enumerate(row)
            if f"u{i:02}" not in without
        ]
        return sorted(found)[:k]


def nearest(engine, spec, query, k, **options):
    return search(engine, spec, query, SearchOptions(k, **options)).hits


@pytest.fixture(scope="module")
def gallery(module_store):
    return Gallery(module_store)


@pytest.fixture
def spec(gallery):
    return gallery.specs["exact-cosine"]


def found(hits):
    return [(hit.uri, hit.box) for hit in hits]


@pytest.mark.parametrize("kind", ["exact", "indexed"])
@pytest.mark.parametrize("metric", METRICS)
def test_the_nearest_patches_are_those_of_brute_force(gallery, kind, metric):
    expected = gallery.nearest(metric, 25)
    hits = nearest(gallery.engine, gallery.specs[f"{kind}-{metric}"], gallery.query, 25)
    assert found(hits) == [(uri, box) for _, uri, box in expected]
    np.testing.assert_allclose([h.distance for h in hits], [d for d, *_ in expected], rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_exact_searches_pass_the_index_by(gallery, metric):
    spec = gallery.specs[f"indexed-{metric}"]
    hits = nearest(gallery.engine, spec, gallery.query, 100, exact=True)
    assert found(hits) == [(uri, box) for _, uri, box in gallery.nearest(metric, 100)]


@pytest.mark.parametrize("kind", ["exact", "indexed"])
def test_k_rows_come_back_when_k_exist_beside_the_nearest_images(gallery, kind):
    """All near images are left out: what is left is far down the list."""
    spec = gallery.specs[f"{kind}-cosine"]
    order = dict.fromkeys(uri for _, uri, _ in gallery.nearest("cosine", IMAGES * PATCHES))
    without = list(order)[: IMAGES - 2]
    hits = nearest(
        gallery.engine, spec, gallery.query, 60, other_than=[gallery.ids[u] for u in without]
    )
    assert found(hits) == [(u, box) for _, u, box in gallery.nearest("cosine", 60, without)]


@pytest.mark.parametrize("kind", ["exact", "indexed"])
def test_all_rows_come_back_when_fewer_than_k_exist(gallery, kind):
    spec = gallery.specs[f"{kind}-cosine"]
    assert len(nearest(gallery.engine, spec, gallery.query, 10_000)) == IMAGES * PATCHES
    nothing = nearest(gallery.engine, spec, gallery.query, 5, other_than=list(gallery.ids.values()))
    assert nothing == []


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("k", [1, 5, IMAGES])
@pytest.mark.parametrize("metric", METRICS)
def test_images_are_ranked_by_the_mean_of_their_best_three(gallery, metric, k, exact):
    best = np.sort(distances(metric, gallery.vectors, gallery.query), axis=1)[:, :3].mean(axis=1)
    expected = np.argsort(best)[:k]
    spec = gallery.specs[f"exact-{metric}"]
    hits = nearest(gallery.engine, spec, gallery.query, k, by="image", exact=exact)
    assert [hit.uri for hit in hits] == [f"u{i:02}" for i in expected]
    np.testing.assert_allclose([hit.distance for hit in hits], best[expected], rtol=1e-5)


def test_images_ranked_with_an_index_agree_at_the_top(gallery):
    spec = gallery.specs["indexed-cosine"]
    exact = nearest(gallery.engine, spec, gallery.query, 5, by="image", exact=True)
    hits = nearest(gallery.engine, spec, gallery.query, 5, by="image")
    assert [hit.uri for hit in hits] == [hit.uri for hit in exact]


def test_an_image_of_many_good_patches_beats_images_of_one_perfect_patch(store):
    """Five images each hold one perfect patch and two far ones; the sixth has three good ones."""
    spec = store.spec("l2", dim=2, metric="l2")
    perfect = np.array([[0, 0], [9, 9], [9, 9]], np.float32)
    images = {f"perfect{i}": perfect for i in range(5)}
    images["good"] = np.ones((3, 2), np.float32)
    store.load(spec, images)
    (hit,) = nearest(store.engine, spec, np.zeros(2, np.float32), 1, by="image")
    assert hit.uri == "good"


def test_vectors_of_two_specs_never_meet(store):
    one, two = store.spec("one"), store.spec("two")
    store.load(one, {"a": store.vectors(3)})
    store.load(two, {"b": store.vectors(3)}, root="file:///elsewhere")
    for spec, uri in ((one, "a"), (two, "b")):
        hits = nearest(store.engine, spec, store.vectors(1)[0], 10)
        assert [hit.uri for hit in hits] == [uri] * 3


def question(gallery, statement, **values):
    with gallery.engine.connect() as connection, store_errors():
        return connection.execute(text(statement), values).all()


@pytest.mark.parametrize(
    ("query", "k", "message"),
    [
        (np.ones(15, np.float32), 5, '15 dimensions, spec "exact-cosine" has 16'),
        (np.zeros(16, np.float32), 5, "the query vector is zero"),
        (np.full(16, np.nan, np.float32), 5, "finite"),
        (np.full(16, np.inf, np.float32), 5, "finite"),
        (np.ones((1, 16), np.float32), 5, "one vector of 16"),
        (np.ones(16, np.float32), 0, "k is 0, expected 1 to 10000"),
        (np.ones(16, np.float32), -1, "k is -1"),
        (np.ones(16, np.float32), 10_001, "k is 10001"),
        (np.ones(16, np.float32), 10**12, "expected 1 to 10000"),
    ],
)
@pytest.mark.parametrize("by", ["patch", "image"])
def test_what_cannot_be_asked_is_refused_in_one_line(gallery, spec, by, query, k, message):
    with pytest.raises(InvalidQuestion, match=message) as refusal:
        nearest(gallery.engine, spec, query, k, by=by)
    assert "\n" not in str(refusal.value)


def test_a_zero_vector_is_a_question_in_l2(gallery):
    spec = gallery.specs["exact-l2"]
    assert len(nearest(gallery.engine, spec, np.zeros(16, np.float32), 3)) == 3


@pytest.mark.parametrize("length", [1e-15, 1e-9, 1e6, 1e15])
@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_an_index_answers_by_a_querys_direction_whatever_its_length(gallery, metric, length):
    spec = gallery.specs[f"indexed-{metric}"]
    query = np.random.default_rng(3).normal(size=16).astype(np.float32)
    asked = [nearest(gallery.engine, spec, query * each, 5) for each in (1, np.float32(length))]
    found, expected = ([hit.patch_id for hit in hits] for hits in asked)
    assert found == expected


def test_a_query_too_large_for_half_precision_is_compared_with_all_in_l2(gallery):
    spec, query = gallery.specs["indexed-l2"], np.full(16, 1e9, np.float32)
    answer = search(gallery.engine, spec, query, SearchOptions(3))
    assert answer == search(gallery.engine, spec, query, SearchOptions(3, exact=True))
    assert answer.exact and len(answer.hits) == 3


@pytest.mark.parametrize("function", ["similar_patches", "similar_images"])
@pytest.mark.parametrize(
    ("arguments", "state"),
    [
        ("'no such', '[1,2]'", "P0002"),
        ("NULL, '[1,2]'", "P0002"),
        ("'exact-cosine', '[1,2]'", "22023"),
        ("'exact-cosine', NULL", "22023"),
        ("'exact-cosine', array_fill(0, ARRAY[16])::vector", "22023"),
        ("'exact-cosine', array_fill(1, ARRAY[16])::vector, NULL", "22023"),
        ("'exact-cosine', array_fill(1, ARRAY[16])::vector, 0", "22023"),
    ],
)
def test_plain_sql_gets_a_stable_sqlstate(gallery, function, arguments, state):
    with gallery.engine.connect() as connection, pytest.raises(DBAPIError) as refusal:
        connection.exec_driver_sql(f"SELECT * FROM patchstore.{function}({arguments})")
    assert refusal.value.orig.sqlstate == state


def test_a_best_of_nothing_is_refused(gallery):
    with pytest.raises(InvalidQuestion, match="best is 0"):
        question(
            gallery,
            "SELECT * FROM patchstore.similar_images('exact-cosine', "
            "array_fill(1, ARRAY[16])::vector, best => 0)",
        )


def test_an_unknown_spec_is_named_with_the_known_ones(gallery):
    with pytest.raises(NotFound, match='no spec named "x\'y%"; known: exact-cosine, exact-ip'):
        question(gallery, "SELECT * FROM patchstore.similar_patches('x''y%', '[1]')")


@pytest.mark.parametrize(
    "extra",
    [
        "other_than => NULL",
        "other_than => ARRAY[NULL]::bigint[]",
        "other_than => ARRAY[-1, NULL]::bigint[]",
        "exact => NULL",
    ],
)
@pytest.mark.parametrize("function", ["similar_patches", "similar_images"])
@pytest.mark.parametrize("kind", ["exact", "indexed"])
def test_nulls_leave_nothing_out(gallery, kind, function, extra):
    rows = question(
        gallery,
        f"SELECT * FROM patchstore.{function}('{kind}-cosine', "
        f"array_fill(1, ARRAY[16])::vector, 5, {extra})",
    )
    assert len(rows) == 5


@pytest.mark.parametrize("ef", ["NULL", "1", "1000"])
def test_any_ef_search_gives_k_rows(gallery, ef):
    rows = question(
        gallery,
        "SELECT * FROM patchstore.similar_patches('indexed-cosine', "
        f"array_fill(1, ARRAY[16])::vector, 5, ef_search => {ef})",
    )
    assert len(rows) == 5


@pytest.mark.parametrize("name", ['it\'s "quoted"', "100% :x %s", "new\nline", "{brace}", "日本"])
def test_a_spec_of_any_name_answers(store, name):
    spec = store.spec(name)
    store.load(spec, {"a": store.vectors(3)})
    assert len(nearest(store.engine, spec, store.vectors(1)[0], 2)) == 2


def test_a_prefix_reads_the_files_under_it_and_no_others(store):
    spec = store.spec()
    store.load(spec, {f"file:///a/{n}": store.vectors(3, seed=n) for n in range(20)})
    build_index(store.engine, spec, threshold=0, memory_mb=16)
    store.sql(
        "WITH other AS (INSERT INTO patchstore.image (sha256, size_bytes) "
        "  SELECT sha256(n::text::bytea), 1 FROM generate_series(1, 20000) n RETURNING id) "
        "INSERT INTO patchstore.image_location (source_id, uri, size_bytes, mark, image_id) "
        "SELECT s.id, 'file:///b/' || o.id, 1, '', o.id FROM other o, patchstore.source s"
    )
    store.sql("ANALYZE patchstore.image_location")
    with store.engine.begin() as connection:
        hits = connection.execute(
            text(
                "SELECT * FROM patchstore.similar_patches('tiny', :query, prefix => 'file:///a/')"
            ),
            {"query": store.vectors(1)[0]},
        ).all()
        read = connection.execute(
            text(
                "SELECT pg_stat_get_xact_tuples_returned(c.oid)"
                "  + pg_stat_get_xact_tuples_fetched(c.oid) FROM pg_class c"
                " WHERE c.oid = 'patchstore.image_location'::regclass"
            )
        ).scalar_one()
    assert len(hits) == 10
    assert read < 1000


def plan(gallery, name, approximate):
    with gallery.engine.connect() as connection:
        driver = connection.connection.driver_connection
        (statement,) = driver.execute(
            "SELECT patchstore.candidates_sql(s, ROW(NULL, 10, NULL, false, 100, NULL, NULL, NULL,"
            " NULL, NULL, NULL)::patchstore.question, %s) FROM patchstore.feature_spec s "
            "WHERE name = %s",
            (approximate, name),
        ).fetchone()
        driver.execute(
            "PREPARE q (vector, bigint[], bigint[], jsonb, text, integer) AS " + statement
        )
        lines = driver.execute(
            f"EXPLAIN EXECUTE q ('{gallery.query.tolist()}', '{{}}', NULL, NULL, NULL, 10)"
        ).fetchall()
        connection.invalidate()
        return "\n".join(line for (line,) in lines)


@pytest.mark.parametrize("metric", METRICS)
def test_the_plan_reads_the_index_and_only_this_specs_partition(gallery, metric):
    spec = gallery.specs[f"indexed-{metric}"]
    lines = plan(gallery, spec.name, True)
    assert f"Index Scan using patch_feature_s{spec.id}_hnsw" in lines
    assert "Seq Scan" not in lines
    others = {s.partition for s in gallery.specs.values()} - {spec.partition}
    assert not any(f"{partition} " in lines for partition in others)


@pytest.mark.parametrize("metric", METRICS)
def test_the_exact_plan_reads_no_vector_index(gallery, metric):
    lines = plan(gallery, f"indexed-{metric}", False)
    assert "hnsw" not in lines


def test_a_generic_plan_uses_the_index_too(gallery):
    with gallery.engine.connect() as connection:
        connection.exec_driver_sql("SET LOCAL plan_cache_mode = force_generic_plan")
        assert "hnsw" in plan(gallery, "indexed-cosine", True)


SETTINGS = "SELECT current_setting('hnsw.ef_search'), current_setting('hnsw.iterative_scan')"


def test_the_callers_own_settings_survive_a_call(gallery):
    with gallery.engine.begin() as connection:
        connection.exec_driver_sql(
            "SET LOCAL hnsw.ef_search = 77; SET LOCAL hnsw.iterative_scan = 'strict_order'"
        )
        ask = text("SELECT * FROM patchstore.similar_patches('indexed-cosine', :query, 5)")
        assert len(connection.execute(ask, {"query": Vector(gallery.query)}).all()) == 5
        assert connection.exec_driver_sql(SETTINGS).one() == ("77", "strict_order")


def test_a_call_in_a_fresh_session_leaves_the_defaults(gallery):
    url = gallery.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        connection.execute(
            "SELECT * FROM patchstore.similar_patches('indexed-cosine', %s::vector, 5)",
            (str(gallery.query.tolist()),),
        )
        assert connection.execute(SETTINGS).fetchone() == ("40", "off")


def as_reader(gallery, statement):
    with gallery.engine.connect() as connection, store_errors():
        connection.exec_driver_sql("SET ROLE patchstore_reader")
        try:
            return connection.exec_driver_sql(statement).all()
        finally:
            connection.invalidate()


@pytest.mark.parametrize(
    "statement",
    [
        f"SELECT * FROM patchstore.similar_patches('exact-cosine', {ONES})",
        f"SELECT * FROM patchstore.similar_images('indexed-l2', {ONES})",
        "SELECT * FROM patchstore.specs LIMIT 1",
        "SELECT * FROM patchstore.images LIMIT 1",
        "SELECT * FROM patchstore.patches LIMIT 1",
    ],
)
def test_a_reader_may_ask(gallery, statement):
    assert as_reader(gallery, statement)


def test_a_reader_may_look_at_every_table(gallery):
    tables = gallery.store.sql(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p', 'v') "
        "AND relnamespace = 'patchstore'::regnamespace"
    )
    for (table,) in tables:
        as_reader(gallery, f"SELECT 1 FROM {table} LIMIT 1")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM patchstore.patch_feature",
        "UPDATE patchstore.image_location SET metadata = '{}'",
        "INSERT INTO patchstore.source (root) VALUES ('x')",
        "TRUNCATE patchstore.extraction",
        "SELECT patchstore.refresh_visibility('{1}')",
        "SELECT nextval('patchstore.fence_seq')",
        "CREATE TABLE patchstore.x ()",
        "DELETE FROM patchstore.patches",
    ],
)
def test_a_reader_may_not_write(gallery, statement):
    with pytest.raises(StoreError, match=r"permission denied|cannot delete from view"):
        as_reader(gallery, statement)


def test_searches_work_whatever_the_search_path_is(gallery):
    with gallery.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL search_path = pg_catalog")
        rows = connection.exec_driver_sql(
            "SELECT * FROM patchstore.similar_patches('indexed-cosine', "
            "public.array_to_vector(array_fill(1, ARRAY[16]), 16, true))"
        ).all()
    assert len(rows) == 10


@pytest.mark.parametrize(
    "call",
    [
        "similar_patches('indexed-cosine', {})",
        "similar_images('indexed-cosine', {})",
        "similar_patches_many('indexed-cosine', ARRAY[{}])",
    ],
)
def test_every_search_finds_pgvector_by_itself(gallery, call):
    ones = "public.array_to_vector(array_fill(1, ARRAY[16]), 16, true)"
    with gallery.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL search_path = ''")
        assert connection.exec_driver_sql(f"SELECT * FROM patchstore.{call.format(ones)}").all()


def test_searches_work_in_a_read_only_transaction(gallery):
    with gallery.engine.begin() as connection:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        ask = text("SELECT * FROM patchstore.similar_patches('indexed-cosine', :query)")
        assert len(connection.execute(ask, {"query": Vector(gallery.query)}).all()) == 10


def test_a_stored_patch_is_found_by_its_corner_or_any_point_inside(gallery, spec):
    corner = find_patch(gallery.engine, spec, "u03", 16, 0)
    inside = find_patch(gallery.engine, spec, "u03", 21, 5)
    assert corner.box == inside.box == (16, 0, 8, 8)
    assert (corner.vector == gallery.vectors[3, 2]).all()
    assert corner.image_id == gallery.ids["u03"]


@pytest.mark.parametrize(("uri", "x"), [("u03", 400), ("u03", -1), ("nowhere", 0), ("x'%:y", 0)])
def test_no_patch_at_a_point_is_said_with_the_point(gallery, spec, uri, x):
    with pytest.raises(NotFound, match=f"no patch of {uri} at {x},0"):
        find_patch(gallery.engine, spec, uri, x, 0)


def by_uri(store, spec, uri, x, y):
    """The hits of the SQL function, nearest first."""
    return store.sql(
        "SELECT image_id, uri, x, width FROM patchstore.similar_to_patch("
        ":spec, CAST(:uri AS text), :x, :y)",
        spec=spec.name,
        uri=uri,
        x=x,
        y=y,
    )


def test_a_patch_by_uri_is_one_of_what_the_file_shows_now(store):
    spec = store.spec()
    store.ingest(spec, {"A": "old", "B": "old"})
    store.scan(spec, {"A": "new", "B": "old"})
    old = store.scalar("SELECT image_id FROM patchstore.image_location WHERE uri = 'B'")
    assert old in find_images(store.engine, spec, "A")  # until the new one is there
    assert by_uri(store, spec, "A", 0, 0)[0][0] == old
    (lease,) = store.lease(spec)
    store.write(spec, lease)
    assert find_images(store.engine, spec, "A") == [lease.image_id]
    assert by_uri(store, spec, "A", 0, 0)[0][:2] == (lease.image_id, "A")
    assert find_patch(store.engine, spec, "A", 0, 0).image_id == lease.image_id


def test_a_patch_is_the_same_by_id_and_by_uri_where_scales_share_a_corner(store):
    spec = store.spec()
    store.scan(spec, {"A": "a"})
    (lease,) = store.lease(spec)
    boxes = np.array([(0, 0, 100, 100), (0, 0, 50, 50), (100, 0, 50, 50)], np.int32)
    scales, vectors = np.array([2, 1, 1], np.float32), np.eye(3, 4, dtype=np.float32)
    replace_patches(store.engine, spec, [ImagePatches(lease, boxes, scales, vectors)])
    found = find_patch(store.engine, spec, "A", 75, 75)
    assert found.box == (0, 0, 100, 100)
    assert by_uri(store, spec, "A", 75, 75)[0] == (lease.image_id, "A", 0, 100)


@pytest.mark.parametrize("length", [1e-45, 1e-38, 1e-20, 1e-7, 1, 1e19, 1e20, 3e38])
@pytest.mark.parametrize("indexed", [False, True])
def test_by_cosine_a_query_of_any_length_has_the_same_distances(store, indexed, length):
    spec = store.spec()
    store.load(spec, {"A": np.eye(3, 4, dtype=np.float32)})
    if indexed:
        build_index(store.engine, spec, threshold=0, memory_mb=16)
    query = np.array([length, 0, 0, 0], np.float32)
    hits = search(store.engine, spec, query, SearchOptions(3)).hits
    assert [hit.distance for hit in hits] == [0, 1, 1]
    images = search(store.engine, spec, query, SearchOptions(1, by="image")).hits
    assert [hit.distance for hit in images] == [pytest.approx(2 / 3)]


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("by", ["patch", "image"])
def test_a_query_whose_distances_float32_cannot_hold_is_refused(store, metric, indexed, by):
    spec = store.spec(metric=metric)
    store.load(spec, {"A": np.eye(3, 4, dtype=np.float32)})
    if indexed:
        build_index(store.engine, spec, threshold=0, memory_mb=16)
    longest = np.array([1e18, 0, 0, 0], np.float32)
    assert np.isfinite([h.distance for h in search(store.engine, spec, longest).hits]).all()
    with pytest.raises(InvalidQuestion, match="beyond 1e18") as refused:
        search(store.engine, spec, 10 * longest, SearchOptions(by=by))
    assert refused.value.rule == "query_range"


def test_images_are_found_by_uri_and_by_content(gallery, spec):
    (image,) = find_images(gallery.engine, spec, "u05")
    assert image == gallery.ids["u05"]
    sha256 = gallery.store.scalar("SELECT sha256 FROM patchstore.image WHERE id = :i", i=image)
    assert find_content(gallery.engine, spec, bytes(sha256)) == [image]
    assert (
        find_content(gallery.engine, spec, bytes(32))
        == find_images(gallery.engine, spec, "nowhere")
        == []
    )


def test_only_the_indexed_specs_say_so(gallery):
    named = {name: is_indexed(gallery.engine, spec) for name, spec in gallery.specs.items()}
    assert named == {name: name.startswith("indexed") for name in named}
    assert dict(gallery.store.sql("SELECT name, indexed FROM patchstore.specs")) == named


@pytest.mark.parametrize("by", ["patch", "image", "many"])
def test_a_spec_that_was_removed_is_not_asked_by_its_name_which_another_has_now(store, by):
    spec = store.spec()
    store.ingest(spec, {"a": "1"})
    remove_spec(store.engine, spec)
    other = store.spec(metric="l2")
    assert other.name == spec.name
    store.ingest(other, {"a": "1"})
    query = store.vectors(1)
    with pytest.raises(NotFound, match=r'no spec named "tiny \(removed\)"'):
        if by == "many":
            search_many(store.engine, spec, query)
        else:
            search(store.engine, spec, query[0], SearchOptions(by=by))
    assert search(store.engine, other, query[0]).hits


def test_what_reads_a_spec_that_was_removed_meanwhile_does_not_blame_the_schema(store):
    spec = store.spec()
    store.ingest(spec, {"a": "1"})
    remove_spec(store.engine, spec)
    with pytest.raises(NotFound, match="the spec has just been removed"):
        next(patch_matrix(store.engine, spec))
