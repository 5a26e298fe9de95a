"""Ways to ask one question: the SQL functions, bare pgvector, whatever gives distances."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import Vector
from pgvector.psycopg import register_vector
from psycopg import sql
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


Ask = Callable[[Question], Answer]


class Way(Protocol):
    """Something that answers questions. It travels to the processes of the clients: each opens it
    for itself, and asks one question at a time."""

    def open(self) -> AbstractContextManager[Ask]:
        """A connection of the client's own."""


@dataclass(frozen=True)
class Function:
    """`patchstore.similar_patches` or `patchstore.similar_images`."""

    url: str
    spec: str
    name: str = "similar_patches"
    ef_search: int | None = 100
    exact: bool = False

    @contextmanager
    def open(self) -> Iterator[Ask]:
        """Through psycopg, which prepares what it asks often."""
        with _connection(self.url) as connection:
            yield lambda question: self._ask(connection, question)

    def _ask(self, connection: "psycopg.Connection[Any]", question: Question) -> Answer:
        options = {
            name: Jsonb(value) if name == "filter" else value
            for name, value in question.options.items()
        }
        options |= {"ef_search": self.ef_search, "exact": self.exact}
        rows = connection.execute(
            sql.SQL("SELECT * FROM patchstore.{}(%s, %s, %s{})").format(
                sql.Identifier(self.name),
                sql.SQL("").join(
                    sql.SQL(", {} => %s").format(sql.Identifier(name)) for name in options
                ),
            ),
            (self.spec, Vector(question.vector), K, *options.values()),
            binary=True,
        ).fetchall()
        return Answer([row[8] for row in rows], all(row[10] for row in rows))


@dataclass(frozen=True)
class Bare:
    """What pgvector does by itself: the index's order, nothing left out, nothing re-ranked."""

    url: str
    partition: str
    metric: str
    dim: int
    ef_search: int = 100

    @contextmanager
    def open(self) -> Iterator[Ask]:
        """Through psycopg, which prepares what it asks often."""
        metric = METRICS[self.metric]
        statement = (
            f"SELECT id, image_id, x, y, (embedding {metric.operator} %s)::float8 "
            f"FROM {self.partition} ORDER BY {metric.order_by(self.dim, '%s')} LIMIT {K}"
        )
        with _connection(self.url) as connection:
            connection.execute(f"SET hnsw.ef_search = {self.ef_search}")

            def ask(question: Question) -> Answer:
                vector = Vector(question.vector)
                rows = connection.execute(statement, (vector, vector), binary=True).fetchall()
                return Answer(sorted(row[4] for row in rows))

            yield ask


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
