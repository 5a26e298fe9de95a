"""`patchstore bench`: which spec and which machine, before an archive is computed."""

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .console import FAILED, fail, print_json, say
from .spec import Backbone, Weights
from .startup import end_in_order


class Case(StrEnum):
    """What can be measured."""

    bare = "bare"
    tutorial = "tutorial"
    exact = "exact"
    dense = "dense"
    pixeltable = "pixeltable"


def bench(
    images: Annotated[
        str | None,
        typer.Argument(metavar="[FOLDER]", help="Pictures to measure over.  [default: made up]"),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Pictures at most, spread evenly.")] = 100,
    backbone: Backbone = "resnet18",
    weights: Weights = "random:0",
    patch_size: Annotated[int, typer.Option(min=8, help="Side of a patch, pixels.")] = 224,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Of the mode exact, pixels.  [default: half a patch]"),
    ] = None,
    case: Annotated[
        list[Case] | None, typer.Option(help="Only this; repeat for more.  [default: all]")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each bare forward pass.")] = 10.0,
    pixeltable: Annotated[
        Path | None,
        typer.Option(
            metavar="SITE",
            help="Folder of `pip install --target SITE pixeltable`, which needs versions of "
            "its own.  [default: installed beside patchstore]",
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Draw cost against stride and throughput against number of pictures, as SVG.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure this machine: the forward pass alone, patchstore in each way, and what others do.

    Uses a store of its own, which it removes, and takes some minutes. Exit code 1: something else
    ran on this machine meanwhile, and the figures are none.
    """
    from dataclasses import asdict

    from extractor.backbone import resolve
    from flows.sources import FolderSource
    from patchstore.bench import pictures as made
    from patchstore.bench import run
    from patchstore.bench.home import SpecOptions, absolute_weights

    options = SpecOptions(
        backbone, absolute_weights(weights), patch_size, stride or max(1, patch_size // 2)
    )
    folder = FolderSource(images).root if images is not None else None
    if plots is not None:
        run.check_plots()
        plots.mkdir(parents=True, exist_ok=True)
    resolve(options.recipe())  # a wrong name is said at once
    end_in_order()  # servers and folders of its own go with it
    with tempfile.TemporaryDirectory(prefix="patchstore-pictures-") as temporary:
        work = Path(temporary)
        if folder is None:
            pictures = made.made_up(limit, work)
        else:
            pictures = made.copied(Path(folder), limit, work)
        small = run.SMALL if plots is not None else ()
        found = run.measure(
            pictures,
            options,
            work,
            wanted=case or run.CASES,
            seconds=seconds,
            peer=pixeltable,
            small=small,
            say=say,
        )
        if plots is not None:
            for file in run.plots(found, pictures, plots):
                say(f"drawn: {file}")
    print_json(asdict(found)) if as_json else print(run.report(found))
    if not found.rows:
        fail(f"nothing was measured: {'; '.join(found.missing)}")
    doubts = run.doubts(found)
    for doubt in doubts:
        say(f"not a figure: {doubt}")
    if doubts:
        raise SystemExit(FAILED)
