"""The ingest flow beside the bare forward pass and beside the tutorial's way.

Measures, over one folder of images and with one network, in patches a second:

- the bare forward pass as torchvision has the network: run by torch in the precision that `auto`
  chooses, batches as the flow's, channels last, under `inference_mode`, on prepared normalised
  tensors of real patches. Before everything else and after it;
- the fastest bare pass that was found: batch norms folded, by the runtime that `auto` chose. Before
  and after each run of the flow, for a machine's speed drifts from minute to minute: a run is held
  to the mean of the passes next to it, and the median of these shares is the result. Where the
  passes next to a run differ much, where they did not get the cores they asked for, or where runs
  seem faster than the pass that they contain, something else was running: the report says so, exit
  code 1;
- the flow: `patchstore ingest --json`, the real command, no vector in the store yet. Its seconds go
  from the flow's start to its end; start and stop of process and server are apart. First as a new
  spec on a new machine has it: the network is exported and the ways are compared on the first
  images. Then as any later load of many images: that is done, and the way is named. In the end once
  more with nothing to do;
- the tutorial's way, end to end: `skimage.io.imread`, `skimage.util.view_as_windows`, float32, the
  network cut before its classifier (for a ResNet what `nn.Sequential(*list(m.children())[:-1])`
  computes), patch by patch, one INSERT a row.

    python -m benchmarks.ingest --images FOLDER --backbone resnet18 --weights random:0
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

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
    own = as_the_flow_runs_it(bare, spec, backbone)
    before = bare.measure(arguments.seconds)
    flow, line = run_flow(arguments, options, own)
    after = bare.measure(arguments.seconds)
    with homes.temporary_home() as home:
        url = homes.add_spec(home, options)
        tutorial = run_tutorial(
            url, homes.spread(files, arguments.tutorial_images), spec, backbone.network
        )
    print(report(bare, (before, after), flow, tutorial))
    print(
        f"\n{len(files):,} images, {spec.backbone}, patch {spec.patch_size}, stride {spec.stride}"
    )
    print(line)
    doubts = disturbances(bare, flow.later)
    print("\n".join(f"NOT A FIGURE: {doubt}" for doubt in doubts), end="\n" if doubts else "")
    raise SystemExit(bool(doubts))


@dataclass(frozen=True)
class Run:
    """A run of the flow, and the passes before and after it."""

    ingest: homes.IngestRun
    passes: tuple[Pass, Pass]

    @property
    def share(self) -> float:
        """Of the mean pass next to it."""
        return self.ingest.rate / statistics.mean(found.rate for found in self.passes)


@dataclass(frozen=True)
class Flow:
    """The first run of a spec on a machine, later ones, and one with nothing to do."""

    first: homes.IngestRun
    later: list[Run]
    idle: homes.IngestRun


def run_flow(
    arguments: argparse.Namespace, options: homes.SpecOptions, own: Bare
) -> tuple[Flow, str]:
    """Runs the flow, each time with no vector in the store; and the machine."""
    later = []
    with homes.temporary_home() as home:
        url = homes.add_spec(home, options)
        first = homes.ingest(home, arguments.images, arguments.precision)
        before = own.measure(arguments.seconds)
        for _ in range(arguments.repetitions):
            homes.run_command(home, "spec", "remove", homes.SPEC, "--yes")
            homes.add_spec(home, options)
            ingest = homes.ingest(home, arguments.images, first.summary["precision"])
            after = own.measure(arguments.seconds)
            later.append(Run(ingest, (before, after)))
            before = after
        idle = homes.ingest(home, arguments.images, arguments.precision)
        return Flow(first, later, idle), machine(url)


def disturbances(bare: Bare, runs: Sequence[Run]) -> list[str]:
    """Signs that something else ran on this machine meanwhile, in words."""
    doubts = []
    for number, run in enumerate(runs, start=1):
        slow, fast = sorted(found.rate for found in run.passes)
        if fast > (1 + MAX_DRIFT) * slow:
            doubts.append(f"the passes next to run {number}: {slow:.1f} and {fast:.1f} patches/s")
    asked = cores_to_use(bare.device)
    cores = min(found.cores for run in runs for found in run.passes)
    if cores < MIN_CORES_SHARE * asked:
        doubts.append(f"the bare pass got {cores:.2f} of {asked} cores")
    if statistics.median(run.share for run in runs) > 1:
        doubts.append("the flow seems faster than the forward pass that it contains")
    computed = {run.ingest.summary["precision"] for run in runs}
    if computed != {str(bare.way)}:
        doubts.append(f"the flow computed in {sorted(computed)}, the bare pass in {bare.way}")
    return doubts


def report(bare: Bare, passes: tuple[Pass, Pass], flow: Flow, tutorial: Tutorial) -> str:
    """The table, and what came of it in words."""
    plain = statistics.mean(found.rate for found in passes)
    tutorials = tutorial.patches / tutorial.seconds

    def line(what: str, way: str, rate: float, share: float | None = None) -> list[str]:
        return [
            what,
            way,
            f"{rate:.1f}",
            f"{rate / plain:.2f}",
            "" if share is None else f"{share:.2f}",
            f"{rate / tutorials:.1f}",
        ]

    def alone(what: str, way: str, found: Pass) -> list[str]:
        return line(f"{what}, {found.cores:.1f} cores", way, found.rate)

    def ingested(what: str, run: homes.IngestRun, share: float | None = None) -> list[str]:
        patches, way = run.summary["patches"], run.summary["precision"]
        return line(f"{what}, {patches:,} patches", way, run.rate, share)

    fastest = "the fastest bare pass"
    rows = [
        alone("bare forward pass, before", bare.way.precision, passes[0]),
        ingested("first `patchstore ingest`", flow.first),
        alone(fastest, str(bare.way), flow.later[0].passes[0]),
    ]
    for run in flow.later:
        rows.append(ingested("later `patchstore ingest`", run.ingest, run.share))
        rows.append(alone(fastest, str(bare.way), run.passes[1]))
    rows.append(alone("bare forward pass, after", bare.way.precision, passes[1]))
    rows.append(line(f"the tutorial's way, {tutorial.images} images", "float32", tutorials))
    columns = ("what", "computed in", "patches/s", "to bare", "to the fastest", "to the tutorial")
    shares = sorted(run.share for run in flow.later)
    rate = statistics.median(run.ingest.rate for run in flow.later)
    startup = statistics.median(run.ingest.startup_s for run in flow.later)
    return "\n".join(
        [
            table(columns, rows),
            "",
            f"Later runs: {statistics.median(shares):.2f} of the fastest bare pass next to them "
            f"(median of {len(shares)}, {shares[0]:.2f} to {shares[-1]:.2f}), "
            f"{rate / tutorials:.1f} times the tutorial's way, and {startup:.1f} s to start and "
            f"stop. A run with nothing to do: {flow.idle.summary['seconds']:.2f} s and "
            f"{flow.idle.startup_s:.1f} s.",
            f"A later run's summary: `{json.dumps(flow.later[0].ingest.summary)}`",
        ]
    )


def _arguments() -> argparse.Namespace:
    parser = homes.parser(__doc__)
    parser.add_argument("--precision", default="auto", help="of the flow and the bare pass")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each bare forward pass")
    parser.add_argument("--repetitions", type=int, default=5, help="of the flow")
    parser.add_argument("--tutorial-images", type=int, default=50)
    return parser.parse_args()


if __name__ == "__main__":
    main()
