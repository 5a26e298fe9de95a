"""Writing results beside a bare COPY of the same bytes.

Into empty partitions of one store, with the same rows and the same bytes, in rows a second:

- the bare COPY: one `COPY ... FROM STDIN (FORMAT BINARY)` of all rows, encoded beforehand;
- as the flow writes: leased images, `flows.batch.TRANSACTION_ROWS` rows a transaction but no more
  images than a batch has; it checks the leases, replaces, counts, and marks done;
- a transaction an image, otherwise the same.

Each once a round, in turn; the median counts. No index but the table's own keys stands, as in a
first load.

    python -m benchmarks.copy --rows 100000 --dim 512
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from sqlalchemy import Engine

from db.engine import driver_connection, make_engine, parse_url
from db.ledger import LeaseLimits, finish_run, lease_batch, start_run
from db.specs import StoredSpec
from db.writer import COPY, HEADER, TRAILER, ImagePatches, encoded_rows, replace_patches
from flows.batch import TRANSACTION_ROWS
from flows.settings import FlowSettings
from patchstore.bench import home as homes
from patchstore.bench.report import machine, table

from .ledger import add_images, made_up_spec

BARE = "bare COPY, one statement"

Write = Callable[[Engine, StoredSpec, Sequence[ImagePatches]], float]


@dataclass(frozen=True)
class Load:
    """What each round writes; `patches` are those of an image."""

    images: int
    patches: int
    dim: int

    def prepare(self, engine: Engine, name: str) -> tuple[StoredSpec, list[ImagePatches]]:
        """A spec of its own with leased images and their results."""
        spec = made_up_spec(engine, name, self.dim)
        source = add_images(engine, spec, f"copy:///{name}/", self.images)
        run = start_run(engine, source, spec)
        leases = lease_batch(engine, spec, source, run, LeaseLimits(self.images, 1, 3600.0))
        finish_run(engine, run, "completed", None)
        vectors = np.random.default_rng(0).normal(size=(self.patches, self.dim)).astype(np.float32)
        boxes = np.array([(8 * i, 0, 8, 8) for i in range(self.patches)], dtype=np.int32)
        scales = np.ones(self.patches, np.float32)
        return spec, [ImagePatches(lease, boxes, scales, vectors) for lease in leases]


def main() -> None:
    """Measures and prints."""
    arguments = _arguments()
    load = Load(arguments.rows // arguments.patches, arguments.patches, arguments.dim)
    together = max(1, min(TRANSACTION_ROWS // load.patches, FlowSettings().batch_images))
    ways: dict[str, Write] = {
        BARE: bare,
        f"{together} images a transaction, as the flow writes": partial(by, together),
        "one image a transaction": partial(by, 1),
    }
    with homes.temporary_home() as home:
        homes.run_command(home, "db", "upgrade")
        url = homes.database_url(home)
        engine = make_engine(parse_url(url))
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(arguments.rounds):
            for way, write in ways.items():
                spec, images = load.prepare(engine, f"{way} {number}")
                seconds[way].append(write(engine, spec, images))
                size = sum(len(block) for image in images for block in encoded_rows(spec, image))
        line = machine(url)
        engine.dispose()
    print(report(load, size, {way: statistics.median(s) for way, s in seconds.items()}))
    print(line)


def bare(engine: Engine, spec: StoredSpec, images: Sequence[ImagePatches]) -> float:
    """One COPY of bytes that are there already, and its COMMIT; returns seconds."""
    rows = [block for image in images for block in encoded_rows(spec, image)]
    blocks = [HEADER, *rows, TRAILER]
    begun = time.perf_counter()
    with (
        engine.begin() as connection,
        driver_connection(connection).cursor() as cursor,
        cursor.copy(COPY.format(table=spec.partition)) as copy,
    ):
        for block in blocks:
            copy.write(block)
    return time.perf_counter() - begun


def by(together: int, engine: Engine, spec: StoredSpec, images: Sequence[ImagePatches]) -> float:
    """So many images a transaction, as a run writes them; returns seconds."""
    begun = time.perf_counter()
    for first in range(0, len(images), together):
        replace_patches(engine, spec, images[first : first + together])
    return time.perf_counter() - begun


def report(load: Load, size: int, seconds: dict[str, float]) -> str:
    """The table, and what was written."""
    rows = load.images * load.patches
    lines = [
        (way, f"{rows / s:,.0f}", f"{size / s / 1e6:.0f}", f"{seconds[BARE] / s:.2f}")
        for way, s in seconds.items()
    ]
    columns = ("way", "rows/s", "MB/s", "of the bare COPY")
    return f"{table(columns, lines)}\n\n{rows:,} rows of {load.dim}, {load.patches} an image"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--patches", type=int, default=100, help="of an image")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
