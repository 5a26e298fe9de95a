"""Which windows of which images are computed together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
        """Whether one of the images is better not held, or moved to a device, as a whole."""
        return any(image.shape[0] * image.shape[1] > LARGE for image in self.images)

    def by_rows(self) -> Iterator[tuple[slice, Windows]]:
        """Parts that each need some rows of one image only, and are of an image of these rows."""

        def fits(image: NDArray[np.uint8], windows: slice) -> bool:
            top, bottom = self._rows(image, windows)
            return (bottom - top) * int(image.shape[1]) <= LARGE

        for image, part in self._parts(fits):
            top, bottom = self._rows(image, part)
            boxes = self.boxes[part] - np.array([0, top, 0, 0], dtype=np.int32)
            yield part, Windows([image[top:bottom]], np.zeros(len(boxes), dtype=np.int64), boxes)

    def by_vectors(self, dim: int) -> Iterator[tuple[slice, Windows]]:
        """Parts of one image each that have not too many vectors."""
        most = _VECTORS // (4 * dim)
        for image, part in self._parts(lambda _, windows: windows.stop - windows.start <= most):
            boxes = self.boxes[part]
            yield part, Windows([image], np.zeros(len(boxes), dtype=np.int64), boxes)

    def _parts(
        self, fits: Callable[[NDArray[np.uint8], slice], bool]
    ) -> Iterator[tuple[NDArray[np.uint8], slice]]:
        """Consecutive windows of one image, by whole lines, as many as fit; a line always does."""
        start = 0
        for line in self._lines():
            image = self.owner[start]
            if line.start > start and (
                self.owner[line.start] != image
                or not fits(self.images[image], slice(start, line.stop))
            ):
                yield self.images[image], slice(start, line.start)
                start = line.start
        yield self.images[self.owner[start]], slice(start, len(self))

    def _lines(self) -> Iterator[slice]:
        """Windows beside one another: of one image, from the same row on."""
        other = (np.diff(self.owner) != 0) | (np.diff(self.boxes[:, 1]) != 0)
        edges = [0, *(np.flatnonzero(other) + 1).tolist(), len(self)]
        return map(slice, edges, edges[1:])

    def _rows(self, image: NDArray[np.uint8], windows: slice) -> tuple[int, int]:
        return needed_rows(self.boxes[windows, 1], self.boxes[windows, 3], image.shape[0])


def needed_rows(
    y: int | NDArray[np.int32], height: int | NDArray[np.int32], limit: int
) -> tuple[int, int]:
    """From which to which row of an image of `limit` rows one or several windows are cut.

    What reaches beyond the bottom is reflected: of these rows it is what it is of all.
    """
    beyond = np.maximum(np.add(y, height) - limit, 0)
    top = np.minimum(y, limit - 1 - beyond).min()
    return max(0, int(top)), min(limit, int(np.add(y, height).max()))
