"""Searches over real patch vectors: recall and latency of the SQL functions.

Computes the vectors of a folder's images (kept in --cache, so that a rerun is quick), stores those
of all but every twentieth image by the store's own functions until there are --rows, and builds the
HNSW index. Asked are patches of the images left out, and stored patches; each question once for
each ef_search:

- recall@10 against the same function with `exact => true`; a hit as near as the exact tenth counts
  as found, whichever of several equal patches it is;
- median and 99th percentile of the latency of `patchstore.similar_patches` through psycopg, beside
  the bare pgvector query with the same ef_search, whose recall is before any re-ranking;
- stored patches with their own image left out: always 10 rows; `patchstore.similar_images`.

    python -m benchmarks.search --images FOLDER --weights FILE --cache vectors.npz
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import Vector
from pgvector.psycopg import register_vector
from sqlalchemy import Engine

from db.catalog import SeenFile, finish_scan, open_source, record_files, start_scan
from db.engine import make_engine, parse_url
from db.index import build_index, is_indexed
from db.ledger import LeaseLimits, finish_run, lease_batch, start_run
from db.settings import StoreSettings
from db.specs import StoredSpec, get_spec
from db.writer import replace_patches
from extractor.backbone import resolve
from extractor.features import FeatureExtractor, PatchFeatures
from extractor.precision import check_precision
from extractor.settings import ExtractorSettings
from extractor.spec import FeatureSpec, Recipe

from . import home as homes
from .ingest import decode
from .report import machine, table

K = 10
HELD_OUT = 20  # every so many-th image is not stored
EF_SEARCH = (40, 100, 200, 400)
WARM_UP = 50
TIE = 1e-6  # distances nearer than this are equal
BATCH_IMAGES = 32

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Vectors:
    """All patches of a folder, image by image.

    Attributes:
        digest: of the spec.
        vectors: float32 (N, D).
        boxes: int32 (N, 4).
        owners: int64 (N,), which image; ascending.
    """

    digest: str
    vectors: Floats
    boxes: NDArray[np.int32]
    owners: NDArray[np.int64]


@dataclass(frozen=True)
class Question:
    """A vector, and the images that answers must not come from."""

    vector: Floats
    other_than: list[int]


@dataclass(frozen=True)
class Answers:
    """Of one kind of search: each question's distances, ascending, and its latency."""

    distances: list[list[float]]
    milliseconds: NDArray[np.float64]


Ask = Callable[[Question], list[float]]


def main() -> None:
    """Measures and prints."""
    arguments = _arguments()
    known = vectors_of(arguments)
    with homes.temporary_home() as home:
        url = homes.add_spec(home, homes.spec_options(arguments))
        engine = make_engine(parse_url(url))
        try:
            spec = get_spec(engine, homes.SPEC)
            ids = store(engine, spec, known, arguments.rows)
            rows = int(np.isin(known.owners, list(ids)).sum())
            begun = time.perf_counter()
            build_index(
                engine, spec, threshold=0, memory_mb=StoreSettings().maintenance_work_mem_mb
            )
            built_s = time.perf_counter() - begun
            if not is_indexed(engine, spec):
                raise SystemExit("the index was not built")
            with psycopg.connect(url, autocommit=True) as connection:
                register_vector(connection)
                lines = measure(connection, spec, known, ids, arguments)
        finally:
            engine.dispose()
        line = machine(url)
    print(table(_COLUMNS, lines))
    print(
        f"\n{rows:,} patches of {len(ids):,} images, {spec.dim} dimensions; index: {built_s:.0f} s"
    )
    print(line)


def vectors_of(arguments: argparse.Namespace) -> Vectors:
    """The cached vectors where they are of this spec, else computed ones."""
    options = homes.spec_options(arguments)
    resolved = resolve(
        Recipe(
            backbone=options.backbone,
            weights=options.weights,
            patch_size=options.patch_size,
            stride=options.stride,
        )
    )
    cache: Path | None = arguments.cache
    if cache is not None and cache.exists():
        with np.load(cache) as stored:
            found = Vectors(
                str(stored["digest"]), stored["vectors"], stored["boxes"], stored["owners"]
            )
        if found.digest == resolved.spec.digest:
            return found
        raise SystemExit(f"{cache} holds vectors of another spec; delete it or name another file")
    settings = ExtractorSettings()
    files = homes.image_files(arguments.images)
    sample = decode(homes.spread(files, 4), resolved.spec)
    precision = check_precision(resolved.spec, resolved.backbone, sample, settings.device).precision
    extractor = FeatureExtractor(
        resolved.spec,
        resolved.backbone,
        device=settings.device,
        precision=precision,
        batch_size=settings.batch_size,
    )
    computed = compute(extractor, files, resolved.spec, wanted_rows(arguments.rows))
    if cache is not None:
        np.savez(
            cache,
            digest=np.array(computed.digest),
            vectors=computed.vectors,
            boxes=computed.boxes,
            owners=computed.owners,
        )
    return computed


def wanted_rows(rows: int) -> int:
    """Patches to compute so that enough are left to store, and some to ask about."""
    return rows * HELD_OUT // (HELD_OUT - 1) * 11 // 10


def compute(
    extractor: FeatureExtractor, files: Sequence[Path], spec: FeatureSpec, wanted: int
) -> Vectors:
    """Computes images, evenly from the whole list, until there are so many patches."""
    order = np.random.default_rng(0).permutation(len(files)).tolist()
    found: list[PatchFeatures] = []
    done = 0
    for start in range(0, len(order), BATCH_IMAGES):
        images = decode([files[i] for i in order[start : start + BATCH_IMAGES]], spec)
        results = [r for r in extractor.extract(images) if isinstance(r, PatchFeatures)]
        found += results
        done += sum(len(result.boxes) for result in results)
        if done >= wanted:
            break
    return Vectors(
        spec.digest,
        np.concatenate([result.vectors for result in found]),
        np.concatenate([result.boxes for result in found]),
        np.repeat(np.arange(len(found)), [len(result.boxes) for result in found]),
    )


def store(engine: Engine, spec: StoredSpec, known: Vectors, rows: int) -> dict[int, int]:
    """Stores whole images until there are `rows` patches; the store's image id of each owner.

    Raises:
        SystemExit: there are not enough patches.
    """
    chosen: list[int] = []
    stored = 0
    counts = np.bincount(known.owners)
    for owner, count in enumerate(counts.tolist()):
        if owner % HELD_OUT and stored < rows:
            chosen.append(owner)
            stored += count
    if stored < rows:
        raise SystemExit(f"only {stored:,} patches: give more images or a smaller --stride")
    source = open_source(engine, "benchmark")
    started = start_scan(engine)
    files = [
        SeenFile(f"{owner:08}", 1, "", owner.to_bytes(32, "big"), None, None) for owner in chosen
    ]
    record_files(engine, source, spec, files, started)
    finish_scan(engine, source, spec, started, complete=True)
    run = start_run(engine, source, spec)
    ids: dict[int, int] = {}
    limits = LeaseLimits(BATCH_IMAGES, 1, 3600.0)
    while leases := lease_batch(engine, spec, source, run, limits):
        for lease in leases:
            owner = int(lease.uri)
            ids[owner] = lease.image_id
            own = slice(*np.searchsorted(known.owners, [owner, owner + 1]))
            boxes = known.boxes[own]
            scales = np.ones(len(boxes), np.float32)
            replace_patches(engine, spec, lease, boxes, scales, known.vectors[own])
    finish_run(engine, run, "completed", None)
    return ids


def measure(
    connection: "psycopg.Connection[Any]",
    spec: StoredSpec,
    known: Vectors,
    ids: dict[int, int],
    arguments: argparse.Namespace,
) -> list[list[str]]:
    """Every kind of question by every kind of search; a row of the table each."""
    generator = np.random.default_rng(1)
    stored = np.flatnonzero(np.isin(known.owners, list(ids)))
    held_out = np.flatnonzero(known.owners % HELD_OUT == 0)
    if len(held_out) < arguments.queries:
        raise SystemExit(f"only {len(held_out)} patches are held out; ask for fewer --queries")

    def pick(among: NDArray[np.int64]) -> list[int]:
        picked: list[int] = generator.choice(among, arguments.queries, replace=False).tolist()
        return picked

    asked = pick(stored)
    kinds = {
        "held-out patches": [Question(known.vectors[i], []) for i in pick(held_out)],
        "stored patches": [Question(known.vectors[i], []) for i in asked],
        "stored patches, own image left out": [
            Question(known.vectors[i], [ids[int(known.owners[i])]]) for i in asked
        ],
    }
    rows = []
    for kind, questions in kinds.items():
        truth = answer(patches(connection, spec, exact=True), questions, warm_up=2)
        rows.append(_row(kind, "similar_patches, exact", "", truth, truth))
        for ef in EF_SEARCH:
            found = answer(patches(connection, spec, ef_search=ef), questions)
            rows.append(_row(kind, "similar_patches", str(ef), found, truth))
            if not questions[0].other_than:
                found = answer(bare(connection, spec, ef), questions)
                rows.append(_row(kind, "bare pgvector", str(ef), found, truth))
    questions = kinds["held-out patches"]
    truth = answer(images(connection, spec, exact=True), questions[:WARM_UP], warm_up=2)
    found = answer(images(connection, spec), questions)
    rows.append(_row("held-out patches", "similar_images, exact", "", truth, None))
    rows.append(_row("held-out patches", "similar_images", "", found, None))
    return rows


def answer(ask: Ask, questions: Sequence[Question], warm_up: int = WARM_UP) -> Answers:
    """Asks everything once, after a few questions that do not count."""
    for question in questions[:warm_up]:
        ask(question)
    distances, milliseconds = [], []
    for question in questions:
        begun = time.perf_counter()
        distances.append(ask(question))
        milliseconds.append(1000 * (time.perf_counter() - begun))
    return Answers(distances, np.array(milliseconds))


def patches(
    connection: "psycopg.Connection[Any]",
    spec: StoredSpec,
    *,
    exact: bool = False,
    ef_search: int = 100,
) -> Ask:
    """`patchstore.similar_patches`."""
    statement = (
        "SELECT * FROM patchstore.similar_patches(%s, %s, %s, other_than => %s::bigint[], "
        "exact => %s, ef_search => %s)"
    )

    def ask(question: Question) -> list[float]:
        parameters = (spec.name, Vector(question.vector), K, question.other_than, exact, ef_search)
        rows = connection.execute(statement, parameters, binary=True).fetchall()
        return [row[8] for row in rows]

    return ask


def images(connection: "psycopg.Connection[Any]", spec: StoredSpec, *, exact: bool = False) -> Ask:
    """`patchstore.similar_images`."""
    statement = "SELECT * FROM patchstore.similar_images(%s, %s, %s, exact => %s)"

    def ask(question: Question) -> list[float]:
        parameters = (spec.name, Vector(question.vector), K, exact)
        return [r[8] for r in connection.execute(statement, parameters, binary=True).fetchall()]

    return ask


def bare(connection: "psycopg.Connection[Any]", spec: StoredSpec, ef_search: int) -> Ask:
    """What pgvector does by itself: the index's order, nothing left out, nothing re-ranked."""
    connection.execute(f"SET hnsw.ef_search = {int(ef_search)}")
    operator = spec.metric.operator
    statement = (
        f"SELECT id, image_id, x, y, (embedding {operator} %s)::float8 FROM {spec.partition} "
        f"ORDER BY {spec.metric.order_by(spec.dim, '%s')} LIMIT {K}"
    )

    def ask(question: Question) -> list[float]:
        vector = Vector(question.vector)
        rows = connection.execute(statement, (vector, vector), binary=True).fetchall()
        return sorted(row[4] for row in rows)

    return ask


def recall(found: Answers, truth: Answers) -> float:
    """The share of the K nearest that were found, averaged over the questions."""
    shares = [
        sum(distance <= exact[-1] + TIE for distance in got[:K]) / len(exact)
        for got, exact in zip(found.distances, truth.distances, strict=True)
        if exact
    ]
    return float(np.mean(shares))


_COLUMNS = ("asked", "search", "ef_search", "recall@10", "fewest rows", "median, ms", "p99, ms")


def _row(
    kind: str, search: str, ef_search: str, found: Answers, truth: Answers | None
) -> list[str]:
    return [
        kind,
        search,
        ef_search,
        "" if truth is None else f"{recall(found, truth):.4f}",
        str(min(map(len, found.distances))),
        f"{np.median(found.milliseconds):.2f}",
        f"{np.percentile(found.milliseconds, 99):.2f}",
    ]


def _arguments() -> argparse.Namespace:
    parser = homes.parser(__doc__)
    parser.set_defaults(patch_size=112, stride=28)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=500, help="of each kind")
    parser.add_argument("--cache", type=Path, metavar="FILE.npz")
    return parser.parse_args()


if __name__ == "__main__":
    main()
