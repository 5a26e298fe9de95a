"""One pass over an image: boxes are pooled where they are, and tiles do not show."""

import logging
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from extractor.arrays import DecodedImage, PatchFeatures, Region
from extractor.backbone import Backbone, resolve
from extractor.device import candidates, choose_device
from extractor.errors import SpecError
from extractor.features import FeatureExtractor
from extractor.field import Field, measure_field
from extractor.grid import spec_grid
from extractor.network import DenseNetwork, split_at_pooling
from extractor.spec import FeatureSpec, Recipe

CELL = 4


def spec(**fields: object) -> FeatureSpec:
    """Patches of 16 x 16 pixels every 8."""
    given_fields = {"patch_size": 16, "stride": 8, "edge": "cover", "dim": 6, **fields}
    return FeatureSpec(
        backbone="small",
        weights="random:0",
        weights_sha256="0" * 64,
        layer="features",
        pooling=given_fields.pop("pooling", "avg"),
        mode="dense",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        metric="l2",
        **given_fields,
    )


def backbone(trunk: nn.Module, dim: int, pooling: str = "avg") -> Backbone:
    network = DenseNetwork(trunk, nn.Identity(), pooling).eval().requires_grad_(False)
    return Backbone(network, dim, "0" * 64)


def small() -> nn.Module:
    """Convolutions and a pooling, padded with zeros: a stride of 4 and a field of 15 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(8, 6, 3, padding=1),
        )


SMALL = backbone(small(), 6)


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def extract(extractor: FeatureExtractor, *pictures: np.ndarray) -> list[np.ndarray]:
    decoded = [
        DecodedImage(pixels, spec_grid(extractor.spec, pixels.shape[1], pixels.shape[0]))
        for pixels in pictures
    ]
    found = extractor.extract(decoded)
    assert all(isinstance(result, PatchFeatures) for result in found)
    return [result.vectors for result in found if isinstance(result, PatchFeatures)]


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("network", "field"),
    [
        (nn.Conv2d(3, 4, 1), Field(1, 0.5, 0, 0)),
        (nn.AvgPool2d(4), Field(4, 2.0, 0, 0)),
        (nn.Conv2d(3, 4, 3, padding=1), Field(1, 0.5, 1, 1)),
        (nn.Conv2d(3, 4, 3, padding=0), Field(1, 1.5, 0, 2)),
        (nn.Conv2d(3, 4, 3, padding=2, dilation=2), Field(1, 0.5, 2, 2)),
        (nn.Conv2d(3, 4, 7, stride=2, padding=3), Field(2, 0.5, 2, 1)),
        (small(), Field(4, 0.5, 2, 1)),
    ],
    ids=["1x1", "pooling", "3x3", "unpadded", "dilated", "strided", "small"],
)
def test_the_field_is_what_arithmetic_says(network: nn.Module, field: Field) -> None:
    assert measure_field(network) == field


def test_the_field_of_a_resnet_18_is_the_known_one() -> None:
    # 435 pixels: https://distill.pub/2019/computing-receptive-fields/
    found = resolve(Recipe("resnet18", "random:0", mode="dense")).backbone.field
    assert found == Field(stride=32, centre=0.5, before=7, after=6)


class Global(nn.Module):
    """Squeeze-and-excitation: each cell is weighed by the mean of all."""

    def forward(self, images: Tensor) -> Tensor:
        return images * images.mean((2, 3), keepdim=True)


class Placed(nn.Module):
    """Sees something else at every other column of cells."""

    def forward(self, images: Tensor) -> Tensor:
        cells = nn.functional.avg_pool2d(images, 4)
        which = torch.arange(cells.shape[3]) // 7 % 2
        return cells * (1 + which)


class Square(nn.Module):
    """Says by an assertion what it can be shown, as torchvision's transformers do."""

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2] == images.shape[3], "Wrong image height!"
        return images


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Global(), "the whole image at once"),
        (Placed(), "depends on where it stands"),
        (nn.Conv2d(3, 4, (3, 5), padding=(1, 2)), "rows and columns in different steps"),
        (nn.Conv2d(3, 4, 1, stride=2), "leaves part of its input out"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 7)), "only some sizes"),
        (Square(), "only some sizes"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(7)), "does not grow"),
    ],
    ids=["global", "placed", "oblong", "gaps", "fixed size", "asserted size", "fixed map"],
)
def test_a_network_that_tiles_would_change_is_refused(network: nn.Module, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        measure_field(network)


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (Recipe("mobilenet_v3_small", "random:0", mode="dense"), "squeeze-and-excitation"),
        (Recipe("vgg11", "random:0", mode="dense"), "global average pooling"),
        (Recipe("resnet18", "random:0", mode="dense", scales=(1.0, 0.5)), "leave scales"),
        (Recipe("resnet18", "random:0", mode="dense", input_size=96), "input_size out"),
        (Recipe("resnet18", "random:0", "layer1", "max", mode="dense"), "cannot pool by 'max'"),
        (Recipe("resnet18", "random:0", mode="fast"), "mode is 'fast'"),
        (Recipe("inception_v3", "random:0", patch_size=64, stride=32, mode="dense"), "patch$"),
    ],
    ids=lambda value: value.backbone if isinstance(value, Recipe) else value,
)
def test_a_recipe_that_cannot_be_dense_says_why(recipe: Recipe, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        resolve(recipe)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_a_network_is_split_where_it_pools(name: str) -> None:
    whole = resolve(Recipe(name, "random:0", patch_size=64, stride=32)).backbone.network
    body, head = split_at_pooling(whole.get_submodule("trunk"))
    patches = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        parts = head(body(patches).mean((2, 3), keepdim=True)).flatten(1)
        torch.testing.assert_close(parts, whole(patches), rtol=1e-4, atol=1e-5)


boxes = st.tuples(st.integers(0, 24), st.integers(0, 24), st.integers(1, 16), st.integers(1, 16))


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_the_cells_of_a_long_side_are_known_from_short_ones(name: str) -> None:
    backbone = resolve(Recipe(name, "random:0", mode="dense", patch_size=64, stride=64)).backbone
    short = max(32, backbone.smallest)
    with torch.inference_mode():
        for length in (backbone.smallest, 64, 97, 101, 130, 255, 256, 257, 431):
            probe = torch.zeros(1, 3, short, length)
            assert backbone.cells(length) == backbone.network.features(probe).shape[3]


@settings(max_examples=40, deadline=None)
@given(box=boxes, pooling=st.sampled_from(["avg", "gem"]))
def test_a_box_is_the_average_of_the_cells_over_exactly_that_box(
    box: tuple[int, int, int, int], pooling: str
) -> None:
    pixels = picture(40, 40)
    found = FeatureExtractor(
        spec(dim=3, pooling=pooling), backbone(nn.AvgPool2d(CELL), 3, pooling)
    ).embed(Region(pixels, box))
    cells = pixels.reshape(10, CELL, 10, CELL, 3).mean((1, 3)) / 255
    seen = np.kron(cells, np.ones((CELL, CELL, 1)))
    x, y, width, height = box
    part = seen[y : y + height, x : x + width].reshape(-1, 3)
    expected = part.mean(0) if pooling == "avg" else (part**3).mean(0) ** (1 / 3)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


sides = st.integers(3, 90)


@settings(max_examples=40, deadline=None)
@given(
    width=sides,
    height=sides,
    tile=st.integers(20, 80),
    edge=st.sampled_from(["cover", "pad"]),
    stride=st.integers(3, 16),
)
def test_tiles_do_not_show(width: int, height: int, tile: int, edge: str, stride: int) -> None:
    recipe = spec(edge=edge, stride=stride)
    (whole,) = extract(FeatureExtractor(recipe, SMALL), picture(width, height))
    (tiled,) = extract(FeatureExtractor(recipe, SMALL, dense_tile=tile), picture(width, height))
    close(tiled, whole)


def test_tiles_of_a_real_network_do_not_show() -> None:
    resolved = resolve(Recipe("squeezenet1_1", "random:0", patch_size=64, stride=24, mode="dense"))
    pixels = picture(500, 430)
    (whole,) = extract(FeatureExtractor(resolved.spec, resolved.backbone), pixels)
    (tiled,) = extract(FeatureExtractor(resolved.spec, resolved.backbone, dense_tile=250), pixels)
    close(tiled, whole)


@settings(max_examples=20, deadline=None)
@given(shapes=st.lists(st.tuples(sides, sides), min_size=1, max_size=4), batch=st.integers(1, 40))
def test_the_company_of_other_images_changes_nothing(
    shapes: list[tuple[int, int]], batch: int
) -> None:
    pictures = [picture(*shape, seed=i) for i, shape in enumerate([*shapes, shapes[0]])]
    alone = [extract(FeatureExtractor(spec(), SMALL, batch_size=1), one)[0] for one in pictures]
    together = extract(FeatureExtractor(spec(), SMALL, batch_size=batch), *pictures)
    for found, expected in zip(together, alone, strict=True):
        close(found, expected)


@pytest.mark.parametrize(
    ("edge", "size"),
    [
        ("drop", (61, 45)),
        ("cover", (61, 45)),
        ("pad", (61, 45)),
        ("cover", (12, 30)),
        ("pad", (7, 5)),
    ],
)
def test_a_stored_patch_asked_for_again_is_the_same(edge: str, size: tuple[int, int]) -> None:
    extractor = FeatureExtractor(spec(edge=edge), SMALL)
    pixels = picture(*size)
    grid = spec_grid(extractor.spec, *size)
    (stored,) = extract(extractor, pixels)
    for box, expected in zip(grid.boxes.tolist(), stored, strict=True):
        close(extractor.embed(Region(pixels, tuple(box))), expected)


@settings(max_examples=20, deadline=None)
@given(asked=st.lists(boxes, min_size=1, max_size=6), tile=st.integers(20, 80))
def test_regions_of_one_picture_are_the_same_in_any_company_and_order(
    asked: list[tuple[int, int, int, int]], tile: int
) -> None:
    pixels = picture(90, 90)
    regions = [Region(pixels, (2 * x, 2 * y, width, height)) for x, y, width, height in asked]
    extractor = FeatureExtractor(spec(), SMALL, dense_tile=tile)
    for region, found in zip(regions, extractor.embed_many(regions), strict=True):
        close(found, FeatureExtractor(spec(), SMALL).embed(region))


@pytest.mark.parametrize(("side", "most"), [(90, 1), (400, 9)])
def test_a_network_that_sees_as_far_as_a_tile_is_wide_is_not_run_for_each_cell(
    side: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = backbone(nn.Sequential(small(), nn.Conv2d(6, 6, 3, padding=8, dilation=8)), 6)
    pixels = picture(side, side)
    (whole,) = extract(FeatureExtractor(spec(), far), pixels)
    extractor = FeatureExtractor(spec(), far, dense_tile=80)
    seen = counted(extractor, far, monkeypatch)
    (tiled,) = extract(extractor, pixels)
    assert sum(seen) <= most * side * side
    close(tiled, whole)


def counted(
    extractor: FeatureExtractor, network: Backbone, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """How many pixels each pass is given from now on."""
    seen: list[int] = []
    maps: Callable[[Tensor], Tensor] = network.network.features

    def counting(images: Tensor) -> Tensor:
        seen.append(images.shape[0] * images.shape[2] * images.shape[3])
        return maps(images)

    monkeypatch.setattr(extractor, "_run", counting)
    return seen


def test_nothing_is_computed_between_regions_that_are_far_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extractor = FeatureExtractor(spec(), SMALL, dense_tile=40)
    seen = counted(extractor, SMALL, monkeypatch)
    pixels = picture(400, 40)
    extractor.embed_many([Region(pixels, (0, 0, 16, 16)), Region(pixels, (380, 0, 16, 16))])
    assert sum(seen) < 0.3 * 400 * 40


def test_a_region_is_seen_in_its_picture() -> None:
    extractor = FeatureExtractor(spec(), SMALL)
    pixels = picture(60, 60)
    box = (20, 20, 16, 16)
    in_place = extractor.embed(Region(pixels, box))
    alone = extractor.embed(Region.whole(Region(pixels, box).pixels))
    assert np.abs(in_place - alone).max() > 0.01 * np.abs(in_place).max()


def test_a_strip_that_is_twice_as_long_takes_twice_the_memory() -> None:
    extractor = FeatureExtractor(spec(), SMALL)
    strips = [picture(length, 16) for length in (20_000, 40_000)]
    extract(extractor, strips[0])  # what is loaded once is not counted
    peaks = []
    for strip in strips:
        tracemalloc.start()
        extract(extractor, strip)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2.5 * peaks[0]


def test_an_image_of_one_colour_is_the_same_everywhere_but_at_its_ends() -> None:
    vectors = extract(FeatureExtractor(spec(), SMALL), np.full((80, 80, 3), 90, np.uint8))[0]
    inner = vectors.reshape(9, 9, 6)[1:-1, 1:-1].reshape(-1, 6)
    close(inner, np.broadcast_to(inner[0], inner.shape))


def test_a_device_without_memory_gets_smaller_tiles(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = picture(90, 90)
    (expected,) = extract(FeatureExtractor(spec(), SMALL), pixels)
    extractor = FeatureExtractor(spec(), SMALL, dense_tile=128)
    maps: Callable[[Tensor], Tensor] = SMALL.network.features

    def small_memory(images: Tensor) -> Tensor:
        if images.shape[2] * images.shape[3] > 40 * 40:
            raise torch.OutOfMemoryError
        return maps(images)

    monkeypatch.setattr(extractor, "_run", small_memory)
    with caplog.at_level(logging.WARNING):
        (found,) = extract(extractor, pixels)
    close(found, expected)
    assert "tiles are now of 32" in caplog.text


def test_where_memory_runs_out_fewer_small_images_go_through_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pictures = [picture(24, 24) for _ in range(12)]
    expected = extract(FeatureExtractor(spec(), SMALL), *pictures)
    extractor = FeatureExtractor(spec(), SMALL)
    maps: Callable[[Tensor], Tensor] = SMALL.network.features

    def small_memory(images: Tensor) -> Tensor:
        if len(images) > 3:
            raise torch.OutOfMemoryError
        return maps(images)

    monkeypatch.setattr(extractor, "_run", small_memory)
    for found, right in zip(extract(extractor, *pictures), expected, strict=True):
        close(found, right)


def test_a_device_that_cannot_hold_one_cell_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = FeatureExtractor(spec(), SMALL)

    def no_memory(images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(extractor, "_run", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        extract(extractor, picture(40, 40))


@pytest.mark.skipif(
    not candidates(choose_device("cpu")),
    reason="this processor has no lower precision to compare with",
)
def test_lower_precision_means_the_same() -> None:
    expected = extract(FeatureExtractor(spec(), SMALL), picture(70, 50))[0]
    found = extract(FeatureExtractor(spec(), SMALL, precision="bf16"), picture(70, 50))[0]
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1)
    assert (cosines / np.linalg.norm(expected, axis=1)).min() > 0.999


def test_exact_and_dense_vectors_never_share_a_digest() -> None:
    dense = spec()
    assert dense.digest != dense.model_copy(update={"mode": "exact"}).digest
