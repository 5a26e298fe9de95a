"""Starts a service over a small store of its own and turns everything on it."""

import argparse
import sys
import tempfile
from pathlib import Path

import psutil

from benchmarks.kill import make_images
from benchmarks.service import Service, running_service
from patchstore.api.settings import ServeSettings
from patchstore.bench import home as homes
from patchstore.bench.measure import peak_mib
from patchstore.bench.report import machine, table

from . import corrupt_uploads, run_schemathesis, send_uploads

# Uploads over which memory counts, one by one. Freed memory is kept, and grows by chance with the
# largest pictures decoded side by side; what is lost with each upload is lost here as well.
ALONE = 5_000
GROWTH = 1.02
BYTES_A_PIXEL = 12  # of those that are decoded at once, at most


def main() -> None:
    """Measures and prints; exit code 1 where something is not as asked for."""
    arguments = _arguments()
    extra = [path.read_bytes() for path in _files(arguments.odd)]
    with homes.temporary_home() as home, tempfile.TemporaryDirectory() as scratch:
        pictures = home / "pictures"
        pictures.mkdir()
        make_images(8, pictures, seed=0)
        url = homes.add_spec(home, homes.SpecOptions())
        homes.ingest(home, pictures)
        with running_service(home) as service:
            ready = memory(service)
            schema = run_schemathesis(
                service.url, Path(scratch), examples=arguments.examples, seed=arguments.seed
            )
            run = send_uploads(
                service.url, corrupt_uploads(arguments.uploads, arguments.seed, extra)
            )
            before = memory(service)
            alone = send_uploads(
                service.url, corrupt_uploads(ALONE, arguments.seed + 1, extra), clients=1
            )
            after, peak = memory(service), peak_mib(service.pid)
        traceback = "Traceback" in service.log.read_text()
        line = machine(url)
    print(schema.output[-1500:] if schema.code else f"schemathesis: {schema.cases:,} cases passed")
    print(table(("status", "uploads"), sorted(run.statuses.items())))
    print(
        f"\nmemory: {ready:.0f} MiB before, {before:.0f} MiB after them, {after:.0f} MiB after "
        f"{ALONE:,} more, one by one; at most {peak:.0f} MiB"
    )
    print(line)
    allowed = BYTES_A_PIXEL * ServeSettings().api_pixels_at_once / 2**20
    wrong = [*run.wrong, *alone.wrong]
    for trouble in wrong[:20]:
        print(f"wrong: {trouble}")
    if traceback:
        print("wrong: a traceback in the log")
    grown = after > GROWTH * before or peak > ready + allowed
    if schema.code or wrong or traceback or grown:
        sys.exit(1)


def memory(service: Service) -> float:
    """Resident memory of the service, MiB."""
    return float(psutil.Process(service.pid).memory_info().rss) / 2**20


def _files(folder: Path | None) -> list[Path]:
    return [] if folder is None else sorted(path for path in folder.rglob("*") if path.is_file())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=100, help="of each operation and phase")
    parser.add_argument("--uploads", type=int, default=10_000)
    parser.add_argument("--odd", type=Path, metavar="FOLDER", help="hostile files of your own")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
