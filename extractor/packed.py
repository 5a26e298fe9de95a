"""A network made ready for passes of few patches: its weights lie as the CPU's kernels want them.

oneDNN computes a convolution with its weights in an order of its own. torch brings them into that
order in every pass, which of a ResNet-18 takes a quarter of the time of a single patch and next to
nothing of a batch's. Here it is done once, by the operators that `torch.compile` puts into a frozen
network (torch/_inductor/fx_passes/mkldnn_fusion.py), without its minutes; the same values come out.
The order is that of a single patch. For several the kernels may want another one, and then take up
to seven times as long: so it is tried how many it serves.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from timeit import timeit

import torch
from torch import Tensor, nn

from .errors import one_line
from .network import agree
from .traced import in_one_call

log = logging.getLogger(__name__)

_TIMED = 8  # patches of a way, in several passes where these are small
_TRIED = (1, 2, 4, 8)  # patches of a pass; a batch of more gains nothing

Size = tuple[int, ...]


def packed(network: nn.Module, patches: Tensor) -> nn.Module:
    """The same function in one call, and faster for few inputs at once.

    Args:
        network: in eval mode, float32, on the CPU. Left as it is; its parameters are shared.
        patches: what is tried, float32 (N, 3, H, W), channels last. Inputs of another height or
            width may take far longer.

    Returns:
        What computes as many inputs as these. With its weights as they lie, where packed ones are
        not faster even for one input: there is no oneDNN, or no convolution that it computes.
    """
    tried = patches[: max(_TRIED)]  # the memory that more of them take is kept
    many = in_one_call(network, tried)
    most = 0
    try:
        with torch.inference_mode():
            few = in_one_call(_replaced(network, _sizes(network, patches[:1])), tried)
            for size in _TRIED:
                if size > len(patches) or not _better(few, many, patches[:size]):
                    break
                most = size
    except Exception as error:  # operators of torch's own: another version may have others
        log.info("weights are left as they lie: %s", one_line(error))
    if not most:
        return many
    log.info("passes of up to %d patches run with their weights packed", most)
    return _Packed(few, most, many)


class _Packed(nn.Module):
    """Runs up to so many inputs by one network, more of them by the other."""

    def __init__(self, few: nn.Module, most: int, many: nn.Module) -> None:
        super().__init__()
        self.few = few
        self.most = most
        self.many = many

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = (self.few if len(pixels) <= self.most else self.many)(pixels)
        return found


def _better(made: nn.Module, network: nn.Module, sample: Tensor) -> bool:
    if not agree(network(sample), made(sample)):
        return False
    rounds = range(max(2, _TIMED // len(sample)))
    times = [(_seconds(made, sample), _seconds(network, sample)) for _ in rounds]
    # Whatever else runs on a machine only makes a pass slower: the fastest ones tell.
    return min(ours for ours, _ in times) < min(plain for _, plain in times)


class _PackedConvolution(nn.Module):
    def __init__(self, convolution: nn.Conv2d, size: Size) -> None:
        super().__init__()
        self._geometry = (
            convolution.padding,
            convolution.stride,
            convolution.dilation,
            convolution.groups,
        )
        weight, bias = convolution.weight.detach(), convolution.bias
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._geometry, size)
        self.register_buffer("_weight", packed)  # a weight of this kind is traced as a buffer only
        self._bias = None if bias is None else bias.detach()

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = _convolve()(pixels, self._weight, self._bias, *self._geometry)
        return found


@cache
def _convolve() -> Callable[..., Tensor]:
    """The convolution of a packed weight, as a function that can be traced: its list cannot be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # see `.traced`
        scripted: Callable[..., Tensor] = torch.jit.script(_convolution)
    return scripted


def _convolution(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    of_none: list[complex | float | int | None] = []
    found: Tensor = torch.ops.mkldnn._convolution_pointwise(
        pixels, weight, bias, padding, stride, dilation, groups, "none", of_none, ""
    )
    return found


def _sizes(network: nn.Module, sample: Tensor) -> dict[nn.Conv2d, set[Size]]:
    """The sizes of what each convolution is given."""
    sizes: dict[nn.Conv2d, set[Size]] = defaultdict(set)

    def note(convolution: nn.Conv2d, given: tuple[Tensor]) -> None:
        sizes[convolution].add(tuple(given[0].shape))

    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks = [each.register_forward_pre_hook(note) for each in convolutions]
    try:
        network(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


def _replaced(network: nn.Module, sizes: dict[nn.Conv2d, set[Size]]) -> nn.Module:
    """A copy with packed convolutions, where that can be."""
    memo: dict[int, object] = {
        id(each): each for each in (*network.parameters(), *network.buffers())
    }
    for convolution, given in sizes.items():
        zeros = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
        if zeros and len(given) == 1:
            memo[id(convolution)] = _PackedConvolution(convolution, *given)
    return copy.deepcopy(network, memo)


def _seconds(network: nn.Module, sample: Tensor) -> float:
    return timeit(lambda: network(sample), number=1)
