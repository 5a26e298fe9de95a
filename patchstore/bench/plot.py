"""Curves as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Curve:
    """Points joined by a line; a dashed one was computed, not measured."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """What an axis shows, and the names of its marks where they have some.

    Attributes:
        linear: from 0 on; else logarithmic.
    """

    label: str
    marks: dict[float, str] | None = None
    linear: bool = False


def draw(file: Path, title: str, x: Axis, y: Axis, curves: Sequence[Curve]) -> None:
    """Draws curves; the same ones give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text: smaller, and readable to a screen reader.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "patchstore"}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=x.label, ylabel=y.label)
        for curve in curves:
            style = "--" if curve.dashed else "-"
            axes.plot(curve.x, curve.y, style, marker="o", label=curve.name)
        axes.set_xscale("linear" if x.linear else "log")
        axes.set_yscale("linear" if y.linear else "log")
        if y.linear:
            axes.set_ylim(bottom=0)
        if x.marks:
            axes.set_xticks(list(x.marks), list(x.marks.values()), minor=False)
            axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(which="both", alpha=0.2)
        axes.legend()
        figure.savefig(file, format="svg", metadata={"Date": None})
