"""What is measured: each way by itself, over the same images with the same network."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from extractor.device import FLOAT32
from patchstore.errors import CaseFailed

from .bare import run_alone
from .energy import Energy
from .home import SPEC, SpecOptions, add_spec, ingest, run_command
from .measure import apart
from .pictures import Pictures
from .tiles import pixeltable_home, run_tiles

if TYPE_CHECKING:
    from .tutorial import Tutorial

SAMPLE_IMAGES = 32


@dataclass(frozen=True)
class Row:
    """One way measured.

    Attributes:
        what: which way.
        way: precision and runtime.
        patches: computed.
        seconds: it took.
        peak_mib: memory of the process that computed.
        decoded_mb: of pixels, 3 bytes each; None: the patches were ready.
        stored: the patches are rows of a table.
        stride: of patchstore's spec, in pixels.
        cores: processor cores in use; None: not looked at.
        joules: spent by the whole machine, by a command with its beginning and end; None: nothing
            tells.
        of_peak: share of the device's arithmetic peak, 0 to 1; None: not known.
    """

    what: str
    way: str
    patches: int
    seconds: float
    peak_mib: float
    decoded_mb: float | None = None
    stored: bool = False
    stride: int | None = None
    cores: float | None = None
    joules: float | None = None
    of_peak: float | None = None

    @property
    def rate(self) -> float:
        """Patches a second."""
        return self.patches / self.seconds


def plain(pictures: Pictures, options: SpecOptions, seconds: float) -> Row:
    """The forward pass alone, as torchvision has the network, in float32."""
    row = _alone(pictures, options, FLOAT32, True, seconds)
    return replace(row, what="bare forward pass, as torchvision has it")


def bare(pictures: Pictures, options: SpecOptions, way: str, seconds: float) -> Row:
    """The forward pass alone, as patchstore runs it.

    Raises CaseFailed where the way does not work here.
    """
    return _alone(pictures, options, way, False, seconds)


def tutorial(pictures: Pictures, options: SpecOptions, url: str) -> Row:
    """Patch by patch, a row each. Raises CaseFailed where there is none."""
    energy = Energy()
    found, peak = apart(_tutorial, pictures.files, options, url)
    _some(found.patches)
    row = Row("the tutorial's way", "float32", found.patches, found.seconds, peak)
    return replace(row, decoded_mb=pictures.decoded_mb, stored=True, joules=energy.joules())


def patchstore(home: Path, pictures: Pictures, options: SpecOptions, precision: str) -> Row:
    """`patchstore ingest`, from the flow's start to its end.

    What is done once for a spec on a machine, exporting, compiling or checking precisions, another
    run over another picture has done before.

    Raises CaseFailed where the way does not work here.
    """
    with _spec(home, options):
        ingest(home, pictures.warm_up, precision)
        energy = Energy()
        run = ingest(home, pictures.folder, precision)
        _some(int(run.summary["patches"]))
        return Row(
            f"patchstore {options.mode}, stride {options.stride}",
            run.summary["precision"],
            int(run.summary["patches"]),
            float(run.summary["seconds"]),
            run.peak_mib,
            decoded_mb=pictures.decoded_mb,
            stored=True,
            stride=options.stride,
            joules=energy.joules(),
        )


def small_pictures(home: Path, pictures: Pictures, options: SpecOptions, precision: str) -> Row:
    """As `patchstore`, over pictures of one patch each."""
    row = patchstore(home, pictures, options, precision)
    return replace(row, what=f"patchstore, {len(pictures.files):,} pictures of one patch")


def pixeltable(site: Path | None, pictures: Pictures, options: SpecOptions) -> Row:
    """The peer. Raises CaseFailed where it is not installed."""
    energy = Energy()
    with pixeltable_home() as home:
        found, peak = apart(run_tiles, home, site, pictures.files, options)
    version, patches, seconds = found
    _some(patches)
    row = Row(f"Pixeltable {version}", "float32", patches, seconds, peak)
    return replace(row, decoded_mb=pictures.decoded_mb, stored=True, joules=energy.joules())


def _some(patches: int) -> None:
    if not patches:
        raise CaseFailed("it found no patch in these pictures")


def _alone(
    pictures: Pictures, options: SpecOptions, way: str, as_it_is: bool, seconds: float
) -> Row:
    files = pictures.files[:SAMPLE_IMAGES]
    found, peak = apart(run_alone, files, options, way, as_it_is, seconds)
    done = found.done
    row = Row("bare forward pass", way, done.patches, done.seconds, peak)
    return replace(row, cores=done.cores, of_peak=found.of_peak, joules=done.joules)


@contextmanager
def _spec(home: Path, options: SpecOptions) -> Iterator[None]:
    add_spec(home, options)
    try:
        yield
    finally:
        run_command(home, "spec", "remove", SPEC, "--yes")


def _tutorial(files: Sequence[Path], options: SpecOptions, url: str) -> "Tutorial":
    from extractor.backbone import resolve

    from .tutorial import run_tutorial

    resolved = resolve(options.recipe())
    return run_tutorial(url, files, resolved.spec, resolved.backbone.network)
