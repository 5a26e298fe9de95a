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
import statistics
from collections.abc import Sequence

from extractor.allocator import keep_freed_memory
from extractor.backbone import resolve
from extractor.device import Way
from extractor.precision import check_precision
from extractor.settings import ExtractorSettings
from patchstore.bench import home as homes
from patchstore.bench.bare import (
    MAX_DRIFT,
    MIN_CORES_SHARE,
    Bare,
    Pass,
    as_the_flow_runs_it,
    cores_to_use,
    decode,
    prepare,
)
from patchstore.bench.report import machine, table
from patchstore.bench.tutorial import Tutorial, run_tutorial

SAMPLE_IMAGES = 32


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
    way = Way.parse(arguments.precision)
    if arguments.precision == "auto":
        way = check_precision(spec, backbone, sample, ExtractorSettings().device, patches).way
    bare = prepare(spec, backbone, sample, way)
    before = bare.measure(arguments.seconds)
    runs, idle, line = run_flow(arguments, options)
    after = bare.measure(arguments.seconds)
    own = as_the_flow_runs_it(bare, spec, backbone).measure(arguments.seconds)
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
    asked = cores_to_use(bare.device)
    cores = min(before.cores, after.cores)
    if cores < MIN_CORES_SHARE * asked:
        doubts.append(f"the bare pass got {cores:.2f} of {asked} cores")
    flow = max(run.summary["patches"] / run.summary["seconds"] for run in runs)
    if flow > own.rate:
        doubts.append("the flow seems faster than the forward pass that it contains")
    computed = {run.summary["precision"] for run in runs}
    if computed != {str(bare.way)}:
        doubts.append(f"the flow computed in {sorted(computed)}, the bare pass in {bare.way}")
    return doubts


def run_flow(
    arguments: argparse.Namespace, options: homes.SpecOptions
) -> tuple[list[homes.IngestRun], homes.IngestRun, str]:
    """Runs the flow in fresh databases, then once more with nothing to do; and the machine."""
    runs = []
    for _ in range(arguments.repetitions):
        with homes.temporary_home() as home:
            url = homes.add_spec(home, options)
            runs.append(homes.ingest(home, arguments.images, arguments.precision))
            idle = homes.ingest(home, arguments.images, arguments.precision)
            line = machine(url)
    return runs, idle, line


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
