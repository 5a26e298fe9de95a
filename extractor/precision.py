"""Which way of computing is fast and still gives the vectors of float32: measured, not believed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from .arrays import DecodedImage, PatchFeatures
from .backbone import Backbone
from .compiled import compiler_version
from .device import (
    COMPILED,
    TORCH,
    Way,
    candidates,
    choose_device,
    device_kind,
    exported_ways,
)
from .errors import ImageError, one_line
from .features import FeatureExtractor
from .sessions import runtime_version
from .spec import FeatureSpec

__all__ = ["PrecisionCheck", "candidates", "check_kind", "check_precision", "device_kind"]

MIN_COSINE = 0.999
_ROUNDS = 3
# Other runtimes save a third of the time in float32 and half in bf16, but exporting a network takes
# 5 s (ResNet-18) and more, and opening what was exported before half a second: a run with fewer
# patches is over before that is repaid.
_EXPORT_REPAYS_FROM = 5000
_OPENING_REPAYS_FROM = 500
# Compiling takes as long as some 2,000 patches in bf16 (ResNet-18: 7 s, ResNet-50: 13 s), and gains
# a sixth of the time. On a GPU that is an estimate: 40 s of 3,000 patches.
_COMPILING_REPAYS_FROM = {"cpu": 20_000, "cuda": 300_000}


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


@dataclass(eq=False)
class _Entrant:
    extractor: FeatureExtractor
    cosine: float
    seconds: float = math.inf  # of the fastest pass over the sample


def check_kind(
    spec: FeatureSpec, backbone: Backbone, device: str = "auto", patches: int | None = None
) -> str:
    """Name what the outcome of `check_precision` depends on, beside the network's weights."""
    target = choose_device(device)
    names = [device_kind(target)]
    for way in _exported_ways(spec, backbone, target, patches):
        names.append(runtime_version(way.runtime))
    if _tries_compiling(spec, target, patches):
        names.append(compiler_version())
    return ", ".join(names)


def check_precision(
    spec: FeatureSpec,
    backbone: Backbone,
    sample: Sequence[DecodedImage],
    device: str = "auto",
    patches: int | None = None,
    go_on: Callable[[], None] = lambda: None,
) -> PrecisionCheck:
    """Choose the fastest way of computing whose vectors agree with float32's.

    It must be faster than torch in float32 and reach a cosine of 0.999 in every row of the sample.
    Takes some four passes over the sample a candidate, and as many for float32.

    Args:
        spec: whose vectors they are.
        backbone: its network.
        sample: a few patches of real images.
        device: that computes.
        patches: how many are to be computed, where that is known: what takes long to set up is
            only considered where it repays.
        go_on: asked before each step of some seconds; what it raises ends the check.

    Raises:
        DeviceError: when the device is not there.
    """
    target, kind = choose_device(device), check_kind(spec, backbone, device, patches)
    ways = [Way(precision) for precision in candidates(target)]
    ways += _exported_ways(spec, backbone, target, patches)
    if not ways or not sample:
        reason = "no patch to compare by"
        if not ways:
            others = ", ".join(way.runtime for way in exported_ways(target))
            reason = (
                f"{patches} patches do not repay exporting the network to {others}"
                if others
                else "no faster way on this device"
            )
        return PrecisionCheck(kind, Way(), 1.0, 1.0, f"{kind}: float32 ({reason})")
    trial = _Trial(spec, backbone, sample, device, go_on)
    for way in ways:
        trial.enter(way)
    best = trial.fastest()
    # Minutes for each precision: only the best one is worth them, where nothing else beat torch.
    if best != Way() and best.runtime == TORCH and _tries_compiling(spec, target, patches):
        trial.enter(Way(best.precision, COMPILED))
        best = trial.fastest()
    return trial.outcome(kind, best)


def _exported_ways(
    spec: FeatureSpec, backbone: Backbone, target: torch.device, patches: int | None
) -> list[Way]:
    """Those of other runtimes, where the work repays the export."""
    least = _OPENING_REPAYS_FROM if backbone.is_exported else _EXPORT_REPAYS_FROM
    repaid = patches is None or patches * _share_computed(spec) >= least
    return exported_ways(target) if repaid else []


def _share_computed(spec: FeatureSpec) -> float:
    """The time of a patch to that of one computed by itself: dense ones share what overlaps."""
    return min(1.0, spec.stride / spec.patch_size) ** 2 if spec.mode == "dense" else 1.0


def _tries_compiling(spec: FeatureSpec, target: torch.device, patches: int | None) -> bool:
    """In float32 it gains a twentieth, and on a CPU less than other runtimes do."""
    if not candidates(target) or spec.mode != "exact":
        return False
    return patches is None or patches >= _COMPILING_REPAYS_FROM[target.type]


class _Trial:
    """Ways of computing compared over a sample."""

    def __init__(
        self,
        spec: FeatureSpec,
        backbone: Backbone,
        sample: Sequence[DecodedImage],
        device: str,
        go_on: Callable[[], None],
    ) -> None:
        """Enters torch in float32, which always works."""
        self._make = partial(FeatureExtractor, spec, backbone, device=device)
        self._sample = sample
        self._go_on = go_on
        truth = self._make()
        self._truth = _vectors(truth.extract(sample))
        self._entrants = {truth.way: _Entrant(truth, 1.0)}
        self._refused: list[str] = []

    def enter(self, way: Way) -> None:
        """Let another way take part where it works and agrees."""
        self._go_on()
        try:
            extractor = self._make(precision=way.precision, runtime=way.runtime)
            cosine = _lowest_cosine(self._truth, _vectors(extractor.extract(self._sample)))
        except Exception as error:  # of this network, with this version of a runtime
            self._refuse(way, error)
            return
        if cosine >= MIN_COSINE:
            self._entrants[way] = _Entrant(extractor, cosine)
        else:
            self._refused.append(f"{way}: lowest cosine {cosine:.6f}")

    def fastest(self) -> Way:
        """Measure all that take part, in turn.

        The fastest pass of each counts: whatever else runs on a machine only makes one slower.
        """
        for _ in range(_ROUNDS):
            for way, entrant in list(self._entrants.items()):
                self._go_on()
                try:
                    taken = _seconds(entrant.extractor, self._sample)
                except Exception as error:
                    if way == Way():  # what always works does not: no way is to blame
                        raise
                    self._refuse(way, error)
                    del self._entrants[way]
                else:
                    entrant.seconds = min(entrant.seconds, taken)
        return min(self._entrants, key=lambda way: self._entrants[way].seconds)

    def _refuse(self, way: Way, error: Exception) -> None:
        self._refused.append(f"{way}: {one_line(error)}")

    def outcome(self, kind: str, best: Way) -> PrecisionCheck:
        """What was chosen, and why."""
        patches = sum(len(image.grid) for image in self._sample)
        said = [
            f"{way} {patches / entrant.seconds:.0f} patches/s, lowest cosine {entrant.cosine:.6f}"
            for way, entrant in self._entrants.items()
        ]
        reasons = "; ".join([*said, *self._refused])
        chosen = self._entrants[best]
        return PrecisionCheck(
            kind,
            best,
            chosen.cosine,
            self._entrants[Way()].seconds / chosen.seconds,
            f"{kind}: {best} ({reasons}; at least {MIN_COSINE} asked for)",
        )


def _seconds(extractor: FeatureExtractor, sample: Sequence[DecodedImage]) -> float:
    begun = time.perf_counter()
    extractor.extract(sample)
    return time.perf_counter() - begun


def _vectors(
    results: Sequence[PatchFeatures | ImageError],
) -> list[NDArray[np.float32] | None]:
    return [found.vectors if isinstance(found, PatchFeatures) else None for found in results]


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
