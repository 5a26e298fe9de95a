"""Many workers on one store: does speed add up, and where does the database stop it?

Each worker is a process that works through one source's ledger as a run does (lease, compute,
write, heartbeat; leasing and writing beside computing), but its forward pass is a stand-in that
waits for a fixed time. Measured in rows a second, from a common start to the last write, for each
number of workers with as many images a worker; linear is what the stand-ins alone would take. Then
once more with stand-ins that take no time: the ceiling of the database on this machine. Exit code 1
where an image was leased twice or is not done.

    python -m benchmarks.workers --workers 1 2 4 8 16 32
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from sqlalchemy import Engine, text

from db.catalog import start_scan
from db.engine import make_engine, parse_url
from db.ledger import LeaseLimits, finish_run, lease_batch, start_run
from db.settings import StoreSettings
from db.specs import StoredSpec, get_spec
from extractor.arrays import PatchFeatures
from flows.batch import Batch, upsert_features
from flows.heartbeat import Heartbeat
from patchstore.bench import home as homes

from .ledger import add_images, made_up_spec

CEILING_WORKERS = 4


@dataclass(frozen=True)
class Load:
    """What one worker does: so many batches, each of so many images with so many patches."""

    batches: int
    images: int
    patches: int
    dim: int
    batch_s: float

    @property
    def rows(self) -> int:
        """Rows of a worker."""
        return self.batches * self.images * self.patches


@dataclass(frozen=True)
class Measured:
    """What so many workers came to."""

    workers: int
    rows_per_s: float
    leased_twice: int
    undone: int


def main() -> None:
    """Measures and prints; or is one of the workers."""
    arguments = _arguments()
    load = Load(
        arguments.batches, arguments.images, arguments.patches, arguments.dim, arguments.batch_s
    )
    if arguments.work_on:
        work(arguments.work_on, load)
        return
    from patchstore.bench.report import machine, table  # torch, which 32 workers need not load

    with homes.temporary_home() as home:
        homes.run_command(home, "db", "upgrade")
        url = homes.database_url(home)
        found = [measure(url, workers, load) for workers in arguments.workers]
        still = Load(load.batches * 4, load.images, load.patches, load.dim, 0.0)
        ceiling = measure(url, CEILING_WORKERS, still)
        line = machine(url)
    linear = load.rows / (load.batches * load.batch_s)
    columns = ("workers", "rows/s", "of linear", "of the ceiling")
    print(
        table(
            columns,
            [
                (
                    m.workers,
                    f"{m.rows_per_s:,.0f}",
                    f"{m.rows_per_s / (m.workers * linear):.2f}",
                    f"{m.rows_per_s / ceiling.rows_per_s:.2f}",
                )
                for m in found
            ],
        )
    )
    print(
        f"\nCeiling: {ceiling.rows_per_s:,.0f} rows/s by {CEILING_WORKERS} workers that only write."
        f" A stand-in takes {load.batch_s:g} s for {load.images} images with {load.patches} patches"
        f" of {load.dim} dimensions.\n{line}"
    )
    raise SystemExit(any(m.leased_twice or m.undone for m in (*found, ceiling)))


def measure(url: str, workers: int, load: Load) -> Measured:
    """Starts workers on a source of its own, lets them go at once, waits for all."""
    engine = make_engine(parse_url(url))
    spec = made_up_spec(engine, f"{workers} of {load}", load.dim)
    root = f"workers:///{spec.id}/"
    add_images(engine, spec, root, workers * load.batches * load.images)
    command = [sys.executable, "-m", "benchmarks.workers", "--work-on", url, spec.name, root]
    for name in ("batches", "images", "patches", "dim", "batch_s"):
        command += [f"--{name.replace('_', '-')}", str(getattr(load, name))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        for _ in range(workers)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()  # it is ready
    begun = start_scan(engine)  # the database's time
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit("a worker failed")
    with engine.connect() as connection:
        seconds, twice, undone = connection.execute(
            text(
                "SELECT extract(epoch FROM max(updated_at) - :begun)::float8, "
                "       count(*) FILTER (WHERE attempts > 1), "
                "       count(*) FILTER (WHERE state <> 'done') "
                "FROM patchstore.extraction WHERE spec_id = :spec"
            ),
            {"spec": spec.id, "begun": begun},
        ).one()
    engine.dispose()
    return Measured(workers, workers * load.rows / seconds, twice, undone)


def work(source: tuple[str, str, str], load: Load) -> None:
    """What a worker does, from the moment that its standard input ends."""
    url, name, root = source
    engine = make_engine(parse_url(url), connections=3)
    spec = get_spec(engine, name)
    with engine.connect() as connection:
        source_id = connection.execute(
            text("SELECT id FROM patchstore.source WHERE root = :root"), {"root": root}
        ).scalar_one()
    rng = np.random.default_rng(0)
    result = PatchFeatures(
        np.array([(8 * i, 0, 8, 8) for i in range(load.patches)], np.int32),
        np.ones(load.patches, np.float32),
        rng.normal(size=(load.patches, load.dim)).astype(np.float32),
    )
    run = start_run(engine, source_id, spec)
    with Heartbeat(engine, run, StoreSettings().lease_s):
        print("ready", flush=True)
        sys.stdin.read()
        _work(engine, spec, source_id, run, load, result)
    finish_run(engine, run, "completed", None)


def _work(
    engine: Engine, spec: StoredSpec, source_id: int, run: int, load: Load, result: PatchFeatures
) -> None:
    limits = LeaseLimits(load.images, 1_000_000, StoreSettings().lease_s)
    lease = partial(lease_batch, engine, spec, source_id, run, limits)
    number = 0
    writing: Future[int] | None = None
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        leasing = reader.submit(lease)
        while leases := leasing.result():
            leasing = reader.submit(lease)
            number += 1
            batch = Batch(number, leases)
            time.sleep(load.batch_s * len(leases) / load.images)
            batch.features = {lease.image_id: result for lease in leases}
            if writing is not None:
                writing.result()
            writing = writer.submit(upsert_features, batch, engine, spec, lambda *_: None)
        if writing is not None:
            writing.result()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--batches", type=int, default=15, help="of a worker")
    parser.add_argument("--images", type=int, default=8, help="of a batch")
    parser.add_argument("--patches", type=int, default=50, help="of an image")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch-s", type=float, default=1.0, help="of a stand-in forward pass")
    parser.add_argument("--work-on", nargs=3, metavar=("URL", "SPEC", "SOURCE"), help="internal")
    return parser.parse_args()


if __name__ == "__main__":
    main()
