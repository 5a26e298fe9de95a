"""What a command costs besides its work: start-up and end of `patchstore ingest`, four times over.

The first command of a home, which starts Prefect's server on a new database; one that finds a new
picture; one that finds nothing to do; each beside what no command can be faster than: the bare
imports of torch, torchvision and Prefect, and Prefect's server alone on a new database. Medians.

    python -m benchmarks.startup
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from flows import local_server
from patchstore.bench import home as homes
from patchstore.bench.report import machine, table

IMPORTS = "import torch, torchvision, prefect; from prefect import flow, task"
SPEC = homes.SpecOptions(patch_size=64, stride=64)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=5, help="homes (default 5)")
    rounds: int = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {}
    for number in range(rounds):
        for what, took in _round(number):
            seconds.setdefault(what, []).append(took)
    with homes.temporary_home() as home:
        url = homes.add_spec(home, SPEC)
        print(
            table(
                ("what", "seconds", "from", "to"),
                [
                    (what, *(f"{f(took):.1f}" for f in (median, min, max)))
                    for what, took in seconds.items()
                ],
            )
        )
        print(f"\n{machine(url)}")


def _round(number: int) -> Iterator[tuple[str, float]]:
    yield (
        "Python with torch, torchvision and Prefect, nothing else",
        _timed([sys.executable, "-c", IMPORTS]),
    )
    yield "Prefect's server, new database, until it answers", _server()
    with homes.temporary_home() as home, _pictures(number) as folder:
        homes.add_spec(home, SPEC)
        yield "first ingest of a home, besides its flow", homes.ingest(home, folder).startup_s
        _draw(folder / "new.png", number + 1000)
        yield "ingest that finds a picture, the whole", homes.ingest(home, folder).wall_s
        yield "ingest that finds nothing to do, the whole", homes.ingest(home, folder).wall_s


def _timed(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - begun


def _server() -> float:
    """Until Prefect's server answers, on a database that it has to make first."""
    with tempfile.TemporaryDirectory(prefix="patchstore-benchmark-") as folder:
        os.environ["PREFECT_HOME"] = folder
        begun = time.perf_counter()
        server = local_server.ensure(Path(folder))
        try:
            server.wait()
            return time.perf_counter() - begun
        finally:
            local_server.stop(Path(folder))


@contextmanager
def _pictures(seed: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="patchstore-benchmark-") as folder:
        for number in range(4):
            _draw(Path(folder) / f"{number}.png", seed * 10 + number)
        yield Path(folder)


def _draw(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


if __name__ == "__main__":
    main()
