"""What a run costs that finds nothing to do, over a source of many known images.

Ten sources of 100,000 images each stand in the ledger as done; one of them is a folder of that
many files. Runs of the command over it are measured: the flow's seconds, its peak memory, and for
comparison how long the folder alone takes to list with `os.scandir` and `stat`. Exit code 1 where a
run changes a row of the vector table, or finds anything new.

    python -m benchmarks.idle --images 100000 --sources 10
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from sqlalchemy import Engine, text

from db.catalog import open_source
from db.engine import make_engine, parse_url
from db.specs import StoredSpec, get_spec
from extractor.images import DEFAULT_MAX_PIXELS
from flows.scan import scan
from flows.sources import FolderSource
from patchstore.bench import home as homes
from patchstore.bench.report import machine, table

from .ledger import add_images
from .memory import measure

FILES_A_FOLDER = 1000


def main() -> None:
    """Measures and prints."""
    arguments = _arguments()
    with homes.temporary_home() as home, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder, arguments.images)
        url = homes.add_spec(home, homes.SpecOptions(patch_size=32, stride=32))
        engine = make_engine(parse_url(url))
        spec = get_spec(engine, homes.SPEC)
        fill(engine, spec, folder, arguments.sources, arguments.images)
        homes.ingest(home, folder)  # starts the home's Prefect server
        before = changes(engine, spec)
        listing = list_seconds(folder)
        runs = [measure(home, folder, "float32") for _ in range(arguments.runs)]
        touched = changes(engine, spec) - before
        line = machine(url)
        engine.dispose()
    print(
        table(
            ("run", "found", "new", "seconds", "peak memory, MiB"),
            [
                (
                    number,
                    f"{run.summary['found']:,}",
                    run.summary["new"],
                    f"{run.summary['seconds']:.1f}",
                    f"{run.command_mib:.0f}",
                )
                for number, run in enumerate(runs, 1)
            ],
        )
    )
    print(
        f"\n{arguments.sources} sources of {arguments.images:,} known images; listing the folder "
        f"takes {listing:.1f} s. Rows of the vector table changed: {touched}.\n{line}"
    )
    raise SystemExit(bool(touched or any(run.summary["new"] for run in runs)))


def make_files(folder: Path, count: int) -> None:
    """Writes `count` small pictures, each of a content of its own."""
    rng = np.random.default_rng(0)
    for number in range(count):
        inside = folder / f"{number // FILES_A_FOLDER:04}"
        inside.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(inside / f"{number:07}.png")


def fill(engine: Engine, spec: StoredSpec, folder: Path, sources: int, images: int) -> None:
    """Puts the folder and the other sources into the ledger, all as done."""
    source = FolderSource(folder)
    scan(
        engine,
        source,
        open_source(engine, source.root),
        spec,
        threads=2,
        max_pixels=DEFAULT_MAX_PIXELS,
    )
    for number in range(1, sources):
        add_images(engine, spec, f"idle:///{number}/", images)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(
            text(
                "UPDATE patchstore.extraction SET state = 'done', patch_count = 1, visible = true "
                "WHERE spec_id = :spec"
            ),
            {"spec": spec.id},
        )
        connection.execute(text("VACUUM ANALYZE"))


def changes(engine: Engine, spec: StoredSpec) -> int:
    """How many rows of the spec's vectors were ever written, changed or deleted."""
    with engine.connect() as connection:
        return int(
            connection.execute(
                text(
                    "SELECT n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables "
                    "WHERE relid = CAST(:partition AS regclass)"
                ),
                {"partition": spec.partition},
            ).scalar_one()
        )


def list_seconds(folder: Path) -> float:
    """How long listing alone takes."""
    begun = time.perf_counter()
    for inside in os.scandir(folder):
        for file in os.scandir(inside):
            file.stat()
    return time.perf_counter() - begun


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000, help="of a source")
    parser.add_argument("--sources", type=int, default=10)
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
