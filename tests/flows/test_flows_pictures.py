"""The pictures of a run: a contact sheet of its patches, and its throughput."""

import io
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from flows import throughput
from flows.contact_sheet import COLUMNS, GAP, MAX_BYTES, ROWS, SIDE, ContactSheet

STEP = SIDE + GAP


def flat(colour: int, patches: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of one colour, and boxes in it."""
    pixels = np.full((50, 60, 3), colour, np.uint8)
    return pixels, np.tile(np.array([5, 5, 40, 40], np.int32), (patches, 1))


def opened(sheet: ContactSheet) -> Image.Image:
    return Image.open(io.BytesIO(sheet.jpeg()))


def colours(sheet: ContactSheet) -> "Counter[int]":
    """How many thumbnails have which colour, to the nearest hundred."""
    pixels = np.asarray(opened(sheet).convert("L"))
    middles = pixels[GAP + SIDE // 2 :: STEP, GAP + SIDE // 2 :: STEP]
    return Counter(int(round(value, -2)) for value in middles.ravel().tolist())


def test_a_few_patches_make_a_small_sheet() -> None:
    sheet = ContactSheet()
    sheet.offer(*flat(100, 3))
    assert (len(sheet), opened(sheet).size) == (3, (3 * STEP + GAP, STEP + GAP))


def test_many_patches_fill_the_sheet_and_no_more() -> None:
    sheet = ContactSheet()
    for _ in range(30):
        sheet.offer(*flat(100, 7))
    assert (len(sheet), sheet.offered) == (COLUMNS * ROWS, 210)
    assert opened(sheet).size == (COLUMNS * STEP + GAP, ROWS * STEP + GAP)


def test_every_patch_has_the_same_chance_whenever_it_comes() -> None:
    early = 0
    for seed in range(20):
        sheet = ContactSheet(seed)
        sheet.offer(*flat(0, 500))
        sheet.offer(*flat(200, 500))
        early += colours(sheet)[0]
    assert 340 < early < 460  # of 800; four standard deviations from the half


def test_the_same_offers_give_the_same_sheet() -> None:
    sheets = [ContactSheet(), ContactSheet()]
    for sheet in sheets:
        sheet.offer(*flat(0, 100))
        sheet.offer(*flat(200, 100))
    assert sheets[0].jpeg() == sheets[1].jpeg()


def test_a_thumbnail_shows_its_box_and_keeps_its_proportions() -> None:
    pixels = np.full((100, 200, 3), 255, np.uint8)
    pixels[20:60, 100:120] = 0
    sheet = ContactSheet()
    sheet.offer(pixels, np.array([[100, 20, 20, 40]], np.int32))
    dark = np.asarray(opened(sheet).convert("L")) < 128
    rows, columns = dark.any(axis=1).sum(), dark.any(axis=0).sum()
    assert rows == pytest.approx(SIDE, abs=2)
    assert columns == pytest.approx(SIDE / 2, abs=2)


def test_a_sliver_of_a_patch_is_shown_as_one() -> None:
    sheet = ContactSheet()
    sheet.offer(np.zeros((224, 1, 3), np.uint8), np.array([[0, 0, 1, 224]], np.int32))
    dark = np.asarray(opened(sheet).convert("L")) < 128
    assert dark.any(axis=1).sum() == pytest.approx(SIDE, abs=2)


def test_noise_does_not_make_it_large() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8)
    sheet = ContactSheet()
    corners = np.random.default_rng(1).integers(0, 512, (100, 2), dtype=np.int32)
    sheet.offer(noise, np.hstack([corners, np.full((100, 2), 88, np.int32)]))
    assert len(sheet.jpeg()) <= MAX_BYTES


@pytest.mark.parametrize(
    "computed",
    [
        [(2.0, 64)],
        [(1.0, 30), (2.5, 30), (9.0, 4)],
        [(2.5, 30), (1.0, 30), (9.0, 4)],
        [(float(n), n % 7) for n in range(1, 5_000)],
    ],
    ids=["one batch", "a few", "out of order", "more than steps"],
)
def test_no_patch_is_lost_between_the_steps(computed: list[tuple[float, int]]) -> None:
    step_s, values = throughput.rates(computed)
    assert values.sum() * step_s == pytest.approx(sum(patches for _, patches in computed))
    assert len(values) <= throughput.MAX_STEPS


def test_a_hold_up_shows_as_a_dip() -> None:
    _, values = throughput.rates([(1.0, 100), (2.0, 100), (8.0, 100), (9.0, 100), (10.0, 100)])
    assert values.min() == pytest.approx(100 / 6)
    assert values.max() == pytest.approx(100)


@pytest.mark.parametrize(
    ("computed", "labels"),
    [
        ([(60.0, 12_000)], {"0", "100", "200", "0 s", "30 s", "60 s"}),
        ([(600.0, 90_000)], {"75", "150", "0:00:00", "0:05:00", "0:10:00"}),
        ([(36_000.0, 90)], {"0.0015", "0.003", "5:00:00", "10:00:00"}),
        ([(1.0, 0)], {"0", "0.5", "1", "1 s"}),
    ],
    ids=["seconds", "minutes", "hours", "nothing stored"],
)
def test_the_axes_are_labelled_in_fitting_units(
    computed: list[tuple[float, int]], labels: set[str]
) -> None:
    drawn = ElementTree.fromstring(throughput.draw(computed))
    assert labels <= {text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")}
