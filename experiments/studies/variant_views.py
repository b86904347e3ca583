"""How a study of variants shows them: tables and a figure, from the variants of its results.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.figures import COLORS
from experiments.studies.study import markdown_table, show
from experiments.studies.variants import MODES

_COLOR_OF = {"discriminative": COLORS["never"], "generative": COLORS["always"]}
_OFFSET_OF = {"discriminative": -0.14, "generative": 0.14}


def quality_table(variants: Mapping[str, Any]) -> str:
    """Every variant's added parameters, quality in both modes and difference to the first one, the base."""
    base = next(iter(variants))
    header = ["variant", "added parameters"]
    header += [name for mode in MODES for name in (mode, f"minus {base}")]
    rows = []
    for name, row in variants.items():
        cells = [name, f"{row['parameters']['added']:,}"]
        for mode in MODES:
            values = row["groups"]["all"][mode]
            cells += [show(values["quality"]), "" if name == base else show(values["minus_base"], sign="+")]
        rows.append(cells)
    return markdown_table(header, rows)


def kinds_table(variants: Mapping[str, Any], mode: str) -> str:
    """By kind of query: the base's quality, and every other variant's difference to it.

    Args:
        variants: the base first.
        mode: discriminative or generative.
    """
    base = next(iter(variants))
    kinds = [group for group in variants[base]["groups"] if group != "all"]
    rows = [
        [name if name == base else f"{name}, minus {base}"]
        + [
            show(row["groups"][kind][mode]["quality"])
            if name == base
            else show(row["groups"][kind][mode]["minus_base"], sign="+")
            for kind in kinds
        ]
        for name, row in variants.items()
    ]
    return markdown_table([f"{mode} quality", *kinds], rows)


def draw_differences(variants: Mapping[str, Any]) -> Figure:
    """The difference of every variant to the first one, the base, in both modes: over all queries and by kind."""
    base, *others = variants
    groups = list(variants[base]["groups"])
    figure = Figure(figsize=(2.2 + 1.5 * len(groups), 1.1 + 0.32 * len(others)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(groups), sharey=True))
    places = np.arange(len(others))
    for group, axes in zip(groups, panels, strict=True):
        axes.axvline(0, color=COLORS["oracle"], linewidth=1)
        for mode in MODES:
            found = [variants[name]["groups"][group][mode]["minus_base"] for name in others]
            mean = 100 * np.array([value["mean"] for value in found])
            ends = 100 * np.array([value["ci95"] for value in found]).reshape(-1, 2)
            spread = np.maximum(0, [mean - ends[:, 0], ends[:, 1] - mean])
            axes.errorbar(
                mean, places + _OFFSET_OF[mode], xerr=spread, fmt="o", markersize=4, color=_COLOR_OF[mode], label=mode
            )
        axes.set_title(group, fontsize=8.5)
    panels[0].set_yticks(places, others)
    panels[0].invert_yaxis()
    figure.supxlabel(f"quality minus that of {base}, points", fontsize=8.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=len(MODES))
    return figure
