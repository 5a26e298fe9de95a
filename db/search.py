"""Searches: thin calls of the SQL functions that every client shares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pgvector import Vector
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb
from sqlalchemy import Engine

from .engine import driver_connection, store_errors
from .errors import InvalidQuestion, NotFound
from .specs import StoredSpec

By = Literal["patch", "image"]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class SearchOptions:
    """What is wanted of a search; what is None is left to the SQL function's default.

    Attributes:
        k: how many hits; as many come back as exist.
        by: rank patches, or images by the mean of their best three patches.
        other_than: ids of images to leave out.
        filter: hits' metadata must contain this (jsonb containment).
        prefix: how hits' URIs must begin.
        image_ids: hits must be of these images.
        touching: a box, x, y, width, height, that hits must overlap.
        max_distance: what hits may be away at most, in the spec's metric.
        ef_search: how widely the index searches, 1 to 1000.
        exact: compare with every patch even where an index stands.
    """

    k: int = 10
    by: By = "patch"
    other_than: Sequence[int] = ()
    filter: Mapping[str, Any] | None = None
    prefix: str | None = None
    image_ids: Sequence[int] | None = None
    touching: Box | None = None
    max_distance: float | None = None
    ef_search: int | None = None
    exact: bool = False


@dataclass(frozen=True)
class Hit:
    """One ranked answer. `distance` is in the spec's metric: smaller is closer.

    `matched` is set where several patches of a question were looked for in one image: how many of
    them it shows in the same arrangement.
    """

    uri: str
    box: Box  # in the upright original
    scale: float
    distance: float
    patch_id: int
    image_id: int
    metadata: dict[str, Any] = field(default_factory=dict)
    matched: int | None = None


@dataclass(frozen=True)
class Answer:
    """Ranked hits, closest first, and whether every patch in question was compared."""

    hits: list[Hit]
    exact: bool


@dataclass(frozen=True)
class StoredPatch:
    """A patch in the store with its vector, float32 (D,)."""

    patch_id: int
    image_id: int
    box: Box
    vector: NDArray[np.float32]


def search(
    engine: Engine,
    spec: StoredSpec,
    query: NDArray[np.float32],
    options: SearchOptions = SearchOptions(),
) -> Answer:
    """The nearest patches or images, closest first.

    Args:
        engine: the store.
        spec: whose vectors are searched.
        query: float32 (D,).
        options: how many, of which images, how.

    Raises:
        InvalidQuestion: wrong dimension, zero or not finite vector, an option out of range.
        SpecBuilding: nothing is searchable yet, for the first images are still being computed.
    """
    _check_query(query, spec)
    arguments, values = _arguments(options)
    function = {"patch": "similar_patches", "image": "similar_images"}[options.by]
    statement = f"SELECT * FROM patchstore.{function}({_NAME}, %(query)s{arguments})"
    values |= _named(spec) | {"query": Vector(query)}
    rows = _rows(engine, statement, values)
    if not rows and options.max_distance is not None:
        nearest = search(engine, spec, query, replace(options, max_distance=None))
        return Answer([], nearest.exact)
    return _answer(rows)


def search_many(
    engine: Engine,
    spec: StoredSpec,
    queries: NDArray[np.float32],
    options: SearchOptions = SearchOptions(),
) -> list[Answer]:
    """The nearest patches of each of many vectors, float32 (Q, D), in one call.

    Raises:
        InvalidQuestion: as `search`, or options that rank images.
    """
    if options.by != "patch":
        raise InvalidQuestion("many questions at once rank patches, not images", "by")
    for query in queries:
        _check_query(query, spec)
    arguments, values = _arguments(options)
    statement = (
        "SELECT query, (hit).* FROM patchstore.similar_patches_many("
        f"{_NAME}, %(queries)s::vector[]{arguments})"
    )
    values |= _named(spec) | {"queries": [Vector(query) for query in queries]}
    rows: list[list[Any]] = [[] for _ in queries]
    for row in _rows(engine, statement, values):
        rows[row.query - 1].append(row)
    if options.max_distance is not None and not all(rows):
        nearest = search_many(engine, spec, queries, replace(options, max_distance=None))
        return [
            _answer(own) if own else Answer([], near.exact)
            for own, near in zip(rows, nearest, strict=True)
        ]
    return [_answer(own) for own in rows]


def find_images(engine: Engine, spec: StoredSpec, uri: str) -> list[int]:
    """The ids of the images that are shown at a URI under a spec."""
    statement = "SELECT patchstore.images_at(%(spec)s::integer, %(uri)s) AS ids"
    (found,) = _rows(engine, statement, {"spec": spec.id, "uri": uri})
    return list(found.ids)


def find_content(engine: Engine, spec: StoredSpec, sha256: bytes) -> list[int]:
    """The id of the image with this content, or nothing. Raises SpecBuilding."""
    statement = (
        "SELECT patchstore.check_built(s), ARRAY("
        "  SELECT i.id FROM patchstore.image i WHERE i.sha256 = %(sha256)s) AS ids "
        "FROM patchstore.feature_spec s WHERE s.id = %(spec)s"
    )
    found = _rows(engine, statement, {"spec": spec.id, "sha256": sha256})
    return [image for row in found for image in row.ids]


def check_built(engine: Engine, spec: StoredSpec) -> None:
    """Raises SpecBuilding where nothing of a spec is searchable yet, and some of it will be."""
    statement = (
        "SELECT patchstore.check_built(s) FROM patchstore.feature_spec s WHERE s.id = %(id)s"
    )
    _rows(engine, statement, {"id": spec.id})


def find_patch(engine: Engine, spec: StoredSpec, image: int | str, x: int, y: int) -> StoredPatch:
    """The stored patch whose box starts at (x, y), else the one around that point whose centre
    is nearest.

    Args:
        engine: the store.
        spec: whose patches.
        image: the id of its image, or the URI where that is shown.
        x: pixels from the left.
        y: pixels from the top.

    Raises:
        NotFound: no such image in this spec, or no patch there.
    """
    images = [image] if isinstance(image, int) else find_images(engine, spec, image)
    name = f"image {image}" if isinstance(image, int) else image
    why = "" if images else "; it has no such image, see: patchstore status, patchstore failures"
    return _patch(
        engine,
        spec,
        "SELECT p.* FROM patchstore.feature_spec s, patchstore.find_patch("
        "  s, %(images)s::bigint[], %(x)s::integer, %(y)s::integer) p WHERE s.id = %(spec)s",
        f"spec {spec.name!r} has no patch of {name} at {x},{y}{why}",
        {"spec": spec.id, "images": images, "x": x, "y": y},
    )


def get_patch(engine: Engine, spec: StoredSpec, patch_id: int) -> StoredPatch:
    """A stored patch by its id.

    Raises:
        NotFound: no such patch in this spec; a recomputed image has patches with new ids.
    """
    return _patch(
        engine,
        spec,
        # By its parent: the partition goes with its spec, which a service may still know.
        "SELECT p.* FROM patchstore.patch_feature p JOIN patchstore.extraction e "
        "  ON e.spec_id = %(spec)s AND e.image_id = p.image_id AND e.visible "
        "WHERE p.spec_id = %(spec)s AND p.id = %(patch)s",
        f"spec {spec.name!r} has no patch {patch_id}",
        {"spec": spec.id, "patch": patch_id},
    )


def _patch(
    engine: Engine, spec: StoredSpec, query: str, missing: str, values: dict[str, object]
) -> StoredPatch:
    row = next(iter(_rows(engine, query, values)), None)
    if row is None or row.id is None:
        check_built(engine, spec)
        raise NotFound(missing, "patch_unknown")
    vector = np.asarray(row.embedding.to_numpy(), dtype=np.float32)
    return StoredPatch(row.id, row.image_id, (row.x, row.y, row.width, row.height), vector)


def _rows(engine: Engine, statement: str, values: Mapping[str, object]) -> list[Any]:
    """By the driver itself: a search takes 1.0 ms of this process's time, where by SQLAlchemy it is
    1.7."""
    with store_errors(), engine.connect() as connection:
        cursor = driver_connection(connection).cursor(binary=True, row_factory=namedtuple_row)
        return cursor.execute(statement.encode(), values).fetchall()


# Its name may be another spec's by now, whose vectors it must not meet.
_NAME = "coalesce((SELECT name FROM patchstore.feature_spec WHERE id = %(spec)s), %(removed)s)"


def _named(spec: StoredSpec) -> dict[str, object]:
    return {"spec": spec.id, "removed": f"{spec.name} (removed)"}


def _check_query(query: NDArray[np.float32], spec: StoredSpec) -> None:
    if query.ndim != 1 or not np.isfinite(query).all():
        raise InvalidQuestion(
            f"the query must be one vector of {spec.dim} finite numbers, not {query.shape}"
            + (" with NaN or infinity in it" if query.ndim == 1 else ""),
            "query_finite" if query.ndim == 1 else "query_dim",
        )
    if len(query) != spec.dim:  # a vector type of another kind would be refused less clearly
        raise InvalidQuestion(
            f'the query vector has {len(query)} dimensions, spec "{spec.name}" has {spec.dim}',
            "query_dim",
        )


def _arguments(options: SearchOptions) -> tuple[str, dict[str, object]]:
    """The options that are set, as named arguments of the SQL functions and their values."""
    if options.k.bit_length() > 31:  # Postgres would speak of an integer
        raise InvalidQuestion(f"k is {options.k}, expected 1 to 10000", "k_range")
    values: dict[str, object] = {"k": options.k, "exact": options.exact}
    if options.other_than:
        values["other_than"] = list(options.other_than)
    if options.image_ids is not None:
        values["image_ids"] = list(options.image_ids)
    if options.touching is not None:
        values["touching"] = list(options.touching)
    if options.filter is not None:
        values["filter"] = Jsonb(dict(options.filter))
    for name in ("prefix", "max_distance", "ef_search"):
        if (value := getattr(options, name)) is not None:
            values[name] = value
    return "".join(f", {name} => %({name})s::{_TYPES[name]}" for name in values), values


_TYPES = {
    "k": "integer",
    "exact": "boolean",
    "other_than": "bigint[]",
    "image_ids": "bigint[]",
    "touching": "integer[]",
    "filter": "jsonb",
    "prefix": "text",
    "max_distance": "double precision",
    "ef_search": "integer",
}


def _answer(rows: Sequence[Any]) -> Answer:
    """What the rows say. Without a threshold, only a search of everything finds nothing: where
    the index brings too little, all patches are compared."""
    return Answer([_hit(row) for row in rows], all(row.exact for row in rows))


def _hit(row: Any) -> Hit:
    return Hit(
        uri=row.uri,
        box=(row.x, row.y, row.width, row.height),
        scale=row.scale,
        distance=row.distance,
        patch_id=row.patch_id,
        image_id=row.image_id,
        metadata=row.metadata,
    )
