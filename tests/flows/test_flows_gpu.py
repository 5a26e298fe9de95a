"""Slots of the GPU: as many forward passes at a time as there are, and only where asked for."""

import threading
from contextlib import ExitStack
from uuid import uuid4

import pytest

from flows.errors import PrefectApiError, is_transient


@pytest.fixture
def slot(prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a limit that runs are to hold; it does not exist yet."""
    name = f"gpu-{uuid4().hex[:8]}"
    monkeypatch.setenv("PATCHSTORE_GPU_SLOT", name)
    return name


def make(slots: int) -> None:
    from prefect.client.orchestration import get_client

    from flows.deploy import ensure_gpu_slots

    with get_client(sync_client=True) as client:
        ensure_gpu_slots(client, slots)


def go_on() -> None:
    """Nobody wants the waiting to end."""


def test_two_holders_of_one_slot_exclude_each_other(slot: str) -> None:
    from flows.gpu import gpu_slot

    make(1)
    entered = threading.Event()

    def second() -> None:
        with gpu_slot(go_on):
            entered.set()

    other = threading.Thread(target=second)
    with gpu_slot(go_on):
        other.start()
        assert not entered.wait(1.0)
    assert entered.wait(60.0)
    other.join()


def test_two_slots_let_two_in(slot: str) -> None:
    from flows.gpu import gpu_slot

    make(1)
    make(2)
    with ExitStack() as both:
        both.enter_context(gpu_slot(go_on))
        both.enter_context(gpu_slot(go_on))


def test_a_name_without_a_limit_is_a_mistake_that_no_retry_mends(slot: str) -> None:
    from flows.gpu import gpu_slot

    with pytest.raises(PrefectApiError, match=f"{slot}.*--gpu-slots") as raised, gpu_slot(go_on):
        pass
    assert not is_transient(raised.value)


def test_without_the_setting_nothing_is_held(
    prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import gpu

    monkeypatch.setattr(gpu, "concurrency", lambda *_args, **_options: 1 / 0)
    with gpu.gpu_slot(go_on):
        pass


def test_who_is_not_wanted_any_more_stops_waiting(
    slot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from extractor.errors import Abandoned
    from flows import gpu

    make(1)
    monkeypatch.setattr(gpu, "ASK_EVERY_S", 0.01)
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise Abandoned("computing was stopped")

    with gpu.gpu_slot(go_on), pytest.raises(Abandoned), gpu.gpu_slot(check):
        pass
    with gpu.gpu_slot(go_on):
        pass
