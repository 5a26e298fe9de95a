"""Copies between host and device that let the device go on computing.

As https://docs.pytorch.org/tutorials/intermediate/pinmem_nonblock.html asks for it: out of pinned
memory, without blocking, on a stream of its own. Beside a CPU's memory there is none to copy to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .spool import release

T = TypeVar("T")


class Transfers:
    """The way to one device and back."""

    def __init__(self, device: torch.device) -> None:
        """Copies nothing yet."""
        self._device = device
        self._held: dict[int, tuple[NDArray[np.uint8], tuple[int, int], Tensor]] = {}
        self._uploads = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def to_device(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Move an array; what is queued on the device from now on finds it there."""
        # torch warns of arrays it may not write to.
        host = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        if self._uploads is None:
            return host
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._uploads):
            image = host.pin_memory().to(self._device, non_blocking=True)
        computing.wait_stream(self._uploads)
        image.record_stream(computing)  # else its memory is free as soon as the copy is made
        return image

    def rows_to_device(self, pixels: NDArray[np.uint8], top: int, bottom: int) -> Tensor:
        """Move some rows of an image; of each, those asked for last stay there until `forget`."""
        held = self._held.get(id(pixels))
        if held is None or held[0] is not pixels or held[1] != (top, bottom):
            release(pixels)  # of those that came before
            held = pixels, (top, bottom), self.to_device(pixels[top:bottom])
            self._held[id(pixels)] = held
        return held[2]

    def forget(self) -> None:
        """Give back the memory of the rows that were moved."""
        self._held = {}

    def to_host(self, vectors: Tensor) -> Callable[[], NDArray[np.float32]]:
        """Begin to fetch a result that may not be computed yet; the call waits for it."""
        if self._uploads is None:
            return vectors.numpy
        host = vectors.to("cpu", non_blocking=True)  # which is pinned by torch
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(self._device))

        def fetched() -> NDArray[np.float32]:
            copied.synchronize()
            return host.numpy()

        return fetched


def late(items: Iterable[T], by: int = 1) -> Iterator[T]:
    """Give each item once `by` more were made: while a result is waited for, work is queued."""
    made: deque[T] = deque()
    for item in items:
        made.append(item)
        if len(made) > by:
            yield made.popleft()
    yield from made
