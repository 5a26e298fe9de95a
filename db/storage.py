"""How much room vectors take, for plans made before they exist."""

from .metric import MAX_INDEXED_DIM
from .specs import INLINE_DIM

PAGE = 8192
USABLE = PAGE - 24
TUPLE = 24 + 4 + 48  # header, line pointer, coordinates and keys
BTREES = 80  # the primary key and the unique key, a row
# HNSW: the halfvec and its neighbours (m = 16), as measured at 384 to 2048 dimensions.
NEIGHBOURS = 340
# Of a row of the graph while it is built (m = 16), besides the halfvec: as measured at 64, 512 and
# 2048 dimensions. The rest is for rows that come while it is planned, and what workers share.
BUILD_ROW = 720
BUILD_SLACK = 1.1
BUILD_SHARED = 4 << 20


def estimate_bytes(dim: int, rows: int, *, index_threshold: int) -> int:
    """Bytes of `rows` vectors in Postgres: table, keys, and the HNSW index where there is one."""
    vector = 8 + 4 * dim
    # Rows that stay inline fill whole pages; others are cut into pieces of about 2 kB.
    heap = PAGE / max(1, USABLE // (TUPLE + vector)) if dim <= INLINE_DIM else TUPLE + vector * 1.05
    index = 0.0
    if rows > index_threshold and dim <= MAX_INDEXED_DIM:
        element = 2 * dim + NEIGHBOURS
        index = PAGE / max(1, USABLE // element) if element <= USABLE else 2.0 * PAGE
    return round(rows * (heap + BTREES + index))


def estimate_build_bytes(dim: int, rows: int) -> int:
    """Memory that holds the whole graph of `rows` vectors while their HNSW index is built."""
    return round(rows * (2 * dim + BUILD_ROW) * BUILD_SLACK) + BUILD_SHARED
