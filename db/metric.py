"""One object for everything that must agree about a distance.

The operator, the index's operator class and the expression that a query orders by come from here:
pgvector uses an index only where the query repeats the index's own expression.
Operators: https://github.com/pgvector/pgvector#querying
"""

from dataclasses import dataclass

MAX_STORED_DIM = 16_000  # pgvector's `vector`
MAX_INDEXED_DIM = 4_000  # pgvector's HNSW over `halfvec`


@dataclass(frozen=True)
class Metric:
    """A distance: smaller is closer."""

    name: str
    operator: str
    operator_class: str

    def index_key(self, dim: int) -> str:
        """What the HNSW index is built on, with its operator class."""
        return f"({halfvec('embedding', dim)}) {self.operator_class}"

    def order_by(self, dim: int, query: str) -> str:
        """The expression that a query must order by to use the index."""
        return f"{halfvec('embedding', dim)} {self.operator} {halfvec(query, dim)}"


def halfvec(expression: str, dim: int) -> str:
    """`expression` in half precision, as the index stores it."""
    return f"({expression}::halfvec({dim}))"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("cosine", "<=>", "halfvec_cosine_ops"),
        Metric("l2", "<->", "halfvec_l2_ops"),
        Metric("ip", "<#>", "halfvec_ip_ops"),
    )
}
