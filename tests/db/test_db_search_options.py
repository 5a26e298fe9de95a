"""Every option of the SQL functions, alone and together, against brute force in numpy."""

import json
from dataclasses import dataclass

import numpy as np
import psycopg
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pgvector import Vector
from pgvector.psycopg import register_vector
from sqlalchemy import text

from db import catalog, ledger, writer
from db.engine import store_errors
from db.errors import InvalidQuestion, NotFound, SpecBuilding
from db.index import build_index
from db.search import (
    SearchOptions,
    find_content,
    find_patch,
    get_patch,
    search,
    search_many,
)

DIM, PATCHES = 8, 20
GRID = [(6 * (i % 5), 6 * (i // 5), 8, 8) for i in range(PATCHES)]
LONG = "file:///long/" + "x" * 400
PLAIN, INDEXED = "plain", "indexed"

# Where each content is: URI and metadata. Contents without a place are never shown.
PLACES = {
    "c00": [("file:///a/0.png", {"shelf": 0, "tags": ["red", "old"]})],
    "c01": [("file:///a/1.png", {"shelf": 1, "tags": ["red"]})],
    "c02": [("file:///a/2.png", {"shelf": 2, "who": {"name": "O'Hara", "of": ["x", {"y": 1}]}})],
    "c03": [("file:///a/10.png", {"shelf": 3, "n": None, "f": 1.50, "yes": True})],
    "c04": [("file:///b/0.png", {}), ("file:///copies/4.png", {"shelf": 0, "copy": True})],
    "c05": [("file:///b/1.png", {"shelf": 1}), ("file:///copies/5.png", {"copy": True})],
    "c06": [("file:///100%_a/6.png", {"shelf": 2})],
    "c07": [("file:///100x_a/7.png", {})],
    "c08": [('file:///it\'s "q"/8\\.png', {"shelf": 0, 'k"ey\\': "v'al"})],
    "c09": [("file:///日本/九.png", {"棚": "九", "shelf": 1})],
    "c10": [(LONG + "/10.png", {"shelf": 2})],
    "c11": [(LONG + "/11.png", {"shelf": 3})],
    "c12": [("file:///changing/12.png", {"shelf": 0, "tags": ["changed"]})],
    "c13": [("file:///changing/13.png", {"shelf": 1, "tags": ["changed"]})],
    "c14": [("file:///gone/14.png", {"shelf": 2})],
    "c15": [("%_", {"shelf": 3})],
}
CHANGED, GONE = ("c12", "c13"), "c14"

FILTERS = [
    None,
    {},
    {"shelf": 0},
    {"shelf": 1},
    {"shelf": 2.0},
    {"shelf": "0"},
    {"tags": ["red"]},
    {"tags": []},
    {"tags": ["changed"]},
    {"who": {"name": "O'Hara"}},
    {"who": {"of": [{"y": 1}]}},
    {"n": None},
    {"yes": True},
    {"copy": True},
    {"copy": True, "shelf": 0},
    {'k"ey\\': "v'al"},
    {"棚": "九"},
    {"nobody": {"has": ["this"]}},
]
PREFIXES = [
    None,
    "",
    "file:///a/1",
    "file:///a/1.png",
    "file:///a/%",
    "file:///100%_a",
    "file:///b/",
    "file:///copies/",
    'file:///it\'s "q"/8\\',
    "file:///日",
    LONG[:254],
    LONG[:255],
    LONG,
    LONG + "/11",
    LONG * 20,
    "file:///changing/",
    "file:///gone/",
    "%_",
    "_%",
    "FILE:///A/",
]
BOXES = [
    (0, 0, 1, 1),
    (7, 7, 1, 1),
    (8, 0, 4, 30),
    (31, 25, 9, 9),
    (32, 0, 5, 5),
    (0, 0, 2**31 - 1, 1),
]


@dataclass(frozen=True)
class Place:
    """Where a content is shown."""

    uri: str
    metadata: dict
    content: str


class World:
    """320 patches in two specs, one of them indexed; two files are changing, one is gone."""

    def __init__(self, store):
        self.store, self.engine = store, store.engine
        rng = np.random.default_rng(3)
        centres = rng.normal(size=(len(PLACES), 1, DIM))
        vectors = (centres + 0.6 * rng.normal(size=(len(PLACES), PATCHES, DIM))).astype(np.float32)
        self.vectors = dict(zip(PLACES, vectors, strict=True))
        self.query = rng.normal(size=DIM).astype(np.float32)
        self.specs = {name: store.spec(name, dim=DIM) for name in (PLAIN, INDEXED)}
        files = {uri: content for content, places in PLACES.items() for uri, _ in places}
        self.ids = {}
        for spec in self.specs.values():
            store.scan(spec, files, touched=True)
            for lease in store.lease(spec):
                content = files[lease.uri]
                self.ids[content] = lease.image_id
                boxes, scales = np.array(GRID, np.int32), np.ones(PATCHES, np.float32)
                patches = writer.ImagePatches(lease, boxes, scales, self.vectors[content])
                writer.replace_patches(store.engine, spec, [patches])
        build_index(self.engine, self.specs[INDEXED], threshold=0, memory_mb=16)
        for places in PLACES.values():
            for uri, metadata in places:
                store.sql(
                    "UPDATE patchstore.image_location SET metadata = CAST(:m AS jsonb) "
                    "WHERE uri = :uri",
                    uri=uri,
                    m=json.dumps(metadata),
                )
        new = {u: f"new {c}" if c in CHANGED else c for u, c in files.items() if c != GONE}
        for spec in self.specs.values():
            store.scan(spec, new)
        self.places = [
            Place(uri, metadata, content)
            for content, places in PLACES.items()
            for uri, metadata in places
            if content != GONE
        ]

    def shown(self, options):
        """The places that a question's options leave, by content."""
        left = {}
        for place in self.places:
            image = self.ids[place.content]
            if (
                (options.filter is None or contains(place.metadata, options.filter))
                and place.uri.startswith(options.prefix or "")
                and (options.image_ids is None or image in options.image_ids)
                and image not in options.other_than
            ):
                left.setdefault(place.content, []).append(place.uri)
        return left

    def patches(self, options, query=None):
        """(distance, image, box) of all patches that the options leave, nearest first."""
        query = self.query if query is None else query
        return sorted(
            (float(distance), self.ids[content], box)
            for content in self.shown(options)
            for distance, box in zip(cosine(self.vectors[content], query), GRID, strict=True)
            if options.touching is None or overlap(box, options.touching)
        )

    def images(self, options, best=3):
        """(mean distance, image, nearest box) of all images that the options leave."""
        found = {}
        for distance, image, box in self.patches(options):
            found.setdefault(image, []).append((distance, box))
        return sorted(
            (float(np.mean([d for d, _ in own[:best]])), image, own[0][1])
            for image, own in found.items()
        )

    def expected(self, options):
        ranked = self.patches(options) if options.by == "patch" else self.images(options)
        within = np.inf if options.max_distance is None else options.max_distance
        return [row for row in ranked if row[0] <= within][: options.k]


def contains(whole, part):
    """jsonb's @>"""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            key in whole and contains(whole[key], value) for key, value in part.items()
        )
    if isinstance(part, list):
        return isinstance(whole, list) and all(
            any(contains(own, wanted) for own in whole) for wanted in part
        )
    return isinstance(whole, bool) == isinstance(part, bool) and whole == part


def overlap(one, other):
    return all(one[i] < other[i] + other[i + 2] and other[i] < one[i] + one[i + 2] for i in (0, 1))


def cosine(vectors, query):
    vectors, query = vectors.astype(np.float64), query.astype(np.float64)
    return 1 - vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)


@pytest.fixture(scope="module")
def world(module_store):
    return World(module_store)


def ask(world, name, **options):
    return search(world.engine, world.specs[name], world.query, SearchOptions(**options))


def check(world, name, options):
    answer = search(world.engine, world.specs[name], world.query, options)
    expected = world.expected(options)
    assert len(answer.hits) == len(expected)
    shown = world.shown(options)
    contents = {image: content for content, image in world.ids.items()}
    for hit in answer.hits:
        places = {p.uri: p.metadata for p in world.places if p.content == contents[hit.image_id]}
        assert hit.uri in shown[contents[hit.image_id]]
        assert hit.metadata == places[hit.uri]
    distances = [hit.distance for hit in answer.hits]
    assert distances == sorted(distances)
    if options.by == "image" and not answer.exact:
        true = {image: (mean, box) for mean, image, box in world.images(options)}
        for hit in answer.hits:
            mean, box = true[hit.image_id]
            assert (hit.distance, hit.box) == (pytest.approx(mean, abs=1e-5), box)
    else:
        np.testing.assert_allclose(distances, [row[0] for row in expected], atol=1e-5)
        assert [(h.image_id, h.box) for h in answer.hits] == [row[1:] for row in expected]
    if name == PLAIN or options.exact:
        assert answer.exact
    return answer


@pytest.mark.parametrize("by", ["patch", "image"])
@pytest.mark.parametrize("name", [PLAIN, INDEXED])
class TestAlone:
    """One option at a time, by patch and by image, without an index and with."""

    @pytest.mark.parametrize("k", [1, 7, 10_000])
    @pytest.mark.parametrize("wanted", FILTERS, ids=str)
    def test_a_filter_keeps_what_contains_it(self, world, name, by, wanted, k):
        check(world, name, SearchOptions(k, by, filter=wanted, ef_search=1000))

    @pytest.mark.parametrize("prefix", PREFIXES, ids=lambda p: str(p)[:20])
    def test_a_prefix_is_taken_by_the_letter(self, world, name, by, prefix):
        check(world, name, SearchOptions(30, by, prefix=prefix, ef_search=1000))

    @pytest.mark.parametrize("box", BOXES, ids=str)
    def test_hits_touch_the_box(self, world, name, by, box):
        check(world, name, SearchOptions(50, by, touching=box, ef_search=1000))

    @pytest.mark.parametrize("count", [0, 1, 3, 16])
    def test_only_these_images(self, world, name, by, count):
        ids = sorted(world.ids.values())[:count]
        check(world, name, SearchOptions(50, by, image_ids=ids, ef_search=1000))
        check(world, name, SearchOptions(50, by, image_ids=[*ids, -1, 2**62]))

    @pytest.mark.parametrize("count", [1, 3, 16])
    def test_other_images_only(self, world, name, by, count):
        ids = [image for _, image, _ in world.images(SearchOptions())][:count]
        check(world, name, SearchOptions(50, by, other_than=ids, ef_search=1000))

    @pytest.mark.parametrize("within", [-np.inf, -1.0, 0.0, 0.4, 0.9, 2.0, np.inf])
    def test_nothing_is_farther_than_the_threshold(self, world, name, by, within):
        check(world, name, SearchOptions(400, by, max_distance=within, ef_search=1000))

    @pytest.mark.parametrize("ef_search", [1, 40, 1000])
    def test_any_ef_search_gives_k(self, world, name, by, ef_search):
        assert len(ask(world, name, k=10, by=by, ef_search=ef_search).hits) == 10

    def test_exact_says_so(self, world, name, by):
        assert check(world, name, SearchOptions(9, by, exact=True)).exact


def subsets(world):
    return st.lists(st.sampled_from(sorted(world.ids.values())), max_size=16, unique=True)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_options_combine(world, data):
    options = SearchOptions(
        k=data.draw(st.sampled_from([1, 2, 10, 50, 400])),
        by=data.draw(st.sampled_from(["patch", "image"])),
        other_than=data.draw(st.just([]) | subsets(world)),
        filter=data.draw(st.none() | st.sampled_from(FILTERS)),
        prefix=data.draw(st.none() | st.sampled_from(PREFIXES)),
        image_ids=data.draw(st.none() | subsets(world)),
        touching=data.draw(st.none() | st.sampled_from(BOXES)),
        max_distance=data.draw(st.none() | st.floats(0.1, 1.5)),
        ef_search=1000,
        exact=data.draw(st.booleans()),
    )
    if options.max_distance is not None:  # beside it, the last digits of a distance decide
        nearest = world.patches(options) if options.by == "patch" else world.images(options)
        assume(all(abs(row[0] - options.max_distance) > 1e-6 for row in nearest))
    check(world, data.draw(st.sampled_from([PLAIN, INDEXED])), options)


@pytest.fixture
def no_budget(world):
    """Statistics by which the index always looks cheaper, as on a table of many rows."""
    table = world.specs[INDEXED].partition
    set_rows = f"UPDATE pg_class SET reltuples = :rows WHERE oid = '{table}'::regclass"
    world.store.sql(set_rows, rows=0)
    yield
    world.store.sql(set_rows, rows=len(PLACES) * PATCHES)


@pytest.mark.parametrize("by", ["patch", "image"])
@pytest.mark.parametrize("k", [1, 10, 400])
@pytest.mark.parametrize(
    "options",
    [
        {"filter": {"shelf": 1}},
        {"filter": {"copy": True}},
        {"filter": {"tags": ["changed"]}},
        {"prefix": "file:///"},
        {"prefix": "file:///changing/"},
        {"prefix": "file:///a/", "filter": {"shelf": 1}, "touching": (7, 7, 1, 1)},
        {"filter": {"nobody": 1}},
    ],
    ids=str,
)
@pytest.mark.usefixtures("no_budget")
def test_the_index_keeps_to_the_filter_and_so_does_the_repetition(world, by, k, options):
    """Too many patches to compare them all at once; where k do not exist the index falls short."""
    answer = check(world, INDEXED, SearchOptions(k, by, ef_search=1000, **options))
    if len(answer.hits) < k:
        assert answer.exact


PLAINLY = """SELECT patchstore.ask_plainly(s, ROW(
        CAST(:query AS vector), {k}, {other_than}, {exact}, 1000, {best}, {filter}, {prefix},
        NULL, NULL, {max_distance})::patchstore.question) IS NOT NULL
    FROM patchstore.feature_spec s WHERE s.name = :name"""


def asked_plainly(world, name, **parts):
    nothing = dict.fromkeys(("other_than", "exact", "best", "filter", "prefix", "max_distance"))
    question = {part: value or "NULL" for part, value in {**nothing, "k": "5", **parts}.items()}
    query = str(world.query.tolist())
    return world.store.scalar(PLAINLY.format(**question), query=query, name=name)


@pytest.mark.parametrize("k", [1, 10])
def test_the_one_statement_of_a_plain_question_has_the_answer_of_the_many(world, k):
    assert asked_plainly(world, INDEXED, k=str(k))
    plain = ask(world, INDEXED, k=k, ef_search=1000)
    general = ask(world, INDEXED, k=k, ef_search=1000, max_distance=2.0)
    assert plain.hits == general.hits and not plain.exact


@pytest.mark.parametrize(
    "part",
    [
        {"k": "0"},
        {"k": "60"},  # more than are to be seen of the candidates
        {"best": "3"},
        {"other_than": "'{1}'"},
        {"filter": "'{}'"},
        {"prefix": "''"},
        {"max_distance": "2.0"},
    ],
    ids=str,
)
def test_a_question_of_more_than_nearness_is_not_asked_plainly(world, part):
    assert not asked_plainly(world, INDEXED, **part)


@pytest.mark.parametrize("k", [1, 10])
@pytest.mark.parametrize(("name", "exact"), [(PLAIN, False), (INDEXED, True)], ids=str)
def test_a_comparison_with_all_has_one_statement_with_the_same_answer(world, k, name, exact):
    assert asked_plainly(world, name, k=str(k), exact=str(exact))
    plain = ask(world, name, k=k, exact=exact)
    assert plain == ask(world, name, k=k, exact=exact, max_distance=2.0) and plain.exact


def test_fewer_than_asked_for_are_no_plain_answer(world):
    assert not asked_plainly(world, PLAIN, k="10000")


@pytest.mark.usefixtures("no_budget")
def test_what_the_index_answers_is_approximate(world):
    assert not ask(world, INDEXED, filter={"shelf": 1}).exact
    assert not ask(world, INDEXED).exact
    assert not ask(world, INDEXED, by="image", k=1).exact


def test_what_few_images_answer_is_exact(world):
    image = world.ids["c03"]
    assert ask(world, INDEXED, image_ids=[image]).exact
    assert ask(world, INDEXED, filter={"yes": True}).exact
    assert ask(world, INDEXED, prefix="file:///a/10").exact
    assert ask(world, INDEXED, filter={"nobody": 1}).exact


@pytest.mark.parametrize("by", ["patch", "image"])
@pytest.mark.parametrize(
    ("name", "exact"), [(PLAIN, True), (INDEXED, False)], ids=["plain", "indexed"]
)
def test_an_empty_answer_says_how_it_was_found_too(world, by, name, exact):
    answer = ask(world, name, k=3, by=by, max_distance=0.0)
    assert (answer.hits, answer.exact) == ([], exact)
    assert ask(world, name, k=3, by=by, max_distance=0.0, exact=True).exact
    everything = list(world.ids.values())
    assert ask(world, name, k=3, by=by, other_than=everything, max_distance=0.0).exact
    if by == "patch":
        options = SearchOptions(k=3, max_distance=0.0)
        queries = np.stack([world.query] * 2)
        answers = search_many(world.engine, world.specs[name], queries, options)
        assert [(a.hits, a.exact) for a in answers] == [([], exact)] * 2


def test_many_questions_have_the_answers_of_each(world):
    rng = np.random.default_rng(5)
    queries = rng.normal(size=(4, DIM)).astype(np.float32)
    for name in (PLAIN, INDEXED):
        for options in (
            SearchOptions(5, ef_search=1000),
            SearchOptions(50, filter={"shelf": 1}, touching=(0, 0, 1, 1)),
            SearchOptions(50, prefix="file:///a/", exact=True),
            SearchOptions(3, max_distance=0.2),
            SearchOptions(3, image_ids=[]),
        ):
            spec = world.specs[name]
            answers = search_many(world.engine, spec, queries, options)
            assert answers == [search(world.engine, spec, q, options) for q in queries]
    assert search_many(world.engine, world.specs[PLAIN], queries[:0]) == []


def test_one_bad_vector_among_many_is_refused_as_by_itself(world):
    queries = np.ones((3, DIM), np.float32)
    queries[2, 0] = np.nan
    with pytest.raises(InvalidQuestion, match="NaN"):
        search_many(world.engine, world.specs[PLAIN], queries)


def rows(world, statement, **values):
    with world.engine.connect() as connection, store_errors():
        return connection.execute(text(statement), values).all()


BY_PLACE = "SELECT * FROM patchstore.similar_to_patch(:spec, :image, :x, :y, :k"


@pytest.mark.parametrize("name", [PLAIN, INDEXED])
def test_a_patch_named_by_its_place_is_a_question(world, name):
    query = world.vectors["c06"][6]  # its box starts at (6, 6)
    expected = world.patches(SearchOptions(), query)[:5]
    others = world.patches(SearchOptions(other_than=[world.ids["c06"]]), query)[:5]
    for image in (world.ids["c06"], "file:///100%_a/6.png"):
        values = {"spec": name, "image": image, "x": 6, "y": 6, "k": 5}
        hits = rows(world, f"{BY_PLACE})", **values)
        assert [(h.image_id, (h.x, h.y, h.width, h.height)) for h in hits] == [
            row[1:] for row in expected
        ]
        assert hits[0].distance == pytest.approx(0, abs=1e-6)
        hits = rows(world, f"{BY_PLACE}, other_images => true)", **values)
        np.testing.assert_allclose([h.distance for h in hits], [r[0] for r in others], atol=1e-5)
        hits = rows(world, f"{BY_PLACE}, filter => '{{\"shelf\": 3}}', exact => true)", **values)
        threes = world.patches(SearchOptions(filter={"shelf": 3}), query)[:5]
        assert [h.image_id for h in hits] == [row[1] for row in threes]
        assert all(h.exact for h in hits)


def test_a_changing_file_is_asked_about_by_what_it_still_shows(world):
    hits = rows(world, f"{BY_PLACE})", spec=PLAIN, image="file:///changing/12.png", x=0, y=0, k=1)
    assert (hits[0].image_id, hits[0].uri) == (world.ids["c12"], "file:///changing/12.png")


@pytest.mark.parametrize(
    ("image", "x", "y"),
    [
        ("file:///gone/14.png", 0, 0),
        ("file:///nowhere", 0, 0),
        ("file:///a/0.png", 32, 0),
        ("file:///a/0.png", -1, 0),
        (None, 0, 0),
        ("file:///a/0.png", None, 0),
        (-1, 0, 0),
    ],
)
def test_no_patch_at_a_place_is_refused(world, image, x, y):
    kind = "bigint" if isinstance(image, int) else "text"
    with pytest.raises(NotFound, match="has no patch of") as refusal:
        rows(
            world,
            f"SELECT * FROM patchstore.similar_to_patch('plain', CAST(:image AS {kind}), "
            "CAST(:x AS integer), CAST(:y AS integer))",
            image=image,
            x=x,
            y=y,
        )
    assert refusal.value.rule == "patch_unknown"


ONES = "array_fill(1, ARRAY[8])::vector"
REFUSALS = {
    "k => 0": "k_range",
    "k => 10001": "k_range",
    "k => NULL": "k_range",
    "ef_search => 0": "ef_search_range",
    "ef_search => 1001": "ef_search_range",
    "filter => '[]'": "filter_object",
    "filter => '1'": "filter_object",
    "filter => 'null'": "filter_object",
    "filter => '\"{}\"'": "filter_object",
    "touching => '{}'": "box_range",
    "touching => '{1,2,3}'": "box_range",
    "touching => '{1,2,3,4,5}'": "box_range",
    "touching => '{{1,2},{3,4}}'": "box_range",
    "touching => '[0:3]={1,2,3,4}'": "box_range",
    "touching => '{1,2,3,NULL}'": "box_range",
    "touching => '{-1,0,1,1}'": "box_range",
    "touching => '{0,0,0,1}'": "box_range",
    "max_distance => 'NaN'": "max_distance_range",
}
QUERIES = {
    "NULL": "query_null",
    "'[1,2]'": "query_dim",
    "array_fill(0, ARRAY[8])::vector": "query_zero",
}


def refused(world, statement):
    with world.engine.connect() as connection:
        driver = connection.connection.driver_connection
        with pytest.raises(psycopg.Error) as refusal:
            driver.execute(statement)
    diagnostic = refusal.value.diag
    assert "\n" not in diagnostic.message_primary
    return diagnostic.sqlstate, diagnostic.constraint_name


@pytest.mark.parametrize(("option", "rule"), REFUSALS.items())
@pytest.mark.parametrize("name", [PLAIN, INDEXED])
def test_an_option_out_of_range_breaks_a_rule_with_a_name(world, name, option, rule):
    for call in (
        f"similar_patches('{name}', {ONES}, {option})",
        f"similar_images('{name}', {ONES}, {option})",
        f"similar_to_patch('{name}', 'file:///a/0.png', 0, 0, {option})",
        f"similar_to_patch('{name}', {world.ids['c00']}, 0, 0, {option})",
        f"similar_patches_many('{name}', ARRAY[{ONES}], {option})",
    ):
        assert refused(world, f"SELECT * FROM patchstore.{call}") == ("22023", rule), call


@pytest.mark.parametrize(("query", "rule"), QUERIES.items())
def test_a_query_that_cannot_be_compared_breaks_a_rule_with_a_name(world, query, rule):
    for call in (
        f"similar_patches('indexed', {query})",
        f"similar_images('indexed', {query})",
        f"similar_patches_many('indexed', ARRAY[{ONES}, {query}])",
    ):
        assert refused(world, f"SELECT * FROM patchstore.{call}") == ("22023", rule), call


def test_no_array_of_queries_is_refused_as_no_query_is(world):
    call = "similar_patches_many('indexed', NULL)"
    assert refused(world, f"SELECT * FROM patchstore.{call}") == ("22023", "query_null")


@pytest.mark.parametrize("queries", ["'[5:6]={{{0},{0}}}'", "ARRAY[ARRAY[{1}], ARRAY[{1}]]"])
def test_an_array_of_queries_may_have_any_bounds(world, queries):
    array = queries.format('"[1,1,1,1,1,1,1,1]"', ONES)
    found = rows(world, f"SELECT query FROM patchstore.similar_patches_many('plain', {array}, 3)")
    assert [row.query for row in found] == [1, 1, 1, 2, 2, 2]


def test_a_query_of_no_numbers_is_refused_by_its_type(world):
    for value in ("[NaN,1,1,1,1,1,1,1]", "[Infinity,1,1,1,1,1,1,1]"):
        state, _ = refused(world, f"SELECT * FROM patchstore.similar_patches('plain', '{value}')")
        assert state.startswith("22")


def test_an_unknown_spec_breaks_a_rule_with_a_name(world):
    for call in (
        f"similar_patches('no', {ONES})",
        f"similar_images('no', {ONES})",
        "similar_to_patch('no', 'file:///a/0.png', 0, 0)",
        "similar_to_patch('no', 1, 0, 0)",
        "similar_patches_many('no', '{}')",
    ):
        assert refused(world, f"SELECT * FROM patchstore.{call}") == ("P0002", "spec_unknown")


def test_a_spec_that_is_still_building_says_so(store):
    spec = store.spec("young", dim=DIM)
    options = SearchOptions(filter={"a": 1})
    assert search(store.engine, spec, np.ones(DIM, np.float32), options).hits == []
    store.scan(spec, {"a": "1"})
    for by in ("patch", "image"):
        with pytest.raises(SpecBuilding, match="none of its 1 images is done") as refusal:
            search(store.engine, spec, np.ones(DIM, np.float32), SearchOptions(by=by))
        assert refusal.value.rule == "spec_building"
    for call in (
        f"similar_patches_many('young', ARRAY[{ONES}])",
        "similar_patches_many('young', '{}')",
        "similar_to_patch('young', 'a', 0, 0)",
    ):
        state = refused(store, f"SELECT * FROM patchstore.{call}")
        assert state == ("P0002", "spec_building")
    for find in (
        lambda: find_patch(store.engine, spec, "a", 0, 0),
        lambda: get_patch(store.engine, spec, 1),
        lambda: find_content(store.engine, spec, bytes(32)),
    ):
        with pytest.raises(SpecBuilding):
            find()
    (lease,) = store.lease(spec)
    ledger.fail_image(store.engine, lease, "truncated")
    assert search(store.engine, spec, np.ones(DIM, np.float32)).hits == []


@pytest.mark.parametrize("best", [1, 2, 7, 10**9])
@pytest.mark.parametrize(("name", "exact"), [(PLAIN, True), (INDEXED, True), (INDEXED, False)])
def test_best_says_how_many_patches_an_image_is_judged_by(world, name, exact, best):
    hits = rows(
        world,
        "SELECT * FROM patchstore.similar_images(:spec, :query, 4, best => :best, exact => :exact)",
        spec=name,
        query=Vector(world.query),
        best=best,
        exact=exact,
    )
    expected = world.images(SearchOptions(), best)[:4]
    np.testing.assert_allclose([h.distance for h in hits], [r[0] for r in expected], atol=1e-5)
    assert [h.image_id for h in hits] == [row[1] for row in expected]


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("by", ["patch", "image"])
def test_vectors_without_a_direction_are_nobodys_neighbours(store, indexed, by):
    spec = store.spec(dim=DIM)
    blank = np.zeros((3, DIM), np.float32)
    blank[:2] = np.eye(2, DIM)
    store.load(spec, {"some": blank, "none": blank[2:], "other": store.vectors(3, DIM)})
    if indexed:
        build_index(store.engine, spec, threshold=0, memory_mb=16)
    for exact in (False, True):
        options = SearchOptions(50, by, exact=exact)
        hits = search(store.engine, spec, np.ones(DIM, np.float32), options).hits
        assert {hit.uri for hit in hits} == {"some", "other"}
        assert len(hits) == (5 if by == "patch" else 2)
        assert np.isfinite([hit.distance for hit in hits]).all()


def calls(world):
    return [
        f"similar_patches('indexed', {ONES}, filter => '{{\"shelf\": 1}}', prefix => 'file')",
        f"similar_images('indexed', {ONES}, touching => '{{0,0,9,9}}', max_distance => 2)",
        "similar_to_patch('plain', 'file:///a/0.png', 0, 0, other_images => true)",
        f"similar_to_patch('indexed', {world.ids['c00']}, 0, 0)",
        f"similar_patches_many('indexed', ARRAY[{ONES}], image_ids => '{{{world.ids['c00']}}}')",
        "images_at(1, 'file:///a/0.png')",
    ]


def test_a_reader_may_call_everything_in_a_read_only_transaction(world):
    for call in calls(world):
        with world.engine.connect() as connection:
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            connection.exec_driver_sql("SET LOCAL ROLE patchstore_reader")
            assert connection.exec_driver_sql(f"SELECT * FROM patchstore.{call}").all()


def test_nobody_else_may_call_anything(world):
    world.store.sql("CREATE ROLE patchstore_stranger")
    try:
        for call in calls(world):
            with world.engine.connect() as connection:
                driver = connection.connection.driver_connection
                driver.execute("SET LOCAL ROLE patchstore_stranger")
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    driver.execute(f"SELECT * FROM patchstore.{call}")
    finally:
        world.store.sql("DROP ROLE patchstore_stranger")


def fresh(world):
    """A session that has not loaded pgvector's library."""
    url = world.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(url)


SETTINGS = (
    "SELECT current_setting('hnsw.ef_search'), current_setting('hnsw.iterative_scan'), "
    "current_setting('hnsw.max_scan_tuples')"
)
DEFAULTS = ("40", "off", "20000")


def test_the_first_call_of_a_session_leaves_the_defaults(world):
    for call in calls(world)[:-1]:  # the last one needs no vectors
        with fresh(world) as connection:
            connection.execute(f"SELECT 1 FROM patchstore.{call}")
            assert connection.execute(SETTINGS).fetchone() == DEFAULTS


@pytest.mark.parametrize("query", ["'[1,2]'", ONES])
def test_the_callers_settings_survive_an_error(world, query):
    """The second query is refused; the first one has set what it needs."""
    with fresh(world) as connection:
        register_vector(connection)
        connection.execute("SELECT '[1]'::vector; SET LOCAL hnsw.ef_search = 77")
        connection.execute("SAVEPOINT before")
        with pytest.raises(psycopg.Error):
            connection.execute(
                f"SELECT * FROM patchstore.similar_patches_many('indexed', ARRAY[{ONES}, '[1]'])"
            )
        connection.execute("ROLLBACK TO before")
        assert connection.execute(SETTINGS).fetchone() == ("77", *DEFAULTS[1:])


def test_the_sessions_settings_survive_the_transaction(world):
    with fresh(world) as connection:
        connection.execute("SELECT '[1]'::vector; SET hnsw.ef_search = 55")
        connection.execute(f"SELECT * FROM patchstore.similar_patches('indexed', {ONES})")
        assert connection.execute(SETTINGS).fetchone() == ("55", *DEFAULTS[1:])
        connection.commit()
        assert connection.execute(SETTINGS).fetchone() == ("55", *DEFAULTS[1:])


def test_an_answer_is_of_one_moment(world):
    """Other sessions may hide images between the statements of a function: none sees it."""
    volatile = world.store.sql(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'patchstore'::regnamespace "
        "AND provolatile = 'v' AND proname NOT IN ('refresh_visibility', 'prepare_nearest')"
    )
    assert volatile == []


def test_an_odd_filter_is_refused_in_words(world):
    for wanted in ({"a": float("nan")}, {"a": "\x00"}):
        with pytest.raises(InvalidQuestion):
            ask(world, PLAIN, filter=wanted)
    deep = json.loads("[" * 900 + "]" * 900)
    assert ask(world, PLAIN, filter={"a": deep}).hits == []


def test_the_file_that_is_gone_is_gone(world):
    known = catalog.known_files(world.engine, world.store.source(), ["file:///gone/14.png"])
    assert known["file:///gone/14.png"].vanished
