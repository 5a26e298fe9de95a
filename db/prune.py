"""Taking things away for good: what vanished from the sources, old records, retired specs."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from .catalog import IN_ORDER, PRUNE_LOCK
from .engine import store_errors
from .errors import InUse
from .ledger import FREE, LIVE_RUNS, lock_images, refresh_visibility
from .specs import OF_ANY_SPEC, StoredSpec, lock_names

IMAGES = 1_000  # that one transaction deletes: scans wait for it
LOCK_TIMEOUT_MS = 500  # searches wait behind whoever waits to drop a partition
LOCK_TRIES = 60
LOCK_NOT_AVAILABLE = "55P03"

# What no location shows, neither as its content nor as its previous one.
UNSHOWN = """
    NOT EXISTS (SELECT FROM patchstore.image_location l WHERE l.image_id = i.id)
    AND NOT EXISTS (SELECT FROM patchstore.image_location l WHERE l.previous_image_id = i.id)
"""


def prune(engine: Engine, keep_days: float = 0) -> dict[str, int]:
    """Deletes vanished locations, then images that no location shows, with all their vectors.

    What vanished in the last `keep_days` stays: a part of a source may be a disk that comes back.
    Idempotent and killable: what was deleted until then stays so, and the next call goes on. Images
    that are leased right now stay for the next time, and so does the old content of a changed file
    while searches show it.
    """
    return {"locations": _forget_vanished(engine, keep_days), **_delete_unshown(engine)}


def forget_source(engine: Engine, source_id: int) -> dict[str, int]:
    """Deletes a source with its files, runs and metadata, then images that no location shows.

    Searches show nothing of it at once. Killed after that, it leaves images for the next `prune`;
    images that are leased right now stay for that, too. What its runs computed of other sources'
    images is not known any more to be of a certain precision: an audit is lenient with it.

    Raises:
        InUse: a run is computing it.
    """
    values = {"source": source_id}
    with _without_scans(engine) as connection:
        _check_no_run(connection, "source_id", source_id, "this source")
        # Also those that only its runs computed: with a run they lose its number.
        images = connection.execute(text(_OF_SOURCE), values).scalars()
        locked = lock_images(connection, list(images))
        locations = connection.execute(text(_FORGET_LOCATIONS), values).rowcount
        refresh_visibility(connection, locked)
        for statement in _FORGET_SOURCE:
            connection.execute(text(statement), values)
    return {"locations": locations, **_delete_unshown(engine)}


def count_vanished(engine: Engine) -> int:
    """How many files are gone and not pruned."""
    with store_errors(), engine.connect() as connection:
        return int(connection.execute(text(_COUNT_VANISHED)).scalar_one())


def prune_records(engine: Engine, keep_days: float) -> dict[str, int]:
    """Deletes the records of runs and audits that ended longer ago than that.

    What is still asked for stays: the last run of each source and spec, the last one that went
    through, runs that computed an image that is still there (they tell in which precision), and the
    last audit of each spec.
    """
    with store_errors(), engine.begin() as connection:
        return {
            name: connection.execute(text(statement), {"days": keep_days}).rowcount
            for name, statement in _FORGET_RECORDS.items()
        }


def remove_spec(engine: Engine, spec: StoredSpec) -> int:
    """Deletes a spec with its vectors, index, ledger, runs and audits; returns how many patches.

    All or nothing, in one transaction. Searches go on: its partition is dropped at a moment when no
    search is going on.

    Raises:
        InUse: an alias stands for it, or a run is computing it.
        TransientStoreError: no such moment was found.
    """
    with store_errors(), engine.begin() as connection:
        lock_names(connection)
        _check_unused(connection, spec)
        counted = connection.execute(text(_LOCK_LEDGER), {"spec": spec.id}).scalar_one()
        for statement in _FORGET_SPEC:
            connection.execute(text(statement), {"spec": spec.id})
        for function in connection.execute(text(_OWN_FUNCTIONS), {"spec": spec.id}).scalars().all():
            connection.execute(text(f"DROP FUNCTION {function}"))
        _drop_partition(connection, spec)
        return int(counted)


def _forget_vanished(engine: Engine, keep_days: float) -> int:
    with _without_scans(engine) as connection:
        # Somebody may be about to show them again.
        lock_images(connection, list(connection.execute(text(_HIDDEN_PREVIOUS)).scalars()))
        connection.execute(text(_FORGET_PREVIOUS))
    # Each locks its locations in one order, both together would not.
    with _without_scans(engine) as connection:
        return connection.execute(text(_FORGET_VANISHED), {"days": keep_days}).rowcount


def _delete_unshown(engine: Engine) -> dict[str, int]:
    """Deletes images that no location shows, some at a time; returns how many rows of what."""
    deleted = dict.fromkeys(_PRUNE, 0)
    last: int | None = 0
    while last is not None:
        last = _delete_images(engine, last, deleted)
    return deleted


def _delete_images(engine: Engine, after: int, deleted: dict[str, int]) -> int | None:
    """Deletes the next images and adds to the counts; the last one's id, None at the end."""
    with _without_scans(engine) as connection:
        found = connection.execute(text(_NEXT), {"after": after, "limit": IMAGES})
        images = list(found.scalars())
        if not images:
            return None
        lock_images(connection, images)  # first, as writers do: both lock the image after that
        for name, statement in _PRUNE.items():
            deleted[name] += connection.execute(text(statement), {"images": images}).rowcount
        return int(images[-1])


@contextmanager
def _without_scans(engine: Engine) -> Iterator[Connection]:
    """A transaction that waits for those of scans, and that they wait for."""
    with store_errors(), engine.begin() as connection:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({PRUNE_LOCK})"))
        yield connection


def _check_unused(connection: Connection, spec: StoredSpec) -> None:
    aliases = connection.execute(
        text("SELECT name FROM patchstore.spec_alias WHERE spec_id = :spec ORDER BY name"),
        {"spec": spec.id},
    ).scalars()
    if names := ", ".join(aliases):
        raise InUse(
            f"spec {spec.name!r} is what searches by {names} ask; first "
            "patchstore spec promote another one, or remove the alias"
        )
    _check_no_run(connection, "spec_id", spec.id, f"spec {spec.name!r}")


def _check_no_run(connection: Connection, column: str, value: int, what: str) -> None:
    run = connection.execute(
        text(
            "SELECT id, host FROM patchstore.ingest_run "
            f"WHERE {column} = :value AND id IN ({LIVE_RUNS}) LIMIT 1"
        ),
        {"value": value},
    ).one_or_none()
    if run is not None:
        raise InUse(f"{what} is being computed by run {run.id} on {run.host}; stop it first")


def _drop_partition(connection: Connection, spec: StoredSpec) -> None:
    """Takes the lock on all partitions only where it is free at once, again and again."""
    for attempt in range(LOCK_TRIES):
        try:
            with connection.begin_nested():
                connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
                connection.execute(text(f"DROP TABLE IF EXISTS {spec.partition}"))
            return
        except DBAPIError as error:
            busy = getattr(error.orig, "sqlstate", None) == LOCK_NOT_AVAILABLE
            if not busy or attempt == LOCK_TRIES - 1:
                raise


_DAYS = "make_interval(secs => 86400 * :days)"

_HIDDEN = """
    FROM patchstore.image_location
     WHERE previous_image_id IS NOT NULL AND vanished_at IS NULL AND NOT EXISTS (
        SELECT FROM patchstore.extraction e WHERE e.image_id = previous_image_id AND e.visible)
"""

_HIDDEN_PREVIOUS = f"SELECT DISTINCT previous_image_id {_HIDDEN}"

_FORGET_PREVIOUS = f"""
UPDATE patchstore.image_location l SET previous_image_id = NULL
  FROM (SELECT id {_HIDDEN} {IN_ORDER}) hidden WHERE l.id = hidden.id
"""

_FORGET_VANISHED = f"""
DELETE FROM patchstore.image_location l
 USING (SELECT id FROM patchstore.image_location
         WHERE vanished_at <= clock_timestamp() - {_DAYS} {IN_ORDER}) gone
 WHERE l.id = gone.id
"""

_OF_SOURCE = """
SELECT image_id FROM patchstore.image_location WHERE source_id = :source AND image_id IS NOT NULL
UNION
SELECT previous_image_id FROM patchstore.image_location
 WHERE source_id = :source AND previous_image_id IS NOT NULL
UNION
SELECT e.image_id FROM patchstore.extraction e JOIN patchstore.ingest_run r ON r.id = e.run_id
 WHERE r.source_id = :source
"""

_FORGET_LOCATIONS = f"""
DELETE FROM patchstore.image_location l
 USING (SELECT id FROM patchstore.image_location WHERE source_id = :source {IN_ORDER}) its
 WHERE l.id = its.id
"""

_FORGET_SOURCE = (
    "DELETE FROM patchstore.ingest_run WHERE source_id = :source",
    "DELETE FROM patchstore.source WHERE id = :source",
)

_COUNT_VANISHED = "SELECT count(*) FROM patchstore.image_location WHERE vanished_at IS NOT NULL"

_NEXT = f"""
SELECT i.id FROM patchstore.image i
 WHERE i.id > :after AND {UNSHOWN}
   AND NOT EXISTS (SELECT FROM patchstore.extraction e
                    WHERE e.image_id = i.id AND e.state = 'leased' AND NOT ({FREE}))
 ORDER BY i.id LIMIT :limit
"""

_PRUNE = {
    "patches": "DELETE FROM patchstore.patch_feature "
    f"WHERE spec_id {OF_ANY_SPEC} AND image_id = ANY (:images)",
    "extractions": "DELETE FROM patchstore.extraction WHERE image_id = ANY (:images)",
    "images": "DELETE FROM patchstore.image WHERE id = ANY (:images)",
}

_FORGET_RECORDS = {
    "runs": f"""
        DELETE FROM patchstore.ingest_run r
         WHERE r.finished_at < now() - {_DAYS}
           AND NOT EXISTS (SELECT FROM patchstore.extraction e WHERE e.run_id = r.id)
           AND r.id NOT IN (SELECT max(id) FROM patchstore.ingest_run GROUP BY source_id, spec_id)
           AND r.id NOT IN (SELECT max(id) FROM patchstore.ingest_run
                             WHERE state IN ('completed', 'completed_with_errors')
                             GROUP BY source_id, spec_id)""",
    "audits": f"""
        DELETE FROM patchstore.audit a
         WHERE a.finished_at < now() - {_DAYS}
           AND EXISTS (SELECT FROM patchstore.audit later WHERE later.spec_id = a.spec_id
                          AND (later.finished_at, later.id) > (a.finished_at, a.id))""",
}

# In the order in which everybody locks these rows.
_LOCK_LEDGER = """
SELECT coalesce(sum(patch_count), 0) FROM (
    SELECT patch_count FROM patchstore.extraction WHERE spec_id = :spec
     ORDER BY image_id FOR UPDATE) locked
"""

_FORGET_SPEC = (
    "DELETE FROM patchstore.extraction WHERE spec_id = :spec",
    "DELETE FROM patchstore.feature_spec WHERE id = :spec",  # takes runs and audits with it
)

_OWN_FUNCTIONS = """
SELECT p.oid::regprocedure::text FROM pg_proc p
 WHERE p.pronamespace = 'patchstore'::regnamespace
   AND p.proname IN ('nearest_s' || CAST(:spec AS text), 'exact_s' || CAST(:spec AS text))
"""
