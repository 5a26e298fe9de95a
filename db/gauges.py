"""What a monitoring system asks now and then: small numbers at a small price.

No vector is read: counts come from the ledger, sizes from the file system, and what must never fall
(a counter) from sequences, which neither a prune nor a removed spec takes back.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, text

from .build_progress import SHARE_DONE
from .engine import store_errors
from .ledger import FREE, STATE, UNREAD

# Reasons are texts for people; these are their beginnings, as few as an alert can be about. The
# first that fits counts.
REASONS = {
    "the file is empty%": "empty_file",
    "no image format that is read%": "not_an_image",
    "a file of the format%": "not_an_image",
    "a HEIC, AVIF or film%": "not_an_image",
    "an SVG, a web page or other XML%": "not_an_image",
    "the header claims%the file is corrupt": "corrupt",
    "the header claims%": "too_many_pixels",
    "the file has%": "too_many_pixels",
    "the icon has a picture of%": "too_many_pixels",
    "decoding it needs more memory%": "too_many_pixels",
    "it begins as%": "corrupt",
    "it is cut off%": "corrupt",
    "the image is%smaller than the patch%": "too_small",
    "the network gave%": "degenerate_features",
    f"{UNREAD}%": "unreadable",
    "no such file%": "unreadable",
    "cannot be decoded:%": "decoder_error",
    "gave up after%": "gave_up",
}
OTHER_REASON = "other"
RUN_STATES = ("running", "completed", "completed_with_errors", "failed", "crashed")


@dataclass(frozen=True)
class SourceGauges:
    """Where a source stands under a spec; times are seconds, by the database's clock.

    Attributes:
        waiting: images that are pending or leased.
        oldest_s: since the longest pending one was queued, or last given back; 0 without any.
        state: of the last run, one of RUN_STATES; a run that died counts as crashed after a minute.
        started: Unix time of the last run's start.
        succeeded: Unix time of the end of the last run that went through, with or without errors.
    """

    source: str
    spec: str
    waiting: int
    oldest_s: float
    state: str
    started: float
    succeeded: float | None


@dataclass(frozen=True)
class SpecGauges:
    """What is stored of a spec.

    Attributes:
        indexed: whether searches have an HNSW index.
        invalid_indexes: HNSW indexes that are of no use and that nobody is building.
        recall: of the last audit; None where searches are exact or nobody has audited.
        audited: Unix time of the last audit.
    """

    spec: str
    images: int
    patches: int
    expired_leases: int
    table_bytes: int
    index_bytes: int
    indexed: bool
    invalid_indexes: int
    recall: float | None
    audited: float | None


@dataclass(frozen=True)
class BuildGauges:
    """An index that is being built: its phase in Postgres' words, and the share done, 0 to 1."""

    spec: str
    phase: str
    share: float


@dataclass(frozen=True)
class StoreGauges:
    """The whole store at one moment.

    Attributes:
        failed: images by (spec, reason), reasons without any included.
        unreadable: files by source that could not be opened when last seen.
        leased: images ever given to a run, each time counted; never falls.
        written: patches ever written; never falls. Those of a transaction that was rolled back
            count, too.
    """

    sources: list[SourceGauges]
    specs: list[SpecGauges]
    builds: list[BuildGauges]
    failed: dict[tuple[str, str], int]
    unreadable: dict[str, int]
    leased: int
    written: int


def read_gauges(engine: Engine) -> StoreGauges:
    """Reads all of them; passes over the ledger once, whatever the number of vectors.

    Of a million images, few of them waiting or failed, that is nearly all of the 0.3 s it takes.
    """
    with store_errors(), engine.connect() as connection:
        specs = [SpecGauges(**row._asdict()) for row in connection.execute(text(_SPECS))]
        return StoreGauges(
            sources=[SourceGauges(**r._asdict()) for r in connection.execute(text(_SOURCES))],
            specs=specs,
            builds=[BuildGauges(**r._asdict()) for r in connection.execute(text(_BUILDS))],
            failed=_failed(connection, [spec.spec for spec in specs]),
            unreadable={r.source: r.files for r in connection.execute(text(_UNREADABLE))},
            **connection.execute(text(_EVER)).one()._asdict(),
        )


def _failed(connection: Connection, specs: list[str]) -> dict[tuple[str, str], int]:
    known = [*REASONS.values(), OTHER_REASON]
    failed = {(spec, reason): 0 for spec in specs for reason in known}
    values: dict[str, Any] = {"patterns": list(REASONS), "reasons": list(REASONS.values())}
    for row in connection.execute(text(_FAILED), {**values, "other": OTHER_REASON}):
        failed[row.spec, row.reason] = row.images
    return failed


_SOURCES = f"""
WITH ran AS (SELECT DISTINCT source_id, spec_id FROM patchstore.ingest_run),
queued AS (
    SELECT spec_id, image_id, updated_at AS since FROM patchstore.extraction
     WHERE state = 'pending'
     UNION ALL
    SELECT spec_id, image_id, NULL FROM patchstore.extraction WHERE state = 'leased'),
waiting AS (
    SELECT l.source_id, q.spec_id, count(DISTINCT q.image_id) AS images, min(q.since) AS since
      FROM queued q
      JOIN patchstore.image_location l ON l.image_id = q.image_id AND l.vanished_at IS NULL
     GROUP BY l.source_id, q.spec_id)
SELECT o.root AS source, s.name AS spec, coalesce(w.images, 0) AS waiting,
       coalesce(greatest(0, extract(epoch FROM clock_timestamp() - w.since)), 0)::float AS oldest_s,
       last.state, extract(epoch FROM last.started_at)::float AS started,
       extract(epoch FROM good.finished_at)::float AS succeeded
  FROM ran
  JOIN patchstore.source o ON o.id = ran.source_id
  JOIN patchstore.feature_spec s ON s.id = ran.spec_id
  LEFT JOIN waiting w USING (source_id, spec_id)
 CROSS JOIN LATERAL (
    SELECT {STATE} AS state, started_at
      FROM patchstore.ingest_run r
     WHERE r.source_id = ran.source_id AND r.spec_id = ran.spec_id ORDER BY id DESC LIMIT 1) last
  LEFT JOIN LATERAL (
    SELECT finished_at FROM patchstore.ingest_run r
     WHERE r.source_id = ran.source_id AND r.spec_id = ran.spec_id
       AND state IN ('completed', 'completed_with_errors') ORDER BY id DESC LIMIT 1) good ON true
 ORDER BY o.root, s.name
"""

# What `is_indexed` says, without calling it: it would keep the pass over the ledger to one process.
_SPECS = f"""
WITH stored AS (
    SELECT spec_id, count(*) AS images, sum(patch_count)::bigint AS patches
      FROM patchstore.extraction WHERE state = 'done' GROUP BY spec_id),
expired AS (
    SELECT spec_id, count(*) AS leases FROM patchstore.extraction WHERE {FREE} GROUP BY spec_id),
part AS (
    SELECT id, to_regclass('patchstore.patch_feature_s' || id) AS partition
      FROM patchstore.feature_spec),
hnsw AS (
    SELECT i.indrelid, bool_or(i.indisvalid) AS valid, count(*) FILTER (
           WHERE NOT i.indisvalid AND NOT EXISTS (
                 SELECT FROM pg_stat_progress_create_index p
                  WHERE p.index_relid = i.indexrelid)) AS useless
      FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
     WHERE a.amname = 'hnsw' AND i.indrelid IN (SELECT partition FROM part)
     GROUP BY i.indrelid)
SELECT s.name AS spec, coalesce(stored.images, 0) AS images, coalesce(stored.patches, 0) AS patches,
       coalesce(expired.leases, 0) AS expired_leases,
       coalesce(pg_table_size(part.partition), 0) AS table_bytes,
       coalesce(pg_indexes_size(part.partition), 0) AS index_bytes,
       coalesce(hnsw.valid, false) AS indexed, coalesce(hnsw.useless, 0) AS invalid_indexes,
       audit.recall, extract(epoch FROM audit.finished_at)::float AS audited
  FROM patchstore.feature_spec s JOIN part USING (id)
  LEFT JOIN stored ON stored.spec_id = s.id
  LEFT JOIN expired ON expired.spec_id = s.id
  LEFT JOIN hnsw ON hnsw.indrelid = part.partition
  LEFT JOIN LATERAL (SELECT recall, finished_at FROM patchstore.audit a WHERE a.spec_id = s.id
                      ORDER BY finished_at DESC LIMIT 1) audit ON true
 ORDER BY s.name
"""

_BUILDS = f"""
SELECT s.name AS spec, p.phase, min({SHARE_DONE}) AS share
  FROM pg_stat_progress_create_index p JOIN patchstore.feature_spec s
    ON p.relid = to_regclass('patchstore.patch_feature_s' || s.id)
 WHERE p.datname = current_database() GROUP BY s.name, p.phase
"""

# Only those that a live file shows, as `patchstore failures` does.
_FAILED = """
SELECT s.name AS spec, coalesce(known.reason, :other) AS reason, count(*) AS images
  FROM patchstore.extraction e JOIN patchstore.feature_spec s ON s.id = e.spec_id
  LEFT JOIN LATERAL (
    SELECT reason FROM unnest(CAST(:patterns AS text[]), CAST(:reasons AS text[]))
           WITH ORDINALITY AS r(pattern, reason, place)
     WHERE e.error LIKE r.pattern ORDER BY place LIMIT 1) known ON true
 WHERE e.state = 'failed' AND EXISTS (
    SELECT FROM patchstore.image_location l
     WHERE l.image_id = e.image_id AND l.vanished_at IS NULL)
 GROUP BY 1, 2
"""

# `image_id IS NULL` is what an unreadable file has, and what an index is on.
_UNREADABLE = """
SELECT o.root AS source, count(l.id) AS files
  FROM patchstore.source o LEFT JOIN patchstore.image_location l
    ON l.source_id = o.id AND l.image_id IS NULL AND l.vanished_at IS NULL
 GROUP BY o.id
"""

_EVER = """
SELECT (SELECT CASE WHEN is_called THEN last_value ELSE 0 END
          FROM patchstore.fence_seq) AS leased,
       (SELECT CASE WHEN is_called THEN last_value ELSE 0 END
          FROM patchstore.patch_feature_id_seq) AS written
"""
