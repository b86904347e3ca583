"""The figure of early exit, drawn from what results.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.studies.figures import COLORS, percent_axis, styled
from experiments.studies.study import save_figure


def draw_quality_tokens(numbers: Mapping[str, Any], path: Path) -> None:
    """Every exit rule, with and without the gate, against the gate alone at any threshold; one panel per training."""
    with styled():
        n_panels = len(numbers["arms"])
        figure = Figure(figsize=(0.8 + 3.4 * n_panels, 3.4), layout="constrained")
        panels = figure.subplots(1, n_panels, sharey=True, squeeze=False)[0]
        for axes, (arm, found) in zip(panels, numbers["arms"].items(), strict=True):
            curve = found["gate_curve"]
            axes.plot(curve["token_share"], curve["quality"], color=COLORS["adaptive"], label="gate, any threshold")
            for gated, name, marker in ((False, "always", "^"), (True, "oracle", "o")):
                rules = [rule for rule in found["all_rules"] if rule["gated"] == gated]
                shares, quality = ([rule[key] for rule in rules] for key in ("token_share", "quality"))
                label = "gate + early exit" if gated else "early exit"
                axes.plot(shares, quality, marker, color=COLORS[name], markersize=4, label=label)
            axes.set_title(f"{arm} training")
            axes.set_xlabel("share of always' tokens")
        percent_axis(panels[0], "hit@1")
        panels[0].legend()
        save_figure(figure, path)
