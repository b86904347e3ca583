"""The figures of the study, from the numbers of its results.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.figures import COLORS, new_figure, percent_axis, styled
from experiments.studies.study import save_figure

SERIES_COLORS = [COLORS[name] for name in ("adaptive", "oracle", "query_length", "always", "margin", "never")]


def draw_figures(numbers: Mapping[str, Any], folder: Path) -> None:
    """Write quality_tokens.svg and transfer.svg."""
    with styled():
        _quality_tokens(numbers, folder / "quality_tokens.svg")
        _transfer(numbers["transfer"], folder / "transfer.svg")


def _quality_tokens(numbers: Mapping[str, Any], path: Path) -> None:
    """Curves of the sets of features, and of label rules and prices as differences to the default gate."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    features, labels = figure.subplots(1, 2)
    shares = np.asarray(numbers["token_shares"])
    _curves(features, shares, ((name, row["curve"]) for name, row in numbers["features"].items()))
    ends = [numbers["references"][name]["mean"] for name in ("never", "always")]
    features.plot([0, 1], ends, "--", color=COLORS["random"], label="random")
    oracle = numbers["references"]
    features.plot(
        oracle["oracle_token_share"]["mean"], oracle["oracle"]["mean"], "*", color=COLORS["oracle"], label="oracle"
    )
    percent_axis(features, "hit@1")
    default = np.asarray(next(iter(numbers["features"].values()))["curve"])
    differences = (
        (f"{row['label']}, price {row['price']:g}", 100 * (np.asarray(row["curve"]) - default))
        for row in numbers["labels"]
        if not np.array_equal(row["curve"], default)
    )
    _curves(labels, shares, differences)
    labels.axhline(0, color="#404040", linewidth=1, linestyle="--", label="default: hard, price 0.5")
    labels.set_ylabel("hit@1 minus the default gate's, points")
    for axes in (features, labels):
        axes.set_xlabel("share of always' tokens")
        axes.legend()
    save_figure(figure, path)


def _curves(axes: Axes, shares: np.ndarray, curves: Iterable[tuple[str, Any]]) -> None:
    for color, (name, curve) in zip(cycle(SERIES_COLORS), curves, strict=False):
        axes.plot(shares, curve, "o-", markersize=2.5, color=color, label=name)


def _transfer(groups: Mapping[str, Any], path: Path) -> None:
    """How far others are from the gate that saw the tasks, one bar each for every group of tasks."""
    figure, axes = new_figure(9.6, 3.4)
    places = np.arange(len(groups))
    bars = {
        "random": (COLORS["random"], "random, equal tokens"),
        "margin": (COLORS["margin"], "margin, equal tokens"),
        "calibrated": ("#9cc3e6", "gate that never saw them, own threshold"),
        "unseen": (COLORS["adaptive"], "gate that never saw them, equal tokens"),
    }
    for index, (name, (color, words)) in enumerate(bars.items()):
        values = [row[f"{name}_minus_seen"] for row in groups.values()]
        means = 100 * np.array([value["mean"] for value in values])
        spread = np.abs(100 * np.array([value["ci95"] for value in values]).T - means)
        axes.bar(places + 0.2 * (index - 1.5), means, 0.19, yerr=spread, color=color, label=words)
    axes.axhline(0, color="#404040", linewidth=1)
    axes.set_xticks(places, list(groups))
    axes.set_ylabel("hit@1 minus that of the gate that saw\nthe tasks, points")
    figure.legend(loc="outside upper center", ncols=len(bars))
    save_figure(figure, path)
