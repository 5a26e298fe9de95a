"""The worker: takes scheduled runs from a work pool and starts a process for each."""

import asyncio
import os
import signal
import socket

from prefect.workers.process import ProcessWorker

from .deploy import ensure_crash_detection, ensure_pool
from .errors import PrefectApiAway
from .prefect_api import prefect_api
from .settings import FlowSettings


def run_worker(pool: str, limit: int, *, healthcheck: bool = False) -> None:
    """Runs until SIGTERM; SIGINT raises KeyboardInterrupt. A run on its way is ended with it.

    Args:
        pool: name of the work pool, made where there is none.
        limit: runs at a time.
        healthcheck: whether to answer `GET /health`, where `PREFECT_WORKER_WEBSERVER_...` say.

    Raises:
        PrefectApiError: the API refuses, or has been away for long.
    """
    with prefect_api() as client:
        ensure_pool(client, pool)
        ensure_crash_detection(client, FlowSettings().crashed_after_s)
    try:
        asyncio.run(_work(pool, limit, healthcheck))
    except asyncio.CancelledError:
        return  # by SIGTERM
    except ExceptionGroup as errors:
        raise PrefectApiAway(
            f"the Prefect API was away for too long: {errors.exceptions[0]}; start the worker again"
        ) from errors


async def _work(pool: str, limit: int, healthcheck: bool) -> None:
    work = asyncio.current_task()
    assert work is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
    name = f"{socket.gethostname()}-{os.getpid()}"
    worker = ProcessWorker(work_pool_name=pool, name=name, limit=limit)
    await worker.start(with_healthcheck=healthcheck)
