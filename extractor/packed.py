"""A network made ready for inputs of one size: its weights lie as the CPU's kernels want them.

oneDNN computes a convolution with its weights in an order of its own. torch brings them into that
order in every pass, which of a ResNet-18 takes a quarter of the time of a single patch and next to
nothing of a batch's. Here it is done once, by the operators that `torch.compile` puts into a frozen
network (torch/_inductor/fx_passes/mkldnn_fusion.py), without its minutes; the same values come out.
"""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from timeit import repeat

import torch
from torch import Tensor, nn

from .network import difference

log = logging.getLogger(__name__)

_TOLERANCE = 1e-5  # of the largest value; so far there was no difference
_ROUNDS = 3

Size = tuple[int, ...]


def packed(network: nn.Module, sample: Tensor) -> nn.Module | None:
    """The same function of inputs of the sample's size, and of no other: that may take far longer.

    Args:
        network: in eval mode, float32, on the CPU. Left as it is; its parameters are shared.
        sample: float32 (N, 3, H, W), channels last.

    Returns:
        None where it is not faster: there is no oneDNN, or no convolution that it computes.
    """
    try:
        with torch.inference_mode():
            made = _replaced(network, _sizes(network, sample))
            agrees = difference(network(sample), made(sample)) <= _TOLERANCE
            if agrees and _seconds(made, sample) < _seconds(network, sample):
                return made
    except Exception as error:  # operators of torch's own: another version may have others
        log.info("weights are left as they lie: %s", " ".join(str(error).split())[:200])
    return None


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
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._geometry, size)
        self._bias = None if bias is None else bias.detach()

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._convolution_pointwise(
            pixels, self._weight, self._bias, *self._geometry, "none", [], ""
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
    """Of the fastest pass: whatever else runs on a machine only makes one slower."""
    return min(repeat(lambda: network(sample), number=1, repeat=_ROUNDS))
