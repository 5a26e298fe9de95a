"""Networks are cut where they should be, and see what the tutorials' way sees."""

import numpy as np
import pytest
import torch
from skimage.util import view_as_windows
from torch import nn
from torchvision import models

from extractor.arrays import DecodedImage
from extractor.backbone import backbone_names, load_backbone, resolve
from extractor.errors import SpecError, WeightsError
from extractor.features import FeatureExtractor
from extractor.grid import make_grid
from extractor.spec import Recipe


@pytest.mark.parametrize(
    ("backbone", "dim", "input_size"),
    [
        ("resnet18", 512, None),
        ("resnet34", 512, None),
        ("resnet50", 2048, None),
        ("efficientnet_b0", 1280, None),
        ("mobilenet_v3_small", 1024, None),
        ("convnext_tiny", 768, None),
        ("vit_b_16", 768, 224),
        ("swin_t", 768, 224),
        ("squeezenet1_1", 512, None),
        ("densenet121", 1024, None),
        ("googlenet", 1024, None),
        ("inception_v3", 2048, None),
        ("swin_v2_t", 768, 256),
        pytest.param("vgg16", 4096, None, marks=pytest.mark.slow),
        pytest.param("vgg16_bn", 4096, None, marks=pytest.mark.slow),
        pytest.param("maxvit_t", 512, 224, marks=pytest.mark.slow),
    ],
)
def test_a_backbone_is_cut_before_its_classifier(backbone, dim, input_size, noise, decode):
    recipe = Recipe(backbone=backbone, weights="random:0", patch_size=96, stride=96)
    spec, source, loaded = (found := resolve(recipe)).spec, found.weights_source, found.backbone
    assert (spec.dim, spec.input_size, source) == (dim, input_size, "random:0")
    assert spec.pooling == "native"
    extractor = FeatureExtractor(spec, loaded, device="cpu")
    (features,) = extractor.extract([decode(noise(100, 96), spec)])
    assert features.vectors.shape == (2, dim)
    assert np.linalg.norm(features.vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())


# The larger ones of each family differ in their sizes only, and cost seconds of random numbers.
MODEST = [
    name
    for name in backbone_names()
    if models.get_model_weights(name).DEFAULT.meta["num_params"] < 35e6
]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", MODEST)
def test_every_family_of_torchvision_can_be_cut(backbone):
    assert resolve(Recipe(backbone=backbone, weights="random:0")).spec.dim > 0


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50"])
def test_resnets_agree_with_the_tutorial(backbone, noise):
    network = tutorial_network(backbone)
    trunk = nn.Sequential(*list(network.children())[:-1])
    agree(Recipe(backbone=backbone), trunk, noise(160, 97))


@pytest.mark.parametrize("pooling", ["flatten", "avg"])
def test_vgg16_agrees_with_the_tutorial(pooling, noise):
    features = tutorial_network("vgg16").features
    trunk = features if pooling == "flatten" else nn.Sequential(features, nn.AdaptiveAvgPool2d(1))
    agree(Recipe(backbone="vgg16", layer="features", pooling=pooling), trunk, noise(160, 97))


@pytest.mark.parametrize(
    ("backbone", "layer", "pooling", "dim"),
    [
        ("resnet18", "layer3", None, 256),
        ("resnet18", "layer3", "max", 256),
        ("resnet18", "layer3.1.relu", "gem", 256),
        ("resnet18", "flatten", None, 512),
        ("swin_t", "features", None, 768),
        ("swin_t", "features.1", "gem", 96),
        ("vit_b_16", "encoder", "avg", 768),
        ("convnext_tiny", "features.3", "avg", 192),
    ],
)
def test_any_other_layer_is_pooled_to_its_channels(backbone, layer, pooling, dim):
    recipe = Recipe(backbone=backbone, weights="random:0", layer=layer, pooling=pooling)
    spec = resolve(recipe).spec
    assert (spec.dim, spec.pooling) == (dim, pooling or "avg")


def test_a_layer_needs_only_the_tensors_before_it(tmp_path):
    whole = tutorial_network("resnet18").state_dict()
    file = tmp_path / "half.pth"
    torch.save({k: v for k, v in whole.items() if not k.startswith(("layer4", "fc"))}, file)
    recipe = Recipe(weights=str(file), layer="layer3")
    seeded = Recipe(weights="random:0", layer="layer3")
    assert resolve(recipe).spec.weights_sha256 == resolve(seeded).spec.weights_sha256


def test_the_weights_own_normalisation_is_recorded():
    assert resolve(Recipe(weights="random:0")).spec.mean == (0.485, 0.456, 0.406)


def test_a_stored_spec_loads_the_same_network():
    found = resolve(Recipe(weights="random:3"))
    again = load_backbone(found.spec, found.weights_source)
    assert again.weights_sha256 == found.spec.weights_sha256
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(again.network(x), found.backbone.network(x))


def test_other_tensors_than_the_specs_are_refused():
    spec = resolve(Recipe(weights="random:3")).spec
    with pytest.raises(WeightsError, match="other tensors under the same name"):
        load_backbone(spec, "random:4")


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (Recipe(backbone="resnet19"), "'resnet19' is no .* closest are resnet18"),
        (Recipe(layer="layr3"), "'layr3' is no node of resnet18; the closest are layer3"),
        (Recipe(pooling="gem"), "--layer layer4` of a ResNet.* beside `--pooling gem`"),
        (Recipe(layer="layer3", pooling="native"), "'native' is only for"),
        (Recipe(layer="layer3", pooling="median"), "pooling is 'median'; give one of avg, max"),
        (Recipe(layer="flatten", pooling="max"), "vectors of 512 already"),
        (Recipe(metric="hamming"), "metric is 'hamming'; give one of cosine"),
        (Recipe(backbone="inception_v3", patch_size=64, stride=8), "patch_size 64 .*75 pixels"),
        (Recipe(backbone="inception_v3", input_size=16), "does not run on 16 x 16"),
        (Recipe(backbone="vit_b_16", input_size=100), "vit_b_16 does not run on 100 x 100"),
        (Recipe(input_size=0), "input_size is 0"),
        (Recipe(patch_size=0), "patch_size is 0"),
        (Recipe(stride=225), "leaves gaps"),
        (Recipe(weights="random:x"), "'random:x'"),
        (Recipe(weights="random:-1"), "'random:-1'"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_in_one_line(recipe, says):
    if recipe.weights == "IMAGENET1K_V1":
        recipe = Recipe(**vars(recipe) | {"weights": "random:0"})
    with pytest.raises(SpecError, match=says) as refusal:
        resolve(recipe)
    assert "\n" not in str(refusal.value)


def tutorial_network(name):
    """The network of `random:0`, uncut."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.get_model(name, weights=None).eval()


def agree(recipe, trunk, image):
    """Compare with windows of scikit-image, in float32, one by one."""
    recipe = Recipe(
        **vars(recipe)
        | {"weights": "random:0", "patch_size": 64, "stride": 32, "edge": "drop", "metric": "l2"}
    )
    found = resolve(recipe)
    height, width = image.shape[:2]
    grid = make_grid(width, height, patch_size=64, stride=32, edge="drop")
    extractor = FeatureExtractor(found.spec, found.backbone, device="cpu", batch_size=3)
    (ours,) = extractor.extract([DecodedImage(image, grid)])
    windows = view_as_windows(image, (64, 64, 3), step=(32, 32, 3)).reshape(-1, 64, 64, 3)
    assert len(windows) == len(ours.vectors) == 8
    for vector, window in zip(ours.vectors, windows, strict=True):
        pixels = torch.from_numpy(window.astype(np.float32) / 255).permute(2, 0, 1)
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        with torch.no_grad():
            theirs = trunk(((pixels - mean) / std)[None]).flatten().numpy()
        assert np.linalg.norm(vector - theirs) <= 1e-4 * np.linalg.norm(theirs)
