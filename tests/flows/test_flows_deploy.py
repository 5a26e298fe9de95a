"""Deployments on a real Prefect API: made once, changed where they differ, and never two runs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import pytest

from flows.errors import PrefectApiAway, PrefectApiError
from flows.request import Precision

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def client(prefect_api: str) -> Any:
    """A client of the API; its errors come as they are."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def pool() -> str:
    """The name of a work pool that is not there yet."""
    return f"pool-{uuid4().hex[:8]}"


def plan(source: str = "/srv/photos", spec: str = "default", every: str = "15m") -> Any:
    from flows.plans import plan_ingest
    from flows.request import IngestRequest
    from flows.schedule import read_schedule

    return plan_ingest(IngestRequest(source=source, spec=spec), read_schedule(every, None, "UTC"))


def read(client: Any, plan: Any) -> Any:
    return client.read_deployment_by_name(plan.full_name)


def changes_of_automations(client: Any) -> list[str]:
    return [found["updated"] for found in client.request("POST", "/automations/filter").json()]


def test_a_deployment_names_its_source_and_spec_and_lets_one_run_be(client: Any, pool: str) -> None:
    from flows.deploy import deploy

    source = f"/srv/{uuid4().hex}/photos"
    wanted = plan(source)
    address = deploy(client, wanted, pool)
    made = read(client, wanted)
    assert made.name.startswith("photos-default-")
    assert made.entrypoint == "flows.ingest.ingest"
    assert set(made.tags) == {"patchstore", f"source:{source}", "spec:default"}
    assert made.global_concurrency_limit.limit == 1
    assert made.concurrency_options.collision_strategy == "CANCEL_NEW"
    assert made.job_variables["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert address.endswith(str(made.id))


def test_the_form_in_the_ui_has_descriptions_and_limits(client: Any, pool: str) -> None:
    from flows.deploy import deploy

    wanted = plan(f"/srv/{uuid4().hex}/photos")
    deploy(client, wanted, pool)
    form = read(client, wanted).parameter_openapi_schema["definitions"]["IngestRequest"]
    assert all(field["description"] for field in form["properties"].values())
    assert form["properties"]["precision"]["enum"] == list(get_args(Precision))
    assert form["properties"]["source"]["maxLength"]
    assert form["required"] == ["source", "spec"]


def test_deploying_again_changes_what_differs_and_adds_nothing(client: Any, pool: str) -> None:
    from flows.deploy import deploy

    source = f"/srv/{uuid4().hex}/photos"
    deploy(client, plan(source), pool)
    first = read(client, plan(source))
    automations = changes_of_automations(client)
    deploy(client, plan(source, every="1h"), pool)
    again = read(client, plan(source))
    assert again.id == first.id
    assert [s.schedule.interval.total_seconds() for s in again.schedules] == [3600]
    assert changes_of_automations(client) == automations


def test_two_folders_of_one_name_and_two_specs_of_one_folder_are_four_deployments() -> None:
    names = {plan(f"/{a}/photos", spec).name for a in "ab" for spec in ("default", "small")}
    assert len(names) == 4


def test_upkeep_is_four_deployments_and_only_backfill_waits_for_somebody(
    client: Any, pool: str
) -> None:
    from flows.deploy import deploy
    from flows.plans import plan_upkeep

    plans = plan_upkeep("default", "Europe/Berlin")
    for wanted in plans:
        deploy(client, wanted, pool)
    made = {wanted.full_name: read(client, wanted) for wanted in plans}
    assert {name: [s.schedule.cron for s in found.schedules] for name, found in made.items()} == {
        "prune/all": ["0 2 * * 0"],
        "reindex/default": ["0 3 * * *"],
        "audit/default": ["0 4 * * *"],
        "backfill/default": [],
    }
    assert made["audit/default"].schedules[0].schedule.timezone == "Europe/Berlin"
    assert made["audit/default"].parameters["request"]["spec"] == "default"
    assert all(found.concurrency_options for found in made.values())


def test_a_pool_of_another_type_is_refused_with_a_way_out(client: Any, pool: str) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate

    from flows.deploy import ensure_pool

    client.create_work_pool(WorkPoolCreate(name=pool, type="kubernetes"))
    with pytest.raises(PrefectApiError, match=r"kubernetes.*--pool"):
        ensure_pool(client, pool)


def test_a_pool_that_another_worker_has_just_made_is_taken(
    client: Any, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.exceptions import ObjectNotFound

    from flows.deploy import ensure_pool

    read = client.read_work_pool
    ensure_pool(client, pool)
    answers = iter([ObjectNotFound(LookupError())])

    def read_too_early(name: str) -> Any:
        for error in answers:
            raise error
        return read(name)

    monkeypatch.setattr(client, "read_work_pool", read_too_early)
    ensure_pool(client, pool)
    assert next(answers, None) is None


def test_of_automations_that_two_workers_made_at_once_one_is_left(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.deploy import ensure_crash_detection

    with monkeypatch.context() as before_the_other:
        before_the_other.setattr(client, "read_automations_by_name", lambda _name: [])
        for _ in range(2):
            ensure_crash_detection(client, 100)
    ensure_crash_detection(client, 110)
    (found,) = [a for a in client.read_automations() if a.name.startswith("patchstore")]
    assert found.trigger.within.total_seconds() == 110


def test_another_term_without_a_sign_of_life_changes_the_automation(client: Any) -> None:
    from flows.deploy import ensure_crash_detection

    for seconds in (90, 120):
        ensure_crash_detection(client, seconds)
    (found,) = [a for a in client.read_automations() if a.name.startswith("patchstore")]
    assert found.trigger.within.total_seconds() == 120
    # Other flows of the same API may show signs of life less often: they are left alone.
    assert found.trigger.match_related.root["prefect.resource.id"] == "prefect.tag.patchstore"


def test_the_file_for_prefect_deploy_makes_the_same_deployment(
    client: Any, prefect_api: str
) -> None:
    from flows.deploy import deploy, ensure_pool

    ensure_pool(client, "patchstore")
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    filed = client.read_deployment_by_name("ingest/photos-default")
    deploy(client, plan(), "patchstore")
    made = read(client, plan())
    same = ("entrypoint", "parameters", "parameter_openapi_schema", "job_variables", "path")
    same += ("concurrency_options", "pull_steps", "work_pool_name")
    assert {k: getattr(filed, k) or None for k in same} == {
        k: getattr(made, k) or None for k in same
    }
    assert set(filed.tags) == set(made.tags)
    assert filed.schedules[0].schedule == made.schedules[0].schedule
    assert filed.global_concurrency_limit.limit == 1


def test_an_api_that_does_not_answer_is_one_line_without_its_password(prefect_api: str) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import prefect_api as room

    away = "http://user:secret@127.0.0.1:9/api"
    with (
        temporary_settings({PREFECT_API_URL: away}),
        pytest.raises(PrefectApiAway, match=r"does not answer.*PREFECT_API_URL") as raised,
        room.prefect_api(),
    ):
        pass
    assert "secret" not in str(raised.value)
