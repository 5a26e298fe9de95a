"""Which precision is fast and still gives the vectors of float32: measured, not believed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arrays import DecodedImage, PatchFeatures
from .backbone import Backbone
from .device import FLOAT32, candidates, choose_device, device_kind
from .features import FeatureExtractor
from .spec import FeatureSpec

__all__ = ["PrecisionCheck", "candidates", "check_precision", "device_kind"]

MIN_COSINE = 0.999


@dataclass(frozen=True)
class PrecisionCheck:
    """What `auto` chose, and why.

    Attributes:
        device_kind: that it holds for, see `device_kind`.
        precision: the chosen one.
        min_cosine: of the chosen one's vectors to float32's, over the sample; 1.0 for float32.
        speedup: of the chosen one over float32, in patches a second.
        detail: every candidate with its cosine and speed, in one line.
    """

    device_kind: str
    precision: str
    min_cosine: float
    speedup: float
    detail: str


@dataclass(frozen=True, eq=False)
class _Measured:
    precision: str
    vectors: list[NDArray[np.float32] | None]
    patches_per_s: float


def check_precision(
    spec: FeatureSpec, backbone: Backbone, sample: Sequence[DecodedImage], device: str = "auto"
) -> PrecisionCheck:
    """Choose the fastest precision whose vectors agree with float32's.

    It must be faster than float32 and reach a cosine of 0.999 in every row of the sample. Takes
    about one pass over the sample a candidate, and one for float32.

    Raises:
        DeviceError: when the device is not there.
    """
    target = choose_device(device)
    kind, names = device_kind(target), candidates(target)
    if not names or not sample:
        reason = "no patch to compare by" if names else "no faster precision on this device"
        return PrecisionCheck(kind, FLOAT32, 1.0, 1.0, f"{kind}: float32 ({reason})")
    truth = _measure(spec, backbone, sample, str(target), FLOAT32)
    chosen, cosine, said = truth, 1.0, [f"float32 {truth.patches_per_s:.0f} patches/s"]
    for name in names:
        found = _measure(spec, backbone, sample, str(target), name)
        agreed = _lowest_cosine(truth.vectors, found.vectors)
        said.append(f"{name} {found.patches_per_s:.0f} patches/s, lowest cosine {agreed:.6f}")
        if agreed >= MIN_COSINE and found.patches_per_s > chosen.patches_per_s:
            chosen, cosine = found, agreed
    return PrecisionCheck(
        kind,
        chosen.precision,
        cosine,
        chosen.patches_per_s / truth.patches_per_s,
        f"{kind}: {chosen.precision} ({'; '.join(said)}; at least {MIN_COSINE} asked for)",
    )


def _measure(
    spec: FeatureSpec, backbone: Backbone, sample: Sequence[DecodedImage], device: str, name: str
) -> _Measured:
    extractor = FeatureExtractor(spec, backbone, device=device, precision=name)
    extractor.extract(sample[:1])  # the first pass allocates and chooses kernels
    start = time.perf_counter()
    results = extractor.extract(sample)
    seconds = time.perf_counter() - start
    vectors = [found.vectors if isinstance(found, PatchFeatures) else None for found in results]
    return _Measured(name, vectors, sum(len(image.grid) for image in sample) / seconds)


def _lowest_cosine(
    truth: Sequence[NDArray[np.float32] | None], found: Sequence[NDArray[np.float32] | None]
) -> float:
    """Compare image by image; -1 where only float32 gave vectors, or none did."""
    lowest = [
        float(_cosines(exact, other).min()) if other is not None else -1.0
        for exact, other in zip(truth, found, strict=True)
        if exact is not None
    ]
    return min(lowest, default=-1.0)


def _cosines(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    products: NDArray[np.float64] = (a * b).sum(axis=1)
    cosines: NDArray[np.float64] = products / (
        np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    )
    return cosines
