"""One pass over an image instead of one a patch: overlapping patches share their arithmetic.

The network runs over the image up to its last feature map, in tiles; each box is the average of
the map over exactly that box (a cell that it covers in part counts in part), as in RoIAlign (He et
al., "Mask R-CNN", arXiv:1703.06870) without its sampling points. A patch sees what lies around it,
where a patch by itself sees zeros: these vectors are of a recipe of their own.

Tiles overlap by as much as a cell can see, and only cells that saw no end of a tile count. So the
tiling does not show, and memory depends on the tile, not on the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .field import Field
from .pooling import GEM_EPS, GEM_POWER

Rectangles = tuple[Sequence[NDArray[np.uint8]], Sequence["Pixels"]]
Maps = Callable[[Iterable[Rectangles]], Iterable[Tensor]]
Interval = tuple[int, int]

# A tile as wide as what a cell sees would be computed for that cell alone. In one of 1.5 times that
# width a third of each side counts: what is larger than a tile is computed 9 times at most.
_LEAST_TILE = 1.5


@dataclass(frozen=True)
class Pixels:
    """A rectangle of an image; beyond its right and bottom edges it is reflected."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class _Tile:
    """A part of one image's feature map: what is read for it, and which cells of that count."""

    image: int
    pixels: Pixels
    rows: Interval  # cells of the whole map
    columns: Interval
    skip: tuple[int, int]  # rows and columns of the tile's own map that come before


class _Axis:
    """One side of an image: its boxes as weights of cells.

    What a box weighs is told when it is asked for: of a long side, all boxes by all cells are
    gigabytes.

    Attributes:
        length: of what the network is shown, in pixels: the image's own, unless it needs more.
    """

    def __init__(self, length: int, cells: int, field: Field, boxes: NDArray[np.int64]) -> None:
        """`boxes` are (B, 2), start and length of each box in pixels."""
        self.length = length
        self._edges = field.centre + field.stride * (np.arange(cells + 1) - 0.5)
        self._edges[[0, -1]] = -np.inf, np.inf  # the outermost cells stand for what is beyond them
        self._start, self._end = boxes[:, 0], boxes.sum(axis=1)
        self._first = np.searchsorted(self._edges[1:], self._start, side="right")
        self._stop = np.searchsorted(self._edges[:-1], self._end, side="left")

    def __len__(self) -> int:
        """How many boxes there are."""
        return len(self._start)

    def used(self) -> Interval:
        """The cells that any box needs."""
        return int(self._first.min()), int(self._stop.max())

    def needs(self, first: int, stop: int) -> NDArray[np.bool_]:
        """Which boxes have a share in some cells, (B,)."""
        needed: NDArray[np.bool_] = (self._first < stop) & (self._stop > first)
        return needed

    def part(self, first: int, stop: int) -> tuple[slice, NDArray[np.float32]]:
        """The boxes that have a share in some cells, and these shares, float32 (B, cells).

        The shares of a box in all cells sum to 1.
        """
        boxes = np.flatnonzero(self.needs(first, stop))
        among = slice(int(boxes[0]), int(boxes[-1]) + 1)
        start, end = self._start[among, None], self._end[among, None]
        edges = self._edges[first : stop + 1]
        covered = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
        return among, (covered.clip(min=0) / (end - start)).astype(np.float32)


# Rows and columns of an image, and which of them each of its boxes is.
_Sides = tuple[_Axis, _Axis, NDArray[np.int64], NDArray[np.int64]]


class DensePass:
    """Lays tiles over images and pools boxes out of what the network makes of them."""

    def __init__(
        self,
        pooling: str,
        field: Field,
        smallest: int,
        maps: Maps,
        count: Callable[[int], int],
        tile: int,
        batch_pixels: int,
        device: torch.device,
    ) -> None:
        """Prepares passes.

        Args:
            pooling: how a box becomes a vector; ``gem``, or else the mean.
            field: of the network's cells.
            smallest: side of what the network can be given at least, in pixels.
            maps: batches of rectangles of equal size, each of one image, uint8 (H, W, 3), to the
                maps of each batch, float32 (N, C, h, w), in order.
            count: how many cells a side of so many pixels has.
            tile: side of the largest square that `maps` is given, in pixels; at least `_LEAST_TILE`
                times as wide as what a cell sees.
            batch_pixels: how many pixels of several small rectangles go through at once.
            device: where it computes.
        """
        self._gem = pooling == "gem"
        self._field = field
        self._smallest = smallest
        # What is read for a few cells is large enough for the network, too.
        self._after = max(field.after, -(-smallest // field.stride))
        self._maps = maps
        self._count = count
        self.tile = max(tile, round(_LEAST_TILE * self._seen) * field.stride)
        self._batch_pixels = batch_pixels
        self._device = device

    @property
    def _seen(self) -> int:
        """The cells of a tile that do not count."""
        return self._field.before + self._after

    @property
    def smallest_tile(self) -> int:
        """Below this a tile has no cell that counts."""
        return (self._seen + 1) * self._field.stride

    def shrink(self) -> bool:
        """Halve what goes through at once; False where that is as little as it can be."""
        tile = max(self.tile // 2, min(self.tile, self.smallest_tile))
        fewer = max(self._batch_pixels // 2, 1)
        if (tile, fewer) == (self.tile, self._batch_pixels):
            return False
        self.tile, self._batch_pixels = tile, fewer
        return True

    def pooled(
        self,
        images: Sequence[NDArray[np.uint8]],
        owner: NDArray[np.int64],
        boxes: NDArray[np.int32],
    ) -> Tensor:
        """Pool boxes (N, 4), each inside the image `owner` (N,), to features float32 (N, C)."""
        sides = [self._sides(image, boxes[owner == i]) for i, image in enumerate(images)]
        sums: dict[int, Tensor] = {}
        batches = list(_batches(self._tiles(sides), self._batch_pixels))
        asked = (([images[t.image] for t in tiles], [t.pixels for t in tiles]) for tiles in batches)
        for tiles, maps in zip(batches, self._maps(asked), strict=True):
            if self._gem:
                maps = maps.clamp(min=GEM_EPS).pow(GEM_POWER)
            for tile, own in zip(tiles, maps, strict=True):
                down, across = sides[tile.image][:2]
                if tile.image not in sums:
                    shape = len(down), len(across), len(own)
                    sums[tile.image] = own.new_zeros(shape)
                self._add(sums[tile.image], own, tile, down, across)
        pooled = _chosen([sums[i] for i in range(len(images))], sides, owner)
        return pooled.pow_(1 / GEM_POWER) if self._gem else pooled

    def _sides(self, image: NDArray[np.uint8], boxes: NDArray[np.int32]) -> _Sides:
        """Lays boxes (B, 4) over the cells of both sides of an image."""
        height, width = image.shape[:2]
        axes, which = [], []
        for start, side in ((1, height), (0, width)):
            length = max(side, self._smallest)
            intervals, index = np.unique(
                boxes[:, [start, start + 2]].astype(np.int64), axis=0, return_inverse=True
            )
            axes.append(_Axis(length, self._count(length), self._field, intervals))
            which.append(index.reshape(-1))
        return axes[0], axes[1], which[0], which[1]

    def _tiles(self, sides: Sequence[_Sides]) -> Iterator[_Tile]:
        for image, (down, across, _, _) in enumerate(sides):
            for rows, y, height, skip_rows in self._stretches(down):
                for columns, x, width, skip_columns in self._stretches(across):
                    pixels = Pixels(x, y, width, height)
                    yield _Tile(image, pixels, rows, columns, (skip_rows, skip_columns))

    def _stretches(self, axis: _Axis) -> Iterator[tuple[Interval, int, int, int]]:
        """Cells of one side; from where and how many pixels are read; how many cells come first."""
        stride, before, after = self._field.stride, self._field.before, self._after
        stop, end = axis.used()
        # What is read may end before the image does only where no cell that counts can tell.
        last = min((end + after) * stride, axis.length)
        while (start := stop) < end:
            skip = min(start, before)
            begin = (start - skip) * stride
            stop = end
            if last - begin > self.tile:
                stop = max(start + 1, begin // stride + self.tile // stride - after)
            if axis.needs(start, stop).any():  # else it is between boxes that are far apart
                yield (start, stop), begin, min((stop + after) * stride, last) - begin, skip

    def _add(self, sums: Tensor, own: Tensor, tile: _Tile, down: _Axis, across: _Axis) -> None:
        """Add a tile's map (C, h, w) to the pairs of rows and columns (R, S, C) that it is part of:
        to them alone, for an image of many tiles has many pairs."""
        (top, bottom), (left, right) = tile.rows, tile.columns
        skip_rows, skip_columns = tile.skip
        cells = own[
            :, skip_rows : skip_rows + bottom - top, skip_columns : skip_columns + right - left
        ]
        rows, row_weights = down.part(top, bottom)
        columns, column_weights = across.part(left, right)
        sums[rows, columns] += torch.einsum(
            "ri,cij,sj->rsc",
            torch.from_numpy(row_weights).to(self._device),
            cells,
            torch.from_numpy(column_weights).to(self._device),
        )


def _chosen(sums: Sequence[Tensor], sides: Sequence[_Sides], owner: NDArray[np.int64]) -> Tensor:
    """The pairs (R, S, C) that are boxes, in the boxes' order, (N, C); without a copy where these
    are all pairs of one image in their order, as a grid's are: they may be gigabytes."""
    if len(sums) == 1:
        flat = sums[0].flatten(0, 1)
        _, columns, row, column = sides[0]
        if np.array_equal(row * len(columns) + column, np.arange(len(flat))):
            return flat
    chosen = sums[0].new_empty((len(owner), sums[0].shape[2]))
    for image, (pairs, (_, _, down, across)) in enumerate(zip(sums, sides, strict=True)):
        chosen[torch.from_numpy(owner == image)] = pairs[down, across]
    return chosen


def _batches(tiles: Iterator[_Tile], pixels: int) -> Iterator[list[_Tile]]:
    """Tiles of one size together, of so many pixels at most; a larger one by itself."""
    by_size: dict[tuple[int, int], list[_Tile]] = {}
    for tile in tiles:
        by_size.setdefault((tile.pixels.width, tile.pixels.height), []).append(tile)
    for (width, height), same in by_size.items():
        most = max(1, pixels // (width * height))
        for start in range(0, len(same), most):
            yield same[start : start + most]
