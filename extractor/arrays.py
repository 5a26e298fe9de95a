"""What goes into a forward pass and what comes out. No torch here: its import takes seconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .grid import PatchGrid


@dataclass(eq=False)
class DecodedImage:
    """An image and where it is cut.

    Attributes:
        pixels: RGB uint8 (H, W, 3), upright.
        grid: of the same width and height, with the geometry of the extractor's spec.
    """

    pixels: NDArray[np.uint8]
    grid: PatchGrid


@dataclass(eq=False)
class Region:
    """A part of a picture that is asked about.

    Attributes:
        picture: RGB uint8 (H, W, 3), upright.
        box: x, y, width, height, inside the picture.
    """

    picture: NDArray[np.uint8]
    box: tuple[int, int, int, int]

    @classmethod
    def whole(cls, picture: NDArray[np.uint8]) -> Region:
        """All of a picture."""
        return cls(picture, (0, 0, picture.shape[1], picture.shape[0]))

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The region's own pixels."""
        x, y, width, height = self.box
        return self.picture[y : y + height, x : x + width]


@dataclass(eq=False)
class PatchFeatures:
    """The vectors of one image, in the order of its grid.

    Attributes:
        boxes: int32 (N, 4), x, y, width, height in pixels of the upright image, inside it.
        scales: float32 (N,), the scale each patch was seen at.
        vectors: float32 (N, D), C-contiguous, finite.
    """

    boxes: NDArray[np.int32]
    scales: NDArray[np.float32]
    vectors: NDArray[np.float32]
