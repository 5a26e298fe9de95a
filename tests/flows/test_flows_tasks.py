"""Retries: transient errors again, permanent ones never."""

from collections.abc import Callable
from typing import Any

import pytest

from db.errors import ConfigurationError, CountMismatch, SchemaError, TransientStoreError
from extractor.errors import NotAnImage, WeightsError
from flows.errors import TransientReadError, is_transient


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (TransientStoreError("deadlock detected"), True),
        (TransientReadError("1 files"), True),
        (ConnectionResetError("reset by peer"), True),
        (TimeoutError("timed out"), True),
        (NotAnImage("text"), False),
        (WeightsError("missing"), False),
        (ConfigurationError("no right"), False),
        (SchemaError("old"), False),
        (CountMismatch("9 computed, 8 stored"), False),
        (ValueError("a bug"), False),
    ],
)
def test_only_what_may_pass_by_itself_is_transient(error: Exception, again: bool) -> None:
    assert is_transient(error) is again


@pytest.mark.parametrize(
    ("error", "tries"), [(TransientStoreError("gone"), 3), (NotAnImage("text"), 1)]
)
def test_prefect_retries_by_that_rule(prefect_api: str, error: Exception, tries: int) -> None:
    from prefect import flow, task

    from flows.tasks import RETRIES

    calls: list[int] = []

    @task(**{**RETRIES, "retry_delay_seconds": 0, "retries": 2})  # type: ignore[untyped-decorator]
    def step() -> None:
        calls.append(1)
        raise error

    @flow
    def run() -> Any:
        return step(return_state=True)

    run(return_state=True)
    assert len(calls) == tries


def test_delays_double_with_jitter(prefect_api: str) -> None:
    from flows.tasks import RETRIES, SETTINGS, extract_patches

    backoff: Callable[[int], list[float]] = RETRIES["retry_delay_seconds"]
    delays = backoff(3)
    assert delays == [SETTINGS.retry_delay_s * factor for factor in (1, 2, 4)]
    assert extract_patches.retry_jitter_factor == 0.5
