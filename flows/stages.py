"""Where the time of a run goes, and what its batches have come to so far."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .contact_sheet import ContactSheet

if TYPE_CHECKING:
    from .batch import Batch


BATCH_S = 10.0  # of work in one batch, at most
# A batch is `compute`d for as long as it waits for the device and has it.
STAGES = ("scan", "load", "read", "wait", "forward", "write", "index")


class Clock:
    """Seconds spent in named stages, by one thread at a time."""

    def __init__(self) -> None:
        """No second is spent yet."""
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds what happens inside to a stage, however it ends."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] += time.monotonic() - begun

    def add(self, other: "Clock") -> None:
        """Adds another clock's seconds, stage by stage."""
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds


class Busy:
    """A context that several threads may be in at once; a clock runs while any of them is."""

    def __init__(self, clock: Clock, stage: str) -> None:
        """Nobody is in it."""
        self._clock = clock
        self._stage = stage
        self._lock = threading.Lock()
        self._inside = 0
        self._begun = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._begun = time.monotonic()
            self._inside += 1

    def __exit__(self, *_raised: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._clock.seconds[self._stage] += time.monotonic() - self._begun


class Tally:
    """What the settled batches of a run add up to; the flow's thread writes, others may look.

    Attributes:
        total: images that wait when computing begins.
        images: settled so far.
        patches: stored so far.
        clock: of the batches, and of the run's own stages.
        computed: of each batch, seconds from the begin of computing to the end of its forward
            pass, and its patches.
        sheet: a sample of the patches.
    """

    def __init__(self) -> None:
        """A run that has not begun computing."""
        self.total = 0
        self.images = 0
        self.patches = 0
        self.clock = Clock()
        self.computed: list[tuple[float, int]] = []
        self.sheet = ContactSheet()
        self._begun = time.monotonic()

    def begin(self, total: int) -> None:
        """Computing begins, with so many images waiting."""
        self.total = total
        self._begun = time.monotonic()

    def add(self, batch: "Batch") -> None:
        """Counts a batch that is written."""
        self.images += len(batch.leases)
        self.patches += batch.patches
        self.clock.add(batch.clock)
        self.computed.append((batch.computed_at - self._begun, batch.patches))

    def next_batch(self, last: int, most: int) -> int:
        """How many images the next batch is of: twice as many as the last, up to `BATCH_S` of work.

        A batch costs Prefect and the database the same whatever it holds, and a run that is killed
        loses what it had on its way.
        """
        within = self.images / self.elapsed_s * BATCH_S if self.images else most
        return max(last, min(2 * last, int(within), most))

    def finish_computing(self, device: Clock) -> float:
        """Counts what the device was at; returns its share of the time since computing began."""
        self.clock.add(device)
        return round(device.seconds["forward"] / self.elapsed_s, 3)

    def stage_seconds(self) -> dict[str, float]:
        """Seconds in each of `STAGES`, summed over the batches."""
        spent = self.clock.seconds
        wait = max(0.0, spent["compute"] - spent["forward"])
        return {stage: round(spent[stage], 3) for stage in STAGES} | {"wait": round(wait, 3)}

    @property
    def elapsed_s(self) -> float:
        """Seconds since computing began; never 0."""
        return max(time.monotonic() - self._begun, 1e-9)
