"""Where the time of a run goes."""

from types import SimpleNamespace

import pytest

from db.ledger import Lease
from flows import stages
from flows.batch import Batch
from flows.progress import Summary
from flows.stages import STAGES, Busy, Clock, Tally


def batch_of(images: int, patches: int, computed_at: float, **seconds: float) -> Batch:
    batch = Batch(1, [Lease(1, n, n, f"{n}.png", b"", 0) for n in range(images)])
    batch.patches = patches
    batch.computed_at = computed_at
    batch.clock.seconds.update(seconds)
    return batch


def test_a_stage_that_fails_is_counted_too() -> None:
    clock = Clock()
    with pytest.raises(OSError, match="gone"), clock.timed("read"):
        raise OSError("gone")
    assert clock.seconds["read"] > 0


def test_time_that_several_threads_are_inside_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 14.0, 20.0, 21.0])
    monkeypatch.setattr(stages, "time", SimpleNamespace(monotonic=lambda: next(now)))
    clock = Clock()
    busy = Busy(clock, "forward")
    with busy, busy:  # from 10 to 14
        pass
    with pytest.raises(OSError, match="gone"), busy:  # from 20 to 21
        raise OSError("gone")
    assert clock.seconds["forward"] == 5.0


def test_the_stages_of_all_batches_add_up() -> None:
    tally = Tally()
    tally.begin(5)
    tally.add(batch_of(3, 27, 0, read=1.0, compute=4.0, write=0.5))
    tally.add(batch_of(2, 18, 0, read=2.0, compute=3.0, write=0.25))
    assert (tally.images, tally.patches) == (5, 45)
    assert {"read": 3.0, "write": 0.75}.items() <= tally.stage_seconds().items()


def test_what_a_batch_waits_for_the_device_is_no_forward_pass() -> None:
    tally, device = Tally(), Clock()
    tally.begin(1)
    tally.add(batch_of(1, 9, 0, compute=7.0))
    device.seconds["forward"] = 5.0
    tally.finish_computing(device)
    assert {"wait": 2.0, "forward": 5.0}.items() <= tally.stage_seconds().items()


def test_batches_double_up_to_ten_seconds_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(stages, "time", SimpleNamespace(monotonic=lambda: now))
    tally = Tally()
    assert tally.next_batch(8, 512) == 16  # nothing is known yet
    assert tally.next_batch(8, 12) == 12
    now = 2.0
    tally.add(batch_of(8, 72, 2.0))  # 4 images a second
    assert tally.next_batch(16, 512) == 32
    assert tally.next_batch(32, 512) == 40
    now = 20.0  # the first may have waited for the check of precisions: never fewer
    assert tally.next_batch(40, 512) == 40


def test_every_stage_is_told_also_by_a_run_that_computes_nothing() -> None:
    assert tuple(Tally().stage_seconds()) == STAGES
    assert not any(Tally().stage_seconds().values())


def test_the_device_is_busy_for_its_share_of_computing() -> None:
    tally, device = Tally(), Clock()
    tally.begin(1)
    with device.timed("forward"):
        sum(range(100_000))
    assert 0 < tally.finish_computing(device) <= 1


def test_shares_are_of_the_runs_time() -> None:
    summary = Summary(seconds=10.0, stage_seconds={"read": 4.0, "forward": 9.0})
    assert summary.stage_shares() == {"read": 0.4, "forward": 0.9}
