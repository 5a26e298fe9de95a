"""Which windows of which images are computed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .spool import LARGE

_VECTORS = 2**29  # bytes of vectors that are pooled at once


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows `boxes` (N, 4), each of the image `owner` (N,)."""

    images: Sequence[NDArray[np.uint8]]
    owner: NDArray[np.int64]
    boxes: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def are_of_large_image(self) -> bool:
        """Whether one of the images is."""
        return any(map(is_large, self.images))

    def parts(self, dim: int, *, whole_images: bool) -> Iterator[tuple[slice, Windows]]:
        """Parts of one image each: consecutive lines of windows, as many as fit; one always does.

        Args:
            dim: of their vectors, of which a part has some hundreds of megabytes.
            whole_images: else a part needs no more than some rows of its image, and has these.
        """
        start = 0
        for line in self._lines():
            if line.start > start and not self._fit(slice(start, line.stop), dim, whole_images):
                yield self._part(slice(start, line.start), whole_images)
                start = line.start
        yield self._part(slice(start, len(self)), whole_images)

    def _fit(self, windows: slice, dim: int, whole_images: bool) -> bool:
        owner = self.owner[windows]
        if owner[0] != owner[-1] or 4 * dim * len(owner) > _VECTORS:
            return False
        top, bottom = self._rows(windows)
        return whole_images or (bottom - top) * self.images[owner[0]].shape[1] <= LARGE

    def _part(self, windows: slice, whole_images: bool) -> tuple[slice, Windows]:
        image, boxes = self.images[self.owner[windows.start]], self.boxes[windows]
        if not whole_images:
            top, bottom = self._rows(windows)
            image, boxes = image[top:bottom], boxes - np.array([0, top, 0, 0], dtype=np.int32)
        return windows, Windows([image], np.zeros(len(boxes), dtype=np.int64), boxes)

    def _lines(self) -> Iterator[slice]:
        """Windows beside one another: of one image, from the same row on."""
        other = (np.diff(self.owner) != 0) | (np.diff(self.boxes[:, 1]) != 0)
        edges = [0, *(np.flatnonzero(other) + 1).tolist(), len(self)]
        return map(slice, edges, edges[1:])

    def _rows(self, windows: slice) -> tuple[int, int]:
        height = self.images[self.owner[windows.start]].shape[0]
        return needed_rows(self.boxes[windows, 1], self.boxes[windows, 3], height)


def is_large(image: NDArray[np.uint8]) -> bool:
    """Whether an image (H, W, 3) is better not held, or moved to a device, as a whole."""
    height, width = image.shape[:2]
    return bool(height * width > LARGE)


def needed_rows(
    y: int | NDArray[np.int32], height: int | NDArray[np.int32], limit: int
) -> tuple[int, int]:
    """From which to which row of an image of `limit` rows one or several windows are cut.

    What reaches beyond the bottom is reflected: of these rows it is what it is of all.
    """
    beyond = np.maximum(np.add(y, height) - limit, 0)
    top = np.minimum(y, limit - 1 - beyond).min()
    return max(0, int(top)), min(limit, int(np.add(y, height).max()))
