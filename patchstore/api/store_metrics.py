"""What Prometheus sees of the store: read when it asks, from the database's truth."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import URL

from db.engine import make_engine
from db.errors import StoreError, StoreTimeout
from db.gauges import (
    RUN_STATES,
    SourceGauges,
    SpecGauges,
    StoreGauges,
    read_gauges,
)

logger = logging.getLogger(__name__)

KEPT_S = 5.0  # several Prometheus servers ask at about the same time
SHARE = 0.05  # of the time, at most, goes into reading: a ledger of millions is read less often
TIMEOUT_S = 4.0  # of a statement, and for a connection; Prometheus gives up after 10
ANSWER_S = 8.0  # for all of them: a frozen server does not end its own statements

Rows = Iterable[tuple[Any, ...]]

_OF_SOURCE: tuple[tuple[str, str, Callable[[SourceGauges], float | None]], ...] = (
    (
        "patchstore_backlog_images",
        "Images that wait to be computed, or are being computed.",
        lambda source: source.waiting,
    ),
    (
        "patchstore_backlog_oldest_age_seconds",
        "Since the longest waiting image was queued, or last given back; 0 without any.",
        lambda source: source.oldest_s,
    ),
    (
        "patchstore_last_run_start_timestamp_seconds",
        "When the last run began.",
        lambda source: source.started,
    ),
    (
        "patchstore_last_success_timestamp_seconds",
        "When the last run ended that went through, with or without failed images.",
        lambda source: source.succeeded,
    ),
)

_OF_SPEC: tuple[tuple[str, str, Callable[[SpecGauges], float | None]], ...] = (
    ("patchstore_stored_images", "Images with vectors.", lambda spec: spec.images),
    ("patchstore_stored_patches", "Vectors.", lambda spec: spec.patches),
    (
        "patchstore_expired_leases",
        "Images claimed by a run that is dead or has lost them.",
        lambda spec: spec.expired_leases,
    ),
    (
        "patchstore_table_bytes",
        "Size of the vectors' table, without indexes.",
        lambda spec: spec.table_bytes,
    ),
    (
        "patchstore_index_bytes",
        "Size of all indexes of the vectors' table.",
        lambda spec: spec.index_bytes,
    ),
    (
        "patchstore_indexed",
        "Whether searches have an index; without one they are exact.",
        lambda spec: spec.indexed,
    ),
    (
        "patchstore_invalid_indexes",
        "Indexes that a stopped build has left behind.",
        lambda spec: spec.invalid_indexes,
    ),
    (
        "patchstore_audit_recall_ratio",
        "Recall of the index at 10 neighbours, by the last audit.",
        lambda spec: spec.recall,
    ),
    (
        "patchstore_audit_timestamp_seconds",
        "When the last audit ended.",
        lambda spec: spec.audited,
    ),
)


class StoreMetrics(Collector):
    """The store's gauges as a collector of prometheus_client.

    On a connection of its own: questions that wait for one must not hide that they wait.
    """

    def __init__(self, url: URL) -> None:
        self._engine = make_engine(
            url,
            vectors=False,
            connections=1,
            statement_timeout_s=TIMEOUT_S,
            lock_timeout_s=TIMEOUT_S / 2,  # a store that is locked is no slow one
            wait_s=TIMEOUT_S,
        )
        self._lock = threading.Lock()
        self._reader = ThreadPoolExecutor(1, "gauges")
        self._reading: Future[None] | None = None
        self._known: StoreGauges | None = None
        self._answers = False
        self._expires = 0.0

    def close(self) -> None:
        """Closes the connection."""
        self._reader.shutdown(wait=False, cancel_futures=True)
        self._engine.dispose()

    def collect(self) -> Iterator[Metric]:
        """`patchstore_up`, and the rest where the database answers."""
        answers, gauges = self._read()
        yield _gauge("patchstore_up", "Whether the database answers.", (), [(answers,)])
        if gauges is not None:
            yield from _of_sources(gauges)
            yield from _of_specs(gauges)
            yield from _of_store(gauges)

    def _read(self) -> tuple[bool, StoreGauges | None]:
        """Whether the database answers, and what it last said."""
        with self._lock:  # one reads, however many ask
            if self._reading is None and time.monotonic() >= self._expires:
                self._reading = self._reader.submit(self._refresh)
            reading = self._reading
        if reading is not None:
            try:
                reading.result(ANSWER_S)
            except TimeoutError:
                return False, None
        return self._answers, self._known

    def _refresh(self) -> None:
        begun, answers = time.monotonic(), True
        try:
            self._known = read_gauges(self._engine)
        except StoreTimeout as error:  # while millions wait; the last numbers stand
            logger.warning("the metrics of the store are late: %s", error)
        except StoreError as error:  # the service's own numbers are told all the same
            logger.warning("no metrics of the store: %s", error)
            self._known, answers = None, False
        finally:
            now = time.monotonic()
            taken = min(now - begun, TIMEOUT_S) if answers else 0.0  # beyond that it was no work
            self._answers, self._expires = answers, now + max(KEPT_S, taken / SHARE)
            self._reading = None


def _of_sources(gauges: StoreGauges) -> Iterator[Metric]:
    rows = gauges.sources
    for name, documentation, value in _OF_SOURCE:
        yield _gauge(
            name, documentation, ("source", "spec"), ((r.source, r.spec, value(r)) for r in rows)
        )
    yield _gauge(
        "patchstore_last_run_state",
        "1 for the state of the last run, 0 for the others.",
        ("source", "spec", "state"),
        ((r.source, r.spec, state, r.state == state) for r in rows for state in RUN_STATES),
    )
    yield _gauge(
        "patchstore_unreadable_files",
        "Files that could not be opened when last seen.",
        ("source",),
        gauges.unreadable.items(),
    )


def _of_specs(gauges: StoreGauges) -> Iterator[Metric]:
    for name, documentation, value in _OF_SPEC:
        yield _gauge(name, documentation, ("spec",), ((r.spec, value(r)) for r in gauges.specs))
    yield _gauge(
        "patchstore_failed_images",
        "Images that failed, by the kind of reason.",
        ("spec", "reason"),
        ((*key, images) for key, images in gauges.failed.items()),
    )
    yield _gauge(
        "patchstore_index_build_ratio",
        "How much of its phase an index build has done.",
        ("spec", "phase"),
        ((build.spec, build.phase, build.share) for build in gauges.builds),
    )


def _of_store(gauges: StoreGauges) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "patchstore_images_leased",
        "Images given to a run to compute, each time counted.",
        value=gauges.leased,
    )
    yield CounterMetricFamily(
        "patchstore_patches_written", "Vectors written.", value=gauges.written
    )


def _gauge(name: str, documentation: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    """A gauge of rows that end in their value; where that is None there is none."""
    family = GaugeMetricFamily(name, documentation, labels=labels)
    for *values, value in rows:
        if value is not None:
            family.add_metric(values, float(value))
    return family
