"""Whether the service lives, whether it can answer, and its numbers."""

import logging
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Response
from sqlalchemy import Engine

from db.checkup import postgres_version
from db.errors import StoreError

from .metrics import CONTENT_TYPE
from .schemas import Alive, Ready
from .service import Service, service_of

logger = logging.getLogger(__name__)

probes = APIRouter()
numbers = APIRouter()

Here = Annotated[Service, Depends(service_of)]


@probes.get("/healthz")
async def healthz() -> Alive:
    """The process runs; asks nobody else."""
    return Alive()


@probes.get("/readyz", responses={503: {"model": Ready}})
async def readyz(service: Here, response: Response) -> Ready:
    """Whether questions can be answered: the database answers and the network is no longer loading.

    Without a network (no spec yet, weights that are not here) questions about vectors and stored
    patches are answered all the same. Where tokens are needed, only the log says why one of them is
    away: whoever asks here has none, and the reasons name hosts, roles and folders.
    """
    database, network = await service.probe(_database), service.network
    ready = database == "ok" and network != "warming"
    response.status_code = 200 if ready else 503
    if database != "ok":
        logger.warning("the database is away: %s", database)
    if service.settings.api_tokens.get_secret_value():
        database = database if database == "ok" else "away"
        network = network.partition(":")[0]
    return Ready(status="ready" if ready else "waiting", database=database, network=network)


@numbers.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: Here) -> Response:
    """The service's and the store's numbers in Prometheus' text format."""
    # Not among the threads of questions: these may all be waiting, which is worth knowing.
    told = await to_thread.run_sync(service.metrics.render, abandon_on_cancel=True)
    return Response(told, headers={"Content-Type": CONTENT_TYPE})


def _database(engine: Engine) -> str:
    try:
        postgres_version(engine)
    except StoreError as error:
        return str(error)
    return "ok"
