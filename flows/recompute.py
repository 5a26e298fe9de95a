"""Stored vectors against the same patches, computed again in float32 on the CPU."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from db.audit import SampledPatch
from db.specs import StoredSpec
from extractor.agreement import relative_difference, tolerance
from extractor.arrays import DecodedImage, PatchFeatures
from extractor.device import Way
from extractor.errors import ImageError
from extractor.features import FeatureExtractor
from extractor.grid import PatchGrid, spec_grid
from extractor.images import read_stored
from extractor.settings import ExtractorSettings
from extractor.spec import FeatureSpec

from .models import load

logger = logging.getLogger(__name__)


@dataclass
class Recomputed:
    """How stored vectors compare with recomputed ones.

    Attributes:
        compared: patches.
        skipped: patches whose file is gone, unreadable or another one now.
        largest_difference: relative, over all compared ones.
        differing: patches beyond the tolerance, and those that would not be cut any more.
    """

    compared: int = 0
    skipped: int = 0
    largest_difference: float = 0.0
    differing: list[SampledPatch] = field(default_factory=list)


def recompute(stored: StoredSpec, sample: Sequence[SampledPatch]) -> Recomputed:
    """Computes every patch of the sample again, image by image. Raises WeightsError."""
    spec = FeatureSpec.model_validate(stored.recipe)
    settings = ExtractorSettings()
    extractor = FeatureExtractor(
        spec,
        load(stored),
        device="cpu",
        batch_size=settings.batch_size,
        dense_tile=settings.dense_tile,
    )
    images: dict[int, list[SampledPatch]] = defaultdict(list)
    for patch in sample:
        images[patch.image_id].append(patch)
    result = Recomputed()
    for patches in images.values():
        pixels = _read(patches[0], settings.max_pixels)
        if pixels is None:
            result.skipped += len(patches)
        else:
            _compare(result, extractor, pixels, patches)
    return result


def _read(patch: SampledPatch, max_pixels: int) -> NDArray[np.uint8] | None:
    """The image as it was when its vectors were computed; None where it is not there any more."""
    try:
        return read_stored(patch.uri, patch.sha256, max_pixels=max_pixels)
    except (OSError, ImageError) as error:
        logger.info("%s: %s", patch.uri, error)
        return None


def _compare(
    result: Recomputed,
    extractor: FeatureExtractor,
    pixels: NDArray[np.uint8],
    patches: Sequence[SampledPatch],
) -> None:
    grid = spec_grid(extractor.spec, pixels.shape[1], pixels.shape[0])
    rows = _rows(grid)
    known = [p for p in patches if (p.scale, p.box) in rows]
    result.differing += [p for p in patches if (p.scale, p.box) not in rows]
    result.compared += len(patches)
    if not known:
        return
    chosen = grid.take([rows[p.scale, p.box] for p in known])
    (features,) = extractor.extract([DecodedImage(pixels, chosen)])
    if not isinstance(features, PatchFeatures):
        result.differing += known
        return
    for patch, fresh in zip(known, features.vectors, strict=True):
        difference = relative_difference(patch.vector, fresh)
        result.largest_difference = max(result.largest_difference, difference)
        way = Way.parse(patch.precision) if patch.precision else None
        if not difference <= tolerance(way, extractor.spec.mode):
            result.differing.append(patch)


def _rows(grid: PatchGrid) -> dict[tuple[float, tuple[int, ...]], int]:
    boxes = map(tuple, grid.boxes.tolist())
    return {key: row for row, key in enumerate(zip(grid.scales.tolist(), boxes, strict=True))}
