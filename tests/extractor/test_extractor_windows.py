"""Of a large image a few rows are needed at a time, and that does not show."""

import mmap
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from extractor import windows
from extractor.arrays import DecodedImage, Region
from extractor.backbone import resolve
from extractor.features import FeatureExtractor
from extractor.grid import make_grid, spec_grid
from extractor.patches import PatchCutter
from extractor.spec import Recipe
from extractor.windows import Windows

DIM = 3
CUTTER = PatchCutter(
    SimpleNamespace(side=4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)), torch.device("cpu")
)


@contextmanager
def large_from(pixels, vectors=windows._VECTORS):
    """Images of more pixels are large ones; so many bytes of vectors are pooled at once."""
    with (
        mock.patch.object(windows, "LARGE", pixels),
        mock.patch.object(windows, "_VECTORS", vectors),
    ):
        yield


def picture(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cut(found):
    images = [torch.from_numpy(found.images[i]) for i in found.owner]
    return CUTTER.cut(images, found.boxes.tolist()).numpy().copy()


@given(
    width=st.integers(1, 40),
    height=st.integers(1, 60),
    patch=st.integers(1, 12),
    step=st.floats(0.1, 1),
    edge=st.sampled_from(["cover", "pad"]),
    scales=st.sampled_from([(1.0,), (1.0, 0.4), (0.3, 1.7, 0.6)]),
    most=st.integers(1, 2400),
    vectors=st.integers(1, 300),
    whole_images=st.booleans(),
)
def test_parts_are_small_and_cut_to_the_same_pixels(
    width, height, patch, step, edge, scales, most, vectors, whole_images
):
    stride = max(1, int(patch * step))
    grid = make_grid(width, height, patch_size=patch, stride=stride, edge=edge, scales=scales)
    whole = Windows([picture(width, height)], np.zeros(len(grid), dtype=np.int64), grid.windows)
    with large_from(most, vectors * 4 * DIM):
        parts = list(whole.parts(DIM, whole_images=whole_images))
    expected = cut(whole)
    for rows, part in parts:
        np.testing.assert_array_equal(cut(part), expected[rows])
        rows_held = 0 if whole_images else part.images[0].shape[0]
        fits = rows_held * width <= most and len(part) <= vectors
        assert fits or len(set(part.boxes[:, 1].tolist())) == 1
    rows_of_parts = [row for rows, _ in parts for row in range(len(whole))[rows]]
    assert rows_of_parts == list(range(len(whole)))


def test_parts_are_of_one_image_each():
    images = [picture(9, 9), picture(5, 30)]
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 4], [1, 9, 4, 4], [3, 3, 4, 4]], dtype=np.int32)
    whole = Windows(images, np.array([0, 1, 1, 0]), boxes)
    with large_from(100):
        parts = list(whole.parts(DIM, whole_images=False))
    assert [(rows.start, rows.stop) for rows, _ in parts] == [(0, 1), (1, 3), (3, 4)]
    np.testing.assert_array_equal(cut(whole), np.concatenate([cut(part) for _, part in parts]))


@pytest.mark.parametrize(("mode", "scales"), [("exact", (1.0, 0.5)), ("dense", (1.0,))])
def test_a_large_image_has_the_vectors_of_a_small_one(mode, scales):
    found = resolve(
        Recipe("squeezenet1_1", "random:0", mode=mode, patch_size=64, stride=32, scales=scales)
    )
    extractor = FeatureExtractor(found.spec, found.backbone, device="cpu", dense_tile=512)
    pixels = picture(200, 500)
    image = DecodedImage(pixels, spec_grid(found.spec, 200, 500))
    (expected,) = extractor.extract([image])
    with large_from(200 * 140, vectors=20 * 4 * found.spec.dim):
        (vectors,) = (each.vectors for each in extractor.extract([image]))
        region = extractor.embed(Region(pixels, tuple(image.grid.boxes[-1].tolist())))
    np.testing.assert_allclose(vectors, expected.vectors, atol=1e-5)
    np.testing.assert_allclose(region, expected.vectors[-1], atol=1e-5)
    assert isinstance(vectors.base.base.base, mmap.mmap)
