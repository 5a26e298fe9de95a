"""What was seen where: locations, their content, and what a scan changes about them."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, text

from .engine import store_errors
from .ledger import UNREAD, refresh_visibility
from .specs import StoredSpec

CHUNK = 10_000  # rows fetched at once
PRUNE_LOCK = 0x70617472  # shared by scans, which point at images that pruning would delete


@dataclass(frozen=True)
class KnownFile:
    """What the store knows of a URI from earlier scans."""

    mark: str
    readable: bool
    vanished: bool


@dataclass(frozen=True)
class SeenFile:
    """A file whose content was read in this scan: its SHA-256, or why it could not be read."""

    uri: str
    size_bytes: int
    mark: str
    sha256: bytes | None
    width: int | None = None
    height: int | None = None
    error: str | None = None


@dataclass
class ScanCounts:
    """How the files of a source compare with the last scan. `found` is the sum of the next four."""

    found: int = 0
    new: int = 0
    changed: int = 0
    moved: int = 0
    unchanged: int = 0
    vanished: int = 0


def open_source(engine: Engine, root: str) -> int:
    """The id of the source at `root`, registered if it is new."""
    values = {"root": root}
    with store_errors(), engine.begin() as connection:
        while True:  # it may be forgotten between the two
            connection.execute(
                text("INSERT INTO patchstore.source (root) VALUES (:root) ON CONFLICT DO NOTHING"),
                values,
            )
            found = connection.execute(
                text("SELECT id FROM patchstore.source WHERE root = :root"), values
            ).scalar()
            if found is not None:
                return int(found)


def start_scan(engine: Engine) -> datetime:
    """The database's time: locations last seen before it have vanished when the scan is over."""
    with store_errors(), engine.connect() as connection:
        started: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        return started


def list_sources(engine: Engine) -> dict[str, int]:
    """The ids of all sources by their roots, in the order in which they were first ingested."""
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(text("SELECT root, id FROM patchstore.source ORDER BY id"))
        return {row.root: row.id for row in rows}


def queue_known(engine: Engine, spec: StoredSpec, source_ids: Sequence[int]) -> int:
    """Queues for a spec every live image of these sources that it lacks; returns how many.

    Reads no file. From then on the ledger says how much of them is left.
    """
    with store_errors(), engine.begin() as connection:
        _keep_prune_out(connection)
        return connection.execute(
            text(_QUEUE), {"spec": spec.id, "sources": list(source_ids)}
        ).rowcount


def known_files(engine: Engine, source_id: int, uris: Sequence[str]) -> dict[str, KnownFile]:
    """What is known of these URIs."""
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT uri, mark, error IS NULL AS readable, vanished_at IS NOT NULL AS vanished "
                "FROM patchstore.image_location WHERE source_id = :source AND uri = ANY (:uris)"
            ),
            {"source": source_id, "uris": list(uris)},
        )
        return {r.uri: KnownFile(r.mark, r.readable, r.vanished) for r in rows}


def touch_unchanged(engine: Engine, source_id: int, uris: Sequence[str], started: datetime) -> None:
    """Records that these were seen again as they were, in a scan that started then."""
    with store_errors(), engine.begin() as connection:
        _take_turns(connection, source_id)
        connection.execute(
            text(_TOUCH), {"source": source_id, "uris": list(uris), "started": started}
        )


def record_files(
    engine: Engine,
    source_id: int,
    spec: StoredSpec,
    files: Sequence[SeenFile],
    started: datetime,
) -> ScanCounts:
    """Records files whose content was read, in one transaction; returns how they compare.

    `started` is when the scan did, from `start_scan`: a content that was known before is `moved`
    (renamed or copied), one that two files of this scan share is `new` for both.
    A new content under a known URI keeps the old one as `previous`, so that searches go on showing
    it until the new one is done.
    """
    with store_errors(), engine.begin() as connection:
        _take_turns(connection, source_id)
        _insert_images(connection, files)
        values = _arrays(source_id, started, files) | {"unread": UNREAD}
        rows = connection.execute(text(_RECORD), values).all()
        affected = sorted({i for r in rows for i in r.affected if i is not None})
        connection.execute(
            text(
                "INSERT INTO patchstore.extraction (spec_id, image_id) "
                "SELECT :spec, unnest(CAST(:images AS bigint[])) ON CONFLICT DO NOTHING"
            ),
            {"spec": spec.id, "images": sorted({r.image_id for r in rows if r.image_id})},
        )
        refresh_visibility(connection, affected)
        return ScanCounts(found=len(rows), **Counter(row.change for row in rows))


def compare_files(engine: Engine, source_id: int | None, files: Sequence[SeenFile]) -> ScanCounts:
    """How `record_files` would count these, without recording them. `None`: an unknown source."""
    values = {
        "source": source_id,
        "uris": [file.uri for file in files],
        "digests": [file.sha256 for file in files],
    }
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(text(_COMPARE), values)
        return ScanCounts(found=len(files), **{row.change: row.files for row in rows})


def live_files(engine: Engine, source_id: int) -> Iterator[tuple[str, bytes | None]]:
    """URI and SHA-256 of every file that was there at the last scan, in no order."""
    with store_errors(), engine.connect().execution_options(yield_per=CHUNK) as connection:
        rows = connection.execute(text(_LIVE), {"source": source_id})
        yield from ((row.uri, row.sha256 and bytes(row.sha256)) for row in rows)


def finish_scan(
    engine: Engine, source_id: int, spec: StoredSpec, started: datetime, *, complete: bool
) -> int:
    """Queues what this spec lacks and marks what was not seen; returns how many vanished.

    A renamed file is no vanished one: its content lives on under a URI that is new in this scan.
    What sources inside this one, or around it, still show of a file that is another one now or gone
    is marked as vanished there, until they are scanned.

    Args:
        engine: the store.
        source_id: whose locations.
        spec: which gets an extraction for every live image.
        started: from `start_scan`.
        complete: False where some folder could not be listed; then nothing is marked.
    """
    with store_errors(), engine.begin() as connection:
        _take_turns(connection, source_id)
        connection.execute(text(_QUEUE), {"spec": spec.id, "sources": [source_id]})
        if not complete:
            return 0
        vanished = _mark_vanished(connection, source_id, started)
    # By itself: scans lock locations in one order, first their own and then others' would be two.
    with store_errors(), engine.begin() as connection:
        _keep_prune_out(connection)
        _hide_outdated(connection, source_id, started)
    return vanished


def files_due(engine: Engine, source_id: int, spec: StoredSpec, uris: Sequence[str]) -> set[str]:
    """Those of a source's known files whose image is not computed under a spec, nor has failed."""
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT l.uri FROM patchstore.image_location l LEFT JOIN patchstore.extraction e "
                "    ON e.spec_id = :spec AND e.image_id = l.image_id "
                " WHERE l.source_id = :source AND l.uri = ANY (:uris) AND l.image_id IS NOT NULL "
                "   AND coalesce(e.state, 'pending') IN ('pending', 'leased')"
            ),
            {"source": source_id, "spec": spec.id, "uris": list(uris)},
        )
        return set(rows.scalars())


def contents_done(engine: Engine, spec: StoredSpec, digests: Sequence[bytes]) -> set[bytes]:
    """Those of some contents that are computed under a spec, or have failed, by whatever name."""
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT i.sha256 FROM patchstore.image i JOIN patchstore.extraction e "
                "    ON e.spec_id = :spec AND e.image_id = i.id "
                " WHERE i.sha256 = ANY (:digests) AND e.state IN ('done', 'failed')"
            ),
            {"spec": spec.id, "digests": list(digests)},
        )
        return {bytes(digest) for digest in rows.scalars()}


def count_live(engine: Engine, source_id: int) -> int:
    """How many files of a source there were when it was last scanned."""
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT count(*) FROM patchstore.image_location "
                "WHERE source_id = :source AND vanished_at IS NULL"
            ),
            {"source": source_id},
        )
        return int(rows.scalar_one())


def _keep_prune_out(connection: Connection) -> None:
    connection.execute(text(f"SELECT pg_advisory_xact_lock_shared({PRUNE_LOCK})"))


def _take_turns(connection: Connection, source_id: int) -> None:
    """Keeps other scans of the source out: each compares with what the one before has recorded."""
    _keep_prune_out(connection)
    connection.execute(
        text("SELECT FROM patchstore.source WHERE id = :source FOR NO KEY UPDATE"),
        {"source": source_id},
    )


def _insert_images(connection: Connection, files: Sequence[SeenFile]) -> None:
    contents = {f.sha256: f for f in files if f.sha256 is not None}
    connection.execute(
        text(
            "INSERT INTO patchstore.image (sha256, size_bytes, width, height) "
            "SELECT * FROM unnest(CAST(:sha256 AS bytea[]), CAST(:size AS bigint[]),"
            "                     CAST(:width AS integer[]), CAST(:height AS integer[])) "
            "ORDER BY 1 ON CONFLICT DO NOTHING"
        ),
        {
            "sha256": list(contents),
            "size": [f.size_bytes for f in contents.values()],
            "width": [f.width for f in contents.values()],
            "height": [f.height for f in contents.values()],
        },
    )


def _arrays(source_id: int, started: datetime, files: Sequence[SeenFile]) -> dict[str, Any]:
    return {
        "source": source_id,
        "started": started,
        "files": json.dumps(
            [
                {
                    "uri": f.uri,
                    "size": f.size_bytes,
                    "mark": f.mark,
                    "sha256": None if f.sha256 is None else f.sha256.hex(),
                    "error": None if f.error is None else f.error.replace("\x00", "\\0"),
                }
                for f in files
            ]
        ),
    }


def _mark_vanished(connection: Connection, source_id: int, started: datetime) -> int:
    rows = connection.execute(text(_VANISH), {"source": source_id, "started": started}).all()
    _refresh_shown(connection, rows)
    return sum(not r.moved for r in rows)


def _hide_outdated(connection: Connection, source_id: int, started: datetime) -> None:
    overlapping = connection.execute(text(_OVERLAPPING), {"source": source_id}).all()
    if not overlapping:
        return
    values = {
        "source": source_id,
        "started": started,
        "unread": UNREAD,
        "others": [other.id for other in overlapping],
        "prefixes": [other.prefix for other in overlapping],
    }
    _refresh_shown(connection, connection.execute(text(_HIDE_OUTDATED), values).all())


def _refresh_shown(connection: Connection, locations: Sequence[Row[Any]]) -> None:
    """Recomputes what searches show of what locations did."""
    shown = {i for row in locations for i in (row.image_id, row.previous_image_id)}
    refresh_visibility(connection, sorted(shown - {None}))


# Everybody who locks many locations does so in this order: scans, prune, and who sets metadata.
IN_ORDER = 'ORDER BY uri COLLATE "C", id FOR NO KEY UPDATE'

# Not before the scan: clocks are set back, and the next server's may be behind.
_TOUCH = f"""
UPDATE patchstore.image_location l SET last_seen = greatest(clock_timestamp(), :started)
  FROM (SELECT id FROM patchstore.image_location
         WHERE source_id = :source AND uri = ANY (:uris) {IN_ORDER}) seen
 WHERE l.id = seen.id
"""

# A content counts as known (moved) where some location had it before this scan. All parts of one
# statement see the same snapshot: `old` is what was there before the upsert. What it showed becomes
# the previous content, but not where the one before serves every spec that it does, and more; nor
# what had been gone, or whose file is known to hold no image now.
_RECORD = """
WITH file AS MATERIALIZED (
    SELECT f.uri, f.size, f.mark, f.error, i.id AS image_id
      FROM jsonb_to_recordset(CAST(:files AS jsonb))
           AS f(uri text, size bigint, mark text, sha256 text, error text)
      LEFT JOIN patchstore.image i ON i.sha256 = decode(f.sha256, 'hex')),
done AS NOT MATERIALIZED (
    SELECT image_id, spec_id FROM patchstore.extraction WHERE state = 'done'),
old AS MATERIALIZED (
    SELECT l.uri, l.image_id, l.previous_image_id AS before, l.vanished_at,
           EXISTS (SELECT FROM done WHERE done.image_id = l.image_id) AND NOT (
               EXISTS (SELECT FROM done b WHERE b.image_id = l.previous_image_id AND NOT EXISTS (
                   SELECT FROM done n WHERE n.image_id = l.image_id AND n.spec_id = b.spec_id))
               AND NOT EXISTS (SELECT FROM done n WHERE n.image_id = l.image_id AND NOT EXISTS (
                   SELECT FROM done b
                    WHERE b.image_id = l.previous_image_id AND b.spec_id = n.spec_id))) AS shown
      FROM patchstore.image_location l JOIN file USING (uri) WHERE l.source_id = :source),
seen AS MATERIALIZED (
    SELECT file.*, old.image_id AS old_image_id, old.before,
           CASE WHEN file.image_id IS NULL AND NOT starts_with(file.error, :unread) THEN NULL
                WHEN file.image_id IS NOT DISTINCT FROM old.image_id THEN old.before
                WHEN old.vanished_at IS NOT NULL THEN NULL
                WHEN old.shown THEN old.image_id
                ELSE old.before END AS previous_image_id,
           CASE WHEN old.uri IS NOT NULL AND old.vanished_at IS NULL THEN
                     CASE WHEN file.image_id IS NOT DISTINCT FROM old.image_id
                          THEN 'unchanged' ELSE 'changed' END
                WHEN EXISTS (SELECT FROM patchstore.image_location l
                              WHERE l.image_id = file.image_id
                                AND l.first_seen < :started) THEN 'moved'
                ELSE 'new' END AS change
      FROM file LEFT JOIN old USING (uri)),
stored AS (
    INSERT INTO patchstore.image_location AS l
           (source_id, uri, size_bytes, mark, image_id, previous_image_id, error, last_seen)
    SELECT :source, uri, size, mark, image_id, previous_image_id, error,
           greatest(clock_timestamp(), :started)
      FROM seen ORDER BY uri COLLATE "C"
    ON CONFLICT (source_id, hashtextextended(uri, 0), hashtextextended(uri, 1)) DO UPDATE SET
        size_bytes = excluded.size_bytes, mark = excluded.mark, image_id = excluded.image_id,
        previous_image_id = excluded.previous_image_id, error = excluded.error,
        last_seen = excluded.last_seen, vanished_at = NULL)
SELECT image_id, ARRAY[image_id, old_image_id, before] AS affected, change FROM seen
"""

# As in _RECORD, of contents that need not be known.
_COMPARE = """
SELECT CASE WHEN l.id IS NOT NULL AND l.vanished_at IS NULL THEN
                 CASE WHEN i.sha256 IS NOT DISTINCT FROM file.sha256
                      THEN 'unchanged' ELSE 'changed' END
            WHEN EXISTS (SELECT FROM patchstore.image k
                           JOIN patchstore.image_location s ON s.image_id = k.id
                          WHERE k.sha256 = file.sha256) THEN 'moved'
            ELSE 'new' END AS change, count(*) AS files
  FROM unnest(CAST(:uris AS text[]), CAST(:digests AS bytea[])) AS file(uri, sha256)
  LEFT JOIN patchstore.image_location l ON l.source_id = :source AND l.uri = file.uri
  LEFT JOIN patchstore.image i ON i.id = l.image_id
 GROUP BY 1
"""

_LIVE = """
SELECT l.uri, i.sha256 FROM patchstore.image_location l
  LEFT JOIN patchstore.image i ON i.id = l.image_id
 WHERE l.source_id = :source AND l.vanished_at IS NULL
"""

_QUEUE = """
INSERT INTO patchstore.extraction (spec_id, image_id)
SELECT DISTINCT CAST(:spec AS integer), l.image_id
  FROM patchstore.image_location l
 WHERE l.source_id = ANY (:sources) AND l.vanished_at IS NULL AND l.image_id IS NOT NULL
   AND NOT EXISTS (SELECT FROM patchstore.extraction e
                    WHERE e.spec_id = :spec AND e.image_id = l.image_id)
 ORDER BY 2 ON CONFLICT DO NOTHING
"""

# Where one source lies inside the other, both list what is in the inner one; but not where the way
# to it is a link or hidden, and then the outer one has nothing there.
_OVERLAPPING = """
SELECT o.id, i.prefix
  FROM patchstore.source s JOIN patchstore.source o ON o.id <> s.id,
       LATERAL (SELECT rtrim(s.root, '/') || '/' AS ours, rtrim(o.root, '/') || '/' AS theirs) r,
       LATERAL (SELECT CASE WHEN starts_with(ours, theirs) THEN ours ELSE theirs END AS prefix) i
 WHERE s.id = :source AND (starts_with(ours, theirs) OR starts_with(theirs, ours))
   AND EXISTS (SELECT FROM patchstore.image_location l
                WHERE l.source_id = :source AND l.vanished_at IS NULL
                  AND starts_with(l.uri, i.prefix))
"""

_HIDE_OUTDATED = f"""
UPDATE patchstore.image_location l SET vanished_at = clock_timestamp()
  FROM (SELECT t.id
          FROM unnest(CAST(:others AS integer[]), CAST(:prefixes AS text[]))
               AS other(source, prefix)
          JOIN patchstore.image_location t
            ON t.source_id = other.source AND starts_with(t.uri, other.prefix)
         WHERE t.vanished_at IS NULL AND t.last_seen < :started
           AND NOT EXISTS (
               SELECT FROM patchstore.image_location n
                WHERE n.source_id = :source AND n.uri = t.uri AND n.vanished_at IS NULL
                  AND (n.image_id IS NOT DISTINCT FROM t.image_id
                       OR n.image_id IS NULL AND starts_with(n.error, :unread)))
         {IN_ORDER} OF t) gone
 WHERE l.id = gone.id
RETURNING l.image_id, l.previous_image_id
"""

_VANISH = f"""
UPDATE patchstore.image_location l SET vanished_at = clock_timestamp()
  FROM (SELECT id FROM patchstore.image_location
         WHERE source_id = :source AND vanished_at IS NULL AND last_seen < :started {IN_ORDER}) gone
 WHERE l.id = gone.id
RETURNING l.image_id, l.previous_image_id, EXISTS (
    SELECT FROM patchstore.image_location n
     WHERE n.source_id = :source AND n.image_id = l.image_id AND n.first_seen >= :started) AS moved
"""
