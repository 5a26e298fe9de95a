"""One warm network for all requests, and their patches in shared forward passes."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from cachetools import TTLCache

from db.specs import StoredSpec
from extractor.arrays import Region
from extractor.errors import ImageError, WeightsError
from extractor.spec import FeatureSpec
from patchstore.query import Vectors, load_extractor, stack_vectors

from .problems import Problem

if TYPE_CHECKING:
    from extractor.features import FeatureExtractor  # torch takes seconds

logger = logging.getLogger(__name__)

_THREADS = (1, 2, 2)  # by how many each shares the cores; to change that takes milliseconds
_MISSING_S = 60.0  # to look for weights may take as long as a firewall lets one wait
_LEAST = 2  # patches of a pass beside another: one by one they take nearly twice as long

_Place = tuple[int, str]  # a spec, and where its weights should be
Observe = Callable[[int, float], None]  # patches of a forward pass, its seconds


@dataclass(frozen=True)
class _Job:
    spec: StoredSpec
    regions: Sequence[Region]
    result: "Future[list[Vectors | ImageError]]" = field(default_factory=Future)


class BatchingEmbedder:
    """Computes the vectors of concurrent requests together.

    Whatever has come in while the network was busy makes the next batch: nobody waits for company,
    and the batches grow with the load. While few ask, or one asks about much, a pass has all cores.
    Once several patches wait for each of the teams that a CPU's cores can be shared by, each takes
    its part of them, and passes run side by side: see `extractor.device.share_cores`.
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
        self._jobs: deque[_Job] = deque()
        self._waiting = 0
        self._passes = 0  # that are being computed
        self._sharing = False  # the cores; or there is one pass, which has them all
        self._teams_of: dict[int, int] = {}  # a spec, once its network is loaded
        self._missing: TTLCache[_Place, WeightsError] = TTLCache(1_000, ttl=_MISSING_S)
        self._closed = False
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._turns = {teams: threading.Condition(self._lock) for teams in set(_THREADS)}
        self._threads = [
            threading.Thread(target=self._work, args=(teams,), name="forward", daemon=True)
            for teams in _THREADS
        ]
        for thread in self._threads:
            thread.start()

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
        job = _Job(spec, regions)
        with self._lock:
            if missing := self._missing.get((spec.id, spec.weights_source)):
                raise WeightsError(*missing.args)
            # One question alone may be larger than the limit.
            if self._waiting and self._waiting + len(regions) > self._max_waiting:
                raise Problem(
                    "network_busy", f"{self._waiting} patches are waiting; try again in a second"
                )
            self._waiting += len(regions)
            self._put(job)
        try:
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
        with self._lock:
            self._put(job)
        job.result.result()  # nothing to be seen in black, but the network answers

    def close(self) -> None:
        """Ends the threads; what is waiting is cancelled."""
        with self._lock:
            self._closed = True
            for job in self._jobs:
                job.result.cancel()
            self._jobs.clear()
            for turn in self._turns.values():
                turn.notify_all()
        for thread in self._threads:
            thread.join()

    def _put(self, job: _Job) -> None:
        if self._closed:
            job.result.cancel()
            return
        self._jobs.append(job)
        self._call()

    def _work(self, teams: int) -> None:
        """Computes what a thread is there for that shares the cores with `teams` - 1 others."""
        while batch := self._take(teams):
            try:
                self._compute(batch, teams)
            finally:
                with self._lock:
                    self._passes -= 1
                    self._call()

    def _take(self, teams: int) -> list[_Job]:
        """The jobs of the next pass, all of one spec; none at the end."""
        with self._lock:
            self._turns[teams].wait_for(lambda: self._closed or self._may_begin(teams))
            if self._closed:
                return []
            batch = [self._jobs.popleft() for _ in range(self._fitting(teams))]
            self._passes += 1
            self._sharing = teams > 1
            self._call()
            return batch

    def _call(self) -> None:
        """Wakes a thread that may begin, and none in vain."""
        for teams, turn in self._turns.items():
            if self._may_begin(teams):
                turn.notify()

    def _may_begin(self, teams: int) -> bool:
        if not self._jobs:
            return False
        if self._passes:
            return self._sharing and 1 < teams == self._teams() and self._due() >= _LEAST
        return teams == (self._teams() if self._makes_several() else 1)

    def _teams(self) -> int:
        """How many passes there may be side by side, as far as is known."""
        return self._teams_of.get(self._jobs[0].spec.id, 1)

    def _makes_several(self) -> bool:
        first = self._fitting(self._teams())
        return min(self._due(0, first), self._due(first)) >= _LEAST

    def _fitting(self, teams: int) -> int:
        """How many of the first jobs make a pass; one may be larger than that alone."""
        most = min(self._batch_size, math.ceil(self._waiting / teams))
        spec = self._jobs[0].spec
        count = patches = 0
        for job in self._jobs:
            patches += len(job.regions)
            if job.spec != spec or patches > most:
                break
            count += 1
        return max(1, count)

    def _due(self, start: int = 0, stop: int | None = None) -> int:
        return sum(len(job.regions) for job in islice(self._jobs, start, stop))

    def _compute(self, batch: list[_Job], teams: int) -> None:
        due = [job for job in batch if job.result.set_running_or_notify_cancel()]
        if not due:
            return
        begun = time.perf_counter()
        try:
            extractor = self._load(due[0].spec)
            regions = [region for job in due for region in job.regions]
            vectors = extractor.embed_many(regions, teams=teams)
        except Exception as error:  # whatever it is, those who wait must hear of it
            for job in due:
                job.result.set_exception(error)
            return
        self._observe(len(vectors), time.perf_counter() - begun)
        start = 0
        for job in due:
            job.result.set_result(vectors[start : start + len(job.regions)])
            start += len(job.regions)

    def _load(self, spec: StoredSpec) -> "FeatureExtractor":
        with self._loading:
            try:
                extractor = load_extractor(
                    FeatureSpec.model_validate(spec.recipe),
                    spec.weights_source,
                    self._batch_size,
                    small_passes=True,
                )
            except WeightsError as error:  # no pass of another spec waits for the next search
                with self._lock:
                    self._missing[spec.id, spec.weights_source] = error
                raise
            self._teams_of[spec.id] = extractor.teams
            return extractor
