"""A network that ends in a vector, and the same one with fewer steps."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from .errors import SpecError, one_line
from .pooling import pool

log = logging.getLogger(__name__)

A_LAYER = "such as `--layer layer4` of a ResNet, `--layer features` of most others"

_TOLERANCE = 1e-5  # of the largest value; rounding alone gives 1e-6 at most


class CutNetwork(nn.Module):
    """A network up to a layer, and how its features become a vector."""

    def __init__(self, trunk: nn.Module, pooling: str) -> None:
        super().__init__()
        self.trunk = trunk
        self.pooling = pooling

    def forward(self, patches: Tensor) -> Tensor:
        """Run normalised patches (N, 3, S, S) to vectors float32 (N, D)."""
        return self.pooled(self.features(patches))

    def pooled(self, features: Tensor) -> Tensor:
        """Run what is pooled to vectors float32 (N, D)."""
        return pool(features, self.pooling)

    def features(self, patches: Tensor) -> Tensor:
        """Run normalised patches to what is pooled."""
        output = self.trunk(patches)
        return cast(Tensor, output["features"] if isinstance(output, dict) else output)


class DenseNetwork(CutNetwork):
    """A network up to its last feature map, how a box of that becomes one vector, and the rest.

    Attributes:
        head: what follows the pooling, (N, C, 1, 1) to (N, D) or more sides of 1.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module, pooling: str = "avg") -> None:
        super().__init__(trunk, pooling)
        self.head = head

    def pooled(self, features: Tensor) -> Tensor:
        """Run feature maps to vectors float32 (N, D), each pooled as one box."""
        return self.vectors(pool(features, self.pooling))

    def vectors(self, pooled: Tensor) -> Tensor:
        """Run pooled features (N, C) to vectors float32 (N, D)."""
        vectors: Tensor = self.head(pooled[:, :, None, None])
        return vectors.flatten(1).float()


def main_part(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """What takes the time, and any runtime may run: of a dense network up to the pooling."""
    return network.features if isinstance(network, DenseNetwork) else network


def split_at_pooling(trunk: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Split a network at its global average pooling: up to the feature map, and from there on.

    Raises:
        SpecError: it cannot be traced, or does not end in such a pooling.
    """
    try:
        graph = fx.symbolic_trace(trunk).graph
        pooling = [node for node in graph.nodes if _pools_globally(node, trunk)]
        if not pooling:
            raise SpecError(
                "the network does not end in a global average pooling, which the mode dense needs; "
                f"for a convolutional one name a layer with a feature map, {A_LAYER}; others, "
                "such as transformers, are computed in mode exact"
            )
        feature_map = pooling[-1].all_input_nodes[0]
        return _before(trunk, graph, feature_map), _after(trunk, graph, feature_map)
    except SpecError:
        raise
    except Exception as error:  # tracing runs a network's own Python: anything may come out
        raise SpecError(
            f"the mode dense cannot trace this network: {one_line(error, 160)}"
        ) from error


def _pools_globally(node: fx.Node, trunk: nn.Module) -> bool:
    arguments = (*node.args, *node.kwargs.values())
    if node.op == "call_module":
        module = trunk.get_submodule(str(node.target))
        return isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))
    if node.target is F.adaptive_avg_pool2d:
        return 1 in arguments or (1, 1) in arguments
    if node.target in ("mean", torch.mean):
        return any(axes in arguments for axes in ([2, 3], (2, 3), [-2, -1], (-2, -1)))
    return False


def _before(trunk: nn.Module, graph: fx.Graph, last: fx.Node) -> nn.Module:
    body = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = body.node_copy(node, copies.__getitem__)
        if node is last:
            break
    body.output(copies[last])
    return fx.GraphModule(trunk, body)


def _after(trunk: nn.Module, graph: fx.Graph, first: fx.Node) -> nn.Module:
    head = fx.Graph()
    copies = {first: head.placeholder("features")}
    nodes = list(graph.nodes)
    for node in nodes[nodes.index(first) + 1 :]:
        copies[node] = head.node_copy(node, copies.__getitem__)
    return fx.GraphModule(trunk, head)


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
    patches = noise(2, side)
    try:
        with torch.no_grad():
            folded = copy.deepcopy(network)
            # A traced network's copy begins in training mode, which `fuse` would refuse.
            folded.trunk = fuse(folded.trunk.eval(), inplace=True)
            folded = folded.eval().requires_grad_(False)
            folded = folded.to(memory_format=torch.channels_last)
            expected, found = network(patches), folded(patches)
    except Exception as error:  # tracing runs a network's own Python: anything may come out
        log.info("batch norms stay unfolded: %s", one_line(error))
        return network
    if not agree(expected, found):
        log.warning("batch norms stay unfolded: the folded network gives other values")
        return network
    return folded


def noise(patches: int, side: int) -> Tensor:
    """Make what a changed network is tried on, float32 (N, 3, S, S), channels last."""
    made = torch.randn(patches, 3, side, side, generator=torch.Generator().manual_seed(0))
    return made.contiguous(memory_format=torch.channels_last)


def difference(expected: Tensor, found: Tensor) -> float:
    """Tell how far a changed network's values are off at most, in shares of the largest one."""
    return float((expected - found).abs().max() / expected.abs().max())


def agree(expected: Tensor, found: Tensor) -> bool:
    """Tell whether a changed network gives the same values but for rounding; no NaN is the same."""
    return difference(expected, found) <= _TOLERANCE


def cast_once(network: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights that autocast would convert in every pass as it would have them."""
    for module in network.modules():
        # Exactly these: attention reads the weights of its own kind of Linear itself.
        if type(module) in (nn.Conv2d, nn.Linear):
            module.to(dtype)
