"""What an audit asks the store, and the record of what it found."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, text

from .engine import store_errors
from .index import is_indexed
from .ledger import lock_images, refresh_visibility
from .search import Box, SearchOptions, search_many
from .specs import StoredSpec

K = 10  # of the recall
QUERIES = 10  # in one statement
REQUEUED = 1_000  # images in one transaction


@dataclass(frozen=True)
class SampledPatch:
    """A stored patch, its vector float32 (D,), and where it came from.

    Attributes:
        sha256: of the file that it was computed from.
        precision: what the run that computed it computed in; None where no run says so.
    """

    patch_id: int
    image_id: int
    uri: str
    sha256: bytes
    box: Box
    scale: float
    vector: NDArray[np.float32]
    precision: str | None


@dataclass(frozen=True)
class LedgerCheck:
    """Images whose rows are not what the ledger says; all empty in a sound store.

    Attributes:
        miscounted: done, with another number of rows than was recorded.
        unrecorded: rows of an image that is not done.
        unknown: rows of an image that does not exist.
    """

    miscounted: list[int] = field(default_factory=list)
    unrecorded: list[int] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)

    def images(self) -> list[int]:
        """All of them."""
        return [*self.miscounted, *self.unrecorded, *self.unknown]


def sample_patches(engine: Engine, spec: StoredSpec, count: int) -> list[SampledPatch]:
    """So many visible patches by chance, of as many images as there are; fewer if there are."""
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(
            text(_SAMPLE.format(partition=spec.partition)), {"spec": spec.id, "count": count}
        )
        return [
            SampledPatch(
                r.id,
                r.image_id,
                r.uri,
                bytes(r.sha256),
                (r.x, r.y, r.width, r.height),
                float(np.float32(r.scale)),  # the driver gives the shortest decimal of a real
                np.asarray(r.embedding.to_numpy(), dtype=np.float32),
                r.precision,
            )
            for r in rows
        ]


def sample_files(engine: Engine, spec: StoredSpec, count: int) -> list[tuple[str, str]]:
    """So many files by chance, as source and URI, that the spec's last scans saw."""
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(text(_FILES), {"spec": spec.id, "count": count})
        return [(row.root, row.uri) for row in rows]


def measure_recall(engine: Engine, spec: StoredSpec, queries: NDArray[np.float32]) -> float | None:
    """The share of the 10 nearest patches that searches find; None where they are exact, or empty.

    Counted by distance: of two patches that are equally far either is right.

    Args:
        engine: the store.
        spec: whose index.
        queries: float32 (Q, D).
    """
    if not len(queries) or not is_indexed(engine, spec):
        return None
    shares = []
    for start in range(0, len(queries), QUERIES):
        asked = queries[start : start + QUERIES]
        found = search_many(engine, spec, asked, SearchOptions(K))
        truth = search_many(engine, spec, asked, SearchOptions(K, exact=True))
        for answer, exact in zip(found, truth, strict=True):
            if not exact.hits:  # whatever there was has vanished meanwhile
                continue
            furthest = exact.hits[-1].distance
            right = sum(hit.distance <= furthest for hit in answer.hits)
            shares.append(right / len(exact.hits))
    return float(np.mean(shares)) if shares else None


def check_ledger(engine: Engine, spec: StoredSpec) -> LedgerCheck:
    """Compares the rows of every image with the ledger, as one statement sees them."""
    check = LedgerCheck()
    with store_errors(), engine.connect() as connection:
        for row in connection.execute(
            text(_LEDGER.format(partition=spec.partition)), {"spec": spec.id}
        ):
            found: list[int] = getattr(check, row.wrong)
            found.append(row.image_id)
    return check


def count_orphans(engine: Engine) -> int:
    """Images that no file shows any more: what `prune` deletes in time."""
    with store_errors(), engine.connect() as connection:
        return int(connection.execute(text(_ORPHANS)).scalar_one())


def requeue(engine: Engine, spec: StoredSpec, image_ids: Sequence[int]) -> int:
    """Deletes these images' rows and queues those that are known again; returns how many.

    Until a run has computed them, searches do not show them. Images that are being computed are
    left alone. Idempotent.
    """
    queued = 0
    for start in range(0, len(image_ids), REQUEUED):
        with store_errors(), engine.begin() as connection:
            queued += _requeue(connection, spec, image_ids[start : start + REQUEUED])
    return queued


def record_audit(
    engine: Engine,
    spec: StoredSpec,
    *,
    recall: float | None,
    sampled: int,
    report: Mapping[str, Any],
) -> None:
    """Keeps what an audit found."""
    with store_errors(), engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO patchstore.audit (spec_id, recall, sampled, report) "
                "VALUES (:spec, :recall, :sampled, CAST(:report AS jsonb))"
            ),
            {"spec": spec.id, "recall": recall, "sampled": sampled, "report": json.dumps(report)},
        )


def _requeue(connection: Connection, spec: StoredSpec, image_ids: Sequence[int]) -> int:
    locked = lock_images(connection, image_ids)
    values = {"spec": spec.id, "images": list(image_ids)}
    connection.execute(
        text(
            f"DELETE FROM {spec.partition} p "
            "WHERE p.spec_id = :spec AND p.image_id = ANY (:images) AND NOT EXISTS ("
            "  SELECT FROM patchstore.extraction e WHERE e.spec_id = :spec"
            "     AND e.image_id = p.image_id AND e.state = 'leased')"
        ),
        values,
    )
    queued = connection.execute(
        text(
            "UPDATE patchstore.extraction SET state = 'pending', patch_count = NULL, error = NULL, "
            "  visible = false, attempts = 0, run_id = NULL, updated_at = now() "
            "WHERE spec_id = :spec AND image_id = ANY (:images) AND state <> 'leased'"
        ),
        values,
    ).rowcount
    refresh_visibility(connection, locked)
    return queued


_SAMPLE = """
WITH chosen AS MATERIALIZED (
    SELECT image_id, run_id FROM patchstore.extraction
     WHERE spec_id = :spec AND visible ORDER BY random() LIMIT :count)
SELECT p.id, p.image_id, l.uri, i.sha256, p.x, p.y, p.width, p.height, p.scale, p.embedding,
       r.summary ->> 'precision' AS precision
  FROM chosen c
 CROSS JOIN LATERAL (
       SELECT * FROM {partition} q WHERE q.spec_id = :spec AND q.image_id = c.image_id
        ORDER BY random()
        LIMIT (SELECT ceil(CAST(:count AS float) / greatest(count(*), 1)) FROM chosen)) p
  JOIN patchstore.image i ON i.id = c.image_id
  LEFT JOIN patchstore.ingest_run r ON r.id = c.run_id
 CROSS JOIN LATERAL patchstore.shown_location(:spec, c.image_id) l
 LIMIT :count
"""

_FILES = """
SELECT o.root, l.uri FROM patchstore.image_location l
  JOIN patchstore.source o ON o.id = l.source_id
 WHERE l.vanished_at IS NULL AND l.error IS NULL
   AND l.source_id IN (SELECT source_id FROM patchstore.ingest_run WHERE spec_id = :spec)
 ORDER BY random() LIMIT :count
"""

_LEDGER = """
SELECT image_id, CASE WHEN i.id IS NULL THEN 'unknown'
                      WHEN e.state = 'done' THEN 'miscounted'
                      ELSE 'unrecorded' END AS wrong
  FROM (SELECT image_id, state, patch_count FROM patchstore.extraction
         WHERE spec_id = :spec) e
  FULL JOIN (SELECT image_id, count(*) AS rows FROM {partition} GROUP BY image_id) p
       USING (image_id)
  LEFT JOIN patchstore.image i ON i.id = image_id
 WHERE coalesce(p.rows, 0) <> coalesce(e.patch_count, 0)
 ORDER BY image_id
"""

_ORPHANS = """
SELECT count(*) FROM patchstore.image i
 WHERE NOT EXISTS (SELECT FROM patchstore.image_location l
                    WHERE l.image_id = i.id AND l.vanished_at IS NULL)
   AND NOT EXISTS (SELECT FROM patchstore.extraction e WHERE e.image_id = i.id AND e.visible)
"""
