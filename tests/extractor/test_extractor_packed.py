"""A network whose weights lie as the CPU wants them is the same function, or there is none."""

import logging
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from threading import Barrier

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from extractor import packed as module
from extractor.arrays import Region
from extractor.backbone import load_backbone, resolve
from extractor.features import FeatureExtractor
from extractor.network import noise
from extractor.packed import packed
from extractor.spec import Recipe

PATCHES = noise(16, 64)
PATCH = PATCHES[:1]

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


@pytest.fixture
def step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers can be counted, which those of a network in one call cannot."""
    monkeypatch.setattr(module, "in_one_call", lambda network, _patches: network)


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is faster depends on the machine; here it always is."""
    times = cycle([1.0, 2.0])
    monkeypatch.setattr(module, "_seconds", lambda _network, _sample: next(times))


def convolutions(network: nn.Module) -> int:
    return sum(isinstance(each, nn.Conv2d) for each in network.modules())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "vgg11"])
def test_a_packed_network_gives_the_same_vector_and_leaves_the_plain_one(name: str) -> None:
    recipe = Recipe(name, "random:0", patch_size=64, stride=32)
    network = resolve(recipe).backbone.folded(64)
    plain = convolutions(network)
    with torch.inference_mode():
        expected = network(PATCH)
        found = packed(network, PATCH)
        assert found.few is not found.many
        assert convolutions(network) == plain > 0
        torch.testing.assert_close(found(PATCH), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(network(PATCH), expected, rtol=0, atol=0)


class Odd(nn.Module):
    """Convolutions that reflect, see two sizes, pad by name, and one that is like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.reflects = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
        self.twice = nn.Conv2d(3, 3, 3, stride=2)
        self.same = nn.Conv2d(3, 3, 3, padding="same")
        self.plain = nn.Conv2d(3, 4, 3, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        return self.plain(self.same(self.twice(self.twice(self.reflects(patches))))).mean((2, 3))


@pytest.mark.usefixtures("step_by_step")
def test_a_convolution_that_cannot_be_packed_stays_as_it_is() -> None:
    network = Odd().eval()
    with torch.inference_mode():
        found = packed(network, PATCH)
        assert convolutions(found.few) == 3
        torch.testing.assert_close(found(PATCH), network(PATCH), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("step_by_step")
def test_a_network_that_is_no_faster_packed_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_seconds", lambda _network, _sample: 1.0)
    network = Odd().eval()
    assert packed(network, PATCH) is network


@pytest.mark.usefixtures("step_by_step")
def test_a_network_that_differs_packed_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_replaced", lambda _network, _sizes: Odd().eval())
    network = Odd().eval()
    assert packed(network, PATCH) is network


@pytest.mark.usefixtures("step_by_step")
def test_a_torch_without_these_operators_computes_as_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_arguments: object) -> None:
        raise AttributeError("no operator of this name")

    monkeypatch.setattr(module, "_PackedConvolution", gone)
    network = Odd().eval()
    with caplog.at_level(logging.INFO):
        assert packed(network, PATCH) is network
    assert "no operator of this name" in caplog.text


@pytest.mark.usefixtures("step_by_step")
def test_several_patches_are_computed_packed_up_to_the_most_that_are_faster_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def seconds(network: nn.Module, sample: Tensor) -> float:
        return len(sample) + 0.5 if convolutions(network) else 0.6 * len(sample) ** 1.5

    monkeypatch.setattr(module, "_seconds", seconds)  # faster for 1 and 2, slower for 4
    recipe = Recipe("resnet18", "random:0", patch_size=64, stride=32)
    resolved = resolve(recipe)
    backbone = load_backbone(resolved.spec, "random:0")
    plain = FeatureExtractor(resolved.spec, backbone, device="cpu")
    ready = FeatureExtractor(resolved.spec, backbone, device="cpu", small_passes=True)
    seen: list[int] = []
    few = ready._run.few
    few.register_forward_pre_hook(lambda _network, given: seen.append(len(given[0])))
    for size in (1, 2, 3, 16):
        batch = PATCHES[:size]
        torch.testing.assert_close(ready.forward(batch), plain.forward(batch), rtol=1e-5, atol=1e-6)
    assert seen == [1, 2]


def test_passes_side_by_side_give_the_same_vectors_each_on_its_share_of_the_cores() -> None:
    resolved = resolve(Recipe("squeezenet1_1", "random:0", patch_size=64, stride=32))
    backbone = load_backbone(resolved.spec, "random:0")
    extractor = FeatureExtractor(resolved.spec, backbone, device="cpu", small_passes=True)
    pictures = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    regions = [Region.whole(picture) for picture in pictures]
    cores = torch.get_num_threads()
    expected = np.stack(extractor.embed_many(regions))
    begun = Barrier(2)

    def ask(part: slice) -> tuple[np.ndarray, int]:
        begun.wait(30)
        found = [extractor.embed_many(regions[part], teams=2) for _ in range(5)][-1]
        return np.stack(found), torch.get_num_threads()

    with ThreadPoolExecutor(2) as threads:
        halves = list(threads.map(ask, [slice(0, 3), slice(3, 8)]))
    found = np.concatenate([vectors for vectors, _ in halves])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.linalg.norm(expected[0]))
    assert {used for _, used in halves} == {max(1, cores // 2)}
    assert torch.get_num_threads() == cores
