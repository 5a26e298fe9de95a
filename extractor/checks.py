"""What is asked of pixels before they are computed, and of vectors before they are given away."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import DegenerateFeatures, ImageError
from .grid import PatchGrid
from .spec import FeatureSpec

_LARGEST_HALF = 65504.0  # the store's index is of halves
_ROWS = 4096


def check_pixels(pixels: NDArray[np.uint8], grid: PatchGrid | None = None) -> None:
    """Raise ImageError unless pixels are RGB uint8 (H, W, 3), of their grid's size."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ImageError(
            f"pixels are {pixels.dtype} {pixels.shape}, not RGB uint8 (H, W, 3); use read_image"
        )
    if grid is not None and (grid.height, grid.width) != pixels.shape[:2]:
        raise ImageError(
            f"pixels are {pixels.shape[1]} x {pixels.shape[0]}, their grid is of {grid.width} x "
            f"{grid.height}; make it of the image's own size"
        )


def normalised(vectors: NDArray[np.float32], spec: FeatureSpec) -> NDArray[np.float32]:
    """Scale raw vectors (N, D) as the spec's metric asks, in place.

    Raises:
        DegenerateFeatures: when one of them is not finite, zero, or beyond a half.
    """
    norms = np.empty((len(vectors), 1), dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        # Some at a time: it makes their squares, and a large image has gigabytes of vectors.
        for start in range(0, len(vectors), _ROWS):
            some = slice(start, start + _ROWS)
            norms[some] = np.linalg.norm(vectors[some], axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        kind = "a vector of zeros" if norms[bad[0]] == 0 else "a vector that is not finite"
        raise DegenerateFeatures(
            f"the network gave {kind} for {len(bad)} of {len(vectors)} patches; use the precision "
            "float32 if it was lower, or another layer"
        )
    if spec.metric == "cosine":
        vectors /= norms
    elif (largest := float(max(vectors.max(), -vectors.min()))) > _LARGEST_HALF:
        raise DegenerateFeatures(
            f"the network gave a value of {largest:g}, more than the {_LARGEST_HALF:g} that can be "
            "indexed; use the metric cosine"
        )
    return vectors
