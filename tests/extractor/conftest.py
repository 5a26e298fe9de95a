"""A spec and a network small enough to compute by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from extractor import device as devices
from extractor import precision
from extractor.arrays import DecodedImage
from extractor.backbone import Backbone
from extractor.grid import spec_grid
from extractor.spec import FeatureSpec

BESIDE = Path(__file__).parents[3] / "shared"


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that says that it has instructions for bf16."""
    for module in (devices, precision):
        monkeypatch.setattr(module, "candidates", lambda _: ("bf16",))


@pytest.fixture
def beside() -> Path:
    """What lies beside a developer's checkout."""
    return BESIDE


@pytest.fixture
def tiny_spec() -> FeatureSpec:
    """Patches of 4 x 4 pixels every 2, mean colours as vectors, not normalised."""
    return FeatureSpec(
        backbone="mean-colour",
        weights="random:0",
        weights_sha256="0" * 64,
        patch_size=4,
        stride=2,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        metric="l2",
        dim=3,
    )


class MeanColour(nn.Module):
    """The mean colour of a patch, in 0..1; remembers the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, patches: Tensor) -> Tensor:
        self.batches.append(len(patches))
        return patches.mean((2, 3))


@pytest.fixture
def mean_colour() -> Backbone:
    return Backbone(MeanColour().eval(), dim=3, weights_sha256="0" * 64)


@pytest.fixture
def decode() -> Callable[[np.ndarray, FeatureSpec], DecodedImage]:
    """Lay a spec's grid over pixels."""

    def decoded(pixels: np.ndarray, spec: FeatureSpec) -> DecodedImage:
        height, width = pixels.shape[:2]
        grid = spec_grid(spec, width, height)
        return DecodedImage(pixels, grid)

    return decoded


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    """Smooth random pictures: white noise looks the same to a network everywhere."""

    def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
        rng = torch.Generator().manual_seed(seed)
        coarse = torch.rand(1, 3, max(2, height // 12), max(2, width // 12), generator=rng)
        fine = nn.functional.interpolate(coarse, (height, width), mode="bicubic")
        return (fine[0].permute(1, 2, 0).clamp(0, 1) * 255).byte().contiguous().numpy()

    return picture
