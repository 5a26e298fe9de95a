"""What Prometheus sees of the service."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from sqlalchemy import URL

from .store_metrics import StoreMetrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters of one service and its store. In a registry of its own: a process may hold several.

    Args:
        url: of the store.
    """

    def __init__(self, url: URL) -> None:
        self.registry = CollectorRegistry()
        self._store = StoreMetrics(url)
        self.registry.register(self._store)
        self.requests = Counter(
            "patchstore_http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "patchstore_http_request_seconds",
            "From a request's arrival to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_progress = Gauge(
            "patchstore_http_requests_in_progress",
            "Requests that are being answered.",
            registry=self.registry,
        )
        self.searches = Histogram(
            "patchstore_search_seconds",
            "One question, its vector included.",
            ("question", "by"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_patches = Histogram(
            "patchstore_forward_patches",
            "Patches in one forward pass.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.forward_seconds = Histogram(
            "patchstore_forward_seconds",
            "One forward pass.",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def forward(self, patches: int, seconds: float) -> None:
        """Notes a forward pass."""
        self.batch_patches.observe(patches)
        self.forward_seconds.observe(seconds)

    def render(self) -> bytes:
        """The text format; asks the database, for a few seconds at most."""
        return generate_latest(self.registry)

    def close(self) -> None:
        """Lets go of the database."""
        self._store.close()
