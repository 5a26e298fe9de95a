"""Patches a second over a run, drawn as SVG."""

from collections.abc import Sequence
from datetime import timedelta
from math import floor, log10

import numpy as np
from numpy.typing import NDArray

MAX_STEPS = 120
WIDTH, HEIGHT = 760, 220
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 32, 32
ROUND = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0)
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
# Its own white ground: an image in a page knows nothing of the page's dark or light.
HEAD = (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
    'font-family="sans-serif" font-size="12" fill="#5d5954">'
    f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>'
    f'<text x="{LEFT}" y="20" font-weight="bold" fill="#1d1b19">patches/s</text>'
)


def rates(computed: Sequence[tuple[float, int]]) -> tuple[float, NDArray[np.float64]]:
    """Patches a second in equal steps of time.

    A batch's patches are spread over the time since the batch before was ready: whatever held it
    up, reading or the database, shows as a dip.

    Args:
        computed: of each batch, when it was ready, in seconds, and its patches; in any order.

    Returns:
        Seconds a step, and the rates.
    """
    ready = sorted(computed)
    times = np.array([0.0, *(at for at, _ in ready)])
    stored = np.cumsum([0, *(patches for _, patches in ready)])
    edges = np.linspace(0.0, times[-1], min(MAX_STEPS, 4 * len(ready)) + 1)
    step_s = float(edges[1])
    return step_s, np.diff(np.interp(edges, times, stored)) / step_s


def draw(computed: Sequence[tuple[float, int]]) -> str:
    """The rates of `rates` as an SVG picture."""
    step_s, values = rates(computed)
    top = _round_up(float(values.max()))
    x = LEFT + PLOT_WIDTH * np.arange(len(values) + 1) / len(values)
    y = TOP + PLOT_HEIGHT * (1 - values / top)
    ground = TOP + PLOT_HEIGHT
    outline = " ".join(
        f"{x[i]:.1f},{y[i]:.1f} {x[i + 1]:.1f},{y[i]:.1f}" for i in range(len(values))
    )
    area = (
        f'<polygon points="{LEFT},{ground} {outline} {LEFT + PLOT_WIDTH},{ground}" '
        'fill="#e8472b" fill-opacity="0.15"/>'
        f'<polyline points="{outline}" fill="none" stroke="#b8361d" stroke-width="1.5"/>'
    )
    return HEAD + _levels(top) + _times(step_s * len(values)) + area + "</svg>"


def _levels(top: float) -> str:
    lines = ""
    for share in (0.0, 0.5, 1.0):
        y = TOP + PLOT_HEIGHT * (1 - share)
        lines += (
            f'<path d="M{LEFT} {y:.1f}H{LEFT + PLOT_WIDTH}" stroke="#dedad4"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{top * share:,g}</text>'
        )
    return lines


def _times(end_s: float) -> str:
    labels = ""
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        labels += (
            f'<text x="{LEFT + PLOT_WIDTH * share:.1f}" y="{HEIGHT - 10}" text-anchor="{anchor}">'
            f"{_duration(end_s * share, clock=end_s >= 100)}</text>"
        )
    return labels


def _duration(seconds: float, *, clock: bool) -> str:
    return str(timedelta(seconds=round(seconds))) if clock else f"{seconds:.3g} s"


def _round_up(value: float) -> float:
    """The next number above of one digit, or 15, 150, ...; 1 for 0."""
    if value <= 0:
        return 1.0
    decade = 10.0 ** floor(log10(value))
    return next(step * decade for step in ROUND if step * decade >= value)
