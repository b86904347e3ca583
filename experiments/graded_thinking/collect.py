"""Graded thinking: a gate that chooses between no CoT, a short one and all of it, against the two-way gate.

    python -m experiments.graded_thinking.collect RUN RUN RUN

Each RUN is a run folder of `twn probe prefixes`, one per training seed, all on the same queries. Both gates are trained
here, on the same outcomes. Writes results.json, the figure and the table of README.md.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.studies.figures import COLORS, new_figure, percent_axis, styled
from experiments.studies.prefixes import PrefixRun, read_prefix_runs
from experiments.studies.study import Claim, as_dict, judged, markdown_table, save_figure, show, write_study
from twn_lightning.evaluation.graded_thinking import (
    BUDGETS,
    budget_outcomes,
    choices_at_equal_tokens,
    train_graded_gate,
)
from twn_lightning.gate import GradedGate
from twn_lightning.metrics import bootstrap_over_seeds, paired_bootstrap_over_seeds

FOLDER = Path(__file__).parent
PRICES = (0.25, 0.5, 1.0, 2.0)
"""Nats an average CoT must earn: each trains a gate of its own."""
DEFAULT_PRICE, DEFAULT_SHORT = 0.5, 8
QUANTILES = (0.25, 0.5)
"""Of the CoT's length on the gate split: further short budgets."""
ABOVE = 1e-9
"""A difference of exactly 0, such as that of two equal choices, is not above."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """One price and one short budget on the test queries of one seed; arrays (N,)."""

    graded_hit_N: FloatArray
    graded_tokens_N: FloatArray
    two_way_hit_N: FloatArray
    """Of the two-way gate at the threshold that spends the same tokens."""
    two_way_tokens_N: FloatArray
    choice_N: NDArray[np.int64]
    """0 none, 1 short, 2 full."""
    calibration_cost: float
    """Loss and priced tokens of the graded gate's choices on calibration, in nats a query."""


def short_budgets(runs: Sequence[PrefixRun]) -> list[int]:
    """The default, and the recorded cuts nearest to the quantiles of the CoTs' lengths; ascending."""
    cuts_P = runs[0].gate.cuts_P[1:-1]
    lengths_N = np.concatenate([run.gate.tokens_N for run in runs])
    wanted = [DEFAULT_SHORT, *np.quantile(lengths_N, QUANTILES)]
    return sorted({int(cuts_P[np.abs(cuts_P - tokens).argmin()]) for tokens in wanted})


def compare(run: PrefixRun, price: float, short: int) -> Comparison:
    """Train both gates of a seed at one price and put them at equal tokens."""
    full = int(run.test.cuts_P[-1])
    options = {
        "price": price,
        "hidden": run.settings.gate.hidden,
        "seed": run.settings.seed,
    }
    graded_splits = [budget_outcomes(split, (0, short, full)) for split in (run.gate, run.calibration, run.test)]
    two_way_splits = [budget_outcomes(split, (0, full)) for split in (run.gate, run.calibration, run.test)]
    graded: GradedGate = train_graded_gate(*graded_splits[:2], **options)
    two_way: GradedGate = train_graded_gate(*two_way_splits[:2], **options)
    test = graded_splits[2]
    choice_N = graded.choose(test.features_NF)
    hit_N, tokens_N = test.under(choice_N)
    equal_N = choices_at_equal_tokens(two_way, two_way_splits[2], float(tokens_N.mean()))
    return Comparison(
        hit_N,
        tokens_N.astype(np.float64),
        *(values.astype(np.float64) for values in two_way_splits[2].under(equal_N)),
        choice_N.numpy(),
        _cost(graded, graded_splits[1], price, max(float(run.gate.tokens_N.mean()), 1.0)),
    )


def _cost(gate: GradedGate, outcomes: Any, price: float, mean_tokens: float) -> float:
    rows, choice_N = torch.arange(len(outcomes)), gate.choose(outcomes.features_NF)
    loss, tokens = outcomes.loss_NM[rows, choice_N].mean(), outcomes.tokens_NM[rows, choice_N].float().mean()
    return float(loss + price * tokens / mean_tokens)


def numbers_of(found: Sequence[Comparison], always_tokens_SN: FloatArray) -> dict[str, Any]:
    """One price and one short budget over all seeds."""
    graded_SN, two_way_SN = (np.stack([getattr(c, name) for c in found]) for name in ("graded_hit_N", "two_way_hit_N"))
    tokens_SN = np.stack([c.graded_tokens_N for c in found])
    choices = np.concatenate([c.choice_N for c in found])
    return {
        "graded": as_dict(bootstrap_over_seeds(np.asarray, graded_SN)),
        "two_way": as_dict(bootstrap_over_seeds(np.asarray, two_way_SN)),
        "difference": as_dict(paired_bootstrap_over_seeds(graded_SN, two_way_SN)),
        "token_share": as_dict(bootstrap_over_seeds(np.divide, tokens_SN, always_tokens_SN)),
        "choices": {name: float((choices == i).mean()) for i, name in enumerate(BUDGETS)},
    }


def collect(folders: Sequence[Path]) -> tuple[dict[str, Any], list[Claim]]:
    """The numbers and the claims of the study."""
    runs = read_prefix_runs(folders)
    always_tokens_SN = np.stack([run.test.tokens_N for run in runs]).astype(np.float64)
    shorts = short_budgets(runs)
    found = {(price, short): [compare(run, price, short) for run in runs] for price in PRICES for short in shorts}
    default_short = min(shorts, key=lambda short: abs(short - DEFAULT_SHORT))
    best = [
        min((found[DEFAULT_PRICE, short][i] for short in shorts), key=lambda c: c.calibration_cost)
        for i in range(len(runs))
    ]
    numbers = {
        "n_seeds": len(runs),
        "n_queries": len(runs[0].test),
        "default": {"price": DEFAULT_PRICE, "short": default_short},
        "points": [
            {"price": price, "short": short, **numbers_of(seeds, always_tokens_SN)}
            for (price, short), seeds in found.items()
        ],
        "best_short": {"price": DEFAULT_PRICE, **numbers_of(best, always_tokens_SN)},
    }
    return numbers, claims_of(found[DEFAULT_PRICE, default_short], best, default_short)


def claims_of(default: Sequence[Comparison], best: Sequence[Comparison], short: int) -> list[Claim]:
    """What the study decides; the bars are those that were set before it ran."""
    cases = [
        ("above_two_way", f"A gate that may also read only {short} CoT tokens", default),
        ("above_two_way_best_short", "With the short budget chosen on calibration, a gate of three budgets", best),
    ]
    claims = []
    for id, text, found in cases:
        graded_SN, two_way_SN = (
            np.stack([getattr(c, name) for c in found]) for name in ("graded_hit_N", "two_way_hit_N")
        )
        claims.append(
            judged(
                id,
                f"{text} is above the two-way gate at equal tokens",
                paired_bootstrap_over_seeds(graded_SN, two_way_SN),
                at_least=ABOVE,
                n_seeds=len(found),
                n_queries=graded_SN.shape[1],
            )
        )
    return claims


def table(results: Mapping[str, Any]) -> str:
    """Price by price and budget by budget, from results.json."""

    def row(label: str, short: str, point: Mapping[str, Any]) -> list[str]:
        shares = " / ".join(f"{100 * share:.0f}" for share in point["choices"].values())
        return [
            label,
            short,
            show(point["graded"]),
            show(point["two_way"]),
            show(point["difference"], sign="+"),
            show(point["token_share"]),
            shares,
        ]

    rows = [row(f"{point['price']:g}", str(point["short"]), point) for point in results["points"]]
    rows.append(row(f"{results['best_short']['price']:g}", "by seed", results["best_short"]))
    header = ["price", "short", "three budgets", "two, equal tokens", "difference", "tokens of always'"]
    return "\n\n".join(
        [
            f"{results['n_seeds']} seeds x {results['n_queries']:,} queries; 95 % intervals over seeds and queries; "
            "hit@1 and shares in per cent.",
            markdown_table([*header, " / ".join(BUDGETS)], rows),
            "![Quality against tokens](quality_tokens.svg)",
        ]
    )


def draw(numbers: Mapping[str, Any], path: Path) -> None:
    """Both gates at every price, one line for each short budget."""
    with styled():
        figure, axes = new_figure(5.2, 3.6)
        shorts = sorted({point["short"] for point in numbers["points"]})
        for index, short in enumerate(shorts):
            points = [point for point in numbers["points"] if point["short"] == short]
            tokens = [point["token_share"]["mean"] for point in points]
            strength = 1 - 0.6 * index / max(len(shorts) - 1, 1)
            for name, series in (("adaptive", "graded"), ("always", "two_way")):
                label = f"{'three budgets' if series == 'graded' else 'two, equal tokens'}, short = {short}"
                quality = [point[series]["mean"] for point in points]
                axes.plot(tokens, quality, "o-", markersize=4, color=COLORS[name], alpha=strength, label=label)
        axes.set_xlabel("share of always' tokens")
        percent_axis(axes, "hit@1")
        axes.legend()
        save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    numbers, claims = collect(parser.parse_args().runs)
    draw(numbers, FOLDER / "quality_tokens.svg")
    write_study(FOLDER, numbers, claims, table)


if __name__ == "__main__":
    main()
