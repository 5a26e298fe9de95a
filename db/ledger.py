"""The work ledger: who computes which image, and what has become of it.

A lease gives an image to one run for a while; its fence number makes a late writer harmless: the
final write checks that the fence is still its own. A run holds a session-level advisory lock as
long as it lives, so the leases of a killed run are free as soon as Postgres sees its connection
close. The term of a lease only matters where that lock cannot be seen (a pooler in between).
"""

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, text

from .engine import store_errors
from .specs import StoredSpec

RUN_LOCK_CLASS = 0x70617463  # the first key of the advisory locks of live runs

# How the reasons begin of files that could not be opened: whoever runs next tries these again, and
# until then searches show what they showed before (schema 0014).
UNREAD = "cannot be read: "

# An image whose header could not be read, or claimed too much when it was last looked at.
PIXELS_A_BYTE = 64
SUSPECT = 2  # attempts without an outcome
LEASE_TRIES = 50
LEASE_WAIT_S = 0.1

LIVE_RUNS = f"""
    SELECT objid::bigint::int FROM pg_locks
     WHERE locktype = 'advisory' AND classid = {RUN_LOCK_CLASS} AND objsubid = 2 AND granted
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

# A run that is recorded as running and died; it takes its lock a moment after its record is made.
DEAD = f"""
    state = 'running' AND id NOT IN ({LIVE_RUNS}) AND started_at < now() - interval '1 minute'
"""

# What a run is at this moment.
STATE = f"CASE WHEN {DEAD} THEN 'crashed' ELSE state END"

# A lease that nobody holds any more.
FREE = f"""
    state = 'leased' AND (leased_until < clock_timestamp()
                          OR run_id IS NULL OR run_id NOT IN ({LIVE_RUNS}))
"""

# What a run may lease of its source: nothing that it gave back itself, nor what a later run did
# that still goes on. The two would hand it to each other without end.
WAITING = """
    e.spec_id = :spec AND e.state = 'pending'
    AND (e.run_id IS NULL OR e.run_id <> :run AND NOT EXISTS (
         SELECT FROM patchstore.ingest_run r
          WHERE r.id = e.run_id AND r.id > :run AND r.state = 'running'))
    AND EXISTS (SELECT FROM patchstore.image_location l
                 WHERE l.image_id = e.image_id AND l.source_id = :source AND l.vanished_at IS NULL)
"""


# A lease, of the image at the place that was seen last: of others it is not known whether they are
# still there. Of one that another scan has just found gone, at the place where it was.
_LEASED = """
    e.spec_id, e.image_id, e.fence, i.sha256, i.size_bytes, e.attempts,
    i.width IS NOT NULL AS is_sized,
    (SELECT l.uri FROM patchstore.image_location l
      WHERE l.image_id = e.image_id AND l.source_id = :source
      ORDER BY l.vanished_at IS NOT NULL, l.last_seen DESC, l.id LIMIT 1) AS uri
"""

# Nobody computed anything: that was no attempt.
GIVE_BACK = """
    UPDATE patchstore.extraction SET state = 'pending', leased_until = NULL,
           attempts = attempts - 1, updated_at = now()
"""


@dataclass(frozen=True)
class Lease:
    """The right to compute one image, until the fence moves on."""

    spec_id: int
    image_id: int
    fence: int
    uri: str
    sha256: bytes
    size_bytes: int
    attempts: int = 1  # this one included, of those that ended without an outcome
    is_sized: bool = True  # the image's width and height are known


@dataclass(frozen=True)
class LeaseLimits:
    """How much one batch may hold: images, and the decoded pixels of all of them."""

    images: int
    pixels: int
    term_s: float


@dataclass(frozen=True)
class Reached:
    """How far a run has come with its leases: the last fence, and the last image in their order."""

    fence: int = 0
    attempts: int = -1
    image_id: int = 0

    @classmethod
    def by(cls, leases: Sequence[Lease]) -> "Reached":
        """What a batch reaches, which is not empty."""
        attempts, image_id = max((lease.attempts - 1, lease.image_id) for lease in leases)
        return cls(max(lease.fence for lease in leases), attempts, image_id)


def start_run(engine: Engine, source_id: int, spec: StoredSpec) -> int:
    """Records a run that begins; marks earlier runs that died as crashed."""
    with store_errors(), engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE patchstore.ingest_run SET state = 'crashed', finished_at = now() "
                f"WHERE {DEAD}"
            )
        )
        run = connection.execute(
            text(
                "INSERT INTO patchstore.ingest_run (source_id, spec_id, host) "
                "VALUES (:source, :spec, :host) RETURNING id"
            ),
            {"source": source_id, "spec": spec.id, "host": socket.gethostname()},
        )
        return int(run.scalar_one())


def finish_run(engine: Engine, run_id: int, state: str, summary: str | None) -> None:
    """Records how a run ended; `summary` is JSON, with the reason as `error` where it failed.

    What was noted of it before stays, unless the summary says otherwise.
    """
    with store_errors(), engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE patchstore.ingest_run SET state = :state, finished_at = clock_timestamp(), "
                "summary = coalesce(summary || CAST(:summary AS jsonb), "
                "  CAST(:summary AS jsonb), summary) WHERE id = :run"
            ),
            {"state": state, "summary": summary, "run": run_id},
        )


def note_precision(engine: Engine, run_id: int, precision: str) -> None:
    """Records how a run computes, before it writes: it may be killed, and its vectors stay."""
    with store_errors(), engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE patchstore.ingest_run SET summary = coalesce(summary, '{}') || "
                "jsonb_build_object('precision', CAST(:precision AS text)) WHERE id = :run"
            ),
            {"precision": precision, "run": run_id},
        )


def show_alive(connection: Connection, run_id: int) -> None:
    """Takes the run's advisory lock; it is held until this connection closes.

    A run that lost its connection may have been taken for crashed: it is running.
    Shared: a run that connects again must not wait until Postgres notices that its old connection
    is gone.
    """
    connection.execute(
        text("SELECT pg_advisory_lock_shared(:class, :run)"),
        {"class": RUN_LOCK_CLASS, "run": run_id},
    )
    connection.execute(
        text(
            "UPDATE patchstore.ingest_run SET state = 'running', finished_at = NULL "
            "WHERE id = :run AND state = 'crashed'"
        ),
        {"run": run_id},
    )
    connection.commit()


def renew_leases(connection: Connection, run_id: int, term_s: float) -> None:
    """Gives the run's leases a new term, but those being written at this moment: it never waits."""
    connection.execute(
        text(
            "UPDATE patchstore.extraction SET leased_until = clock_timestamp() + "
            "make_interval(secs => :term) WHERE state = 'leased' AND (spec_id, image_id) IN ("
            "  SELECT spec_id, image_id FROM patchstore.extraction"
            "   WHERE run_id = :run AND state = 'leased' FOR UPDATE SKIP LOCKED)"
        ),
        {"term": term_s, "run": run_id},
    )
    connection.commit()


def reclaim(engine: Engine, spec: StoredSpec, max_attempts: int) -> int:
    """Frees the leases of dead runs and those whose term is over; returns how many.

    An image that has been leased `max_attempts` times without an outcome fails with that reason:
    it probably kills its worker.
    """
    values = {"spec": spec.id, "cap": max_attempts}
    with store_errors(), engine.begin() as connection:
        freed = connection.execute(
            text(
                "UPDATE patchstore.extraction SET state = 'pending', leased_until = NULL, "
                "  run_id = NULL, updated_at = now() "
                "WHERE spec_id = :spec AND image_id IN ("
                "  SELECT image_id FROM patchstore.extraction"
                f"  WHERE spec_id = :spec AND attempts < :cap AND {FREE}"
                "   ORDER BY image_id FOR UPDATE SKIP LOCKED)"
            ),
            values,
        ).rowcount
    with store_errors(), engine.connect() as connection:
        poisonous = connection.execute(
            text(
                "SELECT image_id FROM patchstore.extraction "
                f"WHERE spec_id = :spec AND attempts >= :cap AND {FREE} ORDER BY image_id"
            ),
            values,
        ).scalars()
        images = list(poisonous)
    return int(freed) + sum(_give_up(engine, values, image) for image in images)


def _give_up(engine: Engine, values: dict[str, Any], image_id: int) -> int:
    with store_errors(), engine.begin() as connection:
        locked = lock_images(connection, [image_id])
        failed = connection.execute(
            text(
                "UPDATE patchstore.extraction SET state = 'failed', error = format("
                "    'gave up after %s attempts that ended without an outcome', attempts), "
                "  leased_until = NULL, run_id = NULL, updated_at = now() "
                "WHERE spec_id = :spec AND image_id = :image AND attempts >= :cap "
                f" AND {FREE}"
            ),
            {**values, "image": image_id},
        )
        refresh_visibility(connection, locked)
        return failed.rowcount


def lease_batch(
    engine: Engine,
    spec: StoredSpec,
    source_id: int,
    run_id: int,
    limits: LeaseLimits,
    reached: Reached = Reached(),
) -> list[Lease]:
    """Leases pending images of a source, least attempted first; empty when nothing is left.

    It looks behind what this run has reached, and from the beginning only where nothing is there:
    what waits of other sources is passed by once a run, not once a batch.

    What was attempted `SUSPECT` times before comes alone: it may be what killed its worker, and
    whatever is computed beside it would share its fate and its blame. A run gets an image at most
    once: what it could not finish waits for the next run. Rows that somebody else has locked just
    now are passed over; where all are, it looks again in a moment.
    """
    for _ in range(LEASE_TRIES):
        leases = _lease(engine, spec, source_id, run_id, limits, reached)
        if not leases and reached != Reached():
            leases = _lease(engine, spec, source_id, run_id, limits, Reached())
        if leases or not _is_waiting(engine, spec, source_id, run_id):
            return leases
        time.sleep(LEASE_WAIT_S)
    return []


def refresh_statistics(engine: Engine) -> None:
    """Tells the planner what there is, before many leases.

    Until autovacuum had come by, to lease 16 images out of 80,000 that were just found took half a
    second, and 2 ms from then on.
    """
    with store_errors(), engine.begin() as connection:
        connection.execute(
            text("ANALYZE patchstore.image, patchstore.image_location, patchstore.extraction")
        )


def count_waiting(engine: Engine, spec: StoredSpec, source_id: int, run_id: int) -> int:
    """How many images of a source a run may still lease; files with one content are one image."""
    return int(_of_waiting("count(*)", engine, spec, source_id, run_id))


def _is_waiting(engine: Engine, spec: StoredSpec, source_id: int, run_id: int) -> bool:
    return bool(_of_waiting("1", engine, spec, source_id, run_id))


def _of_waiting(what: str, engine: Engine, spec: StoredSpec, source_id: int, run_id: int) -> Any:
    with store_errors(), engine.connect() as connection:
        found = connection.execute(
            text(f"SELECT {what} FROM patchstore.extraction e WHERE {WAITING} LIMIT 1"),
            {"spec": spec.id, "source": source_id, "run": run_id},
        )
        return found.scalar()


def find_leases(
    engine: Engine, spec: StoredSpec, source_id: int, run_id: int, reached: Reached
) -> list[Lease]:
    """What a run has leased beyond what it knows: the answer of that `lease_batch` was lost."""
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(
            text(
                f"SELECT {_LEASED} FROM patchstore.extraction e "
                "  JOIN patchstore.image i ON i.id = e.image_id "
                " WHERE e.spec_id = :spec AND e.run_id = :run AND e.state = 'leased'"
                "   AND e.fence > :fence"
            ),
            {
                "spec": spec.id,
                "source": source_id,
                "run": run_id,
                "fence": reached.fence,
            },
        )
        return [_made(row) for row in rows]


def _lease(
    engine: Engine,
    spec: StoredSpec,
    source_id: int,
    run_id: int,
    limits: LeaseLimits,
    reached: Reached,
) -> list[Lease]:
    with store_errors(), engine.begin() as connection:
        rows = connection.execute(
            text(
                "WITH candidate AS ("
                "  SELECT e.image_id, e.attempts FROM patchstore.extraction e"
                f"  WHERE {WAITING} AND (e.attempts, e.image_id) > (:attempts, :image)"
                "   ORDER BY e.attempts, e.image_id LIMIT :images FOR UPDATE SKIP LOCKED), "
                "chosen AS ("
                "  SELECT c.image_id, c.attempts, row_number() OVER w AS rank,"
                "         sum(coalesce(i.width::bigint * i.height, :dense * i.size_bytes)) OVER w"
                "             AS pixels"
                "    FROM candidate c JOIN patchstore.image i ON i.id = c.image_id"
                "  WINDOW w AS (ORDER BY c.attempts, c.image_id)) "
                "UPDATE patchstore.extraction e SET state = 'leased', run_id = :run,"
                "       fence = nextval('patchstore.fence_seq'), attempts = e.attempts + 1,"
                "       leased_until = clock_timestamp() + make_interval(secs => :term),"
                "       updated_at = now() "
                "  FROM chosen c JOIN patchstore.image i ON i.id = c.image_id "
                " WHERE e.spec_id = :spec AND e.image_id = c.image_id"
                "   AND (c.rank = 1 OR (c.pixels <= :pixels AND c.attempts < :suspect)) "
                f"RETURNING {_LEASED}"
            ),
            {
                "spec": spec.id,
                "source": source_id,
                "run": run_id,
                "images": limits.images,
                "pixels": limits.pixels,
                "suspect": SUSPECT,
                "dense": PIXELS_A_BYTE,
                "term": limits.term_s,
                "attempts": reached.attempts,
                "image": reached.image_id,
            },
        )
        return [_made(row) for row in rows]


def _made(row: Row[Any]) -> Lease:
    return Lease(
        row.spec_id,
        row.image_id,
        row.fence,
        row.uri,
        bytes(row.sha256),
        row.size_bytes,
        row.attempts,
        row.is_sized,
    )


def fail_image(engine: Engine, lease: Lease, reason: str) -> bool:
    """Records a permanent failure with its reason; False if the lease was lost meanwhile.

    A file whose new content fails shows its old content no longer, unless the new one could not be
    read just now: a reason that begins with `UNREAD`.
    """
    with store_errors(), engine.begin() as connection:
        locked = lock_images(connection, [lease.image_id])
        failed = connection.execute(
            text(
                "UPDATE patchstore.extraction SET state = 'failed', error = :reason, "
                "  leased_until = NULL, updated_at = now() "
                "WHERE spec_id = :spec AND image_id = :image AND fence = :fence "
                "  AND state = 'leased'"
            ),
            {**_key(lease), "reason": without_nul(reason)},
        )
        if failed.rowcount:
            refresh_visibility(connection, locked)
        return bool(failed.rowcount)


def release_image(engine: Engine, lease: Lease) -> None:
    """Gives an image back as pending, for the next run; nothing if the lease was lost.

    That was no attempt: nobody computed anything. The file is another one now, or gone: the next
    scan opens it, whatever its mark.
    """
    with store_errors(), engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE patchstore.image_location SET mark = '' "
                "WHERE uri = :uri AND image_id = :image"
            ),
            {"uri": lease.uri, "image": lease.image_id},
        )
    with store_errors(), engine.begin() as connection:
        connection.execute(
            text(
                f"{GIVE_BACK}WHERE spec_id = :spec AND image_id = :image AND fence = :fence "
                "  AND state = 'leased'"
            ),
            _key(lease),
        )


def give_back(engine: Engine, run_id: int) -> None:
    """Gives back all that a run has leased, as `release_image`: it ends for reasons of its own."""
    with store_errors(), engine.begin() as connection:
        connection.execute(
            text(
                f"{GIVE_BACK}WHERE state = 'leased' AND (spec_id, image_id) IN ("
                "  SELECT spec_id, image_id FROM patchstore.extraction"
                "   WHERE run_id = :run AND state = 'leased'"
                "   ORDER BY image_id, spec_id FOR UPDATE)"
            ),
            {"run": run_id},
        )


def retry_failed(
    engine: Engine, spec_name: str | None, root: str | None, *, unread_only: bool = False
) -> int:
    """Makes failed images pending again; returns how many.

    Args:
        engine: the store.
        spec_name: of one spec only.
        root: of one source only.
        unread_only: whose files could not be opened, as every run does; what a scan could not open
            is no image yet, and every scan looks at it again.
    """
    with store_errors(), engine.begin() as connection:
        failed = connection.execute(
            text(
                "SELECT e.spec_id, e.image_id FROM patchstore.extraction e "
                "  JOIN patchstore.feature_spec s ON s.id = e.spec_id WHERE e.state = 'failed' "
                "  AND (CAST(:spec AS text) IS NULL OR s.name = :spec) "
                "  AND (NOT :unread_only OR starts_with(e.error, :unread)) "
                "  AND EXISTS ("
                "    SELECT FROM patchstore.image_location l JOIN patchstore.source o"
                "        ON o.id = l.source_id"
                "     WHERE l.image_id = e.image_id AND l.vanished_at IS NULL"
                "       AND (CAST(:root AS text) IS NULL OR o.root = :root))"
            ),
            {
                "spec": spec_name,
                "root": root,
                "unread_only": unread_only,
                "unread": UNREAD,
            },
        ).all()
        locked = lock_images(connection, [row.image_id for row in failed])
        retried = connection.execute(
            text(
                "UPDATE patchstore.extraction SET state = 'pending', error = NULL, "
                "  attempts = 0, run_id = NULL, updated_at = now() "
                "WHERE state = 'failed' AND (spec_id, image_id) IN (SELECT * FROM unnest("
                "  CAST(:specs AS integer[]), CAST(:images AS bigint[])))"
            ),
            {"specs": [r.spec_id for r in failed], "images": [r.image_id for r in failed]},
        )
        refresh_visibility(connection, locked)
        return retried.rowcount


def lock_images(connection: Connection, image_ids: Sequence[int]) -> list[int]:
    """Locks the ledger's rows of these images and of those that they replace; returns all ids.

    Everybody who changes rows takes these locks first and in this order, that of
    `patchstore.refresh_visibility`: whoever took one later could meet another going the other way.
    A scan that commits while they are waited for may have let these images replace others: then
    they are let go, and taken again with those.
    """
    wanted = {*image_ids, *_replaced(connection, image_ids)}
    while True:
        savepoint = connection.begin_nested()
        locked = connection.execute(
            text(
                "SELECT image_id FROM patchstore.extraction WHERE image_id = ANY (:images) "
                "ORDER BY image_id, spec_id FOR UPDATE"
            ),
            {"images": list(wanted)},
        ).scalars()
        found = sorted(set(locked))
        now = _replaced(connection, image_ids)
        if now <= wanted:
            savepoint.commit()
            return found
        savepoint.rollback()
        wanted |= now


def _replaced(connection: Connection, image_ids: Sequence[int]) -> set[int]:
    """What searches may show instead of these images until they are done."""
    rows = connection.execute(
        text(
            "SELECT DISTINCT previous_image_id FROM patchstore.image_location "
            "WHERE image_id = ANY (:images) AND previous_image_id IS NOT NULL"
        ),
        {"images": list(image_ids)},
    )
    return set(rows.scalars())


def refresh_visibility(connection: Connection, image_ids: Sequence[int]) -> None:
    """Recomputes what searches show of these images."""
    connection.execute(
        text("SELECT patchstore.refresh_visibility(:images)"), {"images": list(image_ids)}
    )


def without_nul(message: str) -> str:
    """A message as Postgres can store it: decoders quote bytes of broken files."""
    return message.replace("\x00", "\\0")


def _key(lease: Lease) -> dict[str, Any]:
    return {"spec": lease.spec_id, "image": lease.image_id, "fence": lease.fence}
