"""The packaged backbone's pretraining, from its log.

    python -m experiments.nano_backbone.collect

Reads log.jsonl beside it; writes results.json, loss.svg and the table of README.md. One run, so no claim with an
interval.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.studies.figures import COLORS, new_figure, styled
from experiments.studies.study import markdown_table, save_figure, write_study

FOLDER = Path(__file__).parent
LOSSES = {"caption": "always", "cot": "adaptive", "picture": "oracle"}
"""Losses of the log, each with the colour it takes."""


def table(results: Mapping[str, Any]) -> str:
    """What the last validation measured, from results.json."""
    final = results["final"]
    rows = [[name.replace("_", " "), f"{value:,g}"] for name, value in final.items() if name not in LOSSES]
    return markdown_table(["measured", "value"], rows) + "\n\n![Losses by step](loss.svg)"


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
    log = [json.loads(line) for line in (FOLDER / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    draw_losses(log, FOLDER / "loss.svg")
    write_study(FOLDER, {"final": log[-1]}, [], table)


if __name__ == "__main__":
    main()
