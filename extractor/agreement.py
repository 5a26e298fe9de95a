"""How far a stored vector may be from the same patch, computed again in float32 on the CPU.

A rounding changes a value by up to the unit roundoff u of its type: 2^-8 in bf16, 2^-11 in fp16,
2^-24 in float32. In the deepest networks some `ROUNDINGS` follow one another; their errors point in
random directions and add up like a random walk: sqrt(ROUNDINGS) u = 32 u. (Measured over patches of
photographs in bf16: 1 u for a ResNet-18, 8 u for a SqueezeNet; up to 36 u for a MobileNet V2, which
`auto` leaves in float32.)

In float32 that is not all: sums of up to `TERMS` products are rounded, too, and other kernels add
in another order; in the lower precisions sums are made in float32. What the choice of a precision
lets pass, see `extractor.precision`, is right in any case. A dense vector may also have lain in
another tile, which moves it by up to `TILE`; and MNN saves arithmetic at the cost of more rounding,
up to `MNN_ROUNDING` (measured: 4e-7 for a SqueezeNet, 2e-5 for a ResNet-18, 1e-4 for a VGG-11, 3e-4
for a ViT-B/16).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .device import FLOAT32, MNN, Way
from .precision import MIN_COSINE
from .spec import Mode

ROUNDINGS = 1024  # weights, sums, norm and activation of each layer; DenseNet-201 is the deepest
TERMS = 25_088  # of one output of VGG's first fully connected layer, the widest
TILE = 1e-3
MNN_ROUNDING = 1e-3

_ROUNDOFF = {"bf16": 2.0**-8, "fp16": 2.0**-11, FLOAT32: math.sqrt(TERMS) * 2.0**-24}


def tolerance(way: Way | None, mode: Mode) -> float:
    """The largest relative difference of a vector computed in this way; None: in any."""
    precision = way.precision if way else "bf16"
    rounding = math.sqrt(ROUNDINGS) * _ROUNDOFF[precision]
    if precision != FLOAT32:
        rounding = max(rounding, math.sqrt(2 * (1 - MIN_COSINE)))
    elif way and way.runtime == MNN:
        rounding = max(rounding, MNN_ROUNDING)
    return max(rounding, TILE) if mode == "dense" else rounding


def relative_difference(stored: NDArray[np.float32], fresh: NDArray[np.float32]) -> float:
    """The length of the difference of two vectors (D,), as a share of the second one's length.

    Of unit vectors it is d where their cosine is 1 - d² / 2.
    """
    exact = fresh.astype(np.float64)
    return float(np.linalg.norm(stored - exact) / np.linalg.norm(exact))
