"""How far an index build is, told while it goes on."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, text

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, float], None]  # a phase, and its share done, 0 to 1

POLL_S = 0.5
# Of a row of pg_stat_progress_create_index: how much of its phase is done, 0 to 1.
SHARE_DONE = """CASE
    WHEN tuples_total > 0 THEN tuples_done::float / tuples_total
    WHEN blocks_total > 0 THEN blocks_done::float / blocks_total
    ELSE 0 END"""


@contextmanager
def watching(
    engine: Engine, connection: Connection, on_progress: OnProgress | None
) -> Iterator[None]:
    """Tells `on_progress` now and then about what `connection` builds inside."""
    if on_progress is None:
        yield
        return
    pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    done = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(engine, int(pid), done, on_progress), daemon=True
    )
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(engine: Engine, pid: int, done: threading.Event, on_progress: OnProgress) -> None:
    try:
        _poll(engine, pid, done, on_progress)
    except Exception:  # the build goes on, whether somebody looks at it or not
        logger.warning("the progress of the index build is not shown any more", exc_info=True)


def _poll(engine: Engine, pid: int, done: threading.Event, on_progress: OnProgress) -> None:
    with engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        while not done.wait(POLL_S):
            row = connection.execute(
                text(
                    f"SELECT phase, {SHARE_DONE} AS share "
                    "FROM pg_stat_progress_create_index WHERE pid = :pid"
                ),
                {"pid": pid},
            ).one_or_none()
            if row is not None:
                on_progress(str(row.phase), float(row.share))
