"""Which way of computing is fast and still gives the vectors of float32: measured, not believed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arrays import DecodedImage, PatchFeatures
from .backbone import Backbone
from .device import FLOAT32, ONNX, Way, candidates, choose_device, device_kind
from .errors import DeviceError
from .features import FeatureExtractor
from .onnx import runtime_version
from .spec import FeatureSpec

__all__ = ["PrecisionCheck", "candidates", "check_kind", "check_precision", "device_kind"]

MIN_COSINE = 0.999
# ONNX Runtime saves a third of the time, but exporting a network to it takes 5 s (ResNet-18) and
# more: a run with fewer patches is over before that is repaid.
_REPAYS_FROM_PATCHES = 5000


@dataclass(frozen=True)
class PrecisionCheck:
    """What `auto` chose, and why.

    Attributes:
        kind: what it holds for, see `check_kind`.
        way: the chosen one.
        min_cosine: of the chosen one's vectors to float32's, over the sample; 1.0 for float32.
        speedup: of the chosen one over float32, in patches a second.
        detail: every candidate with its cosine and speed, in one line.
    """

    kind: str
    way: Way
    min_cosine: float
    speedup: float
    detail: str


@dataclass(frozen=True, eq=False)
class _Measured:
    way: Way
    vectors: list[NDArray[np.float32] | None]
    patches_per_s: float


def check_kind(spec: FeatureSpec, device: str = "auto", patches: int | None = None) -> str:
    """Name what the outcome of `check_precision` depends on, beside the network."""
    target = choose_device(device)
    names = [device_kind(target)]
    if any(way.runtime == ONNX for way in _ways(spec, device, patches)):
        names.append(runtime_version())
    return ", ".join(names)


def check_precision(
    spec: FeatureSpec,
    backbone: Backbone,
    sample: Sequence[DecodedImage],
    device: str = "auto",
    patches: int | None = None,
) -> PrecisionCheck:
    """Choose the fastest way of computing whose vectors agree with float32's.

    It must be faster than torch in float32 and reach a cosine of 0.999 in every row of the sample.
    Takes about one pass over the sample a candidate, and one for float32.

    Args:
        spec: whose vectors they are.
        backbone: its network.
        sample: a few patches of real images.
        device: that computes.
        patches: how many are to be computed, where that is known: what takes long to set up is
            only considered where it repays.

    Raises:
        DeviceError: when the device is not there.
    """
    kind, ways = check_kind(spec, device, patches), _ways(spec, device, patches)
    if not ways or not sample:
        reason = "no patch to compare by" if ways else "no faster way on this device"
        return PrecisionCheck(kind, Way(), 1.0, 1.0, f"{kind}: float32 ({reason})")
    truth = _measure(spec, backbone, sample, device, Way())
    chosen, cosine, said = truth, 1.0, [f"float32 {truth.patches_per_s:.0f} patches/s"]
    for way in ways:
        try:
            found = _measure(spec, backbone, sample, device, way)
        except DeviceError as error:  # of this network, with this version of a runtime
            said.append(f"{way}: {error}")
            continue
        agreed = _lowest_cosine(truth.vectors, found.vectors)
        said.append(f"{way} {found.patches_per_s:.0f} patches/s, lowest cosine {agreed:.6f}")
        if agreed >= MIN_COSINE and found.patches_per_s > chosen.patches_per_s:
            chosen, cosine = found, agreed
    return PrecisionCheck(
        kind,
        chosen.way,
        cosine,
        chosen.patches_per_s / truth.patches_per_s,
        f"{kind}: {chosen.way} ({'; '.join(said)}; at least {MIN_COSINE} asked for)",
    )


def _ways(spec: FeatureSpec, device: str, patches: int | None) -> list[Way]:
    """What is worth a try, but torch in float32, which always works."""
    target = choose_device(device)
    ways = [Way(precision) for precision in candidates(target)]
    repays = patches is None or patches >= _REPAYS_FROM_PATCHES
    # With bf16 instructions torch is faster than ONNX Runtime, which has no kernels for them.
    if target.type == "cpu" and not ways and repays and spec.mode == "exact":
        ways.append(Way(FLOAT32, ONNX))
    return ways


def _measure(
    spec: FeatureSpec, backbone: Backbone, sample: Sequence[DecodedImage], device: str, way: Way
) -> _Measured:
    extractor = FeatureExtractor(
        spec, backbone, device=device, precision=way.precision, runtime=way.runtime
    )
    extractor.extract(sample[:1])  # the first pass allocates and chooses kernels
    start = time.perf_counter()
    results = extractor.extract(sample)
    seconds = time.perf_counter() - start
    vectors = [found.vectors if isinstance(found, PatchFeatures) else None for found in results]
    return _Measured(way, vectors, sum(len(image.grid) for image in sample) / seconds)


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
