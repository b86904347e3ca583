"""The figures of the study of difficulty, from the numbers of its results.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.figures import COLORS, new_figure, percent_axis

_SERIES = {"discriminative": COLORS["never"], "generative": COLORS["always"], "oracle": COLORS["oracle"]}


def draw_by_steps(levels: Mapping[str, Any]) -> Figure:
    """Quality without and with a CoT, and the oracle's, by kind and number of steps."""
    figure, axes = new_figure(5.6, 3.2)
    names = [name for name in levels if name != "all"]
    first_step = sum("step" not in name for name in names)
    for (series, color), offset in zip(_SERIES.items(), (-0.1, 0.0, 0.1), strict=True):
        mean, spread = _bars([levels[name][series] for name in names])
        places = np.arange(len(names)) + offset
        axes.errorbar(places, mean, yerr=spread, fmt="o", markersize=4, color=color, label=series)
        axes.plot(places[first_step:], mean[first_step:], color=color, linewidth=1)
    axes.set_xticks(range(len(names)), [name.removesuffix("s").removesuffix(" step") for name in names])
    axes.set_xlabel("kind, or number of steps")
    axes.set_ylim(0, 1.03)
    percent_axis(axes, "quality")
    figure.legend(loc="outside upper right", ncols=len(_SERIES))
    return figure


def draw_by_task(tasks: Mapping[str, Any]) -> Figure:
    """Quality without and with a CoT, and the oracle's, task by task; the most to gain first."""
    figure, axes = new_figure(5.6, 0.9 + 0.24 * len(tasks))
    names = sorted(tasks, key=lambda name: -tasks[name]["difference"]["mean"])
    places = np.arange(len(names))
    ends = [[tasks[name][mode]["mean"] for name in names] for mode in ("discriminative", "generative")]
    axes.hlines(places, *ends, color=COLORS["random"], linewidth=1)
    for series, color in _SERIES.items():
        mean, spread = _bars([tasks[name][series] for name in names])
        marker = "|" if series == "oracle" else "o"
        axes.errorbar(mean, places, xerr=spread, fmt=marker, markersize=5, color=color, label=series)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel("quality")
    figure.legend(loc="outside upper right", ncols=len(_SERIES))
    return figure


def _bars(values: list[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    mean = np.array([value["mean"] for value in values])
    ends = np.array([value["ci95"] for value in values])
    return mean, np.maximum(0, [mean - ends[:, 0], ends[:, 1] - mean])
