"""Pretraining of the packaged backbones, from the logs of both curricula at each size.

    python -m experiments.nano_backbone.collect [WORK ...]

Each WORK is a folder that `twn_lightning.data.nano.pretrain --work` has written: its log is stored here first, as
<size>_<curriculum>.jsonl. Writes results.json, a figure for each curriculum and the table of README.md, from all logs
that are stored. One run each, so no claim with an interval.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.studies.figures import COLORS, new_figure, styled
from experiments.studies.study import markdown_table, save_figure, write_study
from twn_lightning.atomic import write_text
from twn_lightning.data.nano.backbones import SHAPES
from twn_lightning.data.nano.curriculum import CURRICULA
from twn_lightning.data.nano.pretrain import LOG, SETTINGS
from twn_lightning.errors import DataError

FOLDER = Path(__file__).parent
LOSSES = {"caption": "always", "cot": "adaptive", "picture": "oracle"}
"""Losses of the log, each with the colour it takes."""
STYLES = dict(zip(SHAPES, ("-", "--"), strict=True))
"""Line style of each size."""

Log = list[dict[str, float]]


def store(work: Path, folder: Path) -> Path:
    """Copy the log of a pretraining run under the name of its size and curriculum.

    Args:
        work: the run's work folder.
        folder: the study's.

    Raises:
        DataError: the work folder has no settings or no log.
    """
    missing = [name for name in (SETTINGS, LOG) if not (work / name).is_file()]
    if missing:
        raise DataError(f"{work} is no work folder of a pretraining run: it has no {' and no '.join(missing)}.")
    settings = json.loads((work / SETTINGS).read_text(encoding="utf-8"))
    target = folder / f"{settings['size']}_{settings['curriculum']}.jsonl"
    lines = (work / LOG).read_text(encoding="utf-8").splitlines()
    by_step = {json.loads(line)["step"]: line for line in lines}  # a resumed run repeats some steps: the last counts
    write_text(target, "\n".join(by_step.values()) + "\n")
    return target


def read_logs(folder: Path) -> dict[str, dict[str, Log]]:
    """The stored logs: curriculum -> size -> lines, both in their usual order; sizes without a log are left out."""
    found: dict[str, dict[str, Log]] = {}
    for curriculum in CURRICULA:
        paths = {size: folder / f"{size}_{curriculum}.jsonl" for size in SHAPES}
        found[curriculum] = {
            size: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for size, path in paths.items()
            if path.is_file()
        }
    return found


def table(results: Mapping[str, Any]) -> str:
    """What the last validation of each run measured, from results.json."""
    runs = {
        f"{size}, {curriculum}": final[size]
        for size in SHAPES
        for curriculum, final in results["final"].items()
        if size in final
    }
    names = dict.fromkeys(name for final in runs.values() for name in final if name not in LOSSES)
    rows = [[name.replace("_", " "), *(_shown(final.get(name)) for final in runs.values())] for name in names]
    figures = "\n\n".join(f"![Losses by step, {name}]({name}.svg)" for name in results["final"])
    return markdown_table(["measured", *runs], rows) + "\n\n" + figures


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,g}"


def draw_losses(logs: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """The losses of one curriculum by step, on a logarithmic scale; a line style for each size."""
    with styled():
        figure, axes = new_figure()
        for size, log in logs.items():
            for name, color in LOSSES.items():
                lines = [line for line in log if name in line]
                values = [max(line[name], 1e-4) for line in lines]
                steps = [line["step"] for line in lines]
                axes.plot(steps, values, STYLES[size], color=COLORS[color], label=f"{name}, {size}", linewidth=1.2)
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("loss (nats)")
        axes.legend(ncols=len(logs))
        save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="*", type=Path, help="work folders whose logs to store")
    for work in parser.parse_args().work:
        print(store(work, FOLDER))
    logs = read_logs(FOLDER)
    for curriculum, by_size in logs.items():
        draw_losses(by_size, FOLDER / f"{curriculum}.svg")
    final = {curriculum: {size: log[-1] for size, log in by_size.items()} for curriculum, by_size in logs.items()}
    write_study(FOLDER, {"final": final}, [], table)


if __name__ == "__main__":
    main()
