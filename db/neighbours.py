"""The neighbours of every patch of a spec: for deduplication, and for graphs of neighbours.

With an index the vectors never leave the database: a lateral join asks it once for each patch of a
stretch. Without one, and where the index brought too few, `db.nearest` compares all with all in a
copy of the vectors on disk. Both see one snapshot of the store.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, text

from .engine import store_errors
from .errors import InvalidQuestion
from .nearest import Patches, PatchMatrix, nearest
from .snapshot import Snapshot, records
from .specs import StoredSpec

ROWS = 1_024  # patches of one stretch
PAIRS = 1 << 20  # neighbours of one stretch at most
MAX_K = 10_000
MAX_EF_SEARCH = 1_000  # pgvector's

OnProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class NeighbourOptions:
    """What is wanted of each patch.

    Attributes:
        k: how many neighbours; the patch itself is none of them.
        other_images: leave out patches of its own image.
        exact: compare with every patch even where an index stands.
        max_distance: what neighbours may be away at most, in the spec's metric.
        ef_search: how widely the index searches, 1 to 1000; None: as searches do, by its rows.
    """

    k: int = 10
    other_images: bool = False
    exact: bool = False
    max_distance: float | None = None
    ef_search: int | None = None


@dataclass(frozen=True)
class Neighbours:
    """A stretch of patches, in the order of their ids, and the neighbours of each.

    Attributes:
        patches: `db.nearest.PATCH` records (N,).
        uris: where each is shown, (N,).
        of: which of the patches each neighbour belongs to, int64 (P,), ascending.
        ranks: int32 (P,), from 1 for the nearest.
        neighbours: `PATCH` records (P,).
        neighbour_uris: (P,).
        distances: float64 (P,), in the spec's metric.
    """

    patches: Patches
    uris: list[str]
    of: NDArray[np.int64]
    ranks: NDArray[np.int32]
    neighbours: Patches
    neighbour_uris: list[str]
    distances: NDArray[np.float64]


def all_neighbours(
    engine: Engine,
    spec: StoredSpec,
    options: NeighbourOptions = NeighbourOptions(),
    *,
    scratch: Path | None = None,
    rows: int = ROWS,
    on_progress: OnProgress | None = None,
) -> Generator[Neighbours, None, None]:
    """The k nearest other patches of every visible patch, by distance, then by patch id.

    Memory does not grow with the number of patches. One transaction is open all the time.

    Args:
        engine: the store.
        spec: whose patches.
        options: which neighbours, and how they are found.
        scratch: a folder for the copy of the vectors, N * D * 4 bytes; None: the system's.
        rows: how many patches a stretch has at most.
        on_progress: called now and then with the phase and its share done, 0 to 1.

    Raises:
        InvalidQuestion: an option out of range.
        SpecBuilding: nothing is searchable yet, for the first images are still being computed.
    """
    _check(options)
    report = on_progress or (lambda phase, share: None)
    return _all_neighbours(engine, spec, options, scratch, rows, report)


def _all_neighbours(
    engine: Engine,
    spec: StoredSpec,
    options: NeighbourOptions,
    scratch: Path | None,
    rows: int,
    report: OnProgress,
) -> Generator[Neighbours, None, None]:
    with store_errors(), engine.connect() as connection:
        connection = connection.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        # It waits while a stretch is compared and written.
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        snapshot = Snapshot(connection, spec)
        search = _Search(snapshot, options, scratch, report)
        done = 0
        for patches in snapshot.stretches(max(1, min(rows, PAIRS // options.k))):
            yield search.neighbours(patches)
            done += len(patches)
            report("comparing", done / snapshot.total)


# Which patch of a stretch each neighbour belongs to, the neighbours, their distances.
_Found = tuple[NDArray[np.int64], Patches, NDArray[np.float64]]


class _Search:
    def __init__(
        self,
        snapshot: Snapshot,
        options: NeighbourOptions,
        scratch: Path | None,
        report: OnProgress,
    ) -> None:
        self._snapshot, self._options = snapshot, options
        self._scratch, self._report = scratch, report
        self._copy: PatchMatrix | None = None  # made when it is first needed
        indexed = snapshot.connection.execute(
            text("SELECT patchstore.is_indexed(:spec)"), {"spec": snapshot.spec.id}
        )
        self._by_index = bool(indexed.scalar_one()) and not options.exact
        if self._by_index:
            self._set_up_index()

    def neighbours(self, patches: Patches) -> Neighbours:
        of, others, distances = self._ask_index(patches) if self._by_index else self._ask(patches)
        if self._options.max_distance is not None:
            near = distances <= self._options.max_distance
            of, others, distances = of[near], others[near], distances[near]
        return Neighbours(
            patches=patches,
            uris=self._snapshot.uris(patches["image_id"]),
            of=of,
            ranks=(np.arange(len(of)) - np.searchsorted(of, of) + 1).astype(np.int32),
            neighbours=others,
            neighbour_uris=self._snapshot.uris(others["image_id"]),
            distances=distances,
        )

    def _ask(self, patches: Patches) -> _Found:
        """Compares with every patch."""
        if self._copy is None:
            self._copy = self._snapshot.copy(
                self._scratch, lambda share: self._report("reading", share)
            )
        columns, distances = nearest(
            self._copy,
            np.searchsorted(self._copy.patches["id"], patches["id"]),
            self._options.k,
            other_images=self._options.other_images,
        )
        of, place = np.nonzero(columns >= 0)
        return of, self._copy.patches[columns[of, place]], distances[of, place]

    def _ask_index(self, patches: Patches) -> _Found:
        found = self._snapshot.connection.execute(
            text(self._index_sql()), {"ids": patches["id"].tolist()}
        ).all()
        of = np.searchsorted(patches["id"], np.array([row[0] for row in found], np.int64))
        others = records([row[1:7] for row in found])
        distances = np.array([row[7] for row in found], np.float64)
        wanted = min(self._options.k, self._snapshot.total - 1)
        short = np.flatnonzero(np.bincount(of, minlength=len(patches)) < wanted)
        if not short.size:
            return of, others, distances
        # The index gives up before it has found enough, as among the patches of one huge image.
        exact_of, exact_others, exact_distances = self._ask(patches[short])
        kept = ~np.isin(of, short)
        of = np.concatenate([of[kept], short[exact_of]])
        order = np.argsort(of, kind="stable")
        others = np.concatenate([others[kept], exact_others])[order]
        return of[order], others, np.concatenate([distances[kept], exact_distances])[order]

    def _set_up_index(self) -> None:
        connection, spec = self._snapshot.connection, self._snapshot.spec
        ef_search = (
            self._options.ef_search
            or connection.execute(
                text("SELECT patchstore.usual_ef_search(:spec)"), {"spec": spec.id}
            ).scalar_one()
        )
        pool = max(_pool(self._options.k), ef_search)
        for name, value in {
            "hnsw.ef_search": min(pool, MAX_EF_SEARCH),
            "hnsw.iterative_scan": "relaxed_order",
            "hnsw.max_scan_tuples": max(20_000, 20 * pool),
            "jit": "off",  # it would compile what each stretch repeats
        }.items():
            connection.execute(
                text("SELECT set_config(:name, :value, true)"), {"name": name, "value": str(value)}
            )

    def _index_sql(self) -> str:
        spec = self._snapshot.spec
        return _BY_INDEX.format(
            spec=spec.id,
            partition=spec.partition,
            distance=f"p.embedding {spec.metric.operator} q.embedding",
            order=spec.metric.order_by(spec.dim, "q.embedding"),
            own="image_id" if self._options.other_images else "id",
            pool=_pool(self._options.k),
            k=self._options.k,
        )


def _check(options: NeighbourOptions) -> None:
    if not 1 <= options.k <= MAX_K:
        raise InvalidQuestion(f"k is {options.k}, expected 1 to {MAX_K}", "k_range")
    if options.ef_search is not None and not 1 <= options.ef_search <= MAX_EF_SEARCH:
        raise InvalidQuestion(
            f"ef_search is {options.ef_search}, expected 1 to {MAX_EF_SEARCH}", "ef_search_range"
        )
    if options.max_distance is not None and np.isnan(options.max_distance):
        raise InvalidQuestion("max_distance is not a number", "max_distance_range")


def _pool(k: int) -> int:
    """Candidates taken from the index, which orders by halves, before they are ranked exactly."""
    return 2 * k + 10


# Numbers are written out: a plan that is kept for any LIMIT may pass the index by.
_BY_INDEX = """
WITH q AS MATERIALIZED (
    SELECT id, image_id, embedding FROM {partition}
     WHERE spec_id = {spec} AND id = ANY (CAST(:ids AS bigint[])))
SELECT q.id, n.* FROM q CROSS JOIN LATERAL (
    SELECT * FROM (
        SELECT p.id, p.image_id, p.x, p.y, p.width, p.height,
               ({distance})::double precision AS distance
          FROM {partition} p
         WHERE p.{own} <> q.{own}
           AND (SELECT e.visible FROM patchstore.extraction e
                 WHERE e.spec_id = {spec} AND e.image_id = p.image_id)
         ORDER BY {order} LIMIT {pool}) candidate
     WHERE distance < 'NaN'  -- cosine: a zero vector is nobody's neighbour
     ORDER BY distance, id LIMIT {k}) n
 ORDER BY q.id, n.distance, n.id
"""
