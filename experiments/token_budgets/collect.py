"""Study 4: do thresholds chosen under a token budget or a quality tolerance keep their promise on new queries?

    python -m experiments.token_budgets.collect RUN RUN RUN

Each RUN is a run folder of `twn evaluate` or `twn nano-suite`, one per training seed, all on the same queries. The
recorded queries are split into calibration and test again and again; every rule calibrates on the one part and is
measured on the other. Where the gate's own calibration split is recorded, the rules are also calibrated on that. Writes
results.json, the figure and the table of README.md.

Shape letters: S training seeds, R random splits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.studies.figures import COLORS, new_figure, styled
from experiments.studies.runs import SeedEvaluation, read_seeds
from experiments.studies.study import Claim, as_dict, judged, markdown_table, save_figure, show, write_study
from experiments.token_budgets.deployed import deployed_cells
from experiments.token_budgets.rules import DELTA, RULES, TARGETS, choose
from twn_lightning.errors import DataError
from twn_lightning.gate import Coverage, measure_coverage
from twn_lightning.metrics import Interval, bootstrap_over_seeds

FOLDER = Path(__file__).parent
DRAWS = 1000
NUM_CALIBRATION = (100, 400, 1600)
HEADLINE = {"quality": 0.02, "tokens": 0.5}
"""The levels, at the middle calibration size, on which the claims rest."""
CHOSEN = dict(
    zip(RULES, ("read off the curve", "chosen by conformal risk control", "chosen with a margin"), strict=True)
)
"""Each rule in a claim's words."""


def cells(seeds: Sequence[SeedEvaluation]) -> Iterator[dict[str, Any]]:
    """One entry for every target, rule, level and calibration size that leaves as many queries for the test."""
    for target, levels in TARGETS.items():
        for num_calibration in NUM_CALIBRATION:
            if 2 * num_calibration > len(seeds[0].outcomes):
                continue
            for level in levels:
                for rule in RULES:
                    yield {
                        "target": target,
                        "rule": rule,
                        "level": level,
                        "num_calibration": num_calibration,
                        "measured": measured(seeds, target, rule, level, num_calibration),
                    }


def measured(
    seeds: Sequence[SeedEvaluation], target: str, rule: str, level: float, num_calibration: int
) -> dict[str, Any] | None:
    """Test results over seeds and splits; None where the rule says that the calibration queries are too few."""
    try:
        results = [
            measure_coverage(
                partial(choose, target=target, rule=rule, level=level, max_tokens=seed.max_tokens),
                seed.outcomes,
                num_calibration=num_calibration,
                draws=DRAWS,
            )
            for seed in seeds
        ]
    except DataError:
        return None
    controlled_SR = np.stack([promised(result, target) for result in results])
    return {
        "promised": as_dict(_mean(controlled_SR)),
        "within": as_dict(_mean(controlled_SR <= level)),
        **{
            name: as_dict(_mean(np.stack([getattr(result, f"{name}_R") for result in results])))
            for name in ("quality_loss", "regret", "token_share")
        },
    }


def promised(result: Coverage, target: str) -> np.ndarray:
    """What a rule promises to keep at or below the level: the quality lost to always, or the share of its tokens."""
    return result.quality_loss_R if target == "quality" else result.token_share_R


def _mean(values_SR: np.ndarray) -> Interval:
    return bootstrap_over_seeds(np.asarray, values_SR)


def claims_of(
    entries: Sequence[Mapping[str, Any]], deployed: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> list[Claim]:
    """What the study decides, at the headline levels: from random splits, and from the gate's own calibration split."""
    claims = []
    for entry in entries:
        target, rule, level = entry["target"], entry["rule"], entry["level"]
        if (level, entry["num_calibration"]) != (HEADLINE[target], NUM_CALIBRATION[1]) or not entry["measured"]:
            continue
        promise = f"A threshold {CHOSEN[rule]} from {entry['num_calibration']} random queries {kept(target, level)}"
        if rule == RULES[2]:
            value, bar = entry["measured"]["within"], {"at_least": 1 - DELTA}
            promise += f" in {100 * (1 - DELTA):.0f} % of the splits"
        else:
            value, bar = entry["measured"]["promised"], {"at_most": level}
        claims.append(_claim(f"{target}, {rule}", promise, value, bar, size))
    for entry in deployed:
        target, rule, level = entry["target"], entry["rule"], entry["level"]
        value = entry["quality_loss"] if target == "quality" else entry["token_share"]
        if rule == RULES[1] and level == HEADLINE[target] and value:
            promise = f"A threshold {CHOSEN[rule]} from the gate's own calibration split {kept(target, level)}"
            claims.append(_claim(f"{target}, own split", promise, value, {"at_most": level}, size))
    return claims


def kept(target: str, level: float) -> str:
    """What a rule promises, in words."""
    if target == "quality":
        return f"loses at most {100 * level:.0f} points to always on new queries"
    return f"spends at most {100 * level:.0f} % of always' tokens on new queries"


def _claim(id: str, text: str, value: Mapping[str, Any], bar: Mapping[str, float], size: tuple[int, int]) -> Claim:
    interval = Interval(value["mean"], *value["ci95"])
    return judged(id, text, interval, unit="percent", n_seeds=size[0], n_queries=size[1], **bar)


def table(results: Mapping[str, Any]) -> str:
    """One table per target, from results.json."""
    parts = [
        f"{results['n_seeds']} seeds x {results['n_queries']:,} queries, {results['draws']} random splits each; 95 % "
        "intervals over seeds and splits; per cent. *Within*: share of splits whose test value is within the level. "
        "*Regret*: quality lost where the gate does not think, without credit for queries that a CoT would have hurt; "
        "the conformal rules bound it, and so the quality lost."
    ]
    titles = {"quality": "quality lost to always", "tokens": "share of always' tokens"}
    for target, title in titles.items():
        rows = [_row(entry) for entry in results["cells"] if entry["target"] == target]
        other = ["regret", "tokens of always'"] if target == "quality" else ["quality lost to always"]
        parts.append(markdown_table(["rule", "calibration queries", "level", title, "within", *other], rows))
    if results["deployed"]:
        parts += [
            f"Calibrated on the gate's own calibration split ({results['deployed'][0]['num_calibration']:,} queries of "
            "other drawings, which also stopped its training), measured on all recorded queries; intervals over seeds "
            "and queries:",
            markdown_table(["rule", "level", "quality lost to always", "tokens of always'"], _deployed_rows(results)),
        ]
    return "\n\n".join([*parts, "![Test value against level](coverage.svg)"])


def _row(entry: Mapping[str, Any]) -> list[str]:
    lead = [entry["rule"], f"{entry['num_calibration']:,}", f"{100 * entry['level']:.0f}"]
    found = entry["measured"]
    others = ("regret", "token_share") if entry["target"] == "quality" else ("quality_loss",)
    if found is None:
        return [*lead, "too few queries", "–", *["–" for _ in others]]
    shown = [show(found[name], digits=2) for name in others]
    return [*lead, show(found["promised"], digits=2), show(found["within"], digits=0), *shown]


def _deployed_rows(results: Mapping[str, Any]) -> list[list[str]]:
    words = {"quality": "quality lost at most", "tokens": "tokens at most"}
    return [
        [
            cell["rule"],
            f"{words[cell['target']]} {100 * cell['level']:.0f}",
            *(
                [show(cell["quality_loss"], digits=2), show(cell["token_share"])]
                if cell["quality_loss"]
                else ["too few queries", "–"]
            ),
        ]
        for cell in results["deployed"]
    ]


def draw_coverage(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Test value less level against the number of calibration queries, for the headline levels."""
    colors = dict(zip(RULES, (COLORS["always"], COLORS["adaptive"], COLORS["oracle"]), strict=True))
    with styled():
        figure, axes = new_figure(5.2, 3.0)
        for rule, color in colors.items():
            for target, marker in (("quality", "o"), ("tokens", "s")):
                points = [
                    (entry["num_calibration"], 100 * (entry["measured"]["promised"]["mean"] - entry["level"]))
                    for entry in entries
                    if entry["measured"]
                    and (entry["target"], entry["rule"], entry["level"]) == (target, rule, HEADLINE[target])
                ]
                if points:
                    axes.plot(*zip(*points, strict=True), marker=marker, color=color, label=f"{target}, {rule}")
        axes.axhline(0, color="#404040", linewidth=1, linestyle="--")
        axes.set_xscale("log")
        sizes = sorted({entry["num_calibration"] for entry in entries})
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("calibration queries")
        axes.set_ylabel("test value less level (points)")
        figure.legend(loc="outside right upper")
        save_figure(figure, path)


def collect(folders: Sequence[Path]) -> tuple[dict[str, Any], list[Claim]]:
    """The numbers and the claims of the study."""
    seeds = read_seeds(folders)
    size = (len(seeds), len(seeds[0].outcomes))
    entries, deployed = list(cells(seeds)), deployed_cells(seeds)
    numbers = {"n_seeds": size[0], "n_queries": size[1], "draws": DRAWS, "cells": entries, "deployed": deployed}
    return numbers, claims_of(entries, deployed, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    numbers, claims = collect(parser.parse_args().runs)
    draw_coverage(numbers["cells"], FOLDER / "coverage.svg")
    write_study(FOLDER, numbers, claims, table)


if __name__ == "__main__":
    main()
