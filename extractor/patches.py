"""Windows of images -> the normalised batch that a network sees; cut on the device."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from .spec import FeatureSpec

_BAND = 4_000_000  # pixels that are in floats at once

Window = Sequence[int]  # x, y, width, height; may reach beyond the image, which is reflected there


class PatchCutter:
    """Cuts out of images, uint8 (H, W, 3) on the device, for a spec. Threads may share one."""

    def __init__(self, spec: FeatureSpec, device: torch.device) -> None:
        """Cuts nothing yet."""
        self._side = spec.side
        self._device = device
        # (x / 255 - mean) / std as one product and one sum, for the values of a row of pixels.
        mean, std = (np.tile(values, spec.side) for values in (spec.mean, spec.std))
        self._factor = torch.from_numpy(1 / (255 * std)).float().to(device)
        self._offset = torch.from_numpy(-mean / std).float().to(device)
        self._of_thread = threading.local()

    def cut(self, images: Sequence[Tensor], windows: Sequence[Window]) -> Tensor:
        """Cut one window of each image into a batch of squares, float32 (n, 3, S, S).

        The pixels of an image lie channels last, and so does the batch. It is valid until the next
        call of the same thread: a fresh one costs as much in page faults as everything else here
        (3 ms a batch of 32).
        """
        side = self._side
        batch = self._batch(len(windows))
        for patch, image, window in zip(batch, images, windows, strict=True):
            region = _region(image, window)
            patch.copy_(region if region.shape == patch.shape else _resized(region, side))
        # Broadcasting over whole rows of pixels takes a fifth of the time of triples.
        rows = batch.view(len(windows), side, side * 3)
        torch.addcmul(self._offset, rows, self._factor, out=rows)
        return batch.permute(0, 3, 1, 2)

    def take(self, images: Sequence[Tensor], windows: Sequence[Window]) -> Tensor:
        """Take windows of one size as they are, float32 (n, 3, h, w), channels last."""
        regions = map(_region, images, windows)
        batch = torch.stack(list(regions)).float()
        rows = batch.view(*batch.shape[:2], -1)
        factor, offset = (row[:3].repeat(batch.shape[2]) for row in (self._factor, self._offset))
        torch.addcmul(offset, rows, factor, out=rows)
        return batch.permute(0, 3, 1, 2)

    def forget(self) -> None:
        """Give back the memory of this thread's last batch."""
        self._of_thread.buffer = None

    def _batch(self, patches: int) -> Tensor:
        buffer: Tensor | None = getattr(self._of_thread, "buffer", None)
        if buffer is None or len(buffer) < patches:
            buffer = torch.empty((patches, self._side, self._side, 3), device=self._device)
            self._of_thread.buffer = buffer
        return buffer[:patches]


def reflect(start: int, length: int, limit: int) -> NDArray[np.int64]:
    """Index `length` pixels from `start` on along an axis of `limit`, reflected at its ends.

    The same as `np.pad(mode="reflect")`, for any length: the edge pixel is not repeated.

    Returns:
        int64 (length,), each in 0..limit - 1.
    """
    if limit == 1:
        return np.zeros(length, dtype=np.int64)
    period = 2 * (limit - 1)
    at = np.arange(start, start + length, dtype=np.int64) % period
    return np.minimum(at, period - at)


def _region(image: Tensor, window: Window) -> Tensor:
    x, y, width, height = window
    region = image[y : y + height, x : x + width]
    if region.shape[:2] == (height, width):
        return region
    rows = torch.from_numpy(reflect(y, height, image.shape[0])).to(image.device)
    columns = torch.from_numpy(reflect(x, width, image.shape[1])).to(image.device)
    return image.index_select(0, rows).index_select(1, columns)


def _resized(region: Tensor, side: int) -> Tensor:
    """Resize uint8 (h, w, 3) to float32 (side, side, 3), in floats and without aliasing.

    The values of a large region come band by band, for in floats it takes twelve bytes a pixel.
    They are the same to the bit: torch, too, resizes the rows first, then the columns.
    """
    height, width = region.shape[:2]
    if height * width <= _BAND:
        planes = _planes(region)
    else:
        bands = torch.split(region, max(1, _BAND // width))
        planes = torch.cat([_interpolated(_planes(band), len(band), side) for band in bands], dim=2)
    return _interpolated(planes, side, side)[0].permute(1, 2, 0)


def _planes(region: Tensor) -> Tensor:
    return region.permute(2, 0, 1)[None].float()


def _interpolated(planes: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(
        planes, size=(height, width), mode="bilinear", align_corners=False, antialias=True
    )
