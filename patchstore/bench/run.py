"""All cases in one run, as one table, with what came of the comparison."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from extractor.device import (
    COMPILED,
    FLOAT32,
    Way,
    candidates,
    choose_device,
    exported_ways,
)
from extractor.grid import count_patches
from extractor.settings import ExtractorSettings
from patchstore.errors import CaseFailed, PatchstoreError

from . import cases
from .bare import MAX_DRIFT, MIN_CORES_SHARE, cores_to_use
from .cases import Row
from .home import SpecOptions, database_url, run_command, temporary_home
from .pictures import Pictures, cut_out
from .plot import Axis, Curve, draw
from .report import machine, table

CASES = ("bare", "tutorial", "exact", "dense", "pixeltable")
PARTS = (1, 2, 4, 8)  # of a patch, the dense strides
SMALL = (100, 1_000, 10_000)

Say = Callable[[str], None]


@dataclass
class Bench:
    """What was measured.

    Attributes:
        options: network and geometry.
        plain: the network as torchvision has it, before and after everything else.
        bare: the network alone, by each way.
        tutorial: the tutorial's way.
        exact: patchstore, by each way.
        dense: patchstore's mode dense, at each of `PARTS`.
        peer: Pixeltable.
        small: patchstore over so many pictures of one patch.
        missing: what could not be measured, and why.
        machine: in one line.
    """

    options: SpecOptions
    plain: list[Row] = field(default_factory=list)
    bare: list[Row] = field(default_factory=list)
    tutorial: list[Row] = field(default_factory=list)
    exact: list[Row] = field(default_factory=list)
    dense: list[Row] = field(default_factory=list)
    peer: list[Row] = field(default_factory=list)
    small: list[Row] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    machine: str = ""

    @property
    def rows(self) -> list[Row]:
        """Every one, in the order of the table."""
        alone = [*self.plain, *self.bare]
        return [*alone, *self.tutorial, *self.exact, *self.dense, *self.peer, *self.small]

    @property
    def fastest(self) -> float | None:
        """Patches a second of the fastest bare pass; None: none was measured."""
        return max((row.rate for row in (*self.plain, *self.bare)), default=None)

    @property
    def best(self) -> Row | None:
        """The fastest of patchstore's exact ways; None: none was measured."""
        return max(self.exact, key=lambda row: row.rate, default=None)

    @property
    def dense_way(self) -> str:
        """The fastest exact way that the mode dense can go, too."""
        rows = [row for row in self.exact if Way.parse(row.way).runtime != COMPILED]
        return max(rows, key=lambda row: row.rate).way if rows else "auto"


def ways() -> list[Way]:
    """Every way that a device may compute exact vectors in, the plain one first."""
    device = choose_device(ExtractorSettings().device)
    low = candidates(device)
    compiled = Way((*low, FLOAT32)[0], COMPILED)
    return [*map(Way, (FLOAT32, *low)), *exported_ways(device), compiled]


def measure(
    pictures: Pictures,
    options: SpecOptions,
    work: Path,
    *,
    wanted: Collection[str] = CASES,
    seconds: float = 10.0,
    peer: Path | None = None,
    small: Sequence[int] = (),
    say: Say = lambda line: None,
) -> Bench:
    """Measures one case after another; what does not work here is said, and the others go on.

    Args:
        pictures: to measure over.
        options: network and geometry; its stride is that of the mode exact.
        work: a folder for more pictures.
        wanted: some of `CASES`.
        seconds: of each bare pass.
        peer: where Pixeltable is, see `tiles.run_tiles`.
        small: numbers of pictures of one patch.
        say: is told what is measured.
    """
    bench = Bench(options)

    def attempt(to: list[Row], what: str, case: Callable[..., Row], *arguments: object) -> None:
        say(f"measuring {what}")
        try:
            row = case(*arguments)
        except CaseFailed as error:
            bench.missing.append(f"{what}: {error}")
            say("  not measured, the report says why")
        else:
            to.append(row)
            say(f"  {row.rate:,.1f} patches/s")

    def measure_plain(what: str) -> None:
        if "bare" in wanted:
            attempt(bench.plain, what, cases.plain, pictures, options, seconds)

    names = [str(way) for way in ways()]
    measure_plain("the bare forward pass")
    for name in names if "bare" in wanted else ():
        what = f"the bare forward pass in {name}"
        attempt(bench.bare, what, cases.bare, pictures, options, name, seconds)
    with temporary_home() as home:
        run_command(home, "db", "upgrade")
        url = database_url(home)
        if "tutorial" in wanted:
            what = "the tutorial's way"
            attempt(bench.tutorial, what, cases.tutorial, pictures, options, url)
        for name in names if "exact" in wanted else ():
            what = f"patchstore exact in {name}"
            attempt(bench.exact, what, cases.patchstore, home, pictures, options, name)
        for part in PARTS if "dense" in wanted else ():
            dense = replace(options, mode="dense", stride=max(1, options.patch_size // part))
            what = f"patchstore dense, stride {dense.stride}"
            attempt(bench.dense, what, cases.patchstore, home, pictures, dense, bench.dense_way)
        best = bench.best.way if bench.best else "auto"
        for count in small:
            what = f"{count:,} pictures of one patch"
            some = cut_out(pictures, options.patch_size, count, work)
            one_patch = replace(options, stride=options.patch_size)
            attempt(bench.small, what, cases.small_pictures, home, some, one_patch, best)
        bench.machine = machine(url)
    if "pixeltable" in wanted:
        attempt(bench.peer, "Pixeltable", cases.pixeltable, peer, pictures, options)
    measure_plain("the bare forward pass again")
    return bench


def report(bench: Bench) -> str:
    """The table, and what came of it in words."""
    lines = [table(_columns(bench), [_cells(bench, row) for row in bench.rows]), ""]
    lines += _comparisons(bench)
    lines += [f"Not measured: {what}" for what in bench.missing]
    options = bench.options
    lines += [
        "",
        f"{options.backbone}, patch {options.patch_size}, stride {options.stride}",
        bench.machine,
    ]
    return "\n".join(lines)


def doubts(bench: Bench) -> list[str]:
    """Signs that something else ran on this machine meanwhile, in words."""
    found = []
    rates = sorted(row.rate for row in bench.plain)
    if rates and rates[-1] > (1 + MAX_DRIFT) * rates[0]:
        found.append(f"the bare pass ran at {rates[0]:.1f} and at {rates[-1]:.1f} patches/s")
    cores = min((row.cores or 0.0 for row in bench.plain), default=None)
    asked = cores_to_use(choose_device(ExtractorSettings().device))
    if cores is not None and cores < MIN_CORES_SHARE * asked:
        found.append(f"the bare pass got {cores:.2f} of {asked} cores")
    alone = {row.way: row.rate for row in bench.bare}
    for row in bench.exact:
        if row.rate > alone.get(row.way, row.rate):
            found.append(f"patchstore in {row.way} seems faster than the pass that it contains")
    return found


def check_plots() -> None:
    """Raises PatchstoreError where plots cannot be drawn: better told before than after."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise PatchstoreError(
            f'plots cannot be drawn ({error}); install the extra: pip install -e ".[bench]"'
        ) from error


def plots(bench: Bench, pictures: Pictures, folder: Path) -> list[Path]:
    """Draws what was measured: cost against stride, throughput against number of pictures."""
    drawn = []
    if bench.best and bench.dense:
        drawn.append(folder / "bench-stride.svg")
        _draw_stride(bench.best, bench, pictures, drawn[-1])
    if bench.small:
        drawn.append(folder / "bench-images.svg")
        curve = Curve(
            f"patchstore exact, {bench.small[0].way}",
            [row.patches for row in bench.small],
            [row.rate for row in bench.small],
        )
        x = Axis("pictures of one patch")
        draw(drawn[-1], "Throughput, end to end", x, Axis("patches/s", linear=True), [curve])
    return drawn


def _draw_stride(exact: Row, bench: Bench, pictures: Pictures, file: Path) -> None:
    megapixels = pictures.decoded_mb / 3
    size = bench.options.patch_size
    counts = [
        sum(
            count_patches(*of, patch_size=size, stride=size // part, edge="cover")
            for of in pictures.sizes
        )
        for part in PARTS
    ]
    part_of = {size // part: part for part in PARTS}  # a stride may have failed
    curves = [
        Curve(
            f"exact, {exact.way} (its patches/s)",
            PARTS,
            [count / exact.rate / megapixels for count in counts],
            dashed=True,
        ),
        Curve(
            f"dense, {bench.dense[0].way}",
            [part_of[row.stride] for row in bench.dense if row.stride],
            [row.seconds / megapixels for row in bench.dense],
        ),
    ]
    x = Axis("stride", {part: f"1/{part} patch" if part > 1 else "1 patch" for part in PARTS})
    draw(file, "Cost against stride, end to end", x, Axis("seconds a megapixel"), curves)


def _columns(bench: Bench) -> list[str]:
    columns = ["what", "computed in", "patches", "seconds", "patches/s", "of the best bare pass"]
    columns += ["MB/s decoded", "rows/s", "peak memory, MiB", "of the device's peak"]
    return columns + ["J a patch"] * any(row.joules for row in bench.rows)


def _cells(bench: Bench, row: Row) -> list[str]:
    cells = [
        row.what,
        row.way,
        f"{row.patches:,}",
        f"{row.seconds:.1f}",
        f"{row.rate:.1f}",
        f"{row.rate / bench.fastest:.2f}" if bench.fastest else "",
        "" if row.decoded_mb is None else f"{row.decoded_mb / row.seconds:.1f}",
        f"{row.rate:.1f}" if row.stored else "",
        f"{row.peak_mib:,.0f}",
        "" if row.of_peak is None else f"{row.of_peak:.0%}",
    ]
    if any(other.joules for other in bench.rows):
        cells.append("" if row.joules is None else f"{row.joules / row.patches:.2f}")
    return cells


def _comparisons(bench: Bench) -> list[str]:
    best = bench.best
    if best is None:
        return []
    said = [f"{best.rate:.1f} patches/s"]
    said += [f"{best.rate / bench.fastest:.2f} of the fastest bare pass"] if bench.fastest else []
    said += [f"{best.rate / row.rate:.1f} times {row.what}" for row in bench.tutorial + bench.peer]
    lines = [f"patchstore exact in {best.way}: {', '.join(said)}."]
    if bench.dense:
        times = ", ".join(
            f"{row.rate / best.rate:.1f} at a stride of {row.stride}" for row in bench.dense
        )
        lines.append(f"Dense to exact, patches a second: {times}.")
    return lines
