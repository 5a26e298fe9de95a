"""Writing a spec's matrix to a file: `.npz` for numpy, `.parquet` for everything else."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from sqlalchemy import Engine

from db.reports import patch_matrix
from db.search import check_built
from db.specs import StoredSpec

from .errors import PatchstoreError

SUFFIXES = (".npz", ".parquet")


def check_target(path: Path) -> None:
    """Raises PatchstoreError unless `path` is a file that can be written."""
    if path.suffix not in SUFFIXES:
        raise PatchstoreError(f"{path} must end in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise PatchstoreError(f"{path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise PatchstoreError(f"the folder {path.parent} does not exist")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to; it takes that name when the block ends without an error.

    Its own name is new: two that write the same file at once do not meet. It is on the disk before
    it takes the name, for power may fail. Of a link it is the file that the link leads to. A device
    or a pipe is written to as it is.

    Raises:
        PatchstoreError: it cannot be written.
    """
    special = path.exists() and not path.is_file()
    target = path.resolve()
    partial = path if special else target.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        if not special:
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            partial.replace(target)
    except OSError as error:
        reason = error.strerror or error
        raise PatchstoreError(f"{path} cannot be written: {reason}") from error
    finally:
        if not special:
            partial.unlink(missing_ok=True)


def write_matrix(engine: Engine, spec: StoredSpec, path: Path) -> int:
    """Writes vectors, boxes and URIs, ordered by URI and box; returns the number of rows.

    `.npz` holds `vectors` float32 (N, D), `boxes` int32 (N, 4), `uris` (N,); `.parquet` the columns
    `uri`, `x`, `y`, `width`, `height`, `vector`, written in stretches. The file appears under its
    name when it is whole.

    Raises:
        SpecBuilding: nothing is searchable yet, for the first images are still being computed.
    """
    check_built(engine, spec)
    write = _write_npz if path.suffix == ".npz" else _write_parquet
    with whole_file(path) as partial:
        return write(engine, spec, partial)


def _write_npz(engine: Engine, spec: StoredSpec, path: Path) -> int:
    stretches = list(patch_matrix(engine, spec))
    vectors = [np.empty((0, spec.dim), np.float32), *(s.vectors for s in stretches)]
    boxes = [np.empty((0, 4), np.int32), *(s.boxes for s in stretches)]
    uris = [uri for stretch in stretches for uri in stretch.uris]
    with path.open("wb") as file:
        np.savez(
            file,
            vectors=np.concatenate(vectors),
            boxes=np.concatenate(boxes),
            uris=np.array(uris, dtype=np.str_),
        )
    return len(uris)


def _write_parquet(engine: Engine, spec: StoredSpec, path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("uri", pa.string()),
            *((name, pa.int32()) for name in ("x", "y", "width", "height")),
            ("vector", pa.list_(pa.float32(), spec.dim)),
        ]
    )
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        for stretch in patch_matrix(engine, spec):
            columns = [pa.array(stretch.uris), *(pa.array(c) for c in stretch.boxes.T)]
            flat = pa.array(stretch.vectors.reshape(-1))
            columns.append(pa.FixedSizeListArray.from_arrays(flat, spec.dim))
            writer.write_table(pa.table(columns, schema=schema))
            count += len(stretch.uris)
    return count
