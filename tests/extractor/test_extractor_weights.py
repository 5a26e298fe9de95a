"""Weights come from an enum, a file or a seed, and are those they are said to be."""

import re
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest
import torch
from torchvision import models
from torchvision.models import densenet, get_model
from torchvision.models.vision_transformer import VisionTransformer

from extractor.backbone import load_backbone, resolve
from extractor.errors import SpecError, WeightsError
from extractor.spec import Recipe
from extractor.weights import WeightsSource, load_tensors, read_tensors, tensor_digest


@pytest.fixture
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return models.squeezenet1_1(weights=None).eval()


@pytest.fixture
def file(network, tmp_path):
    path = tmp_path / "mine.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and an empty folder for torch."""

    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_a_file_gives_its_own_tensors_and_its_name(file):
    found = resolve(squeezenet(file))
    assert found.spec.weights == "mine.pth"
    assert found.weights_source == str(file)
    assert found.spec.weights_sha256 == resolve(squeezenet("random:5")).spec.weights_sha256


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_checkpoint_of_a_training_run_is_unwrapped(key, network, tmp_path):
    tensors = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({key: tensors, "epoch": 3}, tmp_path / "run.pth")
    spec = resolve(squeezenet(tmp_path / "run.pth")).spec
    assert spec.weights_sha256 == resolve(squeezenet("random:5")).spec.weights_sha256


def test_a_seed_is_deterministic_and_leaves_the_global_one():
    state = torch.get_rng_state()
    one, again, other = (
        resolve(squeezenet(seed)).spec.weights_sha256
        for seed in ("random:1", "random:1", "random:2")
    )
    assert one == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_counters_of_training_do_not_change_the_digest():
    one, other = torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)
    other.num_batches_tracked += 7
    assert tensor_digest(one) == tensor_digest(other)
    other.running_mean += 7
    assert tensor_digest(one) != tensor_digest(other)


def test_a_file_of_another_network_is_refused_by_its_tensors(file):
    with pytest.raises(WeightsError, match=r"not of this network: bn1.bias is missing, .* more"):
        resolve(Recipe(backbone="resnet18", weights=str(file)))


def test_a_deeper_network_of_the_same_family_is_refused(tmp_path):
    path = tmp_path / "resnet34.pth"
    torch.save(models.resnet34(weights=None).state_dict(), path)
    with pytest.raises(WeightsError, match=r"layer1.2.conv1.weight is unknown"):
        resolve(Recipe(weights=str(path)))


def test_a_file_that_is_no_state_dict_is_refused_in_one_line(tmp_path):
    for name, content in [("a.pth", b"not weights"), ("b.pth", b"")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match="corrupt or no state dict") as refusal:
            resolve(squeezenet(tmp_path / name))
        assert "\n" not in str(refusal.value)
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds list, not named tensors"):
        resolve(squeezenet(tmp_path / "list.pth"))


@pytest.mark.filterwarnings("ignore")  # of making what torch will not have for long
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "is quantized, sparse or"),
        (lambda t: t.to_sparse(), "is quantized, sparse or has no values"),
        (lambda t: t.to("meta"), "is quantized, sparse or has no values"),
        (lambda t: t.to(torch.complex64), "is of torch.complex64, not of torch.float32"),
        (lambda t: t.to(torch.int8), "is of torch.int8, not of torch.float32"),
        (lambda t: t * float("nan"), "holds NaN or infinity"),
    ],
    ids=["quantized", "sparse", "meta", "complex", "int8", "nan"],
)
def test_a_tensor_that_holds_no_plain_numbers_is_named(change, reason, network, tmp_path):
    tensors = network.state_dict()
    torch.save(
        tensors | {"features.3.squeeze.bias": change(tensors["features.3.squeeze.bias"])},
        tmp_path / "odd.pth",
    )
    with pytest.raises(WeightsError, match=rf"odd.pth: features.3.squeeze.bias {reason}"):
        resolve(squeezenet(tmp_path / "odd.pth"))


def test_weights_that_tell_no_picture_from_another_are_refused(network, tmp_path):
    zeros = {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
    torch.save(zeros, tmp_path / "dead.pth")
    with pytest.raises(SpecError, match="gives the same vector of any picture"):
        resolve(squeezenet(tmp_path / "dead.pth"))


def test_an_unknown_name_lists_the_valid_ones():
    with pytest.raises(WeightsError, match=r"'IMAGENET_V9'.*IMAGENET1K_V1, IMAGENET1K_V2"):
        resolve(Recipe(backbone="resnet50", weights="IMAGENET_V9"))


@pytest.mark.parametrize(
    "name", ["IMAGENET1K_V1", "DEFAULT", "SqueezeNet1_1_Weights.IMAGENET1K_V1"]
)
def test_weights_that_cannot_be_downloaded_say_where_to_put_them(name, offline):
    with pytest.raises(WeightsError, match="IMAGENET1K_V1 of squeezenet1_1") as refusal:
        resolve(squeezenet(name))
    text = str(refusal.value)
    assert str(offline / "squeezenet1_1-b8a52dc0.pth") in text
    assert "no network" in text and "\n" not in text


@pytest.mark.parametrize("name", ["DEFAULT", "SqueezeNet1_1_Weights.IMAGENET1K_V1"])
def test_an_enum_is_found_in_the_folder_of_torch_under_its_real_name(name, offline, file):
    offline.mkdir(parents=True)
    (offline / "squeezenet1_1-b8a52dc0.pth").write_bytes(file.read_bytes())
    found = resolve(squeezenet(name))
    assert (found.spec.weights, found.weights_source) == ("IMAGENET1K_V1", "IMAGENET1K_V1")


def test_a_download_with_other_bytes_is_refused_and_left_nowhere(offline, file, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: file.open("rb"))
    with pytest.raises(WeightsError, match="SHA-256 begins"):
        resolve(squeezenet("DEFAULT"))
    assert list(offline.iterdir()) == []


def test_a_file_that_moved_is_found_in_the_folder_of_torch(offline, file):
    spec = resolve(squeezenet(file)).spec
    gone = file.with_name("elsewhere") / file.name
    with pytest.raises(WeightsError, match=r"mine.pth is gone") as refusal:
        load_backbone(spec, str(gone))
    assert str(offline / "mine.pth") in str(refusal.value)
    offline.mkdir(parents=True)
    file.rename(offline / "mine.pth")
    assert load_backbone(spec, str(gone)).weights_sha256 == spec.weights_sha256


def test_a_file_of_the_same_name_with_other_tensors_is_refused(file, network):
    spec = resolve(squeezenet(file)).spec
    network.features[0].bias.data += 1
    torch.save(network.state_dict(), file)
    with pytest.raises(WeightsError, match="other tensors"):
        load_backbone(spec, str(file))


@pytest.mark.weights
def test_a_network_cut_before_its_classifier_loads_without_it(beside):
    path = beside / "weights" / "mobilenet_v2-trunk.pth"
    if not path.is_file():
        pytest.skip("the weights lie beside a developer's checkout only")
    assert resolve(Recipe(backbone="mobilenet_v2", weights=str(path))).spec.dim == 1280


def squeezenet(weights):
    return Recipe(backbone="squeezenet1_1", weights=str(weights))


def test_a_file_of_a_densenet_has_the_names_that_torchvision_gave_it_once(tmp_path):
    network = get_model("densenet121", weights=None).eval()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): value
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")  # torch had none yet
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    again = get_model("densenet121", weights=None)
    file_of_torchvision = SimpleNamespace(get_state_dict=lambda **_options: dict(old))
    densenet._load_state_dict(again, file_of_torchvision, progress=False)  # takes it so, too
    torch.save(old, tmp_path / "densenet.pth")
    recipe = Recipe("densenet121", str(tmp_path / "densenet.pth"), patch_size=64, stride=32)
    found = resolve(recipe)
    network.classifier = torch.nn.Identity()
    assert found.spec.weights_sha256 == tensor_digest(network)


def test_a_file_of_a_transformer_has_the_names_that_torchvision_gave_it_once(tmp_path):
    sizes = {"image_size": 32, "patch_size": 16, "num_layers": 2, "num_heads": 2}
    network = VisionTransformer(**sizes, hidden_dim=8, mlp_dim=16)
    old = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): value
        for name, value in network.state_dict().items()
    }
    assert "encoder.layers.encoder_layer_0.mlp.linear_1.weight" in old
    VisionTransformer(**sizes, hidden_dim=8, mlp_dim=16).load_state_dict(dict(old))  # as it does
    path = tmp_path / "vit.pth"
    torch.save(old, path)
    read = read_tensors(WeightsSource("vit.pth", str(path), path=path), "vit_b_16")
    assert read is not None
    assert read.keys() == network.state_dict().keys()
    again = VisionTransformer(**sizes, hidden_dim=8, mlp_dim=16)
    load_tensors(again, read, set(again.state_dict()), "vit.pth")
    assert tensor_digest(again) == tensor_digest(network)
