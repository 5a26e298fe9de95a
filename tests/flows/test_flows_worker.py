"""What a worker does beside the runs that it takes."""

import asyncio
import socket
import threading
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest


def test_of_missed_runs_the_latest_stays_and_those_by_hand_all_stay(
    prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Scheduled

    from flows import worker
    from flows.deploy import deploy
    from flows.plans import plan_ingest
    from flows.request import IngestRequest
    from flows.schedule import read_schedule
    from flows.worker import skip_missed

    monkeypatch.setattr(worker, "RUNS_A_PAGE", 1)
    request = IngestRequest(source=f"/srv/{uuid4().hex}", spec="default")
    plan = plan_ingest(request, read_schedule("1d", None, "UTC"))
    pool = f"pool-{uuid4().hex[:8]}"
    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        deploy(client, plan, pool)
        deployment = client.read_deployment_by_name(plan.full_name)

        def run(minutes_ago: int, *tags: str) -> Any:
            due = Scheduled(scheduled_time=now - timedelta(minutes=minutes_ago))
            made = client.create_flow_run_from_deployment(
                deployment.id, state=due, tags=["patchstore", *tags]
            )
            return made.id

        missed = [run(minutes, "auto-scheduled") for minutes in (30, 20)]
        stays = [run(10, "auto-scheduled"), run(25), run(-60, "auto-scheduled")]
        skip_missed(client, pool)
        assert [client.read_flow_run(each).state.name for each in missed] == ["Cancelled"] * 2
        assert all(client.read_flow_run(each).state.is_scheduled() for each in stays)
        client.delete_deployment(deployment.id)


def test_health_checks_that_nobody_could_answer_are_refused() -> None:
    from prefect.settings import (
        PREFECT_WORKER_WEBSERVER_HOST,
        PREFECT_WORKER_WEBSERVER_PORT,
        temporary_settings,
    )

    from flows.errors import FlowError
    from flows.worker import run_worker

    with socket.create_server(("127.0.0.1", 0)) as other:
        host, port = other.getsockname()
        place = {PREFECT_WORKER_WEBSERVER_HOST: host, PREFECT_WORKER_WEBSERVER_PORT: port}
        with temporary_settings(place), pytest.raises(FlowError) as refused:
            run_worker("nobody's", 1, healthcheck=True)
    said = str(refused.value)
    assert f"on 127.0.0.1:{port}: Address already in use" in said
    assert "set PREFECT_WORKER_WEBSERVER_PORT" in said


def test_missed_runs_are_skipped_again_and_again_while_others_take_the_workers_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows import worker
    from flows.errors import PrefectApiAway

    asked, enough = [], threading.Event()

    def skip(pool: str) -> None:
        asked.append(pool)
        if len(asked) == 1:
            raise PrefectApiAway("just now")
        if len(asked) == 3:
            enough.set()

    class Worker:
        def __init__(self, **_options: object) -> None: ...

        async def start(self, *, with_healthcheck: bool) -> None:
            assert await asyncio.to_thread(enough.wait, 60)

    monkeypatch.setattr(worker, "_skip", skip)
    monkeypatch.setattr(worker, "SKIP_EVERY_S", 0.01)
    monkeypatch.setattr(worker, "ProcessWorker", Worker)
    asyncio.run(worker._work("factory", 1, False))
    assert asked[:3] == ["factory"] * 3
