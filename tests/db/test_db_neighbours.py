"""The neighbours of every patch, against brute force in numpy."""

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import event

from db import nearest as blocks
from db.errors import InvalidQuestion, SpecBuilding
from db.index import build_index, is_indexed
from db.metric import METRICS
from db.nearest import PATCH, PatchMatrix, nearest
from db.neighbours import NeighbourOptions, all_neighbours

IMAGES, PATCHES, DIM = 20, 40, 16
KINDS = ("exact", "indexed")


def distances(metric, vectors):
    vectors = vectors.astype(np.float64)
    if metric == "l2":
        return np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)
    products = vectors @ vectors.T
    if metric == "ip":
        return -products
    norms = np.linalg.norm(vectors, axis=-1)
    return 1 - products / norms / norms[:, None]


def brute_force(metric, vectors, images, k, other_images=False, max_distance=np.inf):
    """Each row's neighbours as pairs of a row number and a distance."""
    between = np.round(distances(metric, vectors), 9)
    np.fill_diagonal(between, np.inf)
    if other_images:
        between[images[:, None] == images] = np.inf
    order = np.argsort(between, axis=1, kind="stable")[:, :k]
    return [
        [
            (n, between[i, n])
            for n in row
            if between[i, n] < np.inf and between[i, n] <= max_distance
        ]
        for i, row in enumerate(order)
    ]


class Gallery:
    """800 patches a spec, some of them the same; each metric with an index and without."""

    def __init__(self, store):
        self.engine = store.engine
        rng = np.random.default_rng(3)
        centres = rng.normal(size=(IMAGES, 1, DIM))
        vectors = (centres + 0.7 * rng.normal(size=(IMAGES, PATCHES, DIM))).astype(np.float32)
        vectors[5:10, :3] = vectors[5, 0]
        self.specs = {}
        for kind in KINDS:
            for metric in METRICS:
                spec = store.spec(f"{kind}-{metric}", dim=DIM, metric=metric)
                self.specs[spec.name] = spec
                ids = store.load(spec, {f"u{i:02}": vectors[i] for i in range(IMAGES)})
                if kind == "indexed":
                    build_index(self.engine, spec, threshold=0, memory_mb=16)
        order = [int(uri[1:]) for uri in sorted(ids, key=ids.__getitem__)]  # of the patches' ids
        self.vectors = vectors[order].reshape(-1, DIM)
        self.images = np.repeat(np.arange(IMAGES), PATCHES)


@pytest.fixture(scope="module")
def gallery(module_store):
    return Gallery(module_store)


@pytest.fixture
def spec(gallery):
    return gallery.specs["exact-cosine"]


def found(engine, spec, rows=100, **options):
    """Each patch's neighbours as pairs of a row number in the order of ids and a distance."""
    stretches = list(all_neighbours(engine, spec, NeighbourOptions(**options), rows=rows))
    assert all(len(s.patches) <= rows for s in stretches)
    ids = np.concatenate([s.patches["id"] for s in stretches])
    assert (np.diff(ids) > 0).all()
    neighbours = [[] for _ in ids]
    start = 0
    for s in stretches:
        assert (np.diff(s.of) >= 0).all()
        rows_of = np.searchsorted(ids, s.neighbours["id"])
        for of, rank, row, distance in zip(s.of, s.ranks, rows_of, s.distances, strict=True):
            neighbours[start + of].append((row, distance))
            assert rank == len(neighbours[start + of])
        start += len(s.patches)
    return neighbours


def assert_same(got, expected):
    assert [[row for row, _ in one] for one in got] == [[row for row, _ in one] for one in expected]
    flat = [[distance for one in side for _, distance in one] for side in (got, expected)]
    np.testing.assert_allclose(flat[0], flat[1], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("other_images", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_without_an_index_they_are_those_of_brute_force(gallery, metric, other_images):
    got = found(gallery.engine, gallery.specs[f"exact-{metric}"], other_images=other_images)
    assert_same(got, brute_force(metric, gallery.vectors, gallery.images, 10, other_images))


@pytest.mark.parametrize("other_images", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_exact_passes_the_index_by(gallery, metric, other_images):
    spec = gallery.specs[f"indexed-{metric}"]
    assert is_indexed(gallery.engine, spec)
    got = found(gallery.engine, spec, other_images=other_images, exact=True)
    assert_same(got, brute_force(metric, gallery.vectors, gallery.images, 10, other_images))


@pytest.mark.parametrize("other_images", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_the_index_finds_almost_all_of_them(gallery, metric, other_images):
    got = found(gallery.engine, gallery.specs[f"indexed-{metric}"], other_images=other_images)
    expected = brute_force(metric, gallery.vectors, gallery.images, 10, other_images)
    assert [len(one) for one in got] == [10] * len(expected)
    assert all(one == sorted(one, key=lambda pair: pair[1]) for one in got)
    images = gallery.images
    for i, one in enumerate(got):
        rows = [row for row, _ in one]
        assert i not in rows
        assert len({*rows}) == 10
        assert not other_images or images[i] not in images[rows]
    # Of those that are equally far any may be found.
    far = np.array([[distance for _, distance in one] for one in got])
    farthest = np.array([one[-1][1] for one in expected])[:, None]
    assert (far <= farthest + 1e-5).mean() > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_all_others_come_where_fewer_than_k_exist(store, kind):
    spec = store.spec(dim=4)
    store.load(spec, {name: store.vectors(3, seed=n) for n, name in enumerate("ab")})
    if kind == "indexed":
        build_index(store.engine, spec, threshold=0, memory_mb=16)
    assert [len(one) for one in found(store.engine, spec)] == [5] * 6
    assert [len(one) for one in found(store.engine, spec, other_images=True)] == [3] * 6


def test_where_the_index_gives_up_all_are_compared(gallery, monkeypatch):
    """As among the patches of one huge image: what pgvector scans at most is used up by its own."""
    spec = gallery.specs["indexed-cosine"]
    monkeypatch.setattr("db.neighbours._pool", lambda k: 3)
    got = found(gallery.engine, spec, other_images=True)
    expected = brute_force("cosine", gallery.vectors, gallery.images, 10, other_images=True)
    assert_same(got, expected)


@pytest.mark.parametrize(("given", "expected"), [(None, 456), (60, 60)])
def test_the_index_is_searched_as_widely_as_by_a_search_unless_told(store, given, expected):
    spec, seen = store.spec(dim=4), set()
    store.load(spec, {"a": store.vectors(12)})
    build_index(store.engine, spec, threshold=0, memory_mb=16)
    store.sql(
        "CREATE OR REPLACE FUNCTION patchstore.usual_ef_search(spec_id integer) "
        "RETURNS integer LANGUAGE sql STABLE AS 'SELECT 456'"
    )

    @event.listens_for(store.engine, "after_cursor_execute")
    def look(connection, cursor, statement, *_):
        if "CROSS JOIN LATERAL" in statement and "embedding" in statement:
            seen.add(connection.connection.execute("SHOW hnsw.ef_search").fetchone()[0])

    found(store.engine, spec, ef_search=given)
    assert seen == {str(expected)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_threshold_drops_what_is_farther(gallery, kind):
    spec = gallery.specs[f"{kind}-l2"]
    got = found(gallery.engine, spec, max_distance=2.5, exact=True)
    assert_same(got, brute_force("l2", gallery.vectors, gallery.images, 10, max_distance=2.5))
    counts = {len(one) for one in found(gallery.engine, spec, max_distance=2.5)}
    assert 0 in counts
    assert max(counts) == 10


def test_stretches_name_patches_boxes_and_uris(store):
    spec = store.spec(dim=4)
    store.load(spec, {"a": np.eye(4, dtype=np.float32)[:2], "b": np.eye(4, dtype=np.float32)[:1]})
    (stretch,) = all_neighbours(store.engine, spec, NeighbourOptions(k=1))
    order = np.argsort(stretch.uris, kind="stable")
    assert sorted(stretch.uris) == ["a", "a", "b"]
    assert stretch.patches["box"][order].tolist() == [[0, 0, 8, 8], [8, 0, 8, 8], [0, 0, 8, 8]]
    names = {
        (stretch.uris[of], tuple(stretch.patches["box"][of])): (uri, tuple(box.tolist()))
        for of, uri, box in zip(
            stretch.of, stretch.neighbour_uris, stretch.neighbours["box"], strict=True
        )
    }
    assert names["a", (0, 0, 8, 8)] == ("b", (0, 0, 8, 8))
    assert names["b", (0, 0, 8, 8)] == ("a", (0, 0, 8, 8))


def test_what_searches_do_not_show_is_neither_asked_nor_found(store):
    spec = store.spec()
    store.ingest(spec, {"a": "1", "b": "2", "c": "3"})
    store.scan(spec, {"a": "1", "b": "2"})
    (stretch,) = all_neighbours(store.engine, spec)
    assert {*stretch.uris} == {"a", "b"} == {*stretch.neighbour_uris}
    assert [len(one) for one in found(store.engine, spec)] == [5] * 6


def test_the_store_is_seen_as_it_was_when_the_run_began(store):
    spec = store.spec()
    store.ingest(spec, {"a": "1", "b": "2"})
    run = all_neighbours(store.engine, spec, rows=1)
    stretches = [next(run)]
    store.scan(spec, {"b": "2"})
    stretches += run
    assert len(stretches) == 6
    assert {uri for s in stretches for uri in s.neighbour_uris} == {"a", "b"}


def test_the_progress_goes_from_reading_to_comparing(gallery, spec):
    seen = []
    for _ in all_neighbours(
        gallery.engine, spec, rows=200, on_progress=lambda *step: seen.append(step)
    ):
        pass
    assert seen[-5:] == [("reading", 1.0), *(("comparing", n / 4) for n in (1, 2, 3, 4))]


def test_the_copy_of_the_vectors_has_no_name_and_is_gone_afterwards(gallery, spec, tmp_path):
    run = all_neighbours(gallery.engine, spec, scratch=tmp_path)
    next(run)
    maps = Path("/proc/self/maps")
    assert f"{tmp_path}/" in maps.read_text()
    assert not list(tmp_path.iterdir())  # a process that is killed leaves nothing
    run.close()
    assert f"{tmp_path}/" not in maps.read_text()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"k": 0}, "k_range"),
        ({"k": 10_001}, "k_range"),
        ({"ef_search": 0}, "ef_search_range"),
        ({"max_distance": float("nan")}, "max_distance_range"),
    ],
)
def test_options_out_of_range_are_refused(gallery, spec, options, rule):
    with pytest.raises(InvalidQuestion) as refused:
        found(gallery.engine, spec, **options)
    assert refused.value.rule == rule


def test_an_empty_spec_has_none_and_one_that_is_building_says_so(store):
    spec = store.spec()
    assert list(all_neighbours(store.engine, spec)) == []
    store.scan(spec, {"a": "1"})
    with pytest.raises(SpecBuilding):
        list(all_neighbours(store.engine, spec))


@pytest.mark.parametrize("columns", [7, 64, 4096])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("same", [0, 200])
def test_blocks_of_any_size_give_the_same_and_ties_go_by_id(monkeypatch, columns, metric, same):
    monkeypatch.setattr(blocks, "COLUMNS", columns)
    rng = np.random.default_rng(columns + same)
    vectors = (5 * rng.normal(size=(300, 12))).astype(np.float32)
    vectors[rng.permutation(300)[:same]] = vectors[0]  # more than candidates are held
    patches = np.zeros(300, PATCH)
    patches["id"], patches["image_id"] = np.arange(300) * 3, np.arange(300) // 10
    matrix = PatchMatrix(patches, vectors, METRICS[metric])
    rows = np.arange(300)
    for other_images in (False, True):
        numbers, far = nearest(matrix, rows, 10, other_images=other_images)
        got = [list(zip(n, d, strict=True)) for n, d in zip(numbers, far, strict=True)]
        images = patches["image_id"]
        assert_same(got, brute_force(metric, vectors, images, 10, other_images))


def test_vectors_that_lie_together_far_from_the_origin_are_told_apart():
    rng = np.random.default_rng(5)
    vectors = (10_000 + rng.normal(size=(300, DIM))).astype(np.float32)
    matrix = PatchMatrix(np.zeros(300, PATCH), vectors, METRICS["l2"])
    numbers, far = nearest(matrix, np.arange(300), 10)
    expected = brute_force("l2", vectors, np.zeros(300), 10)
    assert numbers.tolist() == [[number for number, _ in row] for row in expected]
    assert np.allclose(far, [[distance for _, distance in row] for row in expected], atol=1e-6)


def test_vectors_without_a_direction_have_no_neighbours():
    vectors = np.array([[1, 0], [0, 0], [1, 1]], np.float32)
    matrix = PatchMatrix(np.zeros(3, PATCH), vectors, METRICS["cosine"])
    numbers, far = nearest(matrix, np.arange(3), 2)
    assert numbers.tolist() == [[2, -1], [-1, -1], [0, -1]]
    assert np.isnan(far[1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_store_vectors_without_a_direction_have_no_neighbours(store, kind):
    spec = store.spec()
    store.load(spec, {"A": np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]], np.float32)})
    if kind == "indexed":
        build_index(store.engine, spec, threshold=0, memory_mb=16)
    neighbours = found(store.engine, spec, k=2)
    assert [[row for row, _ in one] for one in neighbours] == [[2], [], [0]]
