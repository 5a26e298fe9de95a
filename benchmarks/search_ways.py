"""Ways to ask one question: the SQL functions, bare pgvector, whatever gives distances."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import Vector
from pgvector.psycopg import register_vector
from psycopg.types.json import Jsonb

from db.metric import METRICS

from .search_store import Floats

K = 10
TIE = 1e-6  # distances nearer than this are equal


@dataclass(frozen=True)
class Question:
    """A vector, and options of the SQL functions by name."""

    vector: Floats
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """Distances, closest first, and whether everything in question was compared."""

    distances: list[float]
    exact: bool = False


Ask = Callable[[], Answer]
Prepare = Callable[[Question], Ask]


class Way(Protocol):
    """Something that answers questions. It travels to the processes of the clients: each opens it
    for itself, and asks one question at a time."""

    def open(self) -> AbstractContextManager[Prepare]:
        """A connection of the client's own. What it prepares, a statement's text or a request's
        body, is not what is measured."""


@dataclass(frozen=True)
class Function:
    """`patchstore.similar_patches` or `patchstore.similar_images`."""

    url: str
    spec: str
    name: str = "similar_patches"
    ef_search: int | None = 100
    exact: bool = False

    @contextmanager
    def open(self) -> Iterator[Prepare]:
        """Through psycopg, which prepares what it asks often."""
        with _connection(self.url) as connection:
            yield partial(self._prepare, connection)

    def _prepare(self, connection: "psycopg.Connection[Any]", question: Question) -> Ask:
        options = {
            name: Jsonb(value) if name == "filter" else value
            for name, value in question.options.items()
        }
        options |= {"ef_search": self.ef_search, "exact": self.exact}
        named = "".join(f", {name} => %s" for name in options)
        statement = f"SELECT * FROM patchstore.{self.name}(%s, %s, %s{named})".encode()
        values = (self.spec, Vector(question.vector), K, *options.values())

        def ask() -> Answer:
            rows = connection.execute(statement, values, binary=True).fetchall()
            return Answer([row[8] for row in rows], all(row[10] for row in rows))

        return ask


@dataclass(frozen=True)
class Bare:
    """What pgvector does by itself: the index's order, nothing left out, nothing re-ranked; without
    an `ef_search`, a comparison with every row."""

    url: str
    partition: str
    metric: str
    dim: int
    ef_search: int | None = 100

    @contextmanager
    def open(self) -> Iterator[Prepare]:
        """Through psycopg, which prepares what it asks often."""
        metric = METRICS[self.metric]
        distance = f"(embedding {metric.operator} %s)::float8"
        nearest = distance if self.ef_search is None else metric.order_by(self.dim, "%s")
        statement = (
            f"SELECT id, image_id, x, y, {distance} "
            f"FROM {self.partition} ORDER BY {nearest} LIMIT {K}"
        ).encode()
        with _connection(self.url) as connection:
            if self.ef_search is not None:
                connection.execute(f"SET hnsw.ef_search = {self.ef_search}")

            def ask(vector: Vector) -> Answer:
                rows = connection.execute(statement, (vector, vector), binary=True).fetchall()
                return Answer(sorted(row[4] for row in rows))

            yield lambda question: partial(ask, Vector(question.vector))


@contextmanager
def _connection(url: str) -> Iterator["psycopg.Connection[Any]"]:
    with psycopg.connect(url, autocommit=True) as connection:
        register_vector(connection)
        yield connection


def recall(found: Sequence[Answer], truth: Sequence[Answer]) -> float:
    """The share of the K nearest that were found, averaged over the questions; of several equal
    patches any will do."""
    shares = [
        sum(distance <= exact.distances[-1] + TIE for distance in got.distances[:K])
        / len(exact.distances)
        for got, exact in zip(found, truth, strict=True)
        if exact.distances
    ]
    return float(np.mean(shares))


def times(milliseconds: NDArray[np.float64]) -> list[str]:
    """Median and 99th percentile, as cells of a table."""
    return [f"{np.median(milliseconds):.2f}", f"{np.percentile(milliseconds, 99):.2f}"]
