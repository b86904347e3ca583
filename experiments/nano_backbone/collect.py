"""The packaged backbone's pretraining, from the logs of its two curricula.

    python -m experiments.nano_backbone.collect

Reads grids.jsonl and mmeb_nano.jsonl beside it; writes results.json, a figure of each and the table of README.md. One
run, so no claim with an interval.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.studies.figures import COLORS, new_figure, styled
from experiments.studies.study import markdown_table, save_figure, write_study
from twn_lightning.data.nano.curriculum import CURRICULA

FOLDER = Path(__file__).parent
LOSSES = {"caption": "always", "cot": "adaptive", "picture": "oracle"}
"""Losses of the log, each with the colour it takes."""


def table(results: Mapping[str, Any]) -> str:
    """What the last validation of each curriculum measured, from results.json."""
    names = dict.fromkeys(name for final in results["final"].values() for name in final if name not in LOSSES)
    rows = [
        [name.replace("_", " "), *(_shown(final.get(name)) for final in results["final"].values())] for name in names
    ]
    figures = "\n\n".join(f"![Losses by step, {name}]({name}.svg)" for name in results["final"])
    return markdown_table(["measured", *results["final"]], rows) + "\n\n" + figures


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,g}"


def draw_losses(log: Sequence[Mapping[str, float]], path: Path) -> None:
    """The losses by step, on a logarithmic scale."""
    with styled():
        figure, axes = new_figure()
        for name, color in LOSSES.items():
            lines = [line for line in log if name in line]
            values = [max(line[name], 1e-4) for line in lines]
            axes.plot([line["step"] for line in lines], values, color=COLORS[color], label=name)
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("loss (nats)")
        axes.legend()
        save_figure(figure, path)


def main() -> None:
    final = {}
    for name in CURRICULA:
        log = [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        draw_losses(log, FOLDER / f"{name}.svg")
        final[name] = log[-1]
    write_study(FOLDER, {"final": final}, [], table)


if __name__ == "__main__":
    main()
