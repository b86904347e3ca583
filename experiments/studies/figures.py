"""How the figures of studies look: one palette, small, on white."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {
    "never": "#8a8f98",
    "always": "#c2410c",
    "adaptive": "#1d6fb8",
    "random": "#a3a3a3",
    "random_equal_tokens": "#565b63",
    "margin": "#6d8b3d",
    "query_length": "#9b6bb3",
    "oracle": "#b58900",
}
"""One colour per router; other series take from it, too."""

_STYLE = {
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e5e8",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
}


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib settings of a study's figures."""
    with rc_context(_STYLE):
        yield


def new_figure(width: float = 4.6, height: float = 3.2) -> tuple[Figure, Axes]:
    """An empty figure with one axes, outside pyplot's global state; inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def percent_axis(axes: Axes, label: str) -> None:
    """Show y, a fraction, in per cent."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_ylabel(label)
