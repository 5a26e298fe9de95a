"""Starting and ending a command fast: torch and Prefect make that seconds without some care."""

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

TERMINATED = 128 + signal.SIGTERM


@contextmanager
def loading() -> Iterator[None]:
    """Imports without the garbage collector, which takes a fifth of the time and finds nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Leaving:
    """Ends the process right after the last exit handler; create it before anything else.

    Python would go on to free every object one by one, more than a second with torch loaded.
    Handlers run last in, first out: those of Prefect and the embedded Postgres come before this.

    Attributes:
        code: the exit code.
    """

    def __init__(self) -> None:
        """Registers itself."""
        self.code = 1
        atexit.register(self._leave)

    def at_latest(self, seconds: float) -> None:
        """Ends it after so long in any case: Prefect waits minutes for a server that is gone."""
        timer = threading.Timer(seconds, self._leave)
        timer.daemon = True
        timer.start()

    def _leave(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # closed by whoever read it
                stream.flush()
        os._exit(self.code)


def end_in_order() -> None:
    """Lets SIGTERM end the process as an error would: what was begun is put away on the way."""
    signal.signal(signal.SIGTERM, _end)


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what is put away meanwhile goes
    raise SystemExit(TERMINATED)
