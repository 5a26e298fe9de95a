"""Searches over real patch vectors: recall and latency of the SQL functions.

Computes the vectors of a folder's images (kept in --cache, so that a rerun is quick), stores those
of all but every twentieth image by the store's own functions until there are --rows, and where the
images are fewer, copies of them, slightly off. Then builds the HNSW index. Asked are patches of the
images left out, and stored patches:

- recall@10 against the same question with `exact => true`, without and with options: filters that
  keep 50%, 10%, 1% and 0.1% of the images, and other images only. A hit as near as the exact tenth
  counts as found, whichever of several equal patches it is; also the share of answers that say they
  are exact, and the latency beside that of comparing all;
- the latency of `patchstore.similar_patches`, in SQL and by HTTP as a vector, beside the bare
  pgvector query, all with an ef_search of 100, asked by one client and by eight; and by the least
  that a service in Python could be (`search_least`);
- with --plans, what Postgres does for each kind of question.

    python -m benchmarks.search --images FOLDER --weights FILE --cache vectors.npz
    python -m benchmarks.search ... --rows 1000000 --memory-mb 2600

With --no-index there is only the latency, beside a bare comparison with every row: a small store.

    python -m benchmarks.search ... --rows 1000 --no-index
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from db.engine import make_engine, parse_url
from db.index import build_index, is_indexed
from db.settings import StoreSettings
from db.specs import StoredSpec, get_spec
from patchstore.bench import home as homes
from patchstore.bench.report import machine, table

from .search_http import Http, Httpx
from .search_latency import WARM_UP, latencies, timed
from .search_plans import plans
from .search_store import (
    SHARES,
    Picture,
    Vectors,
    count_rows,
    known_vectors,
    pictures,
    store,
    store_parser,
)
from .search_ways import Answer, Bare, Function, Question, Way, recall, times
from .service import least_service, running_service

REAL_ROWS = 100_000  # from which on copies are stored
EF_SEARCH = (40, 100, 200, 400)
CLIENTS = (1, 8)


def main() -> None:
    """Measures and prints."""
    arguments = _arguments()
    options = homes.spec_options(arguments)
    wanted = min(arguments.rows, REAL_ROWS)
    known = known_vectors(options, arguments.images, arguments.cache, wanted)
    with homes.temporary_home() as home:
        url = homes.add_spec(home, options)
        engine = make_engine(parse_url(url))
        try:
            spec = get_spec(engine, homes.SPEC)
            chosen = pictures(known, arguments.rows)
            ids = store(engine, spec, known, chosen)
            built = "none" if arguments.no_index else _build(engine, spec, arguments.memory_mb)
        finally:
            engine.dispose()
        rows, originals = count_rows(known, chosen), int(known.owners[-1]) + 1
        print(f"{rows:,} patches of {len(ids):,} images, {spec.dim} dimensions; ", end="")
        print(f"{min(len(chosen), originals):,} images are no copies; index: {built}\n")
        with running_service(home) as service, least_service(home, url) as least:
            by_http: dict[str, Way] = {
                "a vector by HTTP": Http(service.url, spec.name),
                "a vector by HTTP, httpx": Httpx(service.url, spec.name),
                "by HTTP, the least in Python": Http(least.url, spec.name),
            }
            report(url, by_http, spec, known, ids, arguments)
        print(machine(url))


def _build(engine: Engine, spec: StoredSpec, memory_mb: int) -> str:
    begun = time.perf_counter()
    build_index(engine, spec, threshold=0, memory_mb=memory_mb)
    seconds = time.perf_counter() - begun
    if not is_indexed(engine, spec):
        raise SystemExit("the index was not built")
    return f"{seconds:.0f} s"


def report(
    url: str,
    by_http: Mapping[str, Way],
    spec: StoredSpec,
    known: Vectors,
    ids: Mapping[Picture, int],
    arguments: argparse.Namespace,
) -> None:
    """All tables of a store that is loaded."""
    kinds = questions(known, ids, arguments.queries)
    new = kinds["held-out patches"]
    if arguments.no_index:
        lines = latency_lines(url, by_http, spec, new, ef_search=None)
        print(table(("search", *_LATENCY), lines), end="\n\n")
        return
    print(table(_RECALL, recall_lines(url, spec, kinds, arguments.exact_queries)), end="\n\n")
    lines = latency_lines(url, by_http, spec, new)
    print(table(("search, ef_search 100", *_LATENCY), lines), end="\n\n")
    if arguments.plans:
        for kind, asked in kinds.items():
            print(f"{kind}\n\n```text\n{plans(url, spec.name, asked[0])}\n```\n")


def questions(known: Vectors, ids: Mapping[Picture, int], count: int) -> dict[str, list[Question]]:
    """Every kind of question, by its name in the tables."""
    generator = np.random.default_rng(1)

    def pick(among: NDArray[np.int64]) -> list[int]:
        if len(among) < count:
            raise SystemExit(f"only {len(among)} patches to ask about; ask for fewer --queries")
        picked: list[int] = generator.choice(among, count, replace=False).tolist()
        return picked

    held_out = pick(known.held_out())
    originals = {picture.owner: image for picture, image in ids.items() if not picture.copy}
    stored = pick(np.flatnonzero(np.isin(known.owners, list(originals))))
    new = [Question(known.vectors[i]) for i in held_out]
    kinds = {
        "held-out patches": new,
        "stored patches": [Question(known.vectors[i]) for i in stored],
        "stored patches, other images only": [
            Question(known.vectors[i], {"other_than": [originals[int(known.owners[i])]]})
            for i in stored
        ],
    }
    for name, share in SHARES.items():
        kinds[f"filter that keeps {share:.1%}"] = [
            replace(question, options={"filter": {name: True}}) for question in new
        ]
    kinds["filter that keeps 10.0%, other images only"] = [
        replace(question, options={"filter": {"tenth": True}, **question.options})
        for question in kinds["stored patches, other images only"]
    ]
    return kinds


def recall_lines(
    url: str, spec: StoredSpec, kinds: Mapping[str, Sequence[Question]], exact_queries: int
) -> list[list[str]]:
    """A row for each kind of question and ef_search; `exact_queries` of each are asked exactly."""
    lines = []
    for kind, asked in kinds.items():
        some = asked[:exact_queries]
        truth, compare_ms = answer(Function(url, spec.name, exact=True), some, warm_up=2)
        usual: Way = Function(url, spec.name, ef_search=None)
        ways: list[tuple[str, str, Way]] = [("similar_patches", "usual", usual)]
        for ef in EF_SEARCH if kind == "held-out patches" else ():
            ways.append(("similar_patches", str(ef), Function(url, spec.name, ef_search=ef)))
            ways.append(("bare pgvector", str(ef), bare(url, spec, ef)))
        for name, wide, way in ways:
            lines.append([kind, name, wide, *_cells(way, asked, truth, compare_ms)])
    asked = kinds["held-out patches"]
    way = Function(url, spec.name, "similar_images", ef_search=None)
    truth, compare_ms = answer(replace(way, exact=True), asked[:exact_queries], warm_up=2)
    lines.append(
        ["held-out patches", "similar_images", "usual", *_cells(way, asked, truth, compare_ms)]
    )
    return lines


def _cells(
    way: Way, asked: Sequence[Question], truth: Sequence[Answer], compare_ms: NDArray[np.float64]
) -> list[str]:
    found, milliseconds = answer(way, asked)
    return [
        f"{recall(found[: len(truth)], truth):.4f}",
        str(min(len(answer.distances) for answer in found)),
        f"{np.mean([answer.exact for answer in found]):.0%}",
        *times(milliseconds),
        f"{np.median(compare_ms):.1f}",
    ]


def latency_lines(
    url: str,
    by_http: Mapping[str, Way],
    spec: StoredSpec,
    asked: Sequence[Question],
    ef_search: int | None = 100,
) -> list[list[str]]:
    """A row for each way and number of clients; without an `ef_search` all rows are compared."""
    ways: dict[str, Way] = {
        "bare pgvector": bare(url, spec, ef_search),
        "similar_patches": Function(url, spec.name, ef_search=ef_search),
    }
    if ef_search is not None:
        ways["similar_patches, usual ef_search"] = Function(url, spec.name, ef_search=None)
    ways |= by_http
    lines = []
    for clients in CLIENTS:
        found = latencies(ways, asked, clients)
        base = float(np.median(found["bare pgvector"]))
        for name, milliseconds in found.items():
            median = float(np.median(milliseconds))
            beside = [f"{median / base:.2f}", f"{median - base:+.2f}"]
            lines.append([name, str(clients), *times(milliseconds), *beside])
    return lines


def bare(url: str, spec: StoredSpec, ef_search: int | None = 100) -> Bare:
    """The bare query on the spec's partition."""
    return Bare(url, spec.partition, spec.metric.name, spec.dim, ef_search)


def answer(
    way: Way, asked: Sequence[Question], warm_up: int = WARM_UP
) -> tuple[list[Answer], NDArray[np.float64]]:
    """Asks everything once, after a few questions that do not count; milliseconds of each."""
    with way.open() as prepare:
        timed(prepare, asked[:warm_up])
        found, milliseconds = timed(prepare, asked)
    return found, np.array(milliseconds)


_RECALL = (
    "asked",
    "search",
    "ef_search",
    "recall@10",
    "fewest rows",
    "say exact",
    "median, ms",
    "p99, ms",
    "comparing all, ms",
)
_LATENCY = ("clients", "median, ms", "p99, ms", "to bare", "more, ms")


def _arguments() -> argparse.Namespace:
    parser = store_parser(__doc__, rows=REAL_ROWS)
    parser.add_argument("--queries", type=int, default=500, help="of each kind")
    parser.add_argument(
        "--exact-queries", type=int, default=200, help="of each kind that are asked exactly, too"
    )
    parser.add_argument(
        "--memory-mb",
        type=int,
        default=StoreSettings().maintenance_work_mem_mb,
        help="for the build of the index",
    )
    parser.add_argument("--no-index", action="store_true", help="compare all; latency only")
    parser.add_argument("--plans", action="store_true", help="print what Postgres does")
    return parser.parse_args()


if __name__ == "__main__":
    main()
