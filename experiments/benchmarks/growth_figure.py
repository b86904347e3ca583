"""The figure of growth: time and memory over size, both relative to the smallest, on logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.studies.figures import COLORS, styled
from experiments.studies.study import save_figure

MARKS = {
    "pairs": (COLORS["adaptive"], "o"),
    "prompt tokens": (COLORS["always"], "s"),
    "CoT tokens": (COLORS["oracle"], "^"),
    "candidates": (COLORS["query_length"], "D"),
    "documents": (COLORS["margin"], "v"),
}
"""Colour and marker of each axis of growth."""


def draw(series: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write the figure.

    Args:
        series: by axis, as `growth.measure` gives them.
        path: of the SVG.
    """
    with styled():
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, values, title in zip(panels, ("seconds", "mib"), ("time", "memory"), strict=True):
            largest = 1.0
            for axis, (color, marker) in MARKS.items():
                found = series[axis]
                size = np.array(found["sizes"]) / found["sizes"][0]
                cost = np.median(found[values], axis=0)
                axes.plot(size, cost / cost[0], color=color, marker=marker, markersize=4, linewidth=1.3, label=axis)
                largest = max(largest, size[-1])
            axes.plot([1, largest], [1, largest], color="#565b63", linestyle=":", linewidth=1.2, label="linear")
            axes.set(xscale="log", yscale="log", xlabel="size, times the smallest", title=title)
            for axis_of in (axes.xaxis, axes.yaxis):
                axis_of.set_major_formatter(lambda value, _: f"{value:g}")
                axis_of.set_minor_locator(NullLocator())
            axes.set_xticks([1, 2, 4, 8, 16])
            axes.set_yticks([1, 2, 4, 8, 16])
        panels[0].set_ylabel("cost, times the smallest size's")
        panels[1].legend(loc="upper left", handlelength=1.8)
        save_figure(figure, path)
