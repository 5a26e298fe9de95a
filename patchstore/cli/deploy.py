"""`patchstore deploy` and `patchstore worker`: ingest and upkeep on schedules."""

from typing import Annotated

import typer

from patchstore.words import DEFAULT_SPEC

from .console import fail, say
from .ingest import Precision

POOL = "patchstore"

Pool = Annotated[str, typer.Option(help="Prefect work pool; made where there is none.")]


def deploy(
    source: Annotated[
        str | None, typer.Argument(help="Folder with images; none with --upkeep alone.")
    ] = None,
    every: Annotated[
        str | None, typer.Option(metavar="15m", help="Interval between runs: 90s, 15m, 6h, 1d.")
    ] = None,
    cron: Annotated[
        str | None, typer.Option(metavar="'0 3 * * *'", help="Cron line; instead of --every.")
    ] = None,
    timezone: Annotated[
        str, typer.Option(help="Time zone of --cron and --upkeep, such as Europe/Berlin.")
    ] = "UTC",
    upkeep: Annotated[
        bool,
        typer.Option(
            "--upkeep", help="Audit and reindex the spec nightly, prune weekly, backfill by hand."
        ),
    ] = False,
    spec: Annotated[str, typer.Option(help="Spec to compute, or to keep up.")] = DEFAULT_SPEC,
    precision: Annotated[
        Precision, typer.Option(help="auto: the fastest that agrees with float32, as checked.")
    ] = Precision.auto,
    pool: Pool = POOL,
    gpu_slots: Annotated[
        int | None,
        typer.Option(min=1, help="Forward passes at a time, over all workers that ask for a slot."),
    ] = None,
    notify: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE/NAME", help="Prefect block that tells of failed runs: slack-webhook/ops."
        ),
    ] = None,
) -> None:
    """Ingest a folder on a schedule, or keep a store up. Safe to repeat: what differs is changed.

    Makes deployments in Prefect, their work pool, and the automation that finds crashed runs.
    `patchstore worker` carries the runs out.
    """
    from db.settings import StoreSettings
    from flows import environment
    from flows.request import IngestRequest
    from flows.sources import source_at

    if every is not None and timezone != "UTC" and not upkeep:
        fail("--timezone goes with --cron and --upkeep; --every counts from midnight UTC")
    if source is None and not (upkeep and every is None and cron is None):
        fail("give a FOLDER with --every or --cron, or --upkeep, or both")
    folder = None if source is None else source_at(source)  # a wrong path is said at once
    server = environment.prepare(StoreSettings().resolved_home())
    from flows import deploy as deployments
    from flows.notify import notify_of_failures
    from flows.plans import plan_ingest, plan_upkeep
    from flows.prefect_api import prefect_api
    from flows.schedule import read_schedule
    from patchstore.store import open_store, spec_for_ingest, spec_for_search

    schedule = read_schedule(every, cron, timezone) if folder is not None else None
    find = spec_for_search if folder is None else spec_for_ingest  # which adds the default one
    stored = find(open_store(), spec)
    if server is not None:
        server.wait()
    plans = plan_upkeep(stored.name, timezone) if upkeep else []
    if folder is not None and schedule is not None:
        request = IngestRequest.model_validate(
            {"source": folder.root, "spec": stored.name, "precision": precision.value}
        )
        plans.insert(0, plan_ingest(request, schedule))
    with prefect_api() as client:
        if notify is not None:
            notify_of_failures(client, notify)
            say(f"failed and crashed runs are told through {notify}")
        for plan in plans:
            address = deployments.deploy(client, plan, pool)
            say(f"deployment {plan.full_name}: {plan.when}, pool {pool}")
            say(f"  {address}")
        if gpu_slots is not None:
            slot = deployments.ensure_gpu_slots(client, gpu_slots)
            say(f"GPU slots: {gpu_slots}; workers that share them need PATCHSTORE_GPU_SLOT={slot}")
    say(f"next: patchstore worker{'' if pool == POOL else f' --pool {pool}'}")


def worker(
    pool: Pool = POOL,
    limit: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    healthcheck: Annotated[
        bool,
        typer.Option(
            "--healthcheck",
            help="Answer GET /health, on PREFECT_WORKER_WEBSERVER_HOST and _PORT (0.0.0.0:8080).",
        ),
    ] = False,
) -> None:
    """Carry out scheduled runs until stopped (Ctrl-C or SIGTERM)."""
    from db.settings import StoreSettings
    from flows import environment

    server = environment.prepare(StoreSettings().resolved_home(), console="INFO")
    from flows.worker import run_worker
    from patchstore.store import open_store

    open_store()
    if server is not None:
        server.wait()
        say(f"local Prefect server, until the worker ends: {server.ui_url}")
    run_worker(pool, limit, healthcheck=healthcheck)
    say("stopped; what was finished is stored, the next run goes on from there")
