"""Patches become vectors: in order, packed into full batches, each image by itself."""

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from extractor import features as module
from extractor import patches
from extractor.arrays import PatchFeatures, Region
from extractor.backbone import Backbone, resolve
from extractor.device import (
    COMPILED,
    EXPORTED,
    FLOAT32,
    MNN,
    ONNX,
    OPENVINO,
    TORCH,
    is_out_of_memory,
)
from extractor.errors import Abandoned, DegenerateFeatures, DeviceError, ImageError, SpecError
from extractor.features import FeatureExtractor
from extractor.patches import reflect
from extractor.spec import Recipe


def test_vectors_are_those_of_their_boxes(tiny_spec, mean_colour, decode, noise):
    images = [noise(9, 6, seed) for seed in range(3)]
    found = cpu(tiny_spec, mean_colour).extract([decode(image, tiny_spec) for image in images])
    for image, features in zip(images, found, strict=True):
        assert features.vectors.dtype == np.float32 and features.vectors.flags.c_contiguous
        expected = [image[y : y + h, x : x + w].mean((0, 1)) / 255 for x, y, w, h in features.boxes]
        assert features.vectors == pytest.approx(np.array(expected), rel=1e-5)


def test_mean_and_deviation_are_taken_off(tiny_spec, mean_colour, decode):
    spec = tiny_spec.model_copy(update={"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 2.0)})
    image = np.full((4, 4, 3), 51, dtype=np.uint8)  # 0.2
    (found,) = cpu(spec, mean_colour).extract([decode(image + np.uint8(51), spec)])
    assert found.vectors[0] == pytest.approx([0.6, 0.8, 0.05], abs=1e-6)


def test_cosine_vectors_have_length_one(tiny_spec, mean_colour, decode, noise):
    spec = tiny_spec.model_copy(update={"metric": "cosine"})
    (found,) = cpu(spec, mean_colour).extract([decode(noise(9, 9), spec)])
    assert np.linalg.norm(found.vectors, axis=1) == pytest.approx(1, abs=1e-6)


def test_batches_are_full_across_images(tiny_spec, mean_colour, decode, noise):
    images = [decode(noise(4 + 2 * i, 4), tiny_spec) for i in range(5)]  # 1 + 2 + 3 + 4 + 5
    cpu(tiny_spec, mean_colour, batch_size=4).extract(images)
    assert mean_colour.network.batches == [4, 4, 4, 3]


def test_the_batch_size_does_not_change_a_vector(tiny_spec, mean_colour, decode, noise):
    images = [decode(noise(11, 7, seed), tiny_spec) for seed in range(4)]
    one, many = (cpu(tiny_spec, mean_colour, batch_size=n).extract(images) for n in (1, 100))
    for a, b in zip(one, many, strict=True):
        assert a.vectors == pytest.approx(b.vectors, rel=1e-6)


@pytest.mark.parametrize("mode", ["exact", "dense"])
@pytest.mark.parametrize(("runtime", "tolerance"), [(ONNX, 1e-5), (MNN, 1e-5), (OPENVINO, 2**-8)])
def test_other_runtimes_give_the_vectors_of_torch(runtime, tolerance, mode, bf16, decode, noise):
    found = resolve(Recipe("squeezenet1_1", "random:0", patch_size=64, stride=32, mode=mode))
    images = [decode(noise(130, 70, seed), found.spec) for seed in range(3)]
    by_torch, by_other = (
        cpu(found.spec, found.backbone, precision=precision, runtime=way, batch_size=7).extract(
            images
        )
        for precision, way in ((FLOAT32, TORCH), (EXPORTED[runtime], runtime))
    )
    for a, b in zip(by_torch, by_other, strict=True):
        assert b.vectors == pytest.approx(a.vectors, abs=tolerance)


class Mean(nn.Module):
    def forward(self, patches):
        return patches.mean((2, 3))


@pytest.mark.parametrize("runtime", [TORCH, *EXPORTED])
def test_what_is_begun_before_other_results_are_there_gets_its_own(
    runtime, bf16, tiny_spec, decode, noise
):
    mean = Backbone(Mean().eval(), dim=3, weights_sha256="0" * 64)
    batches = [
        [decode(noise(9, 9, 2 * seed + i), tiny_spec) for i in range(2)] for seed in range(3)
    ]
    precision = EXPORTED.get(runtime, FLOAT32)
    extractor = FeatureExtractor(
        tiny_spec, mean, device="cpu", runtime=runtime, precision=precision, batch_size=8
    )
    begun = [extractor.begin(batch) for batch in batches]
    for batch, results in reversed(list(zip(batches, begun, strict=True))):
        for ours, image in zip(results(), batch, strict=True):
            (theirs,) = FeatureExtractor(tiny_spec, mean, device="cpu").extract([image])
            np.testing.assert_allclose(ours.vectors, theirs.vectors, atol=2**-8)


@pytest.mark.parametrize("mode", ["exact", "dense"])
@pytest.mark.parametrize("runtime", [TORCH, ONNX])
def test_what_nobody_wants_any_more_ends_at_its_next_pass(runtime, mode, decode, noise):
    found = resolve(Recipe("squeezenet1_1", "random:0", patch_size=64, stride=32, mode=mode))
    extractor = cpu(found.spec, found.backbone, runtime=runtime, batch_size=1, dense_tile=64)
    image = decode(noise(600, 600), found.spec)
    extractor.extract([image])
    passes = []
    step = "take" if mode == "dense" else "cut"
    make = getattr(extractor._cutter, step)

    def abandon(*arguments):
        passes.append(1)
        extractor.abandon()
        return make(*arguments)

    setattr(extractor._cutter, step, abandon)
    with pytest.raises(Abandoned):
        extractor.extract([image])
    assert len(passes) <= 2  # of many; two may begin at once


def test_the_mode_dense_is_not_compiled(tiny_spec, mean_colour):
    dense = tiny_spec.model_copy(update={"mode": "dense"})
    with pytest.raises(DeviceError, match=f"{COMPILED} runs the mode exact only"):
        cpu(dense, mean_colour, runtime=COMPILED)


@pytest.mark.parametrize(
    ("runtime", "precision"), [(ONNX, "bf16"), (MNN, "bf16"), (OPENVINO, "float32")]
)
def test_a_runtime_is_refused_for_a_precision_that_is_not_its_own(
    runtime, precision, tiny_spec, mean_colour, monkeypatch
):
    monkeypatch.setattr(module, "check_device_precision", lambda *_: None)
    with pytest.raises(DeviceError, match=f"{runtime} runs on the CPU in {EXPORTED[runtime]} only"):
        cpu(tiny_spec, mean_colour, runtime=runtime, precision=precision)


def test_no_images_give_no_features(tiny_spec, mean_colour):
    assert cpu(tiny_spec, mean_colour).extract([]) == []


def test_pixels_that_may_not_be_written_to_are_read(tiny_spec, mean_colour, decode, noise):
    image = noise(9, 9)
    image.flags.writeable = False
    (found,) = cpu(tiny_spec, mean_colour).extract([decode(image[:, ::-1], tiny_spec)])
    assert isinstance(found, PatchFeatures)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((9, 9, 3)), np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8)],
)
def test_pixels_that_are_not_rgb_bytes_are_refused_by_their_shape(pixels, tiny_spec, mean_colour):
    with pytest.raises(ImageError, match=r"pixels are (float64|uint8) \(9, 9.*not RGB uint8"):
        cpu(tiny_spec, mean_colour).embed(Region.whole(pixels))


def test_a_grid_of_another_image_is_refused(tiny_spec, mean_colour, decode, noise):
    image = decode(noise(9, 9), tiny_spec)
    image.pixels = noise(8, 9)
    with pytest.raises(ImageError, match="pixels are 8 x 9, their grid is of 9 x 9"):
        cpu(tiny_spec, mean_colour).extract([image])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 1), (7, 5)])
def test_what_reaches_beyond_the_edge_is_reflected(size, tiny_spec, decode, noise):
    spec = tiny_spec.model_copy(update={"edge": "pad", "dim": 48})
    network = Backbone(nn.Flatten().eval(), dim=48, weights_sha256="0" * 64)
    image = decode(noise(*size), spec)
    (found,) = cpu(spec, network).extract([image])
    height, width = image.pixels.shape[:2]
    padded = np.pad(image.pixels, ((0, 8 - height % 4), (0, 8 - width % 4), (0, 0)), "reflect")
    for vector, (x, y, w, h) in zip(found.vectors, image.grid.windows, strict=True):
        expected = padded[y : y + h, x : x + w].transpose(2, 0, 1).ravel() / 255
        assert vector == pytest.approx(expected, abs=1e-6)


@given(st.integers(1, 20), st.integers(0, 80))
def test_reflection_is_numpys_at_any_length(limit, beyond):
    expected = np.pad(np.arange(limit), (0, beyond), mode="reflect")
    assert reflect(0, limit + beyond, limit).tolist() == expected.tolist()


def test_another_scale_is_resized_to_the_patch(tiny_spec, mean_colour, decode):
    spec = tiny_spec.model_copy(update={"scales": (1.0, 0.5, 2.0)})
    image = np.kron(np.arange(1, 17, dtype=np.uint8).reshape(4, 4) * 10, np.ones((4, 4), np.uint8))
    image = np.repeat(image[..., None], 3, axis=2)
    (found,) = cpu(spec, mean_colour).extract([decode(image, spec)])
    for vector, scale, (x, y, w, h) in zip(found.vectors, found.scales, found.boxes, strict=True):
        mean = image[y : y + h, x : x + w].mean() / 255
        assert vector[0] == pytest.approx(mean, abs=0.02 if scale != 1 else 1e-6)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 400))
def test_a_region_is_resized_band_by_band_to_the_same_values(height, width, band):
    noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    whole = patches._resized(torch.from_numpy(noise), 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "_BAND", band)
        banded = patches._resized(torch.from_numpy(noise), 12)
    assert torch.equal(banded, whole)


def test_an_input_size_is_what_the_network_sees(tiny_spec, decode, noise):
    spec = tiny_spec.model_copy(update={"input_size": 6, "dim": 108})
    network = Backbone(nn.Flatten().eval(), dim=108, weights_sha256="0" * 64)
    (found,) = cpu(spec, network).extract([decode(noise(9, 9), spec)])
    assert found.vectors.shape[1] == 108


# A degenerate image


class Odd(nn.Module):
    """Gives for black patches what no index can hold."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, patches):
        vectors = patches.mean((2, 3)).clone()
        vectors[vectors.sum(1) == 0] = self.value
        return vectors


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, 70000.0])
def test_a_degenerate_image_spoils_no_other(value, tiny_spec, decode, noise):
    images = [decode(noise(9, 9), tiny_spec) for _ in range(3)]
    images[1].pixels[:] = 0
    network = Backbone(Odd(value).eval(), dim=3, weights_sha256="0" * 64)
    extractor = cpu(tiny_spec, network)
    first, second, third = extractor.extract(images)
    assert isinstance(second, DegenerateFeatures) and "\n" not in str(second)
    assert np.isfinite(first.vectors).all() and np.isfinite(third.vectors).all()
    with pytest.raises(DegenerateFeatures):
        extractor.embed(Region.whole(images[1].pixels))


# Out of memory


class Small(nn.Module):
    """A device that holds so many patches."""

    def __init__(self, room):
        super().__init__()
        self.room = room

    def forward(self, patches):
        if len(patches) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return patches.mean((2, 3))


def test_out_of_memory_halves_the_batch_for_good(tiny_spec, mean_colour, decode, noise, caplog):
    images = [decode(noise(20, 9, seed), tiny_spec) for seed in range(2)]
    extractor = cpu(tiny_spec, Backbone(Small(5).eval(), 3, "0" * 64), batch_size=16)
    for ours, theirs in zip(
        extractor.extract(images), cpu(tiny_spec, mean_colour).extract(images), strict=True
    ):
        assert ours.vectors == pytest.approx(theirs.vectors, rel=1e-6)
    assert extractor.batch_size == 4
    assert "batch_size is now 4" in caplog.text


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("Failed to allocate memory for requested buffer of size 9"), True),
        (RuntimeError("std::bad_alloc"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ImageError("an image"), False),
    ],
)
def test_memory_that_ran_out_is_known_by_whatever_is_said(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_single_patch_that_does_not_fit_is_raised(tiny_spec, decode, noise):
    extractor = cpu(tiny_spec, Backbone(Small(0).eval(), 3, "0" * 64), batch_size=16)
    with pytest.raises(torch.OutOfMemoryError):
        extractor.extract([decode(noise(9, 9), tiny_spec)])
    assert extractor.batch_size == 1


# Threads, devices, questions


class Alone(nn.Module):
    """Notices company."""

    def __init__(self):
        super().__init__()
        self.inside = 0
        self.most = 0

    def forward(self, patches):
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.001)  # lets another thread in, if anything does
        self.inside -= 1
        return patches.mean((2, 3))


def test_threads_take_turns_and_get_their_own_vectors(tiny_spec, decode, noise):
    network = Alone().eval()
    extractor = cpu(tiny_spec, Backbone(network, 3, "0" * 64), batch_size=2)
    images = [decode(noise(9, 9, seed), tiny_spec) for seed in range(4)]
    alone = [extractor.extract([image])[0].vectors for image in images]
    found = [None] * 4

    def work(i):
        found[i] = extractor.extract([images[i]])[0].vectors

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert network.most == 1
    assert all((a == b).all() for a, b in zip(alone, found, strict=True))


def test_a_device_or_precision_that_is_not_there_is_refused(tiny_spec, mean_colour):
    with pytest.raises(DeviceError, match="device is 'tpu'"):
        FeatureExtractor(tiny_spec, mean_colour, device="tpu")
    with pytest.raises(DeviceError, match="'cuda:99' is not there"):
        FeatureExtractor(tiny_spec, mean_colour, device="cuda:99")
    with pytest.raises(DeviceError, match=r"precision is 'fp16'; cpu.* runs float32"):
        FeatureExtractor(tiny_spec, mean_colour, device="cpu", precision="fp16")
    with pytest.raises(SpecError, match="batch_size is 0"):
        FeatureExtractor(tiny_spec, mean_colour, device="cpu", batch_size=0)


@pytest.mark.parametrize("size", [(130, 90), (33, 150), (40, 30)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"input_size": 80},
        {"edge": "pad"},
        {"edge": "pad", "scales": (1.0, 0.7)},
        {"scales": (1.6, 0.5)},
    ],
)
def test_a_stored_patch_asked_again_gives_its_vector(options, size, decode, noise):
    recipe = Recipe(
        backbone="squeezenet1_1", weights="random:0", patch_size=64, stride=40, **options
    )
    found = resolve(recipe)
    extractor = cpu(found.spec, found.backbone)
    image = noise(*size)
    (stored,) = extractor.extract([decode(image, found.spec)])
    boxes = [tuple(box) for box in stored.boxes.tolist()]
    for vector, box in zip(stored.vectors, boxes, strict=True):
        if boxes.count(box) > 1:  # of several scales: one of them is meant
            continue
        asked = extractor.embed(Region(image, box))
        assert asked.dtype == np.float32
        assert asked == pytest.approx(vector, abs=1e-5)


def test_a_region_of_another_size_is_resized(tiny_spec, mean_colour):
    region = np.full((17, 5, 3), 51, dtype=np.uint8)
    vector = cpu(tiny_spec, mean_colour).embed(Region.whole(region))
    assert vector == pytest.approx([0.2] * 3, abs=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "fp16", "bf16"])
def test_a_gpu_gives_the_vectors_of_the_processor(precision, decode, noise):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    found = resolve(Recipe(weights="random:0", scales=(1.0, 0.5)))
    image = decode(noise(500, 300), found.spec)
    (ours,) = cpu(found.spec, found.backbone).extract([image])
    gpu = FeatureExtractor(found.spec, found.backbone, device="cuda", precision=precision)
    (theirs,) = gpu.extract([image])
    lowest = (ours.vectors * theirs.vectors).sum(1).min()
    assert lowest >= (1 - 1e-6 if precision == "float32" else 0.999)


def cpu(spec, backbone, **options):
    return FeatureExtractor(spec, backbone, device="cpu", **options)
