"""Writing one image's vectors: all of them or none, and only by the lease's holder."""

import numpy as np
from numpy.typing import NDArray
from pgvector import Vector
from sqlalchemy import Connection, Engine, text

from .engine import driver_connection, store_errors
from .errors import CountMismatch, LeaseLost
from .ledger import Lease, lock_images, refresh_visibility
from .specs import StoredSpec

COLUMNS = ("spec_id", "image_id", "x", "y", "width", "height", "scale", "embedding")
MAX_VALUE = 65_504.0  # of a halfvec
TYPES = ("int4", "int8", "int4", "int4", "int4", "int4", "float4", "vector")


def replace_patches(
    engine: Engine,
    spec: StoredSpec,
    lease: Lease,
    boxes: NDArray[np.int32],
    scales: NDArray[np.float32],
    vectors: NDArray[np.float32],
) -> None:
    """Replaces an image's vectors and marks it done, in one transaction. Idempotent.

    Args:
        engine: the store.
        spec: what the vectors were computed by.
        lease: the right to write.
        boxes: int32 (N, 4) as x, y, width, height, inside the image.
        scales: float32 (N,).
        vectors: float32 (N, D), finite, within +-65504, in the order of `boxes`.

    Raises:
        LeaseLost: the fence has moved on; nothing was written.
        CountMismatch: Postgres stored another number of rows; nothing was written.
        TransientStoreError: try again; after a lost COMMIT that finds the work done already.
        ValueError: shapes, dtypes or values are not as above.
    """
    _check_arrays(spec, boxes, scales, vectors)
    with store_errors(), engine.begin() as connection:
        state, locked = _lock_lease(connection, lease)
        if state == "done":  # the COMMIT of an earlier try arrived, only its answer was lost
            return
        connection.execute(
            text(f"DELETE FROM {spec.partition} WHERE image_id = :image"),
            {"image": lease.image_id},
        )
        _copy(connection, spec, lease.image_id, boxes, scales, vectors)
        _mark_done(connection, spec, lease, len(boxes))
        refresh_visibility(connection, locked)


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
    bad = np.flatnonzero(~(np.abs(vectors).max(axis=1) <= MAX_VALUE))
    if bad.size:
        raise ValueError(
            f"vector {bad[0]} has a value that is not finite or beyond {MAX_VALUE:.0f}, "
            "the most that the index can hold"
        )


def _lock_lease(connection: Connection, lease: Lease) -> tuple[str, list[int]]:
    locked = lock_images(connection, [lease.image_id])
    row = connection.execute(
        text(
            "SELECT state, fence FROM patchstore.extraction "
            "WHERE spec_id = :spec AND image_id = :image"
        ),
        {"spec": lease.spec_id, "image": lease.image_id},
    ).one_or_none()
    if row is None or row.fence != lease.fence or row.state not in ("leased", "done"):
        raise LeaseLost(f"{lease.uri} belongs to another worker now")
    return str(row.state), locked


def _copy(
    connection: Connection,
    spec: StoredSpec,
    image_id: int,
    boxes: NDArray[np.int32],
    scales: NDArray[np.float32],
    vectors: NDArray[np.float32],
) -> None:
    statement = f"COPY {spec.partition} ({', '.join(COLUMNS)}) FROM STDIN (FORMAT BINARY)"
    with driver_connection(connection).cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(TYPES)
        for box, scale, vector in zip(boxes.tolist(), scales.tolist(), vectors, strict=True):
            copy.write_row((spec.id, image_id, *box, scale, Vector(vector)))


def _mark_done(connection: Connection, spec: StoredSpec, lease: Lease, expected: int) -> None:
    stored = connection.execute(
        text(f"SELECT count(*) FROM {spec.partition} WHERE image_id = :image"),
        {"image": lease.image_id},
    ).scalar_one()
    if stored != expected:
        raise CountMismatch(f"{lease.uri}: {expected} patches computed, {stored} stored")
    connection.execute(
        text(
            "UPDATE patchstore.extraction SET state = 'done', patch_count = :count, error = NULL, "
            "  leased_until = NULL, updated_at = now() "
            "WHERE spec_id = :spec AND image_id = :image"
        ),
        {"spec": lease.spec_id, "image": lease.image_id, "count": stored},
    )
