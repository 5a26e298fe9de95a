"""Where a convolutional network looks: measured on the network itself, not told by its name.

An output cell is fed by a square of input pixels, its receptive field. Whether a pixel feeds a
cell is asked with NaN: it passes through every convolution, pooling and activation, whatever the
weights, and through nothing else. (For what receptive fields are: Araujo, Norris, Sim, "Computing
Receptive Fields of Convolutional Neural Networks", https://distill.pub/2019/computing-receptive-fields/.)
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .errors import SpecError

Maps = Callable[[Tensor], Tensor]  # normalised (N, 3, H, W) to a feature map (N, C, h, w)

_SHORT = 32  # pixels of a probe's other side
_LENGTHS = (1024, 2048, 4096, 8192)  # tried until a field fits in; a DenseNet's has 2,071 pixels
_NOISE_TOLERANCE = 1e-4  # of the largest value


@dataclass(frozen=True)
class Field:
    """The receptive field of a feature map's cells.

    Attributes:
        stride: pixels from one cell to the next.
        centre: of cell 0's field, in pixels from the image's edge; a pixel's own centre is at 0.5.
        before: cells at the start of a crop that what was cut off there would change.
        after: the same at its end.
    """

    stride: int
    centre: float
    before: int
    after: int


def measure_field(maps: Maps, smallest: int = _SHORT) -> Field:
    """Measure a network's field, along both axes, and check on noise that crops show the same.

    Args:
        maps: the network up to its feature map.
        smallest: side of what it can be given at least, in pixels.

    Raises:
        SpecError: it looks at the whole image at once (squeeze-and-excitation, attention), its axes
            differ, or what it sees depends on where it stands.
    """
    short = max(_SHORT, smallest)
    across, down = _Probe(maps, short, flip=False), _Probe(maps, short, flip=True)
    if (across.stride, across.first, across.last) != (down.stride, down.first, down.last):
        raise SpecError("the network sees rows and columns in different steps; use the mode exact")
    cell = across.edge // across.stride
    field = Field(
        across.stride,
        across.centre(),
        max(0, across.last + 1 - cell),
        max(0, cell - across.first),
    )
    _check_on_noise(maps, field, short)
    return field


def cell_counter(maps: Maps, field: Field, smallest: int) -> Callable[[int], int]:
    """Make what tells how many cells a network has along a side of so many pixels.

    A side that is longer by the stride has one cell more: every layer gives floor or ceil of
    (length + constant) / its stride, which that passes through. So short sides tell of all.

    Args:
        maps: the network up to its feature map.
        field: of its cells.
        smallest: side of what it can be given at least, in pixels.
    """
    short = max(_SHORT, smallest)

    @cache
    def cells(length: int) -> int:
        return _run(maps, torch.zeros(1, 3, short, length)).shape[3]

    def count(length: int) -> int:
        steps, rest = divmod(length - smallest, field.stride)
        return cells(smallest + rest) + steps

    return count


class _Probe:
    """One axis of a network, seen from a pixel in the middle of a long image.

    Attributes:
        edge: where a crop may begin or end, in pixels: a multiple of `stride`.
        stride: pixels from one cell to the next.
        first: the first cell that the pixel after the edge feeds.
        last: the last cell that the pixel before the edge feeds.
    """

    def __init__(self, maps: Maps, short: int, *, flip: bool) -> None:
        self._maps, self._short, self._flip = maps, short, flip
        for self._length in _LENGTHS:
            self.edge = self._length // 2
            cells, self.first, _ = self._fed_by(self.edge)
            _, _, self.last = self._fed_by(self.edge - 1)
            if self.first > 0 and self.last < cells - 1:
                break
        else:
            raise SpecError(
                "the network looks at the whole image at once, as with squeeze-and-excitation or "
                "attention; use the mode exact, an earlier layer, or a plain convolutional network"
            )
        more = cells - self._axis(_run(maps, self._image(self.edge)))
        self.stride = round((self._length - self.edge) / more) if more > 0 else 0
        if self.stride < 1:
            raise SpecError(
                "the network's map does not grow with the image, as after an adaptive pooling; use "
                "the mode exact, or an earlier layer"
            )

    def centre(self) -> float:
        """Of the field of cell 0, in pixels from the edge of the image.

        The field of cell j are the pixels from j * stride + low to j * stride + high. As one goes
        on from the edge, the first cell that is fed changes after its `high`, and the last one at
        the `low` of the next.
        """
        edge, stride = self.edge, self.stride
        after = _first(lambda pixel: self._fed_by(pixel)[1] > self.first, edge, stride)
        begins = _first(lambda pixel: self._fed_by(pixel)[2] > self.last, edge - 1, stride)
        high, low = after - 1 - self.first * stride, begins - (self.last + 1) * stride
        return (low + high) / 2 + 0.5

    def _fed_by(self, pixel: int) -> tuple[int, int, int]:
        """How many cells there are; the first and the last that a pixel feeds."""
        probe = self._image(self._length)
        (probe.mT if self._flip else probe)[..., pixel] = torch.nan
        cells = _run(self._maps, probe)
        touched = cells.isnan().any(dim=1)[0].any(dim=1 if self._flip else 0).nonzero().flatten()
        if not len(touched):
            raise SpecError("the network leaves part of its input out; use the mode exact")
        return self._axis(cells), int(touched[0]), int(touched[-1])

    def _image(self, length: int) -> Tensor:
        return torch.zeros(1, 3, *((length, self._short) if self._flip else (self._short, length)))

    def _axis(self, cells: Tensor) -> int:
        return cells.shape[2 if self._flip else 3]


def _first(holds: Callable[[int], bool], start: int, steps: int) -> int:
    """The first of `start` + 1 ... `start` + `steps` for which a monotone condition holds."""
    low, high = start + 1, start + steps
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _check_on_noise(maps: Maps, field: Field, short: int) -> None:
    """A crop must show what the whole shows, away from its ends."""
    cells = 3
    start = (field.before + 5) * field.stride
    length = (field.before + cells + field.after) * field.stride
    length = -(-max(length, short) // field.stride) * field.stride
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(
        1, 3, short, start + length + field.after * field.stride, generator=generator
    )
    for flip in (False, True):
        image = noise.mT if flip else noise
        crop = image[:, :, start : start + length] if flip else image[..., start : start + length]
        whole, part = _run(maps, image), _run(maps, crop.contiguous())
        if flip:
            whole, part = whole.mT, part.mT
        first = start // field.stride + field.before
        expected = whole[..., first : first + cells]
        found = part[..., field.before : field.before + cells]
        difference = (expected - found).abs().max() / whole.abs().max()
        if not difference <= _NOISE_TOLERANCE:
            raise SpecError(
                "what the network sees depends on where it stands, as with shifted windows; use "
                "the mode exact"
            )


@torch.inference_mode()
def _run(maps: Maps, images: Tensor) -> Tensor:
    try:
        with redirect_stderr(io.StringIO()):  # where fx would print what it tells by raising, too
            return maps(images.contiguous(memory_format=torch.channels_last))
    except Exception as error:  # every network has its own way to say no
        height, width = images.shape[2:]
        raise SpecError(
            f"the network cannot be shown {width} x {height} pixels, only some sizes; use the mode "
            "exact"
        ) from error
