"""The HNSW graph: seconds to build it and recall by `m`, `ef_construction` and `ef_search`.

Stores real patch vectors as benchmarks.search does (the same --cache), then builds the index of the
same rows with each of --graphs and asks bare pgvector for the ten nearest of patches of images that
are not stored. The truth is computed beside the database, in float32. "None of ten" counts the
questions that the widest search answered with not one of the ten nearest: what it does not reach.

    python -m benchmarks.graph --images FOLDER --weights FILE --cache vectors.npz
    python -m benchmarks.graph ... --rows 1000000 --memory-mb 2600 --graphs 16:200 16:400
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import psycopg

from db.engine import make_engine, parse_url
from db.index import EF_CONSTRUCTION, EF_CONSTRUCTION_OF_MANY, M
from db.specs import get_spec
from patchstore.bench import home as homes
from patchstore.bench.report import machine, table

from .search_latency import timed
from .search_store import (
    Floats,
    Picture,
    Vectors,
    count_rows,
    known_vectors,
    pictures,
    store,
    store_parser,
)
from .search_ways import Answer, Bare, K, Question, recall

EF_SEARCH = (100, 200, 400, 1000)
BLOCK = 20_000  # vectors compared at once


def main() -> None:
    """Measures and prints."""
    arguments = _arguments()
    options = homes.spec_options(arguments)
    known = known_vectors(options, arguments.images, arguments.cache, arguments.rows)
    chosen = pictures(known, arguments.rows)
    questions = _questions(known, arguments.queries)
    truth = nearest(known, chosen, np.stack([question.vector for question in questions]))
    with homes.temporary_home() as home:
        url = homes.add_spec(home, options)
        engine = make_engine(parse_url(url))
        spec = get_spec(engine, homes.SPEC)
        if spec.metric.name != "cosine":
            raise SystemExit("error: the truth is computed for the metric cosine")
        store(engine, spec, known, chosen)
        engine.dispose()
        rows = count_rows(known, chosen)
        lines: list[tuple[object, ...]] = []
        for m, width in arguments.graphs:
            key = spec.metric.index_key(spec.dim)
            definition = f"USING hnsw ({key}) WITH (m = {m}, ef_construction = {width})"
            seconds = _build(url, f"ON {spec.partition} {definition}", arguments.memory_mb)
            recalls, lost = [], 0
            for ef_search in EF_SEARCH:
                way = Bare(url, spec.partition, spec.metric.name, spec.dim, ef_search)
                with way.open() as prepare:
                    found = timed(prepare, questions)[0]
                recalls.append(f"{recall(found, truth):.4f}")
                lost = sum(recall([a], [b]) == 0 for a, b in zip(found, truth, strict=True))
            lines.append((m, width, f"{seconds:.0f}", *recalls, lost))
        line = machine(url)
    recall_columns = (f"recall at {ef_search:,}" for ef_search in EF_SEARCH)
    columns = ("m", "ef_construction", "built in, s", *recall_columns, "none of ten")
    print(table(columns, lines))
    print(f"\n{rows:,} rows of {spec.dim}, {len(questions)} questions\n{line}")


def nearest(known: Vectors, chosen: Sequence[Picture], queries: Floats) -> list[Answer]:
    """Cosine distances to the K nearest of all that is stored, ascending."""
    asked = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    best = np.full((len(asked), K), np.inf, np.float32)
    waiting: list[Floats] = []
    for picture in chosen:
        waiting.append(picture.vectors(known))
        if sum(map(len, waiting)) >= BLOCK or picture is chosen[-1]:
            block = np.concatenate(waiting)
            waiting = []
            block = block / np.linalg.norm(block, axis=1, keepdims=True)
            every = np.concatenate([best, 1 - asked @ block.T], axis=1)
            best = np.partition(every, K - 1, axis=1)[:, :K]
    return [Answer(sorted(distances), exact=True) for distances in best.tolist()]


def _questions(known: Vectors, count: int) -> list[Question]:
    """Patches of images that are left out."""
    among = known.held_out()
    chosen = np.random.default_rng(1).choice(among, min(count, len(among)), replace=False)
    return [Question(known.vectors[i]) for i in chosen.tolist()]


def _build(url: str, definition: str, memory_mb: int) -> float:
    """Builds an index in place of the last one; returns seconds."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP INDEX IF EXISTS patchstore.measured")
        connection.execute(f"SET maintenance_work_mem = '{memory_mb}MB'".encode())
        begun = time.perf_counter()
        connection.execute(f"CREATE INDEX measured {definition}".encode())
        return time.perf_counter() - begun


def _graph(text: str) -> tuple[int, int]:
    m, _, width = text.partition(":")
    return int(m), int(width)


def _arguments() -> argparse.Namespace:
    parser = store_parser(__doc__, rows=100_000)
    ours = [(M, EF_CONSTRUCTION), (M, EF_CONSTRUCTION_OF_MANY)]
    parser.add_argument("--graphs", type=_graph, nargs="+", default=ours, metavar="M:WIDTH")
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--memory-mb", type=int, default=1024)
    return parser.parse_args()


if __name__ == "__main__":
    main()
