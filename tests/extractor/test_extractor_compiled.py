"""A compiled network gives the same vectors, in batches of one size, or another way is taken."""

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from extractor import features, precision
from extractor.arrays import PatchFeatures
from extractor.backbone import Backbone
from extractor.compiled import filled_up
from extractor.device import COMPILED, FLOAT32, Way
from extractor.errors import DeviceError
from extractor.features import FeatureExtractor
from extractor.precision import check_kind, check_precision

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
# Of torch's own parts.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Small(nn.Module):
    """A convolution, and a mean of what it gives."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(2)
            self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, patches):
        return self.conv(patches).relu().mean((2, 3))


class Unfollowable(nn.Module):
    """A network whose Python looks at values."""

    def forward(self, patches):
        return patches.mean((2, 3)) * (1 if float(patches.sum()) > 0 else 2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "inductor"))


@pytest.fixture
def images(tiny_spec, decode, noise):
    return [decode(noise(9, 9, seed), tiny_spec) for seed in range(3)]  # 16 patches each


@pytest.fixture
def sizes(monkeypatch):
    """The batches that the compiled network is given."""
    seen = []
    compiled = features.compiled

    def counting(network):
        run = compiled(network)
        return lambda batch: seen.append(len(batch)) or run(batch)

    monkeypatch.setattr(features, "compiled", counting)
    return seen


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", [FLOAT32, "bf16"])
def test_a_compiled_network_gives_the_vectors_of_torch(name, bf16, tiny_spec, images):
    ours, theirs = (
        vectors(
            FeatureExtractor(
                tiny_spec, fake(Small()), device="cpu", precision=name, runtime=way, batch_size=20
            ).extract(images)
        )
        for way in (COMPILED, "torch")
    )
    tolerance = 1e-5 if name == FLOAT32 else 2**-7
    np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max())


@needs_compiler
@pytest.mark.slow
def test_the_last_smaller_batch_is_not_compiled_anew(tiny_spec, images, sizes):
    extractor = FeatureExtractor(
        tiny_spec, fake(Small()), device="cpu", runtime=COMPILED, batch_size=20
    )
    extractor.extract(images)  # 20 + 20 + 8
    assert sizes == [20] * 4  # the first when it was compiled


def test_batches_follow_when_memory_runs_out(tiny_spec, mean_colour, images, monkeypatch):
    given = []

    def room_for_five(_network):
        def run(batch):
            given.append(len(batch))
            if len(batch) > 5:
                raise torch.OutOfMemoryError("out of memory")
            return batch.mean((2, 3))

        return run

    monkeypatch.setattr(features, "compiled", room_for_five)
    plain = FeatureExtractor(tiny_spec, mean_colour, device="cpu")
    halved = FeatureExtractor(tiny_spec, mean_colour, device="cpu", runtime=COMPILED, batch_size=16)
    np.testing.assert_allclose(
        vectors(halved.extract(images)), vectors(plain.extract(images)), atol=1e-6
    )
    assert given[:3] == [16, 8, 4] and set(given[3:]) == {4}


def test_memory_that_runs_out_in_a_batch_of_one_patch_halves_it_too(
    tiny_spec, mean_colour, decode, noise, monkeypatch
):
    room = [16]

    def shrinking(_network):
        def run(batch):
            if len(batch) > room[0]:
                raise torch.OutOfMemoryError("out of memory")
            return batch.mean((2, 3))

        return run

    monkeypatch.setattr(features, "compiled", shrinking)
    extractor = FeatureExtractor(
        tiny_spec, mean_colour, device="cpu", runtime=COMPILED, batch_size=16
    )
    room[0] = 8
    extractor.extract([decode(noise(4, 4), tiny_spec)])
    assert extractor.batch_size == 8


def test_a_network_that_cannot_be_compiled_is_told_at_once(tiny_spec):
    with pytest.raises(DeviceError, match=f"{COMPILED} cannot run this network") as told:
        FeatureExtractor(tiny_spec, fake(Unfollowable()), device="cpu", runtime=COMPILED)
    assert "\n" not in str(told.value)


def test_what_cannot_be_compiled_is_computed_in_the_next_best_way(
    bf16, tiny_spec, images, monkeypatch
):
    slow_float32(monkeypatch)
    check = check_precision(tiny_spec, fake(Unfollowable()), images, "cpu")
    assert check.way == Way("bf16")
    assert f"bf16 by {COMPILED}: {COMPILED} cannot run this network" in check.detail


def test_compiling_is_tried_where_the_work_repays_it(bf16, tiny_spec, images, monkeypatch):
    slow_float32(monkeypatch)
    monkeypatch.setattr(features, "compiled", lambda network: network)
    for patches, tried in ((19_999, False), (20_000, True)):
        check = check_precision(tiny_spec, fake(Small()), images, "cpu", patches)
        assert (f"bf16 by {COMPILED}" in check.detail) is tried
        assert (COMPILED in check.kind) is tried
        assert check.kind == check_kind(tiny_spec, fake(Small()), "cpu", patches)


def test_a_batch_is_filled_up_to_its_size_and_never_cut():
    batch = torch.rand(3, 3, 4, 4)
    full = filled_up(batch, 5)
    assert full.shape == (5, 3, 4, 4) and torch.equal(full[:3], batch)
    assert full.is_contiguous(memory_format=torch.channels_last)
    assert filled_up(batch, 2) is batch


def slow_float32(monkeypatch):
    """Makes whatever is not float32 look faster, whatever this processor thinks of it."""
    monkeypatch.setattr(
        precision, "_seconds", lambda extractor, _: 2.0 if extractor.way == Way() else 1.0
    )
    monkeypatch.setattr(precision, "_exported_ways", lambda *_: [])


def vectors(results):
    assert all(isinstance(result, PatchFeatures) for result in results)
    return np.concatenate([result.vectors for result in results])


def fake(network):
    return Backbone(network.eval().requires_grad_(False), dim=3, weights_sha256="0" * 64)
