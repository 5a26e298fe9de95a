"""A lower precision must be faster and right, by measurement."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from extractor import device as devices
from extractor import onnx, precision
from extractor.backbone import Backbone, resolve
from extractor.device import FLOAT32, MNN, ONNX, OPENVINO, Way
from extractor.errors import Abandoned
from extractor.features import FeatureExtractor
from extractor.images import read_image
from extractor.precision import candidates, check_kind, check_precision, device_kind
from extractor.settings import ExtractorSettings
from extractor.spec import Recipe

CPU = torch.device("cpu")
FEW = 10  # patches: too few for another runtime than torch


class Slow(nn.Module):
    """Works hard in float32; in a lower precision hardly, and as well as it is told to."""

    def __init__(self, error, lazy=True):
        super().__init__()
        self.error = error
        self.lazy = lazy

    def forward(self, patches):
        vectors = patches.mean((2, 3))
        low = torch.is_autocast_enabled("cpu")
        if low != self.lazy:
            for _ in range(300):
                torch.rand(100, 100) @ torch.rand(100, 100)
        return vectors * (1 + torch.tensor([0.0, 0.0, self.error])) if low else vectors


@pytest.fixture
def sample(tiny_spec, decode, noise):
    return [decode(noise(9, 9, seed), tiny_spec) for seed in range(2)]


def test_a_precision_that_is_fast_and_right_is_chosen(bf16, tiny_spec, sample):
    check = check_precision(tiny_spec, fake(Slow(1e-4)), sample, "cpu", FEW)
    assert check.way == Way("bf16")
    assert 0.999 <= check.min_cosine <= 1
    assert check.speedup > 1


def test_a_precision_that_is_fast_and_wrong_is_not(bf16, tiny_spec, sample):
    check = check_precision(tiny_spec, fake(Slow(1.0)), sample, "cpu", FEW)
    assert (check.way, check.min_cosine, check.speedup) == (Way(), 1.0, 1.0)
    assert "bf16" in check.detail and "lowest cosine 0.9" in check.detail
    assert "\n" not in check.detail


def test_a_way_that_fails_while_it_is_measured_is_told_and_not_chosen(bf16, tiny_spec, sample):
    class Breaks(Slow):
        left = 1

        def forward(self, patches):
            if torch.is_autocast_enabled("cpu"):
                self.left -= 1
                if self.left < 0:
                    raise RuntimeError("no memory for\na real batch")
            return super().forward(patches)

    check = check_precision(tiny_spec, fake(Breaks(1e-4)), sample, "cpu", FEW)
    assert check.way == Way()
    assert "bf16: no memory for a real batch" in check.detail


@pytest.mark.parametrize("steps", [0, 1])
def test_a_check_that_nobody_waits_for_any_more_ends_at_its_next_step(
    bf16, tiny_spec, sample, steps
):
    left = iter(range(steps))

    def go_on():
        if next(left, None) is None:
            raise Abandoned

    with pytest.raises(Abandoned):
        check_precision(tiny_spec, fake(Slow(1e-4)), sample, "cpu", FEW, go_on)


def test_a_runtime_that_is_not_installed_takes_no_part(monkeypatch):
    def version(name):
        raise devices.PackageNotFoundError(name)

    monkeypatch.setattr(devices, "version", version)
    devices._is_installed.cache_clear()
    assert devices.exported_ways(CPU) == []
    devices._is_installed.cache_clear()


def test_a_precision_that_is_right_and_slow_is_not(bf16, tiny_spec, sample):
    check = check_precision(tiny_spec, fake(Slow(0.0, lazy=False)), sample, "cpu", FEW)
    assert check.speedup == 1.0


def test_a_precision_that_overflows_is_not(bf16, tiny_spec, sample):
    check = check_precision(tiny_spec, fake(Slow(float("inf"))), sample, "cpu", FEW)
    assert check.way == Way()


def test_without_a_sample_or_a_candidate_it_is_float32(bf16, tiny_spec, sample, monkeypatch):
    assert check_precision(tiny_spec, fake(Slow(0.0)), [], "cpu").way == Way()
    monkeypatch.setattr(precision, "candidates", lambda _: ())
    check = check_precision(tiny_spec, fake(Slow(0.0)), sample, "cpu", FEW)
    assert check.way == Way()


def test_the_kind_of_a_processor_names_its_instructions():
    assert device_kind(CPU) in ("cpu", "cpu avx512_bf16", "cpu bf16")
    assert candidates(CPU) == (() if device_kind(CPU) == "cpu" else ("bf16",))


@pytest.fixture
def without_bf16(monkeypatch):
    for module in (devices, precision):
        monkeypatch.setattr(module, "candidates", lambda _: ())


@pytest.mark.parametrize("runtime", [ONNX, MNN])
def test_another_runtime_is_tried_where_the_work_repays_it(
    runtime, without_bf16, tiny_spec, sample
):
    found = check_precision(tiny_spec, fake(Mean()), sample, "cpu", patches=5000)
    assert f"{Way(FLOAT32, runtime)} " in found.detail and "lowest cosine 1.0" in found.detail
    assert found.kind.startswith("cpu") and runtime in found.kind
    small = check_precision(tiny_spec, fake(Mean()), sample, "cpu", patches=4999)
    assert runtime not in small.kind
    assert "4999 patches do not repay exporting the network to onnxruntime, mnn" in small.detail


def test_with_bf16_openvino_is_tried_too(bf16, tiny_spec, sample):
    found = check_precision(tiny_spec, fake(Mean()), sample, "cpu", patches=5000)
    for way in (Way("bf16"), Way(FLOAT32, ONNX), Way("bf16", OPENVINO)):
        assert f"{way} " in found.detail
    assert "onnxruntime" in found.kind and "openvino" in found.kind


def test_a_moment_in_which_something_else_ran_decides_nothing(bf16, tiny_spec, sample, monkeypatch):
    taken = {Way(): [2.0, 2.0, 2.0], Way("bf16"): [9.0, 1.0, 9.0]}
    monkeypatch.setattr(precision, "_seconds", lambda extractor, _: taken[extractor.way].pop())
    check = check_precision(tiny_spec, fake(Mean()), sample, "cpu", FEW)
    assert (check.way, check.speedup) == (Way("bf16"), 2.0)


def test_dense_patches_repay_it_by_what_they_do_not_share(without_bf16, tiny_spec):
    half = {"stride": tiny_spec.patch_size // 2, "mode": "dense"}
    dense = tiny_spec.model_copy(update=half)
    for patches, tried in ((19_999, False), (20_000, True)):
        assert ("onnxruntime" in check_kind(dense, fake(Mean()), "cpu", patches)) is tried


def test_a_network_that_was_exported_is_tried_for_less_work(without_bf16, tiny_spec, tmp_path):
    (tmp_path / "network.onnx").touch()
    fresh, exported = fake(Mean()), replace(fake(Mean()), export_folder=tmp_path)
    for backbone, patches, tried in (
        (fresh, 500, False),
        (exported, 500, True),
        (exported, 499, False),
    ):
        assert ("onnxruntime" in check_kind(tiny_spec, backbone, "cpu", patches)) is tried


def test_a_network_is_exported_once_for_the_check_and_the_run(
    without_bf16, tiny_spec, sample, monkeypatch, tmp_path
):
    exports = []
    export = onnx.export
    monkeypatch.setattr(onnx, "export", lambda *args: exports.append(args) or export(*args))
    backbone = replace(fake(Mean()), export_folder=tmp_path / "kept")
    check_precision(tiny_spec, backbone, sample, "cpu")
    FeatureExtractor(tiny_spec, backbone, device="cpu", runtime=ONNX).extract(sample)
    assert len(exports) == 1


def test_the_kind_of_a_check_is_known_before_it(without_bf16, tiny_spec, sample):
    for patches in (None, 1, 5000):
        found = check_precision(tiny_spec, fake(Mean()), sample, "cpu", patches)
        assert found.kind == check_kind(tiny_spec, fake(Mean()), "cpu", patches)


def test_a_network_that_onnx_runtime_cannot_run_stays_with_torch(without_bf16, tiny_spec, sample):
    check = check_precision(tiny_spec, fake(Unexportable()), sample, "cpu")
    assert check.way == Way()
    assert f"{ONNX} cannot run this network" in check.detail and "\n" not in check.detail


class Mean(nn.Module):
    """Mean colours."""

    def forward(self, patches):
        return patches.mean((2, 3))


class Unexportable(nn.Module):
    """A network whose Python looks at values, which no exporter can follow."""

    def forward(self, patches):
        return patches.mean((2, 3)) * (1 if float(patches.sum()) > 0 else 2)


@pytest.mark.parametrize("way", [Way(), Way("bf16"), Way("bf16", OPENVINO)], ids=str)
def test_a_way_is_known_by_its_name(way):
    assert Way.parse(str(way)) == way


@pytest.mark.weights
def test_squeezenet_agrees_in_every_native_precision(beside, pictures):
    found, images = pictures("squeezenet1_1", "squeezenet1_1.pth")
    check = check_precision(found.spec, found.backbone, images)
    assert check.min_cosine >= 0.999
    assert "lowest cosine 0.999" in check.detail or "lowest cosine 1.0" in check.detail


@pytest.mark.weights
def test_mobilenet_with_folded_norms_must_stay_in_float32(beside, pictures):
    found, images = pictures("mobilenet_v2", "mobilenet_v2-trunk.pth")
    assert check_precision(found.spec, found.backbone, images, "cpu").way.precision == "float32"


@pytest.fixture
def pictures(beside, decode):
    """Real weights and real photographs."""
    if not (beside / "weights").is_dir() or not (beside / "images").is_dir():
        pytest.skip("the weights and pictures lie beside a developer's checkout only")
    if not candidates(CPU):
        pytest.skip("this processor has no lower precision to compare with")

    def load(backbone, file):
        recipe = Recipe(backbone=backbone, weights=str(beside / "weights" / file))
        found = resolve(recipe)
        files = sorted((beside / "images").rglob("*.jpg"))[::120]
        return found, [decode(read_image(path), found.spec) for path in files]

    return load


def test_settings_are_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("PATCHSTORE_BATCH_SIZE", "7")
    monkeypatch.setenv("PATCHSTORE_DEVICE", "cpu")
    settings = ExtractorSettings(_env_file=None)
    assert (settings.batch_size, settings.device, settings.max_pixels) == (7, "cpu", 178_956_970)


def fake(network):
    return Backbone(network.eval(), dim=3, weights_sha256="0" * 64)


def test_a_cpu_tells_no_utilization():
    assert devices.utilization(CPU) is None


def test_a_gpus_utilization_is_a_share(monkeypatch):
    monkeypatch.setattr(torch.cuda, "utilization", lambda _device: 42)
    assert devices.utilization(torch.device("cuda")) == 0.42


def test_a_gpu_that_does_not_tell_its_utilization_is_no_error(monkeypatch):
    def silent(_device):
        raise ModuleNotFoundError("pynvml does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "utilization", silent)
    assert devices.utilization(torch.device("cuda")) is None
