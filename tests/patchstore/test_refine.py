"""What is done with ranked hits, by hand-made ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.search import Box, Hit
from patchstore.refine import OVERLAP, intersection_over_union, merge_overlaps, rank_by_arrangement

boxes = st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 60)] * 2)


def hit(image: int, box: Box, distance: float = 0.1, patch: int = 0) -> Hit:
    return Hit(
        f"/{image}", box, 1.0, distance, patch or 10**6 * image + 1000 * box[0] + box[1], image
    )


@given(boxes, boxes)
def test_overlap_is_the_share_of_pixels_in_both(one: Box, other: Box) -> None:
    def pixels(box: Box) -> set[tuple[int, int]]:
        x, y, w, h = box
        return {(i, j) for i in range(x, x + w) for j in range(y, y + h)}

    both, either = pixels(one) & pixels(other), pixels(one) | pixels(other)
    assert intersection_over_union(one, other) == pytest.approx(len(both) / len(either))


@given(st.lists(st.tuples(st.integers(1, 3), boxes), max_size=25), st.integers(1, 25))
def test_merged_hits_are_the_nearest_that_do_not_overlap(places: list, k: int) -> None:
    hits = [hit(image, box, n / 100) for n, (image, box) in enumerate(places)]
    kept = merge_overlaps(hits, k)
    assert kept == sorted(kept, key=lambda h: h.distance)
    for n, one in enumerate(kept):
        for other in kept[:n]:
            apart = intersection_over_union(one.box, other.box) <= OVERLAP
            assert one.image_id != other.image_id or apart
    if len(kept) < k:
        for left_out in [h for h in hits if h not in kept]:
            assert any(
                nearer.image_id == left_out.image_id
                and nearer.distance < left_out.distance
                and intersection_over_union(nearer.box, left_out.box) > OVERLAP
                for nearer in kept
            )


PARTS: list[Box] = [(x, y, 10, 10) for y in (0, 10) for x in (0, 10)]


def shifted(image: int, by: tuple[int, int], scale: int = 1, distance: float = 0.1) -> list[Hit]:
    """The region as an image shows it: moved, and `scale` times as large."""
    return [
        hit(image, (x * scale + by[0], y * scale + by[1], w * scale, h * scale), distance)
        for x, y, w, h in PARTS
    ]


def answers(*images: list[Hit]) -> list[list[Hit]]:
    return [list(hits) for hits in zip(*images, strict=True)]


def test_the_same_arrangement_beats_nearer_patches_that_are_scattered() -> None:
    scattered = [hit(1, box, 0.01) for box in [(90, 0, 10, 10), (0, 90, 10, 10), (50, 50, 10, 10)]]
    scattered.append(hit(1, (90, 90, 10, 10), 0.01))
    first, second = rank_by_arrangement(
        PARTS, answers(scattered, shifted(2, (30, 20))), 5, tolerance=5
    )
    assert (first.image_id, first.matched, first.box) == (2, 4, (30, 20, 20, 20))
    assert first.distance == pytest.approx(0.1)
    assert (second.image_id, second.matched) == (1, 1)


def test_the_region_may_be_larger_in_the_image() -> None:
    (first,) = rank_by_arrangement(PARTS, answers(shifted(1, (40, 8), scale=3)), 5, tolerance=5)
    assert (first.matched, first.box) == (4, (40, 8, 60, 60))


def test_a_mirrored_arrangement_is_another_one() -> None:
    mirrored = [hit(1, (90 - x, y, w, h)) for x, y, w, h in PARTS]
    (first,) = rank_by_arrangement(PARTS, answers(mirrored), 5, tolerance=5)
    assert first.matched == 2


def test_many_hits_of_one_patch_are_one_vote() -> None:
    crowd = [[hit(1, (50, n, 10, 10)) for n in range(5)], [], [], []]
    (first,) = rank_by_arrangement(PARTS, crowd, 5, tolerance=5)
    assert first.matched == 1


def test_one_patch_that_is_the_nearest_of_all_of_the_regions_is_one_vote() -> None:
    large = [hit(1, (0, 0, 12, 12), 0.1) for _ in PARTS]
    beside = [hit(1, (2, 2, 12, 12), 0.2) for _ in PARTS]
    found = [list(hits) for hits in zip(large, beside, strict=True)]
    (first,) = rank_by_arrangement(PARTS, found, 5, tolerance=20)
    assert (first.matched, first.box) == (2, (0, 0, 14, 14))


def test_of_images_that_agree_as_much_the_nearer_comes_first() -> None:
    found = answers(shifted(1, (0, 0), distance=0.3), shifted(2, (9, 9), distance=0.2))
    assert [h.image_id for h in rank_by_arrangement(PARTS, found, 5, tolerance=5)] == [2, 1]
    assert len(rank_by_arrangement(PARTS, found, 1, tolerance=5)) == 1


def test_no_hits_give_no_images() -> None:
    assert rank_by_arrangement(PARTS, [[], [], [], []], 5, tolerance=5) == []
