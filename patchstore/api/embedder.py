"""One warm network for all requests, and their patches in shared forward passes."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from db.specs import StoredSpec
from extractor.arrays import Region
from extractor.errors import ImageError
from extractor.spec import FeatureSpec
from patchstore.query import Vectors, load_extractor, stack_vectors

from .problems import Problem

logger = logging.getLogger(__name__)

Observe = Callable[[int, float], None]  # patches of a forward pass, its seconds


@dataclass(frozen=True)
class _Job:
    spec: StoredSpec
    regions: Sequence[Region]
    result: "Future[list[Vectors | ImageError]]" = field(default_factory=Future)


class BatchingEmbedder:
    """Computes the vectors of concurrent requests together.

    Whatever has come in while the network was busy makes the next batch: nobody waits for company,
    and the batches grow with the load. One thread does all that torch does, for every other one
    would bring a team of OpenMP threads of its own.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        max_waiting: int,
        timeout_s: float,
        observe: Observe = lambda patches, seconds: None,
    ) -> None:
        self._batch_size = batch_size
        self._max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._observe = observe
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._waiting = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="forward", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Patches that have not been computed yet."""
        return self._waiting

    def __call__(self, spec: StoredSpec, regions: Sequence[Region]) -> Vectors:
        """The vectors of regions, float32 (N, D); called by many threads at once.

        Raises:
            Problem: too many are waiting, or it took too long.
            ExtractorError: the network cannot be loaded.
            ImageError: a region whose vector cannot be compared.
        """
        with self._lock:
            # One question alone may be larger than the limit.
            if self._waiting and self._waiting + len(regions) > self._max_waiting:
                raise Problem(
                    "network_busy", f"{self._waiting} patches are waiting; try again in a second"
                )
            self._waiting += len(regions)
        job = _Job(spec, regions)
        try:
            self._jobs.put(job)
            vectors = job.result.result(self._timeout_s)
        except TimeoutError:
            job.result.cancel()
            raise Problem(
                "timeout", f"the network had no time for this in {self._timeout_s:g} s"
            ) from None
        finally:
            with self._lock:
                self._waiting -= len(regions)
        return stack_vectors(vectors)

    def warm(self, spec: StoredSpec) -> None:
        """Loads a spec's network and runs it once, however long that takes.

        Raises:
            ExtractorError: it cannot be loaded.
        """
        job = _Job(spec, [Region.whole(np.zeros((64, 64, 3), np.uint8))])
        self._jobs.put(job)
        job.result.result()  # nothing to be seen in black, but the network answers

    def close(self) -> None:
        """Ends the thread; what is waiting is cancelled."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        held: _Job | None = None  # did not fit the last batch
        while (job := held or self._jobs.get()) is not None:
            batch, held, ended = self._gather(job)
            self._compute(batch)
            if ended:
                break
        while not self._jobs.empty():
            if (late := self._jobs.get()) is not None:
                late.result.cancel()

    def _gather(self, first: _Job) -> tuple[list[_Job], _Job | None, bool]:
        """All that waits and fits beside a job; the first that does not; whether it is the end."""
        batch, patches = [first], len(first.regions)
        while patches < self._batch_size:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return batch, None, False
            if job is None:
                return batch, None, True
            patches += len(job.regions)
            if job.spec != first.spec or patches > self._batch_size:
                return batch, job, False
            batch.append(job)
        return batch, None, False

    def _compute(self, batch: list[_Job]) -> None:
        due = [job for job in batch if job.result.set_running_or_notify_cancel()]
        if not due:
            return
        spec = due[0].spec
        begun = time.perf_counter()
        try:
            extractor = load_extractor(
                FeatureSpec.model_validate(spec.recipe),
                spec.weights_source,
                self._batch_size,
                small_passes=True,
            )
            vectors = extractor.embed_many([region for job in due for region in job.regions])
        except Exception as error:  # whatever it is, those who wait must hear of it
            for job in due:
                job.result.set_exception(error)
            return
        self._observe(len(vectors), time.perf_counter() - begun)
        start = 0
        for job in due:
            job.result.set_result(vectors[start : start + len(job.regions)])
            start += len(job.regions)
