"""Writing images' vectors: all of an image's or none, and only by the lease's holder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, text

from .engine import driver_connection, store_errors
from .errors import CountMismatch
from .ledger import Lease, lock_images, refresh_visibility
from .specs import StoredSpec

MAX_VALUE = 65_504.0  # of a halfvec
BLOCK_ROWS = 4096  # 8 MB of vectors of 512 dimensions
# In the format of `COPY (FORMAT BINARY)`: big-endian, each field after its length in bytes.
# https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS
FIELDS = {
    "spec_id": ">i4",
    "image_id": ">i8",
    "x": ">i4",
    "y": ">i4",
    "width": ">i4",
    "height": ">i4",
    "scale": ">f4",
}
COPY = f"COPY {{table}} ({', '.join((*FIELDS, 'embedding'))}) FROM STDIN (FORMAT BINARY)"
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"


@dataclass(frozen=True, eq=False)
class ImagePatches:
    """An image's result, in the order of its boxes.

    Attributes:
        lease: the right to write it.
        boxes: int32 (N, 4) as x, y, width, height, inside the image.
        scales: float32 (N,).
        vectors: float32 (N, D), finite, within +-65504.
        size: width and height of the image in pixels, for one whose header was not read by the scan
            that found it.
    """

    lease: Lease
    boxes: NDArray[np.int32]
    scales: NDArray[np.float32]
    vectors: NDArray[np.float32]
    size: tuple[int, int] | None = None


def replace_patches(
    engine: Engine, spec: StoredSpec, images: Sequence[ImagePatches]
) -> list[Lease]:
    """Replaces the vectors of images and marks them done, in one transaction. Idempotent.

    Many images share a transaction because its round trips cost more than a small image's rows
    (docs/benchmarks.md).

    Args:
        engine: the store.
        spec: what the vectors were computed by.
        images: each of another image.

    Returns:
        The leases that were lost: their fence has moved on, and nothing of these was written.

    Raises:
        CountMismatch: Postgres stored another number of rows; nothing was written.
        TransientStoreError: try again; after a lost COMMIT that finds the work done already.
        ValueError: shapes, dtypes or values are not as `ImagePatches` says; nothing was written.
    """
    for image in images:
        _check_arrays(spec, image.boxes, image.scales, image.vectors)
    with store_errors(), engine.begin() as connection:
        locked = lock_images(connection, [image.lease.image_id for image in images])
        states = _states(connection, spec, images)
        # Done already: the COMMIT of an earlier try arrived, only its answer was lost.
        to_write = [i for i in images if states.get(i.lease.image_id, "done") != "done"]
        if to_write:
            _replace(connection, spec, to_write)
            refresh_visibility(connection, locked)
    return [image.lease for image in images if image.lease.image_id not in states]


def _check_arrays(
    spec: StoredSpec,
    boxes: NDArray[np.int32],
    scales: NDArray[np.float32],
    vectors: NDArray[np.float32],
) -> None:
    n = len(boxes)
    expected = {"boxes": (n, 4), "scales": (n,), "vectors": (n, spec.dim)}
    for name, array in (("boxes", boxes), ("scales", scales), ("vectors", vectors)):
        if array.shape != expected[name]:
            raise ValueError(f"{name} has shape {array.shape}, expected {expected[name]}")
    if n == 0:
        raise ValueError("an image without patches is a failure, not a result")
    for name, array, dtype in (
        ("boxes", boxes, np.int32),
        ("scales", scales, np.float32),
        ("vectors", vectors, np.float32),
    ):
        if array.dtype != dtype:
            raise ValueError(f"{name} have dtype {array.dtype}, expected {np.dtype(dtype)}")
    largest = np.maximum(vectors.max(axis=1), -vectors.min(axis=1))  # NaN where there is one
    bad = np.flatnonzero(~(largest <= MAX_VALUE))
    if bad.size:
        raise ValueError(
            f"vector {bad[0]} has a value that is not finite or beyond {MAX_VALUE:.0f}, "
            "the most that the index can hold"
        )


def _states(
    connection: Connection, spec: StoredSpec, images: Sequence[ImagePatches]
) -> dict[int, str]:
    """The states of those images whose fence is still ours, locked; the others are not there.

    Pending ones were given back, by a run that ends or is believed dead, and nobody has leased them
    since: what was computed counts.
    """
    rows = connection.execute(
        text(
            "SELECT e.image_id, e.state FROM patchstore.extraction e "
            "JOIN unnest(CAST(:images AS bigint[]), CAST(:fences AS bigint[])) AS l (image, fence)"
            "  ON e.image_id = l.image AND e.fence = l.fence "
            "WHERE e.spec_id = :spec AND e.state IN ('leased', 'pending', 'done') "
            "ORDER BY e.image_id FOR UPDATE OF e"
        ),
        {
            "spec": spec.id,
            "images": [image.lease.image_id for image in images],
            "fences": [image.lease.fence for image in images],
        },
    )
    return {row.image_id: row.state for row in rows}


def _replace(connection: Connection, spec: StoredSpec, images: Sequence[ImagePatches]) -> None:
    ids = [image.lease.image_id for image in images]
    connection.execute(
        # The keys begin with the spec: before Postgres 18 no index helps without it.
        text(f"DELETE FROM {spec.partition} WHERE spec_id = :spec AND image_id = ANY (:images)"),
        {"spec": spec.id, "images": ids},
    )
    statement = COPY.format(table=spec.partition)
    with driver_connection(connection).cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(HEADER)
        for image in images:
            for block in encoded_rows(spec, image):
                copy.write(block)
        copy.write(TRAILER)
    _mark_done(connection, spec, {i.lease.image_id: len(i.boxes) for i in images})
    if sizes := {i.lease.image_id: i.size for i in images if i.size is not None}:
        _note_sizes(connection, sizes)


def _note_sizes(connection: Connection, sizes: Mapping[int, tuple[int, int]]) -> None:
    """Of images whose size nobody knew."""
    connection.execute(
        text(
            "UPDATE patchstore.image i SET width = s.width, height = s.height "
            "  FROM unnest(CAST(:images AS bigint[]), CAST(:widths AS integer[]),"
            "              CAST(:heights AS integer[])) AS s (id, width, height) "
            " WHERE i.id = s.id AND i.width IS NULL"
        ),
        {
            "images": list(sizes),
            "widths": [width for width, _ in sizes.values()],
            "heights": [height for _, height in sizes.values()],
        },
    )


def encoded_rows(spec: StoredSpec, image: ImagePatches) -> Iterator[bytes]:
    """An image's rows as COPY reads them, made by numpy at once rather than value by value.

    In blocks, for an image may have hundreds of thousands.
    """
    row_type = _row_type(spec.dim)
    for start in range(0, len(image.boxes), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        x, y, width, height = image.boxes[block].T
        values = (spec.id, image.lease.image_id, x, y, width, height, image.scales[block])
        rows = np.empty(len(x), dtype=row_type)
        rows["fields"] = len(FIELDS) + 1
        for (name, kind), value in zip(FIELDS.items(), values, strict=True):
            rows[f"{name} bytes"] = np.dtype(kind).itemsize
            rows[name] = value
        rows["embedding bytes"] = 4 + 4 * spec.dim
        rows["dim"], rows["unused"] = spec.dim, 0
        rows["embedding"] = image.vectors[block]
        yield rows.tobytes()


def _row_type(dim: int) -> np.dtype[np.void]:
    fields = [
        (part, kind)
        for name, kind in FIELDS.items()
        for part, kind in ((f"{name} bytes", ">i4"), (name, kind))
    ]
    # A vector is its length, two bytes for later use, and its values.
    vector = [("dim", ">u2"), ("unused", ">u2"), ("embedding", ">f4", (dim,))]
    return np.dtype([("fields", ">i2"), *fields, ("embedding bytes", ">i4"), *vector])


def _mark_done(connection: Connection, spec: StoredSpec, expected: Mapping[int, int]) -> None:
    """Marks images done that have so many rows. Raises CountMismatch."""
    rows = connection.execute(
        text(
            "UPDATE patchstore.extraction e SET state = 'done', patch_count = p.count, "
            "  error = NULL, leased_until = NULL, updated_at = now() "
            f"FROM (SELECT image_id, count(*) FROM {spec.partition} "
            "       WHERE spec_id = :spec AND image_id = ANY (:images) GROUP BY image_id) p "
            "WHERE e.spec_id = :spec AND e.image_id = p.image_id "
            "RETURNING e.image_id, e.patch_count"
        ),
        {"spec": spec.id, "images": list(expected)},
    )
    stored = {row.image_id: row.patch_count for row in rows}
    if stored != dict(expected):
        wrong = next(image for image in expected if stored.get(image) != expected[image])
        raise CountMismatch(
            f"image {wrong}: {expected[wrong]} patches computed, {stored.get(wrong, 0)} stored"
        )
