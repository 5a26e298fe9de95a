"""`patchstore deploy` and `patchstore worker`: ingest on a schedule."""

from typing import Annotated

import typer

from patchstore.words import DEFAULT_SPEC

from .console import say
from .ingest import Precision

POOL = "patchstore"

Pool = Annotated[str, typer.Option(help="Prefect work pool; made where there is none.")]


def deploy(
    source: Annotated[str, typer.Argument(help="Folder with images.")],
    every: Annotated[
        str | None, typer.Option(metavar="15m", help="Interval between runs: 90s, 15m, 6h, 1d.")
    ] = None,
    cron: Annotated[
        str | None, typer.Option(metavar="'0 3 * * *'", help="Cron line; instead of --every.")
    ] = None,
    timezone: Annotated[
        str, typer.Option(help="Time zone of --cron, such as Europe/Berlin.")
    ] = "UTC",
    spec: Annotated[str, typer.Option(help="Spec to compute.")] = DEFAULT_SPEC,
    precision: Annotated[
        Precision, typer.Option(help="auto: the fastest that agrees with float32, as checked.")
    ] = Precision.auto,
    pool: Pool = POOL,
    gpu_slots: Annotated[
        int | None,
        typer.Option(min=1, help="Forward passes at a time, over all workers that ask for a slot."),
    ] = None,
) -> None:
    """Ingest a folder on a schedule. Safe to repeat: what differs is changed.

    Makes a deployment in Prefect, its work pool, and the automation that finds crashed runs.
    `patchstore worker` carries the runs out.
    """
    from db.settings import StoreSettings
    from flows import environment
    from flows.request import IngestRequest
    from flows.sources import FolderSource

    folder = FolderSource(source)  # a wrong path is said at once
    server = environment.prepare(StoreSettings().resolved_home())
    from flows import deploy as deployments
    from flows.prefect_api import prefect_api
    from flows.schedule import read_schedule
    from patchstore.store import open_store, spec_for_ingest

    schedule = read_schedule(every, cron, timezone)
    stored = spec_for_ingest(open_store(), spec)
    if server is not None:
        server.wait()
    request = IngestRequest.model_validate(
        {"source": folder.root, "spec": stored.name, "precision": precision.value}
    )
    plan = deployments.plan_ingest(request, schedule)
    with prefect_api() as client:
        address = deployments.deploy(client, plan, pool)
        slot = None if gpu_slots is None else deployments.ensure_gpu_slots(client, gpu_slots)
    when = f"every {every}" if every else f"{cron} ({timezone})"
    say(f"deployment {plan.full_name}: {when}, pool {pool}")
    say(f"  {address}")
    if slot is not None:
        say(f"GPU slots: {gpu_slots}; workers that share them need PATCHSTORE_GPU_SLOT={slot}")
    say(f"next: patchstore worker{'' if pool == POOL else f' --pool {pool}'}")


def worker(
    pool: Pool = POOL,
    limit: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    healthcheck: Annotated[
        bool, typer.Option("--healthcheck", help="Answer GET /health, on port 8080 unless set.")
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
