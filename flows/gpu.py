"""Slots of the GPU, shared by all runs of one Prefect API."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency

from .errors import PrefectApiAway, PrefectApiError
from .settings import FlowSettings

LEASE_S = 60  # a killed holder's slot is free again after as long


@contextmanager
def gpu_slot() -> Iterator[None]:
    """Waits for a slot of the limit `PATCHSTORE_GPU_SLOT` and holds it; without one it is open.

    Raises:
        PrefectApiError: there is no limit of that name.
        PrefectApiAway: the API does not answer.
    """
    with ExitStack() as held:
        name = FlowSettings().gpu_slot
        if name is not None:
            try:
                # A lease that could not be renewed for a moment is no reason to lose a batch.
                slot = concurrency(
                    name, strict=True, lease_duration=LEASE_S, raise_on_lease_renewal_failure=False
                )
                held.enter_context(slot)
            except ConcurrencySlotAcquisitionError as error:
                if error.__cause__ is not None:
                    raise PrefectApiAway(str(error)) from error
                raise PrefectApiError(
                    f"PATCHSTORE_GPU_SLOT names {name!r}, and Prefect has no concurrency limit of "
                    "that name; `patchstore deploy SOURCE --every 15m --gpu-slots 1` makes it"
                ) from error
        yield
