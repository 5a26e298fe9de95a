"""Whether memory is flat in the number of images.

Measures the peak resident memory (VmHWM) of the process of `patchstore ingest` for 100 and for
1,000 images, each in a fresh database, and that of the Prefect server which is its child; Postgres
is apart. The images are copies of the same few originals, shifted and written anew, so that each
is a content of its own and both folders hold the same sizes.

Or, with --sides, for one image of so many pixels a side each.

    python -m benchmarks.memory --images FOLDER --weights random:0
    PATCHSTORE_MAX_PIXELS=2000000000 \\
    python -m benchmarks.memory --images FOLDER --mode dense --sides 2048 8000 32000
"""

import argparse
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image

from extractor.errors import ImageError
from extractor.images import read_image
from patchstore.bench import home as homes
from patchstore.bench.measure import peak_mib
from patchstore.bench.report import machine, table

POLL_S = 0.1
SERVER_POLL_S = 1.0


@dataclass(frozen=True)
class Peaks:
    """One run: what it did, and peak resident memory in MiB."""

    summary: dict[str, Any]
    command_mib: float
    server_mib: float


def main() -> None:
    """Measures and prints; exits with 1 where the peaks differ by more than the limit."""
    arguments = _arguments()
    options = replace(homes.spec_options(arguments), mode=arguments.mode)
    originals = homes.image_files(arguments.images)
    peaks = []
    for number in arguments.sides or arguments.counts:
        with tempfile.TemporaryDirectory(prefix="patchstore-images-") as folder:
            if arguments.sides:
                make_mosaic(originals, number, Path(folder))
            else:
                make_copies(homes.spread(originals, min(arguments.counts)), number, Path(folder))
            with homes.temporary_home() as home:
                url = homes.add_spec(home, options)
                peaks.append(measure(home, Path(folder), arguments.precision))
                line = machine(url)
    if arguments.sides:
        rows = [
            [f"{side:,}", *_row(each)] for side, each in zip(arguments.sides, peaks, strict=True)
        ]
        print(table(("side, pixels", *_COLUMNS), rows), line, sep="\n\n")
        return
    print(table(_COLUMNS, [_row(found) for found in peaks]))
    ratio = peaks[-1].command_mib / peaks[0].command_mib
    print(f"\nPeak of the command, last to first: {ratio:.3f} (at most {arguments.limit})")
    print(line)
    raise SystemExit(ratio > arguments.limit)


def make_copies(originals: list[Path], count: int, folder: Path) -> None:
    """Writes `count` JPEGs into `folder`, each original shifted by another number of pixels.

    Raises:
        SystemExit: none of the originals can be read.
    """
    written = 0
    for shift in itertools.count(1):
        for pixels in readable(originals):
            if written == count:
                return
            moved = np.roll(pixels, (3 * shift, 7 * shift), axis=(0, 1))
            Image.fromarray(moved).save(folder / f"{written:06}.jpg", quality=92)
            written += 1


def make_mosaic(originals: list[Path], side: int, folder: Path) -> None:
    """Writes one JPEG of so many pixels a side, made of one original over and over.

    Raises:
        SystemExit: none of the originals can be read.
    """
    picture = pyvips.Image.new_from_array(next(readable(originals)), interpretation="srgb")
    mosaic = picture.replicate(-(-side // picture.width), -(-side // picture.height))
    mosaic.crop(0, 0, side, side).jpegsave(str(folder / "mosaic.jpg"), Q=92)


def readable(originals: list[Path]) -> Iterator[NDArray[np.uint8]]:
    """The pixels of those originals that can be read. Raises SystemExit where there are none."""
    none = True
    for original in originals:
        try:
            pixels = read_image(original)
        except ImageError:
            continue
        none = False
        yield pixels
    if none:
        raise SystemExit("none of the images can be read")


def measure(home: Path, images: Path, precision: str) -> Peaks:
    """Runs `patchstore ingest` and watches it and its Prefect server until it ends."""
    process = homes.start_command(
        home, "ingest", str(images), "--spec", homes.SPEC, "--precision", precision, "--json"
    )
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.append(process.communicate()[0]))
    reader.start()
    command = server = 0.0
    next_look = 0.0
    while reader.is_alive():
        command = max(command, peak_mib(process.pid))
        if time.monotonic() > next_look:
            server = max([server, *map(peak_mib, homes.prefect_servers(home))])
            next_look = time.monotonic() + SERVER_POLL_S
        reader.join(POLL_S)
    if process.returncode not in (0, homes.SOME_IMAGES_FAILED):
        raise SystemExit((home / "command.log").read_text()[-2000:])
    return Peaks(json.loads(output[0]), command, server)


_COLUMNS = ("images", "patches", "seconds", "peak of the command, MiB", "Prefect server, MiB")


def _row(peaks: Peaks) -> list[str]:
    summary = peaks.summary
    return [
        f"{summary['found']:,}",
        f"{summary['patches']:,}",
        f"{summary['seconds']:.1f}",
        f"{peaks.command_mib:.0f}",
        f"{peaks.server_mib:.0f}",
    ]


def _arguments() -> argparse.Namespace:
    parser = homes.parser(__doc__)
    parser.add_argument("--mode", choices=("exact", "dense"), default="exact")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--counts", type=int, nargs="+", default=(100, 1000), metavar="IMAGES")
    parser.add_argument(
        "--sides", type=int, nargs="+", metavar="PIXELS", help="of one image, instead of --counts"
    )
    parser.add_argument(
        "--limit", type=float, default=1.1, help="ratio of the last peak to the first"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
