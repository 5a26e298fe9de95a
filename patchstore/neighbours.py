"""Writing the neighbours of every patch to a file: `.parquet` for tables, `.npz` for graphs."""

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine

from db.neighbours import NeighbourOptions, Neighbours, OnProgress, all_neighbours
from db.specs import StoredSpec

from .export import whole_file

BOX = ("x", "y", "width", "height")
COLUMNS = (
    *("patch_id", "image_id", "uri", *BOX, "rank"),
    *("neighbour_patch_id", "neighbour_image_id", "neighbour_uri"),
    *(f"neighbour_{name}" for name in BOX),
    "distance",
)


def write_neighbours(
    engine: Engine,
    spec: StoredSpec,
    path: Path,
    options: NeighbourOptions,
    on_progress: OnProgress | None = None,
) -> tuple[int, int]:
    """Writes the neighbours of every visible patch; returns how many patches and neighbours.

    `.parquet` has a row for each neighbour, in the order of patch ids and ranks: `COLUMNS`, written
    in stretches. `.npz` holds `patch_ids` int64 (N,), ascending, and `neighbours` int64 (N, k),
    patch ids again, -1 where there are no more, and `distances` float32 (N, k), NaN there. The file
    appears under its name when it is whole; until then, a copy of the vectors takes room there.

    Raises:
        InvalidQuestion: an option out of range.
        SpecBuilding: nothing is searchable yet, for the first images are still being computed.
    """
    write = _write_npz if path.suffix == ".npz" else _write_parquet
    found = all_neighbours(engine, spec, options, scratch=path.parent, on_progress=on_progress)
    with whole_file(path) as partial, closing(found):
        return write(partial, found, options.k)


def _write_npz(path: Path, stretches: Iterable[Neighbours], k: int) -> tuple[int, int]:
    ids, neighbours = [np.empty(0, np.int64)], [np.empty((0, k), np.int64)]
    distances = [np.empty((0, k), np.float32)]
    for stretch in stretches:
        shape = len(stretch.patches), k
        ids.append(stretch.patches["id"].copy())
        neighbours.append(np.full(shape, -1, np.int64))
        neighbours[-1][stretch.of, stretch.ranks - 1] = stretch.neighbours["id"]
        distances.append(np.full(shape, np.nan, np.float32))
        distances[-1][stretch.of, stretch.ranks - 1] = stretch.distances
    with path.open("wb") as file:
        np.savez(
            file,
            patch_ids=np.concatenate(ids),
            neighbours=np.concatenate(neighbours),
            distances=np.concatenate(distances),
        )
    return sum(map(len, ids)), int(sum((part >= 0).sum() for part in neighbours))


def _write_parquet(path: Path, stretches: Iterable[Neighbours], k: int) -> tuple[int, int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"uri": pa.string(), "neighbour_uri": pa.string(), "distance": pa.float64()}
    kinds |= {name: pa.int64() for name in COLUMNS if name.endswith("_id")}
    schema = pa.schema([(name, kinds.get(name, pa.int32())) for name in COLUMNS])
    patches = pairs = 0
    with pq.ParquetWriter(path, schema) as writer:
        for stretch in stretches:
            writer.write_table(pa.table(_columns(stretch), schema=schema))
            patches += len(stretch.patches)
            pairs += len(stretch.of)
    return patches, pairs


def _columns(stretch: Neighbours) -> dict[str, Any]:
    own, others = stretch.patches[stretch.of], stretch.neighbours
    return {
        "patch_id": own["id"],
        "image_id": own["image_id"],
        "uri": [stretch.uris[i] for i in stretch.of],
        **{name: own["box"][:, i] for i, name in enumerate(BOX)},
        "rank": stretch.ranks,
        "neighbour_patch_id": others["id"],
        "neighbour_image_id": others["image_id"],
        "neighbour_uri": stretch.neighbour_uris,
        **{f"neighbour_{name}": others["box"][:, i] for i, name in enumerate(BOX)},
        "distance": stretch.distances,
    }
