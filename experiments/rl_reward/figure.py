"""The figure of the RL study: what every variant changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.figures import COLORS, styled
from experiments.studies.study import save_figure

PANELS = (("reward", "change in held-out reward", 1), ("hit_generative", "change in generative hit@1, points", 100))


def draw(numbers: Mapping[str, Any], path: Path) -> None:
    """Change in reward and in generative hit@1, one line per variant, with 95 % intervals."""
    rows = {**numbers["variants"], "base, from a full stage 1": numbers["full"]}
    with styled():
        figure = Figure(figsize=(7.2, 0.27 * len(rows) + 0.8), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, (metric, label, scale) in zip((left, right), PANELS, strict=True):
            _draw_panel(axes, {name: row["metrics"][metric]["change"] for name, row in rows.items()}, scale)
            axes.set_xlabel(label)
        left.set_yticks(range(len(rows)), list(rows))
        left.invert_yaxis()
        save_figure(figure, path)


def _draw_panel(axes: Axes, changes: Mapping[str, Any], scale: float) -> None:
    axes.axvline(0, color=COLORS["never"], linewidth=1)
    for place, change in enumerate(changes.values()):
        low, high = change["ci95"]
        axes.plot([scale * low, scale * high], [place, place], color=COLORS["adaptive"], linewidth=1.4)
        axes.plot(scale * change["mean"], place, "o", color=COLORS["adaptive"], markersize=4)
