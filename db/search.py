"""Searches: thin calls of the SQL functions that every client shares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pgvector import Vector
from sqlalchemy import Engine, Row, text

from .engine import store_errors
from .errors import InvalidQuestion, NotFound
from .specs import StoredSpec

By = Literal["patch", "image"]


@dataclass(frozen=True)
class Hit:
    """One ranked answer. `distance` is in the spec's metric: smaller is closer."""

    uri: str
    box: tuple[int, int, int, int]  # x, y, width, height in the upright original
    scale: float
    distance: float
    patch_id: int
    image_id: int
    metadata: dict[str, Any]


@dataclass(frozen=True)
class StoredPatch:
    """A patch in the store with its vector, float32 (D,)."""

    image_id: int
    uri: str
    box: tuple[int, int, int, int]
    vector: NDArray[np.float32]


def search(
    engine: Engine,
    spec: StoredSpec,
    query: NDArray[np.float32],
    k: int,
    *,
    by: By = "patch",
    other_than: Sequence[int] = (),
    exact: bool = False,
) -> list[Hit]:
    """The k nearest patches, or images by the mean of their best three patches, closest first.

    Args:
        engine: the store.
        spec: whose vectors are searched.
        query: float32 (D,).
        k: how many; as many come back as exist.
        by: rank patches or images.
        other_than: ids of images to leave out.
        exact: compare with every patch even where an index stands.

    Raises:
        InvalidQuestion: wrong dimension, zero or not finite vector, k out of range.
    """
    if query.ndim != 1 or not np.isfinite(query).all():
        raise InvalidQuestion(
            f"the query must be one vector of {spec.dim} finite numbers, not {query.shape}"
        )
    function = {"patch": "similar_patches", "image": "similar_images"}[by]
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(
            text(
                f"SELECT * FROM patchstore.{function}(:spec, CAST(:query AS vector), "
                "CAST(:k AS integer), CAST(:other AS bigint[]), :exact)"
            ),
            {
                "spec": spec.name,
                "query": Vector(query),
                "k": k,
                "other": list(other_than),
                "exact": exact,
            },
        )
        return [_hit(row) for row in rows]


def find_images(engine: Engine, uri: str) -> list[int]:
    """The ids of the images that are shown at a URI."""
    with store_errors(), engine.connect() as connection:
        return list(
            connection.execute(
                text(
                    "SELECT DISTINCT i FROM patchstore.image_location l,"
                    "  LATERAL unnest(ARRAY[l.image_id, l.previous_image_id]) i "
                    "WHERE l.uri = :uri AND l.vanished_at IS NULL AND i IS NOT NULL"
                ),
                {"uri": uri},
            ).scalars()
        )


def find_content(engine: Engine, sha256: bytes) -> list[int]:
    """The id of the image with this content, or nothing."""
    with store_errors(), engine.connect() as connection:
        return list(
            connection.execute(
                text("SELECT id FROM patchstore.image WHERE sha256 = :sha256"), {"sha256": sha256}
            ).scalars()
        )


def find_patch(engine: Engine, spec: StoredSpec, uri: str, x: int, y: int) -> StoredPatch:
    """The stored patch whose box starts at (x, y), else the one around that point whose centre
    is nearest.

    Raises:
        NotFound: no such image in this spec, or no patch there.
    """
    images = find_images(engine, uri)
    with store_errors(), engine.connect() as connection:
        row = connection.execute(
            text(
                "SELECT p.image_id, p.x, p.y, p.width, p.height, p.embedding "
                f"FROM {spec.partition} p JOIN patchstore.extraction e "
                "  ON e.spec_id = :spec AND e.image_id = p.image_id AND e.visible "
                "WHERE p.image_id = ANY (:images) "
                "  AND :x >= p.x AND :x < p.x + p.width AND :y >= p.y AND :y < p.y + p.height "
                "ORDER BY (p.x = :x AND p.y = :y) DESC, "
                "  abs(2 * p.x + p.width - 2 * :x) + abs(2 * p.y + p.height - 2 * :y), p.id LIMIT 1"
            ),
            {"spec": spec.id, "images": images, "x": x, "y": y},
        ).one_or_none()
    if row is None:
        raise NotFound(f"spec {spec.name!r} has no patch of {uri} at {x},{y}")
    vector = np.asarray(row.embedding.to_numpy(), dtype=np.float32)
    return StoredPatch(row.image_id, uri, (row.x, row.y, row.width, row.height), vector)


def _hit(row: Row[Any]) -> Hit:
    return Hit(
        uri=row.uri,
        box=(row.x, row.y, row.width, row.height),
        scale=row.scale,
        distance=row.distance,
        patch_id=row.patch_id,
        image_id=row.image_id,
        metadata=row.metadata,
    )
