"""A network that ends in a vector, and the same one with fewer steps."""

from __future__ import annotations

import copy
import logging
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from .pooling import pool

log = logging.getLogger(__name__)

_TOLERANCE = 1e-5  # of the largest value; rounding alone gives 1e-6


class CutNetwork(nn.Module):
    """A network up to a layer, and how its features become a vector."""

    def __init__(self, trunk: nn.Module, pooling: str) -> None:
        super().__init__()
        self.trunk = trunk
        self.pooling = pooling

    def forward(self, patches: Tensor) -> Tensor:
        """Run normalised patches (N, 3, S, S) to vectors float32 (N, D)."""
        return pool(self.features(patches), self.pooling)

    def features(self, patches: Tensor) -> Tensor:
        """Run normalised patches to what is pooled."""
        output = self.trunk(patches)
        return cast(Tensor, output["features"] if isinstance(output, dict) else output)


def fold_norms(network: nn.Module, side: int) -> nn.Module:
    """Fold the batch norms of a cut network into the convolutions before them.

    In inference a batch norm is a fixed scale and shift of each channel, which the convolution's
    weights can carry (https://arxiv.org/abs/1712.05877, section 3.2): a tenth of a ResNet's time.

    Args:
        network: float32 (N, 3, S, S) to float32 (N, D), in eval mode. Left as it is.
        side: S, of the patches that the check is made with.

    Returns:
        The same function; the network itself where there is nothing to fold, where it cannot be
        traced, or where it gives other values when folded: that is checked on noise, not believed.
    """
    norms = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    if not norms or not isinstance(network, CutNetwork):
        return network
    noise = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    noise = noise.contiguous(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            # A traced network's copy begins in training mode, which `fuse` would refuse.
            trunk = fuse(copy.deepcopy(network.trunk).eval(), inplace=True)
            folded = CutNetwork(trunk, network.pooling).eval().requires_grad_(False)
            folded = folded.to(memory_format=torch.channels_last)
            expected, found = network(noise), folded(noise)
    except Exception as error:  # tracing runs a network's own Python: anything may come out
        log.info("batch norms stay unfolded: %s", " ".join(str(error).split())[:200])
        return network
    difference = (expected - found).abs().max() / expected.abs().max()
    if not difference <= _TOLERANCE:  # NaN is no agreement either
        log.warning("batch norms stay unfolded: the folded network gives other values")
        return network
    return folded
