"""Which boxes an image is cut into: a pure function of its size and the geometry of a spec.

Edge policies, for an image of length L, windows of length P and a step S along one axis:

- ``drop``: 0, S, 2S, ... as long as the window fits, as `skimage.util.view_as_windows` does.
- ``cover``: the same, and a last window shifted inward to L - P where pixels are left over.
- ``pad``: 0, S, 2S, ... until every pixel is covered; the last window may reach beyond the edge.

Under ``cover`` and ``pad`` an axis shorter than the window gets one window at 0. What reaches
beyond the image is filled by reflection when the pixels are cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import ImageTooSmall, SpecError

EdgePolicy = Literal["drop", "cover", "pad"]


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """The patches of one image, row-major, one scale after the other.

    Attributes:
        width: of the upright image, in pixels.
        height: of the upright image, in pixels.
        windows: int32 (N, 4), x, y, width, height of what is cut. May reach beyond the right and
            bottom edges, never beyond the left and top ones.
        boxes: int32 (N, 4), the windows clipped to the image; never empty.
        scales: float32 (N,), the scale each patch is seen at.
    """

    width: int
    height: int
    windows: NDArray[np.int32]
    boxes: NDArray[np.int32]
    scales: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, rows: Sequence[int] | NDArray[np.int_]) -> PatchGrid:
        """Some of the patches, in this order."""
        return replace(
            self, windows=self.windows[rows], boxes=self.boxes[rows], scales=self.scales[rows]
        )


def make_grid(
    width: int,
    height: int,
    *,
    patch_size: int,
    stride: int,
    edge: EdgePolicy,
    scales: Sequence[float] = (1.0,),
) -> PatchGrid:
    """Lay the patches of an image of `width` x `height` pixels.

    A scale s below 1 sees more of the image: its windows have the side `patch_size` / s and the
    step `stride` / s, in rounded original pixels; they are resized to the patch when cut.

    Returns:
        At least one patch. Under ``drop``, a scale whose window does not fit gives none.

    Raises:
        ImageTooSmall: under ``drop``, when no window of any scale fits.
        SpecError: when the geometry itself cannot work.
    """
    check_geometry(patch_size, stride, edge, scales)
    windows, seen_at = [], []
    for scale in scales:
        side, step = _at_scale(patch_size, stride, scale)
        xs, ys = _positions(width, side, step, edge), _positions(height, side, step, edge)
        at = np.empty((len(ys), len(xs), 4), dtype=np.int32)
        at[..., 0], at[..., 1], at[..., 2:] = xs[None, :], ys[:, None], side
        windows.append(at.reshape(-1, 4))
        seen_at.append(np.full(at.shape[0] * at.shape[1], scale, dtype=np.float32))
    all_windows = np.concatenate(windows)
    if not len(all_windows):
        raise ImageTooSmall(_too_small(width, height, patch_size, scales))
    return PatchGrid(
        width, height, all_windows, _clip(all_windows, width, height), np.concatenate(seen_at)
    )


class Geometry(Protocol):
    """What of a spec a grid depends on."""

    @property
    def patch_size(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def edge(self) -> EdgePolicy: ...
    @property
    def scales(self) -> tuple[float, ...]: ...


def spec_grid(spec: Geometry, width: int, height: int) -> PatchGrid:
    """The grid that a spec lays over an image of this size; see `make_grid`."""
    return make_grid(
        width,
        height,
        patch_size=spec.patch_size,
        stride=spec.stride,
        edge=spec.edge,
        scales=spec.scales,
    )


def window_of(spec: Geometry, width: int, height: int, box: Sequence[int]) -> Sequence[int]:
    """What a spec cuts for a box of an image of this size, as `PatchGrid` has boxes and windows.

    A box that is the part inside the image of one of the spec's windows was cut with what lies
    beyond, which is reflected; of several windows, the one of the scale nearest to 1. Any other box
    is cut as it is.
    """
    x, y, w, h = box
    for scale in sorted(spec.scales, key=lambda scale: abs(math.log(scale))):
        side, step = _at_scale(spec.patch_size, spec.stride, scale)
        inside = min(side, width - x), min(side, height - y)
        if (
            (w, h) == inside != (side, side)
            and x in _positions(width, side, step, spec.edge)
            and y in _positions(height, side, step, spec.edge)
        ):
            return x, y, side, side
    return box


def count_patches(
    width: int,
    height: int,
    *,
    patch_size: int,
    stride: int,
    edge: EdgePolicy,
    scales: Sequence[float] = (1.0,),
) -> int:
    """Count what `make_grid` would lay, without laying it; 0 where it raises `ImageTooSmall`.

    Raises:
        SpecError: when the geometry itself cannot work.
    """
    check_geometry(patch_size, stride, edge, scales)
    total = 0
    for scale in scales:
        side, step = _at_scale(patch_size, stride, scale)
        total += _count(width, side, step, edge) * _count(height, side, step, edge)
    return total


def check_geometry(patch_size: int, stride: int, edge: str, scales: Sequence[float]) -> None:
    """Refuse a geometry that cannot work for any image.

    Raises:
        SpecError: naming the value and what is expected.
    """
    if patch_size < 1:
        raise SpecError(f"patch_size is {patch_size}; give at least 1 pixel")
    if stride < 1:
        raise SpecError(f"stride is {stride}; give at least 1 pixel")
    if edge not in get_args(EdgePolicy):
        raise SpecError(f"edge is {edge!r}; give one of {', '.join(get_args(EdgePolicy))}")
    if edge != "drop" and stride > patch_size:
        raise SpecError(
            f"stride {stride} is larger than patch_size {patch_size}, which leaves gaps, but "
            f"edge {edge!r} promises to cover every pixel; give a stride of at most {patch_size}, "
            "or the edge 'drop'"
        )
    _check_scales(patch_size, scales)


def _check_scales(patch_size: int, scales: Sequence[float]) -> None:
    if not scales:
        raise SpecError("scales is empty; give at least one, such as 1.0")
    for scale in scales:
        if not (math.isfinite(scale) and scale > 0):
            raise SpecError(f"scale is {scale}; give a finite number above 0")
        if not 1 <= round(patch_size / scale) < 2**31:
            raise SpecError(
                f"scale {scale} makes of patch_size {patch_size} a window of "
                f"{patch_size / scale:g} pixels; give a scale nearer to 1"
            )
    if len(set(map(np.float32, scales))) < len(scales):  # as which they are stored
        raise SpecError(f"scales are {tuple(scales)}; give each scale once")


def _at_scale(patch_size: int, stride: int, scale: float) -> tuple[int, int]:
    return round(patch_size / scale), max(1, round(stride / scale))


def _positions(length: int, side: int, step: int, edge: EdgePolicy) -> NDArray[np.int64]:
    at = np.arange(_count(length, side, step, edge), dtype=np.int64) * step
    if edge == "cover" and len(at):
        at[-1] = min(at[-1], max(length - side, 0))
    return at


def _count(length: int, side: int, step: int, edge: EdgePolicy) -> int:
    if length < side:
        return 0 if edge == "drop" or length < 1 else 1
    steps = (length - side) // step
    left_over = edge != "drop" and steps * step < length - side
    return steps + 1 + int(left_over)


def _clip(windows: NDArray[np.int32], width: int, height: int) -> NDArray[np.int32]:
    boxes = windows.copy()
    np.minimum(boxes[:, 2], width - boxes[:, 0], out=boxes[:, 2])
    np.minimum(boxes[:, 3], height - boxes[:, 1], out=boxes[:, 3])
    return boxes


def _too_small(width: int, height: int, patch_size: int, scales: Sequence[float]) -> str:
    side = min(_at_scale(patch_size, 1, scale)[0] for scale in scales)
    return (
        f"the image is {width} x {height} pixels, smaller than the patch of {side} x {side}; use a "
        "spec with a smaller patch, or with the edge 'cover' or 'pad'"
    )
