"""The figures of the gate study, from the numbers of its results.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.studies.figures import COLORS, new_figure, percent_axis, styled
from experiments.studies.study import save_figure


def draw_figures(numbers: Mapping[str, Any], folder: Path) -> None:
    """Write quality_tokens.svg, think_rate.svg and reliability.svg."""
    with styled():
        _quality_tokens(numbers, folder / "quality_tokens.svg")
        _think_rate(numbers["kinds"], folder / "think_rate.svg")
        _reliability(numbers["gate"]["reliability"], folder / "reliability.svg")


def _quality_tokens(numbers: Mapping[str, Any], path: Path) -> None:
    figure, axes = new_figure(5.2, 3.6)
    curve = numbers["curve"]
    axes.plot(curve["token_share"], curve["quality"], color=COLORS["adaptive"], label="gate, any threshold")
    for name, row in numbers["routers"].items():
        low, high = _spread(row["quality"])
        axes.errorbar(
            row["token_share"]["mean"],
            row["quality"]["mean"],
            yerr=[[low], [high]],
            fmt="o" if name == "adaptive" else "s",
            markersize=5,
            color=COLORS.get(name, COLORS["random"]),
            label=name.replace("_", " "),
        )
    axes.set_xlabel("share of always' tokens")
    percent_axis(axes, "quality")
    figure.legend(loc="outside right upper")
    save_figure(figure, path)


def _think_rate(kinds: Mapping[str, Any], path: Path) -> None:
    figure, axes = new_figure()
    rates = [row["think_rate"] for row in kinds.values()]
    spread = np.transpose([_spread(rate) for rate in rates]) if rates else None
    axes.bar(list(kinds), [rate["mean"] for rate in rates], yerr=spread, color=COLORS["adaptive"], alpha=0.7)
    axes.set_ylim(0, 1.03)
    percent_axis(axes, "think rate")
    save_figure(figure, path)


def _reliability(bins: list[Mapping[str, float]], path: Path) -> None:
    figure, axes = new_figure(3.6, 3.4)
    axes.plot([0, 1], [0, 1], "--", color=COLORS["random"], linewidth=1)
    predicted = [part["mean_probability"] for part in bins]
    axes.plot(predicted, [part["share_paid"] for part in bins], "o-", color=COLORS["adaptive"])
    for part in bins:
        axes.annotate(
            f"{part['count']:,}",
            (part["mean_probability"], part["share_paid"]),
            xytext=(4, -9),
            textcoords="offset points",
            fontsize=6.5,
        )
    axes.set_xlabel("p(think)")
    percent_axis(axes, "thinking paid")
    save_figure(figure, path)


def _spread(value: Mapping[str, Any]) -> tuple[float, float]:
    low, high = value["ci95"]
    return max(0.0, value["mean"] - low), max(0.0, high - value["mean"])
