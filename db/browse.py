"""What is in the store, image by image: for pages, thumbnails and people who label pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy import Connection, Engine, Row, text

from .catalog import IN_ORDER
from .engine import store_errors
from .errors import NotFound, TransientStoreError
from .search import Box
from .specs import OF_ANY_SPEC, StoredSpec

CHUNK = 5_000  # locations that one statement changes
ATTEMPTS = 5  # of a statement that was the victim of a deadlock


@dataclass(frozen=True)
class ImageRow:
    """An image where it is now; one of its places if it has several.

    Attributes:
        current: whether the file there still has this content; if not, its new one is waiting to
            be computed and searches show this one until then.
    """

    image_id: int
    uri: str
    width: int | None
    height: int | None
    size_bytes: int
    sha256: str
    metadata: dict[str, Any]
    first_seen: datetime
    last_seen: datetime
    mark: str
    current: bool


@dataclass(frozen=True)
class PatchRow:
    """A searchable patch, without its vector."""

    patch_id: int
    image_id: int
    spec: str
    box: Box
    scale: float


@dataclass(frozen=True)
class SpecStats:
    """Where the images of a spec stand: images with patches that searches find, and the rest."""

    spec: str
    dim: int
    metric: str
    indexed: bool
    images: int
    patches: int
    pending: int
    leased: int
    failed: int


@dataclass(frozen=True)
class StoreStats:
    """The whole store."""

    sources: int
    locations: int
    images: int
    size_bytes: int
    specs: list[SpecStats]


def list_images(
    engine: Engine,
    *,
    spec: StoredSpec | None = None,
    prefix: str | None = None,
    filter: Mapping[str, Any] | None = None,
    after: int = 0,
    limit: int = 100,
) -> list[ImageRow]:
    """Images that are there now, in the order of their ids.

    Args:
        engine: the store.
        spec: under which they have patches; None: whether they have any or not.
        prefix: how their URIs begin.
        filter: what their metadata contains.
        after: only ids greater than this, for the next page.
        limit: how many at most.
    """
    conditions = ""
    if spec is not None:
        conditions += (
            " AND EXISTS (SELECT FROM patchstore.extraction e"
            " WHERE e.spec_id = :spec AND e.image_id = l.image_id AND e.visible)"
        )
    if prefix is not None:
        conditions += " AND patchstore.begins_with(l.uri, :prefix)"
    if filter:  # the second half is what lets the partial index in
        conditions += " AND l.metadata @> :filter AND l.metadata <> '{}'"
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(
            text(
                f"SELECT DISTINCT ON (l.image_id) {_IMAGE}, true AS current "
                "FROM patchstore.image_location l JOIN patchstore.image i ON i.id = l.image_id "
                f"WHERE l.vanished_at IS NULL AND l.image_id > :after{conditions} "
                "ORDER BY l.image_id, l.id LIMIT :limit"
            ),
            {
                "spec": None if spec is None else spec.id,
                "after": after,
                "limit": limit,
                "prefix": prefix,
                "filter": None if filter is None else Jsonb(dict(filter)),
            },
        )
        return [_image(row) for row in rows]


def get_image(engine: Engine, image_id: int) -> ImageRow:
    """An image that is there now, or that searches still show.

    Raises:
        NotFound: no such image, or its file is gone.
    """
    with store_errors(), engine.connect() as connection:
        row = connection.execute(
            text(
                f"SELECT {_IMAGE}, coalesce(l.image_id = i.id, false) AS current "
                "FROM patchstore.image i JOIN patchstore.image_location l "
                "  ON l.image_id = i.id OR l.previous_image_id = i.id AND EXISTS ("
                "    SELECT FROM patchstore.extraction e WHERE e.image_id = i.id AND e.visible) "
                "WHERE i.id = :image AND l.vanished_at IS NULL "
                "ORDER BY current DESC, l.id LIMIT 1"
            ),
            {"image": image_id},
        ).one_or_none()
    if row is None:
        raise NotFound(f"no image {image_id} is in the store now", "image_unknown")
    return _image(row)


def list_patches(
    engine: Engine, spec: StoredSpec, image_id: int, limit: int | None = None
) -> list[PatchRow]:
    """An image's searchable patches, by scale, then row by row; at most `limit` of them."""
    condition = "p.spec_id = :spec AND p.image_id = :value"
    with store_errors(), engine.connect() as connection:
        return _patches(connection, condition, spec.id, image_id, limit)


def get_patch_row(engine: Engine, patch_id: int) -> PatchRow:
    """A searchable patch of any spec by its id.

    Raises:
        NotFound: no such patch; a recomputed image has patches with new ids.
    """
    with store_errors(), engine.connect() as connection:
        rows = _patches(connection, f"p.spec_id {OF_ANY_SPEC} AND p.id = :value", None, patch_id)
    if not rows:
        raise NotFound(f"no patch {patch_id} is in the store now", "patch_unknown")
    return rows[0]


def set_metadata(engine: Engine, image_id: int, metadata: Mapping[str, Any]) -> None:
    """Replaces the metadata of every place where an image is now; no vector is touched.

    Raises:
        NotFound: no such image is there.
    """
    with store_errors(), engine.begin() as connection:
        changed = connection.execute(
            text(
                f"WITH locked AS (SELECT l.id FROM patchstore.image_location l "
                f"  WHERE l.image_id = :image AND l.vanished_at IS NULL {IN_ORDER}) "
                "UPDATE patchstore.image_location l SET metadata = :metadata "
                "FROM locked WHERE l.id = locked.id"
            ),
            {"image": image_id, "metadata": Jsonb(dict(metadata))},
        )
        if not changed.rowcount:
            raise NotFound(f"no image {image_id} is in the store now", "image_unknown")


def set_metadata_many(
    engine: Engine, metadata: Sequence[tuple[str, Mapping[str, Any]]], *, merge: bool = False
) -> list[str]:
    """Sets the metadata of locations by URI, chunk by chunk; no vector is touched. Idempotent.

    Vanished locations are set, too: a file that comes back has its metadata.

    Args:
        engine: the store.
        metadata: pairs of a URI and its metadata; of a URI given twice the last one counts, or
            both where they are merged.
        merge: keep the keys that are not given, instead of replacing the whole.

    Returns:
        The URIs that the store does not know, in their order, each once.
    """
    given: dict[str, dict[str, Any]] = {}
    for uri, values in metadata:
        given[uri] = {**given.get(uri, {}), **values} if merge else dict(values)
    uris = list(given)
    known: set[str] = set()
    for start in range(0, len(uris), CHUNK):
        chunk = {uri: given[uri] for uri in uris[start : start + CHUNK]}
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                known |= _set_chunk(engine, chunk, merge)
                break
            except TransientStoreError:  # a connection that broke, a lock that took too long
                if not attempts_left:
                    raise
    return [uri for uri in uris if uri not in known]


def _set_chunk(engine: Engine, chunk: Mapping[str, dict[str, Any]], merge: bool) -> set[str]:
    value = "l.metadata || given.metadata" if merge else "given.metadata"
    with store_errors(), engine.begin() as connection:
        rows = connection.execute(
            text(
                "WITH given AS (SELECT * FROM unnest(CAST(:uris AS text[]), "
                "                 CAST(:metadata AS jsonb[])) AS g (uri, metadata)), "
                "locked AS (SELECT l.id, l.uri FROM patchstore.image_location l "
                f"  JOIN given USING (uri) {IN_ORDER}) "
                f"UPDATE patchstore.image_location l SET metadata = {value} "
                "FROM locked JOIN given USING (uri) WHERE l.id = locked.id RETURNING l.uri"
            ),
            {"uris": list(chunk), "metadata": [Jsonb(values) for values in chunk.values()]},
        )
        return set(rows.scalars())


def known_uris(engine: Engine, uris: Sequence[str]) -> set[str]:
    """Those of the URIs that the store knows, vanished ones included."""
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(
            text("SELECT uri FROM patchstore.image_location WHERE uri = ANY (:uris)"),
            {"uris": list(uris)},
        )
        return set(rows.scalars())


def get_metadata(engine: Engine, uri: str) -> dict[str, Any]:
    """The metadata of a location.

    Raises:
        NotFound: the store does not know the URI.
    """
    with store_errors(), engine.connect() as connection:
        found = connection.execute(
            text(
                "SELECT metadata FROM patchstore.image_location WHERE uri = :uri "
                "ORDER BY vanished_at IS NULL DESC, id LIMIT 1"
            ),
            {"uri": uri},
        ).scalar_one_or_none()
    if found is None:
        raise NotFound(f"{uri} is not in the store", "image_unknown")
    metadata: dict[str, Any] = found
    return metadata


def stats(engine: Engine) -> StoreStats:
    """Counts from the ledger; reads no vector."""
    with store_errors(), engine.connect() as connection:
        specs = connection.execute(text(_SPEC_STATS)).all()
        whole = connection.execute(
            text(
                "SELECT (SELECT count(*) FROM patchstore.source) AS sources, "
                "count(*) AS locations, count(DISTINCT image_id) AS images, "
                "pg_database_size(current_database()) AS size_bytes "
                "FROM patchstore.image_location WHERE vanished_at IS NULL"
            )
        ).one()
    return StoreStats(**whole._mapping, specs=[SpecStats(**row._mapping) for row in specs])


_IMAGE = (
    "i.id AS image_id, l.uri, i.width, i.height, i.size_bytes, encode(i.sha256, 'hex') AS sha256, "
    "l.metadata, l.first_seen, l.last_seen, l.mark"
)

_SPEC_STATS = """
SELECT s.name AS spec, s.dim, s.metric, patchstore.is_indexed(s.id) AS indexed,
       count(*) FILTER (WHERE e.visible) AS images,
       coalesce(sum(e.patch_count) FILTER (WHERE e.visible), 0)::bigint AS patches,
       count(*) FILTER (WHERE e.state = 'pending') AS pending,
       count(*) FILTER (WHERE e.state = 'leased') AS leased,
       count(*) FILTER (WHERE e.state = 'failed') AS failed
  FROM patchstore.feature_spec s LEFT JOIN patchstore.extraction e ON e.spec_id = s.id
 GROUP BY s.id ORDER BY s.id
"""


def _image(row: Row[Any]) -> ImageRow:
    return ImageRow(**row._mapping)


def _patches(
    connection: Connection,
    condition: str,
    spec_id: int | None,
    value: int,
    limit: int | None = None,
) -> list[PatchRow]:
    rows = connection.execute(
        text(
            "SELECT p.id, p.image_id, s.name, p.x, p.y, p.width, p.height, p.scale "
            "FROM patchstore.patch_feature p JOIN patchstore.feature_spec s ON s.id = p.spec_id "
            "JOIN patchstore.extraction e ON e.spec_id = p.spec_id AND e.image_id = p.image_id "
            f"WHERE e.visible AND {condition} ORDER BY p.scale, p.y, p.x LIMIT :limit"
        ),
        {"spec": spec_id, "value": value, "limit": limit},
    )
    return [
        PatchRow(r.id, r.image_id, r.name, (r.x, r.y, r.width, r.height), r.scale) for r in rows
    ]
