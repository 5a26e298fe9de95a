"""Shows that a run is alive: holds its lock and renews its leases, whatever the work is doing."""

import logging
import threading
import time
from contextvars import copy_context

from sqlalchemy import Connection, Engine

from db.engine import first_line, is_lost, store_errors
from db.ledger import renew_leases, show_alive

logger = logging.getLogger(__name__)

WATCH_S = 1.0


class Heartbeat:
    """A context in which a run counts as alive."""

    def __init__(self, engine: Engine, run_id: int, term_s: float) -> None:
        """Renews three times in each term of a lease."""
        self._engine = engine
        self._run_id = run_id
        self._term_s = term_s
        self._stop = threading.Event()
        self._connection: Connection | None = None
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._beat,), name="heartbeat", daemon=True
        )

    def __enter__(self) -> "Heartbeat":
        try:
            with store_errors():
                self._connect()
        except BaseException:
            self._drop()  # the session may hold the lock already
            raise
        self._thread.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._stop.set()
        self._thread.join()
        self._drop()

    def _beat(self) -> None:
        """Looks often whether the lock was lost with its connection: without it a run counts as
        dead, and its spec may be removed."""
        pause_s = min(WATCH_S, self._term_s / 3)
        renewed = time.monotonic()
        while not self._stop.wait(pause_s):
            is_due = time.monotonic() - renewed >= self._term_s / 3
            if self._connection is not None and not is_lost(self._connection) and not is_due:
                continue
            try:
                renew_leases(self._connect(), self._run_id, self._term_s)
                renewed = time.monotonic()
            except Exception as error:  # of any kind: the next beat may go well
                if self._connection is not None:  # and not at each try to connect
                    reason = first_line(error)
                    logger.warning("the lease renewal failed (%s); connecting again", reason)
                self._drop()

    def _connect(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
            show_alive(self._connection, self._run_id)
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            # Back in the pool the session would go on holding the lock.
            self._connection.invalidate()
            self._connection.close()
            self._connection = None
