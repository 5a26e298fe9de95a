"""A picture of a few dozen of the patches that a run has computed, drawn at random."""

import heapq
import io
import itertools
import threading

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLUMNS = 8
ROWS = 5
SIDE = 88  # of a thumbnail, pixels
GAP = 4
MAX_BYTES = 120_000  # artifacts live in Prefect's own database; base64 makes it a third more
QUALITIES = (85, 70, 50, 30)


class ContactSheet:
    """A uniform sample of all patches offered; threads may share one.

    Pixels are cut while an image is decoded anyway: reading a run's images again for the sake of a
    picture could take minutes.
    """

    def __init__(self, seed: int = 0) -> None:
        """An empty sheet; the same seed and order of offers give the same sample."""
        self._random = np.random.default_rng(seed)
        self._numbers = itertools.count()  # so that equal keys never compare pictures
        self._chosen: list[tuple[float, int, Image.Image]] = []  # a heap of the largest keys
        self._lock = threading.Lock()
        self.offered = 0

    def __len__(self) -> int:
        return len(self._chosen)

    def offer(self, pixels: NDArray[np.uint8], boxes: NDArray[np.int32]) -> None:
        """Lets the patches of an image take part: RGB uint8 (H, W, 3), boxes (N, 4) inside it."""
        with self._lock:
            self.offered += len(boxes)
            keys = self._random.random(len(boxes))
            for row in np.argsort(-keys)[: COLUMNS * ROWS].tolist():
                full = len(self) == COLUMNS * ROWS
                if full and keys[row] <= self._chosen[0][0]:
                    break
                entry = (float(keys[row]), next(self._numbers), _thumbnail(pixels, boxes[row]))
                (heapq.heapreplace if full else heapq.heappush)(self._chosen, entry)

    def jpeg(self) -> bytes:
        """The sample as one picture, in the order in which it was taken."""
        thumbnails = [image for _, _, image in sorted(self._chosen, key=lambda entry: entry[1])]
        columns = min(COLUMNS, len(thumbnails))
        rows = -(-len(thumbnails) // COLUMNS)
        step = SIDE + GAP
        sheet = Image.new("RGB", (columns * step + GAP, rows * step + GAP), "white")
        for at, thumbnail in enumerate(thumbnails):
            row, column = divmod(at, COLUMNS)
            sheet.paste(thumbnail, (GAP + column * step, GAP + row * step))
        return _encode(sheet)


def _thumbnail(pixels: NDArray[np.uint8], box: NDArray[np.int32]) -> Image.Image:
    x, y, width, height = box.tolist()
    patch = Image.fromarray(pixels[y : y + height, x : x + width])
    ratio = SIDE / max(width, height)
    return patch.resize((max(1, round(width * ratio)), max(1, round(height * ratio))))


def _encode(sheet: Image.Image) -> bytes:
    """As JPEG, in the best quality that is small enough."""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= MAX_BYTES:
            break
    return buffer.getvalue()
