"""What the routes share: the store, the network, the limits."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from cachetools import TTLCache
from fastapi import Request
from sqlalchemy import Engine

from db.engine import make_engine
from db.errors import StoreError
from db.specs import StoredSpec
from extractor.errors import ExtractorError
from patchstore.store import spec_for_search

from .embedder import BatchingEmbedder
from .metrics import Metrics
from .pictures import Pictures
from .pixels import PixelBudget
from .problems import Problem, checked
from .settings import ServeSettings

logger = logging.getLogger(__name__)

SPEC_KEPT_S = 2.0
PROBE_S = 4.0
MAX_JSON_BYTES = 2_500_000  # 100,000 ids of 19 digits, and a vector
SMALL_JSON_BYTES = 64_000

T = TypeVar("T")


class _Threads:
    """Some threads, and how many calls may wait for one.

    Not anyio's, whose cancel scope and limiter cost a tenth of a question.
    """

    def __init__(self, name: str, count: int, settings: ServeSettings) -> None:
        self._threads = ThreadPoolExecutor(count, name)
        self._most = settings.api_max_waiting
        self._lock = threading.Lock()
        self._in_hand = 0

    async def run(self, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Raises Problem where too many are waiting."""
        with self._lock:
            if self._in_hand >= self._most:
                raise Problem(
                    "network_busy", f"{self._in_hand} requests are waiting; try again in a second"
                )
            self._in_hand += 1
        future = self._threads.submit(call, *arguments, **options)
        future.add_done_callback(self._let_go)  # later than the request that is given up on
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Nothing new is begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _let_go(self, _future: Future[Any]) -> None:
        with self._lock:
            self._in_hand -= 1


class Service:
    """One running service.

    Attributes:
        network: how far the warm network is: `warming`, `warm`, or why there was none so far.
    """

    def __init__(self, engine: Engine, settings: ServeSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics(engine.url)
        self.network = "warming"
        self.embedder = BatchingEmbedder(
            batch_size=settings.api_batch_size,
            max_waiting=settings.api_max_waiting,
            timeout_s=settings.api_request_timeout_s,
            observe=self._forward,
        )
        self.pixels = PixelBudget(settings.api_pixels_at_once, settings.api_request_timeout_s)
        self.pictures = Pictures(engine, self.pixels)
        # A recipe never changes, but which one is the default may.
        self._specs: TTLCache[str | None, StoredSpec] = TTLCache(1_000, ttl=SPEC_KEPT_S)
        self._lock = threading.Lock()
        # More threads than connections would only wait for one, but decode in the meantime.
        self._questions = _Threads("question", 2 * settings.api_connections, settings)
        # A disk that hangs keeps the threads of its pictures: questions have others.
        self._pictures = _Threads("picture", settings.api_connections, settings)
        # Questions that wait, for a thread or for a connection, say nothing of health.
        self._prober = ThreadPoolExecutor(1, "probe")
        self._probed = make_engine(
            engine.url, vectors=False, connections=1, statement_timeout_s=PROBE_S, wait_s=PROBE_S
        )
        self._probe: Future[str] | None = None

    async def in_thread(self, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Runs what waits for the database or decodes; given up on when the request's time ends.

        Raises:
            Problem: too many are waiting.
        """
        return await self._questions.run(call, *arguments, **options)

    async def show(self, call: Callable[..., T], *arguments: Any) -> T:
        """As `in_thread`, for what opens the files of stored pictures."""
        return await self._pictures.run(call, *arguments)

    def patience(self) -> Callable[[], None]:
        """What raises `timeout` once a request that came now has been given up on."""
        end = time.monotonic() + self.settings.api_request_timeout_s

        def go_on() -> None:
            if time.monotonic() > end:
                raise Problem("timeout", "the time of the request is over")

        return go_on

    async def json_of(self, request: Request, validate: Callable[[Any], T]) -> T:
        """What pydantic makes of a JSON body; of a large one in a thread, for others are waiting.

        Raises:
            Problem: it is larger than anything that can be asked.
            RequestValidationError: it is not what is wanted.
        """
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_JSON_BYTES:
                larger = f"the JSON is larger than {MAX_JSON_BYTES / 1e6:g} MB"
                raise Problem("body_too_large", larger)
        if len(body) <= SMALL_JSON_BYTES:
            return checked(validate, body)
        return await self.in_thread(checked, validate, body)

    async def probe(self, ask: Callable[[Engine], str]) -> str:
        """What the database says of itself, or that it says nothing: it may be frozen.

        Only one asks at a time, however many want to know: each would keep a connection.
        """
        if self._probe is None or self._probe.done():
            self._probe = self._prober.submit(ask, self._probed)
        try:
            async with asyncio.timeout(PROBE_S):
                return await asyncio.shield(asyncio.wrap_future(self._probe))
        except TimeoutError:
            return f"the database does not answer within {PROBE_S:g} s"

    def spec(self, name: str | None) -> StoredSpec:
        """The spec of that name; without one the default, or the only one. Raises NotFound."""
        with self._lock:
            known = self._specs.get(name)
        if known is None:
            known = spec_for_search(self.engine, name)
            with self._lock:
                self._specs[name] = known
        return known

    def close(self) -> None:
        """Ends the network's thread and lets go of the database; nothing new is begun."""
        self._questions.close()
        self._pictures.close()
        self._prober.shutdown(wait=False, cancel_futures=True)
        self.embedder.close()
        self.metrics.close()
        self._probed.dispose()

    def warm(self) -> None:
        """Loads the network of the spec that is asked for when none is named."""
        try:
            self.embedder.warm(self.spec(None))
        except StoreError as error:
            logger.warning("no network yet: %s", error)
            self.network = f"none yet: {error}"
        except Exception as error:  # whatever it is, `/readyz` must not wait for ever
            expected = isinstance(error, ExtractorError)
            logger.warning("no network: %s", error, exc_info=not expected)
            self.network = f"unavailable: {error}"

    def _forward(self, patches: int, seconds: float) -> None:
        self.network = "warm"
        self.metrics.forward(patches, seconds)


async def service_of(request: Request) -> Service:
    """The service that a request came to; a FastAPI dependency. Async: no thread."""
    service: Service = request.app.state.service
    return service
