"""However many pictures come at once, so many pixels are held and no more."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest

from extractor.spool import LARGE
from patchstore import query
from patchstore.api import pictures
from patchstore.api.pixels import PixelBudget
from patchstore.api.problems import Problem
from patchstore.api.settings import ServeSettings


class Inside:
    """A picture that is held by a thread of its own until it is let go."""

    def __init__(self, budget: PixelBudget, size: tuple[int, int]) -> None:
        self._budget, self._size = budget, size
        self.entered, self._go = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold)
        self._thread.start()

    def _hold(self) -> None:
        with self._budget.hold(self._size):
            self.entered.set()
            self._go.wait(30)

    def leave(self) -> None:
        self._go.set()
        self._thread.join()


@pytest.fixture
def enter():
    inside: list[Inside] = []

    def enter(budget: PixelBudget, size: tuple[int, int]) -> Inside:
        inside.append(Inside(budget, size))
        return inside[-1]

    yield enter
    for each in inside:
        each.leave()


def test_pictures_that_fit_are_held_side_by_side(enter) -> None:
    budget = PixelBudget(100, 30)
    assert all(each.entered.wait(30) for each in [enter(budget, (10, 5)) for _ in range(2)])


def test_a_picture_that_does_not_fit_waits_until_another_leaves(enter) -> None:
    budget = PixelBudget(100, 30)
    first = enter(budget, (10, 6))
    assert first.entered.wait(30)
    second = enter(budget, (10, 5))
    assert not second.entered.wait(0.05)
    first.leave()
    assert second.entered.wait(30)


def test_a_picture_larger_than_the_budget_is_held_alone(enter) -> None:
    budget = PixelBudget(100, 30)
    large = enter(budget, (100, 100))
    assert large.entered.wait(30)
    small = enter(budget, (1, 1))
    assert not small.entered.wait(0.05)
    large.leave()
    assert small.entered.wait(30)


def test_small_pictures_do_not_overtake_a_large_one(enter, wait_until) -> None:
    budget = PixelBudget(100, 30)
    first = enter(budget, (10, 6))
    assert first.entered.wait(30)
    large = enter(budget, (10, 10))
    wait_until(budget._turn.locked)  # it waits for room
    small = enter(budget, (10, 1))
    assert not small.entered.wait(0.05)
    first.leave()
    assert large.entered.wait(30)


def test_one_that_waited_too_long_is_told_and_takes_no_room(enter) -> None:
    budget = PixelBudget(100, 0.05)
    first = enter(budget, (10, 10))
    assert first.entered.wait(30)
    with pytest.raises(Problem) as refused, budget.hold((10, 10)):
        pass
    assert refused.value.rule == "timeout"
    first.leave()
    with budget.hold((10, 10)):
        pass


def test_a_picture_that_cannot_be_decoded_leaves_its_room() -> None:
    budget = PixelBudget(100, 0.05)
    for _ in range(2):
        with pytest.raises(ValueError, match="torn"), budget.hold((10, 10)):
            raise ValueError("torn")


class Reader:
    """Decodes once it has met others, and remembers how many it met.

    Args:
        wanted: how many are to meet; one that is to be alone looks a moment for others.
    """

    def __init__(self, wanted: int) -> None:
        self._patience_s = 0.05 if wanted == 1 else 20
        self._wanted = max(2, wanted)
        self._met = threading.Condition()
        self.inside = self.most = 0

    def __call__(self, read: Callable[..., Any], *what: Any, max_pixels: int) -> Any:
        with self._met:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self._met.notify_all()
            self._met.wait_for(lambda: self.most >= self._wanted, self._patience_s)
        try:
            return read(*what, max_pixels=max_pixels)
        finally:
            with self._met:
                self.inside -= 1


@pytest.mark.parametrize(("at_once", "most"), [(96 * 80, 1), (2 * 96 * 80, 2)])
def test_uploads_and_originals_are_decoded_within_the_budget(
    shelf, serve, monkeypatch, at_once, most
) -> None:
    reader = Reader(most)
    for module, name in ((query, "read_image"), (pictures, "read_stored")):
        monkeypatch.setattr(module, name, partial(reader, getattr(module, name)))
    with serve(shelf.engine, ServeSettings(api_pixels_at_once=at_once)) as url:

        def ask(name: str) -> int:
            return httpx.post(
                f"{url}/v1/search", files={"image": shelf.content(name)}, timeout=60
            ).status_code

        def look(name: str) -> int:
            return httpx.get(
                f"{url}/v1/images/{shelf.ids[name]}/picture.jpg", timeout=60
            ).status_code

        with ThreadPoolExecutor(8) as clients:
            done = [clients.submit(call, name) for name in shelf.ids for call in (ask, look)]
        assert {each.result() for each in done} == {200}
    assert reader.most == most


def test_beside_a_large_picture_small_ones_are_decoded() -> None:
    budget = PixelBudget(LARGE + 10, 0.05)
    with budget.hold((100_000, 100_000)), budget.hold((2, 5)):
        pass
    with budget.hold((100_000, 100_000)), pytest.raises(Problem), budget.hold((3, 5)):
        pass
