"""A network with its batch norms folded is the same function, or is not folded."""

import logging

import pytest
import torch
from torch import Tensor, nn

from extractor.backbone import resolve
from extractor.network import CutNetwork, fold_norms
from extractor.spec import Recipe

NOISE = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def stirred(network: nn.Module) -> nn.Module:
    """Batch norms as training leaves them: fresh ones change nothing."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 2.0, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(0, 0.1, generator=generator)
    return network


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("resnet18", "random:0", patch_size=64, stride=32),
        Recipe("resnet18", "random:0", layer="layer2", patch_size=64, stride=32),
        Recipe("mobilenet_v3_small", "random:0", patch_size=64, stride=32),
        Recipe("vgg11_bn", "random:0", layer="features", patch_size=64, stride=32),
    ],
    ids=lambda recipe: f"{recipe.backbone} {recipe.layer}",
)
def test_a_folded_network_gives_the_same_vectors_without_norms(recipe: Recipe) -> None:
    network = stirred(resolve(recipe).backbone.network)
    folded = fold_norms(network, 64)
    with torch.inference_mode():
        expected, found = network(NOISE), folded(NOISE)
    assert norms(network) > 0
    assert norms(folded) == 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_a_network_without_norms_stays_itself() -> None:
    network = resolve(
        Recipe("squeezenet1_1", "random:0", patch_size=64, stride=32)
    ).backbone.network
    assert fold_norms(network, 64) is network


class Shared(nn.Module):
    """One convolution before two norms: it cannot carry both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(self.conv(x)), self.two(self.conv(x))], dim=1)


class Branching(Shared):
    """Looks at values, which tracing cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.conv(x)) if x.sum() > 0 else self.conv(x)


@pytest.mark.parametrize("trunk", [Shared, Branching])
def test_a_network_that_cannot_be_folded_is_left_alone(
    trunk: type[nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    network = stirred(CutNetwork(trunk().eval().requires_grad_(False), "avg"))
    with caplog.at_level(logging.INFO, logger="extractor"):
        assert fold_norms(network, 64) is network
    assert "stay unfolded" in caplog.text
