"""Facts about the configured Prefect API for whoever looks for what is wrong; changes nothing.

Call `environment.prepare` first: Prefect reads its settings on import.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from prefect.client.schemas.objects import Worker, WorkerStatus, WorkPool

from .environment import configured_api
from .prefect_api import prefect_api


@dataclass(frozen=True)
class Api:
    """A Prefect API that answers.

    Attributes:
        ahead_s: how far its clock is ahead of this machine's; its answers tell whole seconds.
    """

    version: str
    ahead_s: float


@dataclass(frozen=True)
class Pool:
    """A work pool.

    Attributes:
        online: workers whose heartbeat is fresh.
        silent_s: since the last heartbeat of any worker; None where there was none.
    """

    name: str
    type: str
    paused: bool
    online: int
    silent_s: float | None


def read_api() -> Api:
    """Asks the API for its version and its time. Raises PrefectApiError."""
    with prefect_api() as client:
        answer = client.hello()
        now = datetime.now(UTC)
        theirs = parsedate_to_datetime(answer.headers["date"])
        return Api(client.api_version(), (theirs - now).total_seconds())


def read_pools() -> list[Pool]:
    """The work pools with their workers. Raises PrefectApiError."""
    with prefect_api() as client:
        return [
            _pool(pool, client.read_workers_for_work_pool(pool.name))
            for pool in client.read_work_pools()
        ]


def shown_url() -> str:
    """The API's address, without a password."""
    return str(httpx.URL(configured_api() or "").copy_with(username=None, password=None))


def _pool(pool: WorkPool, workers: list[Worker]) -> Pool:
    beats = [w.last_heartbeat_time for w in workers if w.last_heartbeat_time is not None]
    return Pool(
        pool.name,
        pool.type,
        pool.is_paused,
        online=sum(worker.status is WorkerStatus.ONLINE for worker in workers),
        silent_s=(datetime.now(UTC) - max(beats)).total_seconds() if beats else None,
    )
