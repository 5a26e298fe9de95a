"""What operators ask: counts, failures, the last runs, and whole matrices."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, text

from .engine import driver_connection, store_errors
from .ledger import STATE
from .specs import StoredSpec


@dataclass(frozen=True)
class SourceStatus:
    """Where a source's files stand under a spec: found = done + failed + pending + leased.

    Files with one content share their patches, which count once.
    """

    source: str
    spec: str
    found: int
    done: int
    failed: int
    pending: int
    leased: int
    patches: int


@dataclass(frozen=True)
class Failure:
    """A file that has no vectors, and why."""

    uri: str
    reason: str
    spec: str
    attempts: int


@dataclass(frozen=True)
class RunReport:
    """One ingest run, as recorded; one that died is `crashed` after a minute.

    Attributes:
        summary: what it came to; while it runs at most `precision`, of a failed one `error`, the
            reason.
    """

    id: int
    source: str
    spec: str
    state: str
    started_at: Any
    finished_at: Any
    summary: dict[str, Any] | None


@dataclass(frozen=True)
class PatchRows:
    """A stretch of a spec's matrix: vectors float32 (N, D), boxes int32 (N, 4), N URIs."""

    vectors: NDArray[np.float32]
    boxes: NDArray[np.int32]
    uris: list[str]


def status(
    engine: Engine, *, source_id: int | None = None, spec: str | None = None
) -> list[SourceStatus]:
    """Counts of live files for each source and spec that has ever been run together."""
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(text(_STATUS), {"source": source_id, "spec": spec})
        return [SourceStatus(**row._asdict()) for row in rows]


def failures(
    engine: Engine, *, source_id: int | None = None, spec: str | None = None
) -> list[Failure]:
    """Files without vectors: unreadable ones, and those whose image failed."""
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(text(_FAILURES), {"source": source_id, "spec": spec})
        return [Failure(**row._asdict()) for row in rows]


def source_id(engine: Engine, root: str) -> int | None:
    """The id of the source at `root`, if it was ever ingested."""
    with store_errors(), engine.connect() as connection:
        found = connection.execute(
            text("SELECT id FROM patchstore.source WHERE root = :root"), {"root": root}
        ).scalar()
        return None if found is None else int(found)


def last_runs(engine: Engine, limit: int = 10) -> list[RunReport]:
    """The latest runs, newest first."""
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT r.id, o.root AS source, s.name AS spec, r.state_now AS state, "
                "       r.started_at, r.finished_at, r.summary "
                f"FROM (SELECT *, {STATE} AS state_now FROM patchstore.ingest_run) r "
                "JOIN patchstore.source o ON o.id = r.source_id "
                "JOIN patchstore.feature_spec s ON s.id = r.spec_id "
                "ORDER BY r.id DESC LIMIT :limit"
            ),
            {"limit": limit},
        )
        return [RunReport(**row._asdict()) for row in rows]


def patch_matrix(engine: Engine, spec: StoredSpec, rows: int = 10_000) -> Iterator[PatchRows]:
    """The visible patches of a spec in stretches, ordered by URI and box: memory stays flat."""
    with store_errors(), engine.connect() as connection:
        driver = driver_connection(connection)
        with driver.cursor("patch_matrix", binary=True) as cursor:
            cursor.itersize = rows
            cursor.execute(_MATRIX.format(partition=spec.partition), (spec.id,))
            while stretch := cursor.fetchmany(rows):
                yield PatchRows(
                    np.stack([np.asarray(r[0].to_numpy(), dtype=np.float32) for r in stretch]),  # type: ignore[attr-defined]
                    np.array([r[1:5] for r in stretch], dtype=np.int32),
                    [str(r[5]) for r in stretch],
                )


_FILES = """
    SELECT DISTINCT r.source_id, r.spec_id FROM patchstore.ingest_run r
      JOIN patchstore.feature_spec s ON s.id = r.spec_id
     WHERE (CAST(:source AS integer) IS NULL OR r.source_id = :source)
       AND (CAST(:spec AS text) IS NULL OR s.name = :spec)
"""

_STATUS = f"""
WITH run AS ({_FILES})
SELECT o.root AS source, s.name AS spec, count(l.id) AS found,
       count(*) FILTER (WHERE e.state = 'done') AS done,
       count(*) FILTER (WHERE e.state = 'failed' OR l.error IS NOT NULL) AS failed,
       count(*) FILTER (WHERE l.id IS NOT NULL AND l.error IS NULL
                          AND coalesce(e.state, 'pending') = 'pending') AS pending,
       count(*) FILTER (WHERE e.state = 'leased') AS leased,
       (SELECT coalesce(sum(c.patch_count), 0)::bigint FROM patchstore.extraction c
         WHERE c.spec_id = s.id AND EXISTS (
             SELECT FROM patchstore.image_location f WHERE f.image_id = c.image_id
                AND f.source_id = o.id AND f.vanished_at IS NULL)) AS patches
  FROM run JOIN patchstore.source o ON o.id = run.source_id
  JOIN patchstore.feature_spec s ON s.id = run.spec_id
  LEFT JOIN patchstore.image_location l ON l.source_id = o.id AND l.vanished_at IS NULL
  LEFT JOIN patchstore.extraction e ON e.spec_id = s.id AND e.image_id = l.image_id
 GROUP BY o.id, s.id ORDER BY o.root, s.id
"""

_FAILURES = f"""
WITH run AS ({_FILES})
SELECT l.uri, coalesce(l.error, e.error) AS reason, s.name AS spec,
       coalesce(e.attempts, 0) AS attempts
  FROM run JOIN patchstore.feature_spec s ON s.id = run.spec_id
  JOIN patchstore.image_location l ON l.source_id = run.source_id AND l.vanished_at IS NULL
  LEFT JOIN patchstore.extraction e ON e.spec_id = s.id AND e.image_id = l.image_id
 WHERE l.error IS NOT NULL OR e.state = 'failed'
 ORDER BY l.uri, s.id
"""

_MATRIX = """
SELECT p.embedding, p.x, p.y, p.width, p.height, l.uri
  FROM {partition} p
  JOIN patchstore.extraction e ON e.spec_id = %s AND e.image_id = p.image_id AND e.visible
  CROSS JOIN LATERAL patchstore.shown_location(p.spec_id, p.image_id) l
 ORDER BY l.uri, p.scale, p.y, p.x
"""
