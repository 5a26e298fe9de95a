"""The ingest flow beside the bare forward pass and beside the tutorial's way.

Measures, over one folder of images and with one network, in patches a second:

- the bare forward pass: the network of the spec as torchvision has it, run by torch in the
  precision that `auto` chooses, batches as the flow's, channels last, under `inference_mode`, on
  prepared normalised tensors of real patches.
  Before the flow and after it, because a machine's speed drifts; the mean counts. Once more as the
  flow runs it, the fastest that was found: batch norms folded, by ONNX Runtime where `auto` chose
  that. Where the two differ much, where the pass did not get
  the cores it asked for, or where the flow seems faster than the pass that it contains, something
  else was running: the report says so, exit code 1;
- the flow: `patchstore ingest --json`, the real command, a fresh database each time. Its seconds
  go from the flow's start to its end; process and server are shown apart. In a fresh database
  `auto` checks the precisions on the first images: that is in. Then once more with nothing to do;
- the tutorial's way, end to end: `skimage.io.imread`, `skimage.util.view_as_windows`, float32, the
  network cut before its classifier (for a ResNet what `nn.Sequential(*list(m.children())[:-1])`
  computes), patch by patch, one INSERT a row.

    python -m benchmarks.ingest --images FOLDER --backbone resnet18 --weights random:0
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import psycopg
import torch
from numpy.typing import NDArray
from pgvector import Vector
from pgvector.psycopg import register_vector
from torch import Tensor, nn

from extractor.allocator import keep_freed_memory
from extractor.arrays import DecodedImage
from extractor.backbone import Backbone, resolve
from extractor.compiled import compiled
from extractor.device import COMPILED, ONNX, TORCH, Way, arithmetic, choose_device
from extractor.errors import ImageError
from extractor.grid import make_grid
from extractor.images import read_image
from extractor.precision import check_precision
from extractor.settings import ExtractorSettings
from extractor.spec import FeatureSpec

from . import home as homes
from .report import machine, table

SAMPLE_IMAGES = 32
PREPARED_BATCHES = 8
WARM_UP_BATCHES = 3
MAX_DRIFT = 0.1  # of the bare pass, from before the flow to after it
MIN_CORES_SHARE = 0.9

Array = NDArray[np.uint8]


@dataclass(frozen=True)
class Pass:
    """One measurement of the bare forward pass: patches a second, and processor cores in use."""

    rate: float
    cores: float


@dataclass(frozen=True)
class Bare:
    """The network by itself, with patches ready to be computed."""

    network: Callable[[Tensor], Tensor]
    fastest: Callable[[Tensor], Tensor]
    batches: list[Tensor]
    way: Way
    device: torch.device

    def measure(self, seconds: float, *, fastest: bool = False) -> Pass:
        """Runs the prepared batches round and round for at least so long."""
        network = self.fastest if fastest else self.network
        with torch.inference_mode(), arithmetic(self.way, self.device):
            for batch in self.batches[:WARM_UP_BATCHES]:
                network(batch)
            self._wait()
            done, begun, used = 0, time.perf_counter(), time.process_time()
            while time.perf_counter() - begun < seconds:
                for batch in self.batches:
                    network(batch)
                    done += len(batch)
                self._wait()
            wall = time.perf_counter() - begun
            return Pass(done / wall, (time.process_time() - used) / wall)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Tutorial:
    """What the tutorial's way did in how long."""

    images: int
    patches: int
    seconds: float


def main() -> None:
    """Measures and prints."""
    arguments = _arguments()
    files = homes.image_files(arguments.images)
    options = homes.spec_options(arguments)
    resolved = resolve(options.recipe())
    spec, backbone = resolved.spec, resolved.backbone
    sample = decode(homes.spread(files, SAMPLE_IMAGES), spec)
    keep_freed_memory()  # the bare pass gets what the flow gets
    patches = sum(len(image.grid) for image in sample) * len(files) // len(sample)
    bare = prepare(spec, backbone, sample, arguments.precision, patches)
    before = bare.measure(arguments.seconds)
    runs, idle, line = run_flow(arguments, options)
    after = bare.measure(arguments.seconds)
    own = bare.measure(arguments.seconds, fastest=True)
    with homes.temporary_home() as home:
        url = homes.add_spec(home, options)
        tutorial = run_tutorial(
            url, homes.spread(files, arguments.tutorial_images), spec, backbone.network
        )
    print(report(bare, (before, after, own), runs, idle, tutorial))
    print(
        f"\n{len(files):,} images, {spec.backbone}, patch {spec.patch_size}, stride {spec.stride}"
    )
    print(line)
    doubts = disturbances(bare, (before, after, own), runs)
    print("\n".join(f"NOT A FIGURE: {doubt}" for doubt in doubts), end="\n" if doubts else "")
    raise SystemExit(bool(doubts))


def disturbances(
    bare: Bare, passes: tuple[Pass, Pass, Pass], runs: Sequence[homes.IngestRun]
) -> list[str]:
    """Signs that something else ran on this machine meanwhile, in words."""
    before, after, own = passes
    doubts = []
    slow, fast = sorted((before.rate, after.rate))
    if fast > (1 + MAX_DRIFT) * slow:
        doubts.append(f"the bare pass ran at {before.rate:.1f}, then at {after.rate:.1f} patches/s")
    asked = min(torch.get_num_threads(), len(os.sched_getaffinity(0)))
    cores = min(before.cores, after.cores)
    if bare.device.type == "cpu" and cores < MIN_CORES_SHARE * asked:
        doubts.append(f"the bare pass got {cores:.2f} of {asked} cores")
    flow = max(run.summary["patches"] / run.summary["seconds"] for run in runs)
    if flow > own.rate:
        doubts.append("the flow seems faster than the forward pass that it contains")
    computed = {run.summary["precision"] for run in runs}
    if computed != {str(bare.way)}:
        doubts.append(f"the flow computed in {sorted(computed)}, the bare pass in {bare.way}")
    return doubts


def decode(files: Sequence[Path], spec: FeatureSpec) -> list[DecodedImage]:
    """Reads images as the flow does; broken ones are left out."""
    decoded = []
    for file in files:
        try:
            pixels = read_image(file)
            height, width = pixels.shape[:2]
            grid = make_grid(
                width, height, patch_size=spec.patch_size, stride=spec.stride, edge=spec.edge
            )
        except ImageError:
            continue
        decoded.append(DecodedImage(pixels, grid))
    return decoded


def prepare(
    spec: FeatureSpec,
    backbone: Backbone,
    sample: Sequence[DecodedImage],
    precision: str,
    patches: int,
) -> Bare:
    """Makes batches of normalised patches of the sample's images, and settles the way.

    `patches` is about how many the flow will compute.
    """
    settings = ExtractorSettings()
    device = choose_device(settings.device)
    way = Way(precision)
    if precision == "auto":
        way = check_precision(spec, backbone, sample, settings.device, patches).way
    inside = [
        patch
        for image in sample
        for patch in cut(image.pixels, image.grid.windows.tolist(), spec.side)
    ]
    wanted = settings.batch_size * PREPARED_BATCHES
    prepared = normalised([inside[i % len(inside)] for i in range(wanted)], spec).to(device)
    prepared = prepared.contiguous(memory_format=torch.channels_last)
    batches = list(torch.split(prepared, settings.batch_size))
    folded = backbone.folded(spec.side).to(device)
    runners: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        TORCH: lambda: folded,
        ONNX: lambda: backbone.by_onnx(spec.side),
        COMPILED: lambda: compiled(folded),
    }
    fastest = runners[way.runtime]()
    return Bare(backbone.network.to(device), fastest, batches, way, device)


def cut(pixels: Array, windows: Sequence[Sequence[int]], side: int) -> Iterator[Array]:
    """The windows that lie inside the image and need no resize."""
    for x, y, width, height in windows:
        patch = pixels[y : y + height, x : x + width]
        if patch.shape == (side, side, 3):
            yield patch


def normalised(patches: Sequence[Array], spec: FeatureSpec) -> Tensor:
    """float32 (N, 3, S, S) of uint8 patches (S, S, 3), as torchvision normalises them."""
    pixels = torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    return (pixels - mean) / std


def run_flow(
    arguments: argparse.Namespace, options: homes.SpecOptions
) -> tuple[list[homes.IngestRun], homes.IngestRun, str]:
    """Runs the flow in fresh databases, then once more with nothing to do; and the machine."""
    runs = []
    for _ in range(arguments.repetitions):
        with homes.temporary_home() as home:
            url = homes.add_spec(home, options)
            runs.append(homes.ingest(home, arguments.images, arguments.precision))
            runs[-1].summary["precision"] = recorded_precision(url)
            idle = homes.ingest(home, arguments.images, arguments.precision)
            line = machine(url)
    return runs, idle, line


def recorded_precision(url: str) -> str:
    """What the last run computed in."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT summary->>'precision' FROM patchstore.ingest_run ORDER BY id DESC LIMIT 1"
        ).fetchone()
    assert row is not None
    return str(row[0])


def run_tutorial(
    url: str, files: Sequence[Path], spec: FeatureSpec, network: nn.Module
) -> Tutorial:
    """Reads, cuts, computes and inserts as tutorials do; images smaller than a patch give none."""
    from skimage.io import imread
    from skimage.util import view_as_windows

    device = choose_device(ExtractorSettings().device)
    network = network.to(device).to(memory_format=torch.contiguous_format)
    size, stride = spec.patch_size, spec.stride
    patches = 0
    with psycopg.connect(url, autocommit=True) as connection, torch.inference_mode():
        register_vector(connection)
        connection.execute(
            "CREATE TABLE tutorial (id bigserial PRIMARY KEY, uri text, x integer, y integer, "
            f"embedding vector({spec.dim}))"
        )
        begun = time.perf_counter()
        for file in files:
            pixels = cast(Array, imread(file))
            if pixels.ndim != 3 or min(pixels.shape[:2]) < size:
                continue
            windows = view_as_windows(pixels[..., :3], (size, size, 3), (stride, stride, 3))
            for row, column in np.ndindex(windows.shape[:2]):
                patch = normalised([windows[row, column, 0]], spec).to(device)
                vector = network(patch).flatten().cpu().numpy()
                connection.execute(
                    "INSERT INTO tutorial (uri, x, y, embedding) VALUES (%s, %s, %s, %s)",
                    (str(file), column * stride, row * stride, Vector(vector)),
                )
                patches += 1
        return Tutorial(len(files), patches, time.perf_counter() - begun)


def report(
    bare: Bare,
    passes: tuple[Pass, Pass, Pass],
    runs: Sequence[homes.IngestRun],
    idle: homes.IngestRun,
    tutorial: Tutorial,
) -> str:
    """The table; ratios are against the mean of the bare passes before and after."""
    before, after, own = passes
    reference = (before.rate + after.rate) / 2

    def line(what: str, precision: str, patches: object, seconds: float, rate: float) -> list[str]:
        share = f"{rate / reference:.2f}"
        return [what, precision, str(patches), f"{seconds:.1f}", f"{rate:.1f}", share]

    rows = [
        line(f"bare forward pass, {when}, {found.cores:.1f} cores", precision, "", 0, found.rate)
        for when, precision, found in (
            ("before", bare.way.precision, before),
            ("after", bare.way.precision, after),
            ("as the flow runs it", str(bare.way), own),
        )
    ]
    for run in runs:
        seconds, patches = float(run.summary["seconds"]), int(run.summary["patches"])
        rows.append(
            line(
                f"`patchstore ingest` (and {run.startup_s:.1f} s to start and stop)",
                run.summary["precision"],
                f"{patches:,}",
                seconds,
                patches / seconds,
            )
        )
    rate = tutorial.patches / tutorial.seconds
    rows.append(
        line(
            f"the tutorial's way, {tutorial.images} images",
            "float32",
            f"{tutorial.patches:,}",
            tutorial.seconds,
            rate,
        )
    )
    for row in rows[:3]:
        row[3] = ""
    flow = statistics.median(run.summary["patches"] / run.summary["seconds"] for run in runs)
    columns = ("what", "precision", "patches", "seconds", "patches/s", "to bare")
    return "\n".join(
        [
            table(columns, rows),
            "",
            f"Flow (median): {flow / reference:.2f} of the bare forward pass, "
            f"{flow / own.rate:.2f} of the fastest one found, {flow / rate:.1f} times the "
            f"tutorial's way. A run with nothing to do: {idle.summary['seconds']:.2f} s "
            f"and {idle.startup_s:.1f} s to start and stop.",
            f"First run's summary: `{json.dumps(runs[0].summary)}`",
        ]
    )


def _arguments() -> argparse.Namespace:
    parser = homes.parser(__doc__)
    parser.add_argument("--precision", default="auto", help="of the flow and the bare pass")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each bare forward pass")
    parser.add_argument("--repetitions", type=int, default=3, help="of the flow")
    parser.add_argument("--tutorial-images", type=int, default=50)
    return parser.parse_args()


if __name__ == "__main__":
    main()
