"""How many decoded pixels the service holds at once."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from extractor.spool import LARGE

from .problems import Problem


class PixelBudget:
    """Lets pictures be decoded while they fit in memory together; others wait.

    A decoded picture takes some seven bytes a pixel, however few its file has: without a bound,
    every thread of the service could come to hold the largest one that it accepts. They come in by
    order of arrival, so that small ones do not keep a large one out. One that is larger than all of
    the budget comes in alone. Of a large image no more than `LARGE` is counted: most such lie on a
    disk, and small ones shall not wait until it is decoded.

    Args:
        most: pixels that are held at once.
        timeout_s: how long one waits.
    """

    def __init__(self, most: int, timeout_s: float) -> None:
        self._most = most
        self._timeout_s = timeout_s
        self._held = 0
        self._turn = threading.Lock()  # of the one that waits for room; the others wait for it
        self._freed = threading.Condition()

    @contextmanager
    def hold(self, size: tuple[int, int]) -> Iterator[None]:
        """Hold a picture of this (width, height). Raises Problem where it takes too long."""
        pixels = min(size[0] * size[1], LARGE)
        self._enter(pixels)
        try:
            yield
        finally:
            with self._freed:
                self._held -= pixels
                self._freed.notify()

    def _enter(self, pixels: int) -> None:
        end = time.monotonic() + self._timeout_s
        if self._turn.acquire(timeout=self._timeout_s):
            try:
                with self._freed:
                    if self._freed.wait_for(lambda: self._fits(pixels), end - time.monotonic()):
                        self._held += pixels
                        return
            finally:
                self._turn.release()
        raise Problem("timeout", f"other pictures took all memory for {self._timeout_s:g} s")

    def _fits(self, pixels: int) -> bool:
        return not self._held or self._held + pixels <= self._most
