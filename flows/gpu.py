"""Slots of the GPU, shared by all runs of one Prefect API."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency

from .errors import PrefectApiAway, PrefectApiError
from .settings import FlowSettings

LEASE_S = 60  # a killed holder's slot is free again after as long
ASK_EVERY_S = 1.0


@contextmanager
def gpu_slot(check: Callable[[], None]) -> Iterator[None]:
    """Waits for a slot of the limit `PATCHSTORE_GPU_SLOT` and holds it; without one it is open.

    Args:
        check: called while it waits; what it raises ends the waiting.

    Raises:
        PrefectApiError: there is no limit of that name.
        PrefectApiAway: the API does not answer.
    """
    with ExitStack() as held:
        name = FlowSettings().gpu_slot
        while name is not None and not _takes(held, name):
            check()
            time.sleep(ASK_EVERY_S)
        yield


def _takes(held: ExitStack, name: str) -> bool:
    """Whether there was a slot to take. Prefect itself would wait, and nothing could end that."""
    try:
        # A lease that could not be renewed for a moment is no reason to lose a batch.
        slot = concurrency(
            name,
            strict=True,
            max_retries=0,
            lease_duration=LEASE_S,
            raise_on_lease_renewal_failure=False,
        )
        held.enter_context(slot)
    except ConcurrencySlotAcquisitionError as error:
        cause = error.__cause__
        if isinstance(cause, httpx.HTTPStatusError) and cause.response.status_code == 423:  # Locked
            return False
        if cause is not None:
            raise PrefectApiAway(str(error)) from error
        raise PrefectApiError(
            f"PATCHSTORE_GPU_SLOT names {name!r}, and Prefect has no concurrency limit of "
            "that name; `patchstore deploy SOURCE --every 15m --gpu-slots 1` makes it"
        ) from error
    return True
