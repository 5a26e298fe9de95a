"""Deployments: carries plans into Prefect, with what keeps their runs apart.

Everything here is idempotent: what is there as wanted stays, what differs is changed.
"""

from contextlib import suppress
from datetime import timedelta
from importlib.metadata import version
from operator import attrgetter
from uuid import UUID

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import (
    ConcurrencyLimitConfig,
    ConcurrencyLimitStrategy,
    StateType,
)
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.urls import url_for
from prefect.workers.process import ProcessWorker

from .errors import PrefectApiError
from .naming import COMPLETED_WITH_ERRORS
from .plans import Plan
from .settings import FlowSettings

TAG = "patchstore"  # by it the automation knows our runs among those of others
GPU_SLOT = "patchstore-gpu"
HEARTBEAT_S = 30  # Prefect sends none more often
SIGN_OF_LIFE = "prefect.flow-run.heartbeat"
# The names of final states, our own included. Prefect 3.8 hands the states of scheduled runs to
# automations up to 15 minutes late; ours then tries to crash a run that has ended, and the server
# refuses.
ENDS = {"Completed", COMPLETED_WITH_ERRORS, "Failed", "Crashed", "Cancelled"}


def deploy(client: SyncPrefectClient, plan: Plan, pool: str) -> str:
    """Makes or changes a deployment, and what it needs; returns its address in the UI.

    Raises:
        PrefectApiError: the pool is of another type.
    """
    settings = FlowSettings()
    ensure_pool(client, pool)
    ensure_crash_detection(client, settings.crashed_after_s)
    deployment = RunnerDeployment.from_flow(
        plan.flow,
        plan.name,
        schedule=plan.schedule,
        parameters=plan.parameters,
        tags=[TAG, *plan.tags],
        # A run does whatever is pending: one that waits for another would find nothing to do.
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1,
            collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW,
            grace_period_seconds=settings.start_grace_s,
        ),
        version=version("patchstore"),
        work_pool_name=pool,
        job_variables={"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S)}},
        # By a file's path its folder would come first on sys.path.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    deployment_id = deployment.apply()
    assert isinstance(deployment_id, UUID)
    return str(url_for("deployment", deployment_id))


def ensure_pool(client: SyncPrefectClient, name: str) -> None:
    """Makes the work pool where there is none. Raises PrefectApiError if it is no process pool."""
    try:
        known = client.read_work_pool(name)
    except ObjectNotFound:
        with suppress(ObjectAlreadyExists):  # by a worker that has just started, too
            client.create_work_pool(
                WorkPoolCreate(
                    name=name,
                    type=ProcessWorker.type,
                    description="Runs of patchstore; `patchstore worker` takes them.",
                    base_job_template=ProcessWorker.get_default_base_job_template(),
                )
            )
        known = client.read_work_pool(name)
    if known.type != ProcessWorker.type:
        raise PrefectApiError(
            f"work pool {name!r} is of type {known.type!r}, expected {ProcessWorker.type!r}; "
            "give another name by --pool"
        )


def ensure_crash_detection(client: SyncPrefectClient, within_s: int) -> None:
    """Makes the automation that marks a run as crashed which shows no sign of life.

    A worker that is killed with its run leaves it `Running`, and its place taken. One that had not
    begun loses its place by itself, after the grace period.
    """
    wanted = AutomationCore(
        name="patchstore: runs without a sign of life have crashed",
        description=f"No heartbeat and no end for {within_s} s.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={
                "prefect.resource.role": "tag",
                "prefect.resource.id": f"prefect.tag.{TAG}",
            },
            for_each={"prefect.resource.id"},
            after={SIGN_OF_LIFE},
            expect={SIGN_OF_LIFE, *(f"prefect.flow-run.{name}" for name in ENDS)},
            threshold=1,
            within=timedelta(seconds=within_s),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, message=f"no sign of life for {within_s} seconds"
            )
        ],
    )
    known = client.read_automations_by_name(wanted.name)
    if not known:
        client.create_automation(wanted)
        return
    first, *others = sorted(known, key=attrgetter("id"))
    if first.model_dump(exclude={"id"}) != wanted.model_dump():
        client.update_automation(first.id, wanted)
    for other in others:  # of workers that started at the same moment
        client.delete_automation(other.id)


def ensure_gpu_slots(client: SyncPrefectClient, slots: int) -> str:
    """Makes or changes the limit of GPU slots; returns its name."""
    name = FlowSettings().gpu_slot or GPU_SLOT
    client.upsert_global_concurrency_limit_by_name(name, slots)
    return name
