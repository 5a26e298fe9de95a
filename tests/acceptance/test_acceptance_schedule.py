"""A folder on a schedule: new pictures become searchable, and a killed worker blocks nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from sqlalchemy import Engine

from db.reports import patch_matrix, status
from db.specs import StoredSpec

ROOT = Path(__file__).parent.parent.parent
PATCHES = 9  # of a picture of 96 x 80
PATIENCE_S = 280.0  # a killed run's place is free by itself after 300: too late to be the reason


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def pool() -> str:
    """A work pool of the test's own."""
    return f"pool-{uuid4().hex[:8]}"


@pytest.fixture
def start_worker(pool: str) -> Iterator[Callable[[], "subprocess.Popen[bytes]"]]:
    """Starts `patchstore worker`; whatever is left of them ends with the test."""
    started = []

    def start() -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "patchstore", "worker", "--pool", pool]
        started.append(subprocess.Popen(command, cwd=ROOT, env=os.environ))
        return started[-1]

    yield start
    for worker in started:
        kill(worker)


def kill(worker: "subprocess.Popen[bytes]") -> None:
    """Kills a worker with the run that it has started."""
    with suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(worker.pid)] * (worker.returncode is None):
            for each in [process, *process.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
    worker.wait()


@pytest.fixture
def deployed(
    command: Any, folder: Path, spec: StoredSpec, pool: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """The folder on the shortest schedule, with one GPU slot; a client of the API."""
    from prefect.client.orchestration import get_client

    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "2")
    monkeypatch.setenv("PATCHSTORE_CRASHED_AFTER_S", "40")
    monkeypatch.setenv("PATCHSTORE_GPU_SLOT", f"gpu-{pool}")
    options = ("--every", "10s", "--spec", spec.name, "--pool", pool, "--gpu-slots", 1)
    made = command("deploy", folder, *options)
    assert made.code == 0, made.err
    assert f"patchstore worker --pool {pool}" in made.err
    with get_client(sync_client=True) as client:
        yield client
        for deployment in client.read_deployments():
            if deployment.work_pool_name == pool:
                client.delete_deployment(deployment.id)


@pytest.mark.slow
def test_a_killed_worker_blocks_nothing_and_loses_nothing(
    deployed: Any,
    start_worker: Callable[[], "subprocess.Popen[bytes]"],
    store: Engine,
    spec: StoredSpec,
    paint: Callable[..., Path],
) -> None:
    from flows.gpu import gpu_slot

    def standing(what: str) -> int:
        return sum(getattr(row, what) for row in status(store))

    def states() -> list[str]:
        return [run.state.name for run in deployed.read_flow_runs()]

    paint("a.png", 1)
    worker = start_worker()
    wait_for(lambda: standing("done") == 1)

    with gpu_slot(lambda: None):  # the next run with work to do stops in the middle
        paint("b.png", 2)
        wait_for(lambda: standing("leased") == 1)
        kill(worker)
    assert "Running" in states()

    worker = start_worker()
    wait_for(lambda: standing("done") == 2)
    assert "Crashed" in states()
    assert (standing("failed"), standing("pending"), standing("leased")) == (0, 0, 0)
    assert sum(len(rows.uris) for rows in patch_matrix(store, spec)) == 2 * PATCHES

    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere", "--every", "15m"), "nowhere does not exist"),
        ((".", "--every", "15m", "--spec", "unknown"), 'no spec named "unknown"; known: tiny'),
        ((".", "--every", "soon"), "'soon' is no interval"),
        ((".",), "give either --every"),
        ((), "give a FOLDER"),
        (("--upkeep", "--every", "15m"), "give a FOLDER"),
        (("--upkeep",), 'no spec named "default"; known: tiny'),
        (("--upkeep", "--spec", "tiny", "--notify", "slack-webhook/nobody"), "there is no block"),
    ],
)
def test_a_mistake_is_one_line(
    command: Any, spec: StoredSpec, arguments: tuple[str, ...], said: str
) -> None:
    outcome = command("deploy", *arguments)
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
