"""What can be done with ranked hits: overlapping ones merged, images ranked by arrangement."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from db.search import Box, Hit

OVERLAP = 0.3  # intersection over union from which on two hits show the same thing
SCALE_TOLERANCE = 0.5  # octaves
MOST_MATCHES = 1_000  # of one image, the nearest: each is compared with each


def merge_overlaps(hits: Sequence[Hit], k: int, *, overlap: float = OVERLAP) -> list[Hit]:
    """The nearest hits, of which no two of one image overlap by more than `overlap`.

    Greedy non-maximum suppression: a hit that overlaps a nearer one of its image is left out.

    Args:
        hits: closest first.
        k: how many to keep at most.
        overlap: intersection over union, 0 to 1.
    """
    kept: list[Hit] = []
    of_image: defaultdict[int, list[int]] = defaultdict(list)  # rows of `boxes` that were kept
    boxes = np.array([hit.box for hit in hits], dtype=np.float64).reshape(-1, 4)
    for row, hit in enumerate(hits):
        if len(kept) == k:
            break
        nearer = of_image[hit.image_id]
        if not nearer or intersection_over_union(boxes[row], boxes[nearer]).max() <= overlap:
            nearer.append(row)
            kept.append(hit)
    return kept


def intersection_over_union(box: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """How much a box, (4,), shares with others, (..., 4): 0 for nothing, 1 where they are equal."""
    one, many = np.asarray(box, dtype=np.float64), np.asarray(others, dtype=np.float64)
    ends = np.minimum(one[:2] + one[2:], many[..., :2] + many[..., 2:])
    shared = np.maximum(ends - np.maximum(one[:2], many[..., :2]), 0).prod(axis=-1)
    shares: NDArray[np.float64] = shared / (one[2:].prod() + many[..., 2:].prod(axis=-1) - shared)
    return shares


@dataclass(frozen=True)
class _Matches:
    """The hits of one image: which part of the question each answers, and where that would be.

    Attributes:
        parts: int64 (M,), the number of the question's patch.
        places: float64 (M, 2), where the question's origin would lie if this match were right.
        scales: float64 (M,), how much larger the image shows it than the question does.
    """

    hits: list[Hit]
    parts: NDArray[np.int64]
    places: NDArray[np.float64]
    scales: NDArray[np.float64]


def rank_by_arrangement(
    parts: Sequence[Box], answers: Sequence[Sequence[Hit]], k: int, *, tolerance: float
) -> list[Hit]:
    """Images ranked by how many patches of a region they show in the same arrangement.

    Each hit of a patch says where in its image the whole region would be, and how large. The place
    that most patches of the region agree on wins: a vote for a similarity transform without
    rotation, as in the generalised Hough transform (Ballard 1981,
    https://doi.org/10.1016/0031-3203(81)90009-1), every match being a hypothesis.

    Args:
        parts: the boxes of the region's patches.
        answers: the hits of each patch, closest first.
        k: how many images.
        tolerance: how far apart, in pixels of the question, places are that agree; a stride, for
            that is how far the nearest stored patch can be from the right place on both sides.

    Returns:
        One hit an image, most agreeing patches first, then the nearest: `matched` of them agree,
        each with a stored patch of its own, `box` is around them, `distance` their mean.
    """
    found: defaultdict[int, list[tuple[int, Hit]]] = defaultdict(list)
    for part, hits in enumerate(answers):
        for hit in hits:
            found[hit.image_id].append((part, hit))
    nearest = (sorted(image, key=_distance)[:MOST_MATCHES] for image in found.values())
    best = [_best_place(_matches(parts, image), tolerance) for image in nearest]
    return sorted(best, key=lambda hit: (-(hit.matched or 0), hit.distance, hit.image_id))[:k]


def _distance(match: tuple[int, Hit]) -> float:
    return match[1].distance


def _matches(parts: Sequence[Box], found: Sequence[tuple[int, Hit]]) -> _Matches:
    numbers = np.array([part for part, _ in found])
    asked = np.array([parts[part] for part, _ in found], dtype=np.float64)
    boxes = np.array([hit.box for _, hit in found], dtype=np.float64)
    # By area: a box that is clipped at the image's edge loses one side only.
    scales = np.sqrt(boxes[:, 2:].prod(axis=1) / asked[:, 2:].prod(axis=1))
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    places = centres - (asked[:, :2] + asked[:, 2:] / 2) * scales[:, None]
    return _Matches([hit for _, hit in found], numbers, places, scales)


def _one_to_one(matches: _Matches, nearest_first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of matches those that count: each patch of the question, and each stored one, counts once.

    Where stored patches lie far apart, one of them may be the nearest of all of the question's.
    """
    numbers = matches.parts[nearest_first].tolist()
    left = set(numbers)
    chosen: list[int] = []
    stored: set[int] = set()
    for at, part in zip(nearest_first.tolist(), numbers, strict=True):
        patch = matches.hits[at].patch_id
        if part in left and patch not in stored:
            chosen.append(at)
            left.remove(part)
            stored.add(patch)
            if not left:
                break
    return np.array(chosen, dtype=np.int64)


def _best_place(matches: _Matches, tolerance: float) -> Hit:
    octaves = np.log2(matches.scales)
    distances = np.array([hit.distance for hit in matches.hits])
    order = np.argsort(distances, kind="stable")
    best, best_key = order[:1], (0, math.inf)
    for at in range(len(matches.hits)):
        near = np.abs(matches.places - matches.places[at]).max(axis=1)
        agree = (near <= tolerance * matches.scales[at]) & (
            np.abs(octaves - octaves[at]) <= SCALE_TOLERANCE
        )
        chosen = _one_to_one(matches, order[agree[order]])
        key = (-len(chosen), float(distances[chosen].mean()))
        if key < best_key:
            best, best_key = chosen, key
    hits: list[Hit] = [matches.hits[i] for i in best.tolist()]
    nearest: Hit = min(hits, key=lambda hit: (hit.distance, hit.patch_id))
    left, top = (min(hit.box[axis] for hit in hits) for axis in (0, 1))
    right, bottom = (max(hit.box[axis] + hit.box[axis + 2] for hit in hits) for axis in (0, 1))
    return replace(
        nearest,
        box=(left, top, right - left, bottom - top),
        distance=float(np.mean([hit.distance for hit in hits])),
        matched=len(hits),
    )
