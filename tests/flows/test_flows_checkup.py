"""Facts about a real Prefect API."""

from importlib.metadata import version

import pytest


def test_the_version_and_the_clock_of_the_api_are_read(prefect_api) -> None:
    from flows.checkup import read_api

    api = read_api()
    assert api.version == version("prefect")
    assert abs(api.ahead_s) < 60  # the same clock: only the answer's way lies between


@pytest.fixture
def pool(prefect_api):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="doctor", type="process"), overwrite=True)
        yield "doctor"
        client.delete_work_pool("doctor")


def beat(pool: str) -> None:
    import asyncio

    from prefect.client.orchestration import get_client

    async def send() -> None:
        async with get_client() as client:
            await client.send_worker_heartbeat(pool, "worker-1", heartbeat_interval_seconds=30)

    asyncio.run(send())


def test_a_pool_tells_whether_somebody_works_for_it(pool) -> None:
    from flows.checkup import read_pools

    (idle,) = [found for found in read_pools() if found.name == pool]
    assert (idle.type, idle.paused, idle.online, idle.silent_s) == ("process", False, 0, None)
    beat(pool)
    (busy,) = [found for found in read_pools() if found.name == pool]
    assert busy.online == 1
    assert busy.silent_s is not None
