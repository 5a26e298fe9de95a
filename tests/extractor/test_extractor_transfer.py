"""While vectors are fetched from the device, the next pass is queued; never more than one."""

import numpy as np
import pytest
import torch
from torch import nn

from extractor import transfer
from extractor.backbone import Backbone, resolve
from extractor.features import FeatureExtractor
from extractor.spec import Recipe
from extractor.transfer import Transfers

CPU = torch.device("cpu")


class Late(Transfers):
    """Vectors come when they are asked for, as from a GPU; notes what happens in which order."""

    def __init__(self):
        super().__init__(CPU)
        self.moved, self.events = 0, []

    def to_device(self, pixels):
        self.moved += 1
        return super().to_device(pixels)

    def to_host(self, vectors):
        number = self.events.count("queued")
        self.events.append("queued")
        return lambda: self.events.append(number) or vectors.numpy()


@pytest.fixture
def late():
    return Late()


def extractor(spec, network, late, batch_size):
    made = FeatureExtractor(spec, network, device="cpu", batch_size=batch_size)
    made._transfers = late
    return made


def test_a_pass_is_queued_before_the_last_ones_vectors_are_fetched(
    tiny_spec, mean_colour, decode, noise, late
):
    images = [decode(noise(9, 9, seed), tiny_spec) for seed in range(2)]  # 16 patches each
    found = extractor(tiny_spec, mean_colour, late, 12).extract(images)
    expected = FeatureExtractor(tiny_spec, mean_colour, device="cpu").extract(images)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.vectors, theirs.vectors, rtol=1e-6)
    assert late.events == ["queued", "queued", 0, "queued", 1, 2]


def test_each_image_is_moved_to_the_device_once(tiny_spec, mean_colour, decode, noise, late):
    images = [decode(noise(9, 9, seed), tiny_spec) for seed in range(3)]
    extractor(tiny_spec, mean_colour, late, 5).extract(images)
    assert late.moved == 3


def test_each_image_is_moved_to_the_device_once_for_all_of_its_tiles(decode, noise, late):
    found = resolve(
        Recipe("squeezenet1_1", "random:0", mode="dense", patch_size=64, stride=64, edge="drop")
    )
    made = FeatureExtractor(found.spec, found.backbone, device="cpu", dense_tile=256)
    made._transfers = late
    images = [decode(noise(400, 400, seed), found.spec) for seed in range(2)]
    made.extract(images)
    assert late.moved == 2


class Forgetful(nn.Module):
    """Runs out of memory once, in its second pass."""

    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, patches):
        self.passes += 1
        if self.passes == 2:
            raise torch.OutOfMemoryError("out of memory")
        return patches.mean((2, 3))


def test_what_is_on_its_way_survives_when_memory_runs_out(
    tiny_spec, mean_colour, decode, noise, late
):
    image = decode(noise(9, 9), tiny_spec)
    forgetful = Backbone(Forgetful().eval(), dim=3, weights_sha256="0" * 64)
    (found,) = extractor(tiny_spec, forgetful, late, 8).extract([image])
    (expected,) = FeatureExtractor(tiny_spec, mean_colour, device="cpu").extract([image])
    np.testing.assert_allclose(found.vectors, expected.vectors, rtol=1e-6)
    assert late.events == ["queued", "queued", 0, "queued", 1, 2]  # 8 + 4 + 4 patches


@pytest.mark.parametrize("count", range(4))
def test_every_item_comes_once_and_in_order(count):
    made = []
    items = (made.append(i) or i for i in range(count))
    assert [(i, len(made)) for i in transfer.late(items)] == [
        (i, min(i + 2, count)) for i in range(count)
    ]


@pytest.mark.gpu
def test_a_gpu_gets_and_gives_what_it_is_given():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    transfers = Transfers(torch.device("cuda"))
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    fetched = transfers.to_host(transfers.to_device(pixels).float() * 2)
    np.testing.assert_array_equal(fetched(), pixels * 2.0)
