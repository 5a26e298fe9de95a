"""Shows in Prefect how far a run is, while it computes."""

import logging
import threading
from collections.abc import Callable
from contextvars import copy_context
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from .stages import Tally

logger = logging.getLogger(__name__)

PERIOD_S = 5.0  # each look is a call to the API
LAST_CALL_S = 10.0


class LiveProgress:
    """A context in which a progress artifact follows the tally, and ten lines of the log do.

    A thread of its own talks to the API: the work waits for no answer, and an API that is away
    costs the operator a look and the run nothing. A run of a few seconds leaves no artifact.
    """

    def __init__(self, tally: Tally, utilization: Callable[[], float | None]) -> None:
        """`utilization` is asked now and then for the GPU's, 0 to 1; None where there is none."""
        self._tally = tally
        self._utilization = utilization
        self._samples: list[float] = []
        self._artifact: UUID | None = None
        self._shown = -1
        self._tenths = 0
        self._troubled = False
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._follow,), name="progress", daemon=True
        )

    def __enter__(self) -> "LiveProgress":
        self._thread.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._stop.set()
        self._thread.join(LAST_CALL_S)

    @property
    def utilization(self) -> float | None:
        """The GPU's mean utilisation so far, 0 to 1; None where it is not known."""
        return sum(self._samples) / len(self._samples) if self._samples else None

    def _follow(self) -> None:
        while not self._stop.wait(PERIOD_S):
            sample = self._utilization()
            if sample is not None:
                self._samples.append(sample)
            self._log()
            self._show()
        self._log()
        if self._artifact is not None:
            self._show()

    def _log(self) -> None:
        tenths = 10 * self._tally.images // self._tally.total
        if tenths > self._tenths:
            self._tenths = tenths
            logger.info("%s", self._text())

    def _show(self) -> None:
        images = self._tally.images
        if images == self._shown:
            return
        percent = min(100.0, 100 * images / self._tally.total)
        try:
            if self._artifact is None:
                created = create_progress_artifact(
                    percent, key="ingest-progress", description=self._text()
                )
                assert isinstance(created, UUID)  # no coroutine: no event loop runs here
                self._artifact = created
            else:
                update_progress_artifact(self._artifact, percent, description=self._text())
        except Exception:  # the next look may succeed
            if not self._troubled:
                logger.warning("Prefect does not take the progress of this run", exc_info=True)
            self._troubled = True
        else:
            self._shown = images
            self._troubled = False

    def _text(self) -> str:
        tally = self._tally
        return (
            f"{tally.images:,} of {tally.total:,} images, {tally.patches:,} patches "
            f"at {tally.patches / tally.elapsed_s:,.1f} patches/s"
        )
