"""The ten nearest other patches of every patch: seconds and recall, by the index and exactly.

Stores real patch vectors as benchmarks.search does (the same --cache), builds the index, and asks
for the neighbours of all patches, as `patchstore neighbours` does but without writing a file.
Recall is against the exact neighbours: one as near as the exact tenth counts as found.

    python -m benchmarks.neighbours --images FOLDER --weights FILE --cache vectors.npz
"""

import time

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from db.engine import make_engine, parse_url
from db.index import build_index
from db.neighbours import NeighbourOptions, all_neighbours
from db.settings import StoreSettings
from db.specs import StoredSpec, get_spec
from patchstore.bench import home as homes
from patchstore.bench.report import machine, table

from .search_store import known_vectors, pictures, store, store_parser

K = 10
ROUNDING = 1e-6  # of a distance that is computed in another order
WAYS = {
    "exact": NeighbourOptions(K, exact=True),
    "by the index, usual ef_search": NeighbourOptions(K),
    "by the index, ef_search 100": NeighbourOptions(K, ef_search=100),
    "by the index, ef_search 40": NeighbourOptions(K, ef_search=40),
}


def main() -> None:
    """Measures and prints."""
    arguments = store_parser(__doc__, rows=20_000).parse_args()
    options = homes.spec_options(arguments)
    known = known_vectors(options, arguments.images, arguments.cache, arguments.rows)
    with homes.temporary_home() as home:
        url = homes.add_spec(home, options)
        engine = make_engine(parse_url(url))
        spec = get_spec(engine, homes.SPEC)
        store(engine, spec, known, pictures(known, arguments.rows))
        build_index(engine, spec, threshold=0, memory_mb=StoreSettings().maintenance_work_mem_mb)
        found = {name: distances(engine, spec, way) for name, way in WAYS.items()}
        line = machine(url)
        engine.dispose()
    exact, _ = found["exact"]
    lines = [
        (name, f"{seconds:.1f}", f"{len(near) / seconds:,.0f}", f"{recall(near, exact):.5f}")
        for name, (near, seconds) in found.items()
    ]
    print(table(("way", "seconds", "patches/s", "recall@10"), lines))
    print(f"\n{len(exact):,} patches of {spec.dim} dimensions.\n{line}")


def distances(
    engine: Engine, spec: StoredSpec, options: NeighbourOptions
) -> tuple[NDArray[np.float64], float]:
    """Of the neighbours of all patches, (N, K), NaN where there are fewer; and the seconds."""
    begun, stretches = time.perf_counter(), []
    for stretch in all_neighbours(engine, spec, options):
        near = np.full((len(stretch.patches), K), np.nan)
        near[stretch.of, stretch.ranks - 1] = stretch.distances
        stretches.append(near)
    return np.concatenate(stretches), time.perf_counter() - begun


def recall(near: NDArray[np.float64], exact: NDArray[np.float64]) -> float:
    """The share of the neighbours that are as near as the exact ones."""
    return float((near <= exact[:, -1:] + ROUNDING).mean())


if __name__ == "__main__":
    main()
