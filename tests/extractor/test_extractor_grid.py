"""The grid does what its edge policy says, for every size, stride and scale."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.util import view_as_windows

from extractor.errors import ImageTooSmall, SpecError
from extractor.grid import count_patches, make_grid

lengths = st.integers(1, 90)
edges = st.sampled_from(["drop", "cover", "pad"])
scale_sets = st.lists(
    st.sampled_from([0.25, 0.5, 0.7, 1.0, 1.5, 2.0, 3.3]), min_size=1, max_size=3, unique=True
).map(tuple)
# From 4 pixels on, no scale below leaves less than a pixel of a window.
geometries = st.integers(4, 40).flatmap(
    lambda patch: st.tuples(st.just(patch), st.integers(1, patch))
)


@given(lengths, lengths, geometries, edges, scale_sets)
def test_every_box_is_its_window_clipped_to_the_image(width, height, geometry, edge, scales):
    grid = lay(width, height, geometry, edge, scales)
    if grid is None:
        return
    x, y, w, h = grid.windows.T
    bx, by, bw, bh = grid.boxes.T
    assert (bx == x).all() and (by == y).all()
    assert (bw == np.minimum(x + w, width) - x).all()
    assert (bh == np.minimum(y + h, height) - y).all()
    assert (bx >= 0).all() and (by >= 0).all() and (bw > 0).all() and (bh > 0).all()
    assert grid.windows.dtype == grid.boxes.dtype == np.int32
    assert grid.scales.dtype == np.float32


@given(lengths, lengths, geometries, st.sampled_from(["cover", "pad"]), scale_sets)
def test_cover_and_pad_see_every_pixel_at_every_scale(width, height, geometry, edge, scales):
    grid = lay(width, height, geometry, edge, scales)
    for scale in scales:
        seen = np.zeros((height, width), dtype=bool)
        for x, y, w, h in grid.boxes[grid.scales == np.float32(scale)]:
            seen[y : y + h, x : x + w] = True
        assert seen.all()


@given(lengths, lengths, geometries, edges, scale_sets)
def test_boxes_of_a_scale_are_row_major_and_never_repeated(width, height, geometry, edge, scales):
    grid = lay(width, height, geometry, edge, scales)
    if grid is None:
        return
    order = [s for i, s in enumerate(grid.scales) if i == 0 or s != grid.scales[i - 1]]
    assert len(order) == len(set(order))
    for scale in order:
        at = [(y, x) for x, y, _, _ in grid.boxes[grid.scales == scale].tolist()]
        assert at == sorted(set(at))


@given(lengths, lengths, geometries, edges, scale_sets)
def test_counting_agrees_with_laying(width, height, geometry, edge, scales):
    grid = lay(width, height, geometry, edge, scales)
    patch, stride = geometry
    counted = count_patches(
        width, height, patch_size=patch, stride=stride, edge=edge, scales=scales
    )
    assert counted == (0 if grid is None else len(grid))


@given(lengths, lengths, st.integers(1, 40), st.integers(1, 50))
def test_drop_cuts_what_view_as_windows_cuts(width, height, patch, stride):
    image = np.arange(height * width, dtype=np.int32).reshape(height, width)
    if min(width, height) < patch:
        with pytest.raises(ImageTooSmall):
            make_grid(width, height, patch_size=patch, stride=stride, edge="drop")
        return
    grid = make_grid(width, height, patch_size=patch, stride=stride, edge="drop")
    expected = view_as_windows(image, (patch, patch), step=stride).reshape(-1, patch, patch)
    ours = np.stack([image[y : y + h, x : x + w] for x, y, w, h in grid.windows])
    assert (ours == expected).all()


@given(lengths, geometries)
def test_cover_shifts_only_the_last_window(length, geometry):
    patch, stride = geometry
    grid = make_grid(length, patch, patch_size=patch, stride=stride, edge="cover")
    xs = grid.windows[:, 0].tolist()
    if length <= patch:
        assert xs == [0]
    else:
        expected = list(range(0, length - patch + 1, stride))
        assert xs == expected + ([length - patch] if expected[-1] != length - patch else [])


def test_half_a_scale_sees_twice_the_side():
    grid = make_grid(40, 40, patch_size=10, stride=5, edge="drop", scales=(1.0, 0.5))
    coarse = grid.windows[grid.scales == 0.5]
    assert (coarse[:, 2:] == 20).all()
    assert sorted(set(coarse[:, 0].tolist())) == [0, 10, 20]


def test_drop_leaves_out_a_scale_that_does_not_fit():
    grid = make_grid(15, 15, patch_size=10, stride=5, edge="drop", scales=(1.0, 0.5))
    assert set(grid.scales.tolist()) == {1.0}


def test_a_huge_image_is_counted_without_laying_its_grid():
    patches = count_patches(2**31 - 1, 2**31 - 1, patch_size=224, stride=1, edge="cover")
    assert patches == (2**31 - 224) ** 2


def test_an_image_smaller_than_a_patch_is_said_to_be():
    with pytest.raises(ImageTooSmall, match=r"100 x 300 pixels.*224 x 224"):
        make_grid(100, 300, patch_size=224, stride=112, edge="drop")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patch_size": 0}, "patch_size is 0"),
        ({"stride": 0}, "stride is 0"),
        ({"stride": -3}, "stride is -3"),
        ({"stride": 300}, "stride 300 is larger than patch_size 224"),
        ({"edge": "crop"}, "edge is 'crop'"),
        ({"scales": ()}, "scales is empty"),
        ({"scales": (0.0,)}, "scale is 0.0"),
        ({"scales": (-1.0,)}, "scale is -1.0"),
        ({"scales": (float("nan"),)}, "scale is nan"),
        ({"scales": (float("inf"),)}, "scale is inf"),
        ({"scales": (1e9,)}, "window of"),
        ({"scales": (1.0, 1.0)}, "each scale once"),
        ({"scales": (0.5, 0.50000001)}, "each scale once"),
    ],
)
def test_a_geometry_that_cannot_work_is_refused_by_its_value(change, says):
    geometry = {"patch_size": 224, "stride": 112, "edge": "pad", "scales": (1.0,)} | change
    with pytest.raises(SpecError, match=says) as refusal:
        make_grid(500, 500, **geometry)
    assert "\n" not in str(refusal.value)


def lay(width, height, geometry, edge, scales):
    """The grid, or None where there is none to lay."""
    patch, stride = geometry
    try:
        return make_grid(width, height, patch_size=patch, stride=stride, edge=edge, scales=scales)
    except ImageTooSmall:
        assert edge == "drop"
        return None
