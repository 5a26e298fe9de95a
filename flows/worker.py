"""The worker: takes scheduled runs from a work pool and starts a process for each."""

import asyncio
import os
import signal
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Cancelled
from prefect.workers.process import ProcessWorker

from .deploy import TAG, ensure_crash_detection, ensure_pool
from .errors import FlowError, PrefectApiAway
from .prefect_api import prefect_api
from .settings import FlowSettings

RUNS_A_PAGE = 200  # the most that Prefect's server gives at once
SKIP_EVERY_S = 60.0
LEAVE_S = 8.0  # who stops a service usually kills it after ten


def run_worker(pool: str, limit: int, *, healthcheck: bool = False) -> None:
    """Runs until SIGTERM or SIGINT; a run on its way is ended with it.

    Args:
        pool: name of the work pool, made where there is none.
        limit: runs at a time.
        healthcheck: whether to answer `GET /health`, where `PREFECT_WORKER_WEBSERVER_...` say.

    Raises:
        FlowError: health checks cannot be answered there.
        PrefectApiError: the API refuses, or has been away for long.
    """
    if healthcheck:
        _check_place()
    with prefect_api() as client:
        ensure_pool(client, pool)
        ensure_crash_detection(client, FlowSettings().crashed_after_s)
        skip_missed(client, pool)
    try:
        asyncio.run(_work(pool, limit, healthcheck))
    except asyncio.CancelledError:
        return  # by a signal
    except ExceptionGroup as errors:
        raise PrefectApiAway(
            f"the Prefect API was away for too long: {errors.exceptions[0]}; start the worker again"
        ) from errors


def _check_place() -> None:
    """Raises FlowError where nobody can listen: Prefect would go on without health checks."""
    place = get_current_settings().worker.webserver
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    try:
        socket.create_server((place.host, place.port), family=family).close()
    except OSError as error:
        raise FlowError(
            f"cannot answer health checks on {place.host}:{place.port}: {error.strerror or error}; "
            "set PREFECT_WORKER_WEBSERVER_PORT, or leave --healthcheck out"
        ) from error


def skip_missed(client: SyncPrefectClient, pool: str) -> None:
    """Cancels what was due while no worker had room, but the latest run of each deployment.

    A run takes whatever is pending, so the earlier ones would find nothing to do. Runs that a
    person asked for stay.
    """
    due = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[TAG, "auto-scheduled"]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
    )
    of_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    runs: list[FlowRun] = []
    while page := client.read_flow_runs(
        flow_run_filter=due,
        work_pool_filter=of_pool,
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=RUNS_A_PAGE,
        offset=len(runs),
    ):
        runs += page
    latest = {run.deployment_id: run.id for run in reversed(runs)}
    for run in runs:
        if run.id != latest[run.deployment_id]:
            with suppress(ObjectNotFound):  # deleted meanwhile
                client.set_flow_run_state(
                    run.id, Cancelled(message="missed; a later run stands for it")
                )


async def _work(pool: str, limit: int, healthcheck: bool) -> None:
    name = f"{socket.gethostname()}-{os.getpid()}"
    worker = ProcessWorker(work_pool_name=pool, name=name, limit=limit)
    others = _children()  # such as the local Prefect server, which others may use
    work = asyncio.create_task(worker.start(with_healthcheck=healthcheck))
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    stop = asyncio.create_task(stopped.wait())
    skipping = asyncio.create_task(_keep_skipping(pool))
    await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
    skipping.cancel()
    if not work.done():
        await _end_runs(others)
        work.cancel()
    await work


async def _keep_skipping(pool: str) -> None:
    """While a long run takes the worker's place, those of other deployments are missed, too."""
    while True:
        await asyncio.sleep(SKIP_EVERY_S)
        with suppress(FlowError):  # the worker itself says where the API is away
            await asyncio.to_thread(_skip, pool)


def _skip(pool: str) -> None:
    with prefect_api() as client:
        skip_missed(client, pool)


async def _end_runs(others: set[int]) -> None:
    """Lets the runs say in Prefect that they end; with the worker they would be killed."""
    told: set[int] = set()
    deadline = time.monotonic() + LEAVE_S
    while (running := _children() - others) and time.monotonic() < deadline:
        for process in running - told:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        told |= running
        await asyncio.sleep(0.1)


def _children() -> set[int]:
    own = os.getpid()
    return set(map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split()))
