"""What the routes share: the store, the network, the limits."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from cachetools import TTLCache
from fastapi import Request
from sqlalchemy import Engine

from db.errors import StoreError
from db.specs import StoredSpec
from patchstore.store import spec_for_search

from .embedder import BatchingEmbedder
from .metrics import Metrics
from .settings import ServeSettings

SPEC_KEPT_S = 2.0

T = TypeVar("T")


class Service:
    """One running service.

    Attributes:
        network: how far the warm network is: `warming`, `warm`, or why there is none.
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
            observe=self.metrics.forward,
        )
        # A recipe never changes, but which one is the default may.
        self._specs: TTLCache[str | None, StoredSpec] = TTLCache(1_000, ttl=SPEC_KEPT_S)
        self._lock = threading.Lock()
        # More threads than connections would only wait for one, but decode in the meantime.
        self._threads = ThreadPoolExecutor(2 * settings.api_connections, "question")

    async def in_thread(self, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Runs what waits for the database or decodes; given up on when the request's time ends.

        Not by anyio, whose cancel scope and limiter cost a tenth of a question.
        """
        work = partial(call, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

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
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.embedder.close()
        self.metrics.close()

    def warm(self) -> None:
        """Loads the network of the spec that is asked for when none is named."""
        try:
            spec = self.spec(None)
        except StoreError as error:
            self.network = f"none yet: {error}"
            return
        reason = self.embedder.warm(spec)
        self.network = "warm" if reason is None else f"unavailable: {reason}"


async def service_of(request: Request) -> Service:
    """The service that a request came to; a FastAPI dependency. Async: no thread."""
    service: Service = request.app.state.service
    return service
