"""The same patch has the same vector, whatever is computed beside it and however.

`SAME` is what docs/operate.md states: of the length of a vector.
"""

import functools
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extractor.agreement import MNN_ROUNDING, TILE, relative_difference
from extractor.arrays import DecodedImage, PatchFeatures
from extractor.backbone import ResolvedSpec, resolve
from extractor.device import EXPORTED, FLOAT32, MNN, OPENVINO, TORCH
from extractor.features import FeatureExtractor
from extractor.grid import spec_grid
from extractor.spec import FeatureSpec, Recipe

SAME = {"exact": 1e-5, "dense": TILE}
SIDE = 64
THREADS = torch.get_num_threads()

pytestmark = pytest.mark.slow


@functools.cache
def resolved(mode: str) -> ResolvedSpec:
    recipe = Recipe("squeezenet1_1", "random:0", mode=mode, patch_size=SIDE, stride=32)
    return resolve(recipe)


def photograph(spec: FeatureSpec, width: int, height: int, seed: int) -> DecodedImage:
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    pixels = (smooth[0].permute(1, 2, 0) * 255).byte().numpy()
    return DecodedImage(pixels, spec_grid(spec, width, height))


def extract(images: list[DecodedImage], mode: str, **options: object) -> list[np.ndarray]:
    found = resolved(mode)
    precision = EXPORTED.get(str(options.get("runtime")), FLOAT32)
    extractor = FeatureExtractor(
        found.spec, found.backbone, device="cpu", precision=precision, **options
    )
    results = extractor.extract(images)
    assert all(isinstance(result, PatchFeatures) for result in results)
    return [result.vectors for result in results if isinstance(result, PatchFeatures)]


@functools.cache
def alone(mode: str, runtime: str) -> tuple[DecodedImage, np.ndarray]:
    """An image, and its vectors computed a patch at a time, with nothing beside them."""
    image = photograph(resolved(mode).spec, 130, 100, seed=0)
    return image, extract([image], mode, batch_size=1, runtime=runtime)[0]


@pytest.fixture
def threads() -> Iterator[None]:
    yield
    torch.set_num_threads(THREADS)


neighbours = st.lists(st.tuples(st.integers(SIDE, 150), st.integers(SIDE, 150)), max_size=3)
few = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize(
    ("mode", "runtime"), list(product(("exact", "dense"), (TORCH, *EXPORTED))), ids=str
)
@few
@given(
    sizes=neighbours,
    place=st.integers(0, 3),
    batch_size=st.integers(1, 40),
    count=st.integers(1, 3),
)
def test_neighbours_place_batch_and_threads_change_no_vector(
    mode: str,
    runtime: str,
    threads: None,
    bf16: None,
    sizes: list[tuple[int, int]],
    place: int,
    batch_size: int,
    count: int,
) -> None:
    # In float32 another runtime changes no more than that either.
    image, expected = alone(mode, OPENVINO if runtime == OPENVINO else TORCH)
    spec = resolved(mode).spec
    images = [photograph(spec, *size, seed=i + 1) for i, size in enumerate(sizes)]
    place = min(place, len(images))
    images.insert(place, image)
    torch.set_num_threads(count)
    found = extract(images, mode, runtime=runtime, batch_size=batch_size)[place]
    differences = [relative_difference(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(differences) <= (MNN_ROUNDING if runtime == MNN else SAME[mode])
