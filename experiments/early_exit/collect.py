"""Early exit: stop a CoT once the embedding that reads it stands still, on the probes of several seeds.

    python -m experiments.early_exit.collect --plain RUN RUN RUN --anytime RUN RUN RUN

Each RUN is a run folder of `twn probe prefixes`, one per training seed, in the same order on both sides, all on the
same queries. The exit rule of each seed is chosen on its calibration split. Writes results.json, the figure and the
table of README.md.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.studies.figures import COLORS, percent_axis, styled
from experiments.studies.prefixes import PrefixRun, read_prefix_runs
from experiments.studies.study import Claim, as_dict, judged, markdown_table, save_figure, show, write_study
from twn_lightning.errors import DataError
from twn_lightning.evaluation.early_exit import cheapest_rule, leave_early
from twn_lightning.metrics import (
    bootstrap_over_seeds,
    paired_bootstrap_over_seeds,
    quality_token_curve,
    think_at_equal_tokens,
)

FOLDER = Path(__file__).parent
TOLERANCES, PATIENCES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3), (1, 2)
RULES = tuple(product(TOLERANCES, PATIENCES))
QUALITY_LOSS = 0.01
"""What a rule may lose on the calibration split."""
TOKEN_SHARES = np.linspace(0, 1, 41)
ABOVE = 1e-9
"""A difference of exactly 0, such as that of two equal choices, is not above."""

FloatArray = NDArray[np.float64]


class Routed(NamedTuple):
    """Quality and tokens of every query of every seed, (S, N) each."""

    quality_SN: FloatArray
    tokens_SN: FloatArray


def stacked(pairs: Sequence[tuple[FloatArray, FloatArray]]) -> Routed:
    """Hits and tokens of each seed's queries (N,), stacked over seeds."""
    return Routed(np.stack([hit for hit, _ in pairs]), np.stack([tokens for _, tokens in pairs]))


def under(runs: Sequence[PrefixRun], rules: Sequence[tuple[float, int]], gated: bool) -> Routed:
    """The test queries under each seed's rule; all of them think, or those that the gate lets."""
    exits = [
        leave_early(run.test, *rule, think_N=run.think_of["test"] if gated else None)
        for run, rule in zip(runs, rules, strict=True)
    ]
    return stacked([(found.hit_N, found.tokens_N) for found in exits])


def chosen_rules(runs: Sequence[PrefixRun], gated: bool) -> list[tuple[float, int]]:
    """Each seed's cheapest rule on its calibration split."""
    return [
        cheapest_rule(run.calibration, RULES, QUALITY_LOSS, run.think_of["calibration"] if gated else None)
        for run in runs
    ]


def gate_at_equal_tokens(runs: Sequence[PrefixRun], tokens_SN: FloatArray) -> Routed:
    """The gate alone, each seed at the threshold that spends the same tokens."""
    found = []
    for run, tokens_N in zip(runs, tokens_SN, strict=True):
        think_N = think_at_equal_tokens(run.test.probability_N, run.test.tokens_N, float(tokens_N.mean()))
        exits = leave_early(run.test, 0.0, think_N=think_N)
        found.append((exits.hit_N, exits.tokens_N))
    return stacked(found)


def gate_curve(runs: Sequence[PrefixRun]) -> FloatArray:
    """Quality of the gate alone at `TOKEN_SHARES` of always' tokens, mean of the seeds."""
    curves = []
    for run in runs:
        test = run.test
        curve = quality_token_curve(test.probability_N, test.hit_NP[:, 0], test.hit_NP[:, -1], test.tokens_N)
        curves.append(np.interp(TOKEN_SHARES, curve.tokens_per_query / curve.tokens_per_query[-1], curve.quality))
    return np.mean(curves, axis=0)


def systems_of(runs: Sequence[PrefixRun], rules: Mapping[str, list[tuple[float, int]]]) -> dict[str, Routed]:
    """Always and the gate, with and without early exit, and the gate at the tokens of its early exit."""
    never_leave = [(0.0, 1)] * len(runs)
    found = {
        "always": under(runs, never_leave, gated=False),
        "always, early exit": under(runs, rules["always"], gated=False),
        "gate": under(runs, never_leave, gated=True),
        "gate, early exit": under(runs, rules["gate"], gated=True),
    }
    return found | {"gate, equal tokens": gate_at_equal_tokens(runs, found["gate, early exit"].tokens_SN)}


def arm_numbers(
    runs: Sequence[PrefixRun], rules: Mapping[str, list[tuple[float, int]]], systems: Mapping[str, Routed]
) -> dict[str, Any]:
    """What results.json holds of one training arm."""
    always = systems["always"]
    return {
        "rules": rules,
        "systems": {
            name: {
                "quality": as_dict(bootstrap_over_seeds(np.asarray, found.quality_SN)),
                "tokens_per_query": as_dict(bootstrap_over_seeds(np.asarray, found.tokens_SN)),
                "token_share": as_dict(bootstrap_over_seeds(np.divide, found.tokens_SN, always.tokens_SN)),
                "minus_always": as_dict(paired_bootstrap_over_seeds(found.quality_SN, always.quality_SN)),
            }
            for name, found in systems.items()
        },
        "all_rules": [
            {
                "tolerance": rule[0],
                "patience": rule[1],
                "gated": gated,
                "quality": float(found.quality_SN.mean()),
                "token_share": float(found.tokens_SN.mean() / always.tokens_SN.mean()),
            }
            for gated in (False, True)
            for rule in RULES
            for found in [under(runs, [rule] * len(runs), gated)]
        ],
        "gate_curve": {"token_share": TOKEN_SHARES, "quality": gate_curve(runs)},
    }


def collect(plain_folders: Sequence[Path], anytime_folders: Sequence[Path]) -> tuple[dict[str, Any], list[Claim]]:
    """The numbers and the claims of the study."""
    both = read_prefix_runs([*plain_folders, *anytime_folders])
    arms = {"plain": both[: len(plain_folders)], "anytime": both[len(plain_folders) :]}
    if len(arms["plain"]) != len(arms["anytime"]):
        raise DataError(f"{len(arms['plain'])} plain and {len(arms['anytime'])} anytime probes must pair up by seed")
    rules = {
        arm: {"always": chosen_rules(runs, gated=False), "gate": chosen_rules(runs, gated=True)}
        for arm, runs in arms.items()
    }
    systems = {arm: systems_of(runs, rules[arm]) for arm, runs in arms.items()}
    numbers = {
        "n_seeds": len(arms["plain"]),
        "n_queries": len(both[0].test),
        "stride": int(both[0].test.cuts_P[1]),
        "quality_loss": QUALITY_LOSS,
        "arms": {arm: arm_numbers(runs, rules[arm], systems[arm]) for arm, runs in arms.items()},
    }
    early = systems["anytime"]["gate, early exit"]
    plain_gate = gate_at_equal_tokens(arms["plain"], early.tokens_SN)
    return numbers, claims_of(systems, plain_gate, numbers["n_seeds"], numbers["n_queries"])


def claims_of(
    systems: Mapping[str, Mapping[str, Routed]], plain_gate: Routed, n_seeds: int, n_queries: int
) -> list[Claim]:
    """What the study decides; the bars are those that were set before it ran."""
    plain, anytime = systems["plain"], systems["anytime"]
    always, early, gated = anytime["always"], anytime["always, early exit"], anytime["gate, early exit"]
    size = {"n_seeds": n_seeds, "n_queries": n_queries}

    def minus(id: str, text: str, first: Routed, second: Routed, at_least: float = ABOVE) -> Claim:
        difference = paired_bootstrap_over_seeds(first.quality_SN, second.quality_SN)
        return judged(id, text, difference, at_least=at_least, **size)

    share = bootstrap_over_seeds(np.divide, early.tokens_SN, always.tokens_SN)
    return [
        minus(
            "anytime_costs_nothing",
            "Training on cut CoTs costs whole CoTs at most half a point",
            always,
            plain["always"],
            -0.005,
        ),
        minus(
            "keeps_quality",
            "Trained on cut CoTs, leaving early loses at most one point to whole CoTs",
            early,
            always,
            -QUALITY_LOSS,
        ),
        judged(
            "saves_tokens",
            "Trained on cut CoTs, leaving early saves at least a tenth of always' tokens",
            share,
            at_most=0.9,
            unit="percent",
            **size,
        ),
        minus(
            "above_own_gate",
            "The gate with early exit is above the same gate alone at equal tokens",
            gated,
            anytime["gate, equal tokens"],
        ),
        minus(
            "above_plain_gate",
            "The gate with early exit is above the gate of plain training at equal tokens",
            gated,
            plain_gate,
        ),
    ]


def table(results: Mapping[str, Any]) -> str:
    """System by system, from results.json."""
    rows = [
        [
            arm,
            name,
            show(row["quality"]),
            show(row["minus_always"], sign="+"),
            f"{row['tokens_per_query']['mean']:.1f}",
            show(row["token_share"]),
        ]
        for arm, found in results["arms"].items()
        for name, row in found["systems"].items()
    ]
    rules = "; ".join(
        f"{arm}, {name}: " + ", ".join(f"{tolerance:g} x {patience}" for tolerance, patience in seeds)
        for arm, found in results["arms"].items()
        for name, seeds in found["rules"].items()
    )
    return "\n\n".join(
        [
            f"{results['n_seeds']} seeds x {results['n_queries']:,} queries; 95 % intervals over seeds and queries; "
            "hit@1 and shares in per cent.",
            markdown_table(["training", "system", "hit@1", "minus always", "tokens a query", "of always'"], rows),
            f"Rules chosen on calibration, tolerance x patience by seed: {rules}. A check every {results['stride']} "
            "tokens.",
            "![Quality against tokens](quality_tokens.svg)",
        ]
    )


def draw(numbers: Mapping[str, Any], path: Path) -> None:
    """Every exit rule, with and without the gate, against the gate alone at any threshold; one panel for each arm."""
    with styled():
        figure = Figure(figsize=(7.6, 3.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (arm, found) in zip(panels, numbers["arms"].items(), strict=True):
            curve = found["gate_curve"]
            axes.plot(curve["token_share"], curve["quality"], color=COLORS["adaptive"], label="gate, any threshold")
            for gated, name, marker in ((False, "always", "^"), (True, "oracle", "o")):
                rules = [rule for rule in found["all_rules"] if rule["gated"] == gated]
                shares, quality = ([rule[key] for rule in rules] for key in ("token_share", "quality"))
                label = f"early exit, {'gate' if gated else 'always'}"
                axes.plot(shares, quality, marker, color=COLORS[name], markersize=4, label=label)
            axes.set_title(f"{arm} training")
            axes.set_xlabel("share of always' tokens")
        percent_axis(panels[0], "hit@1")
        panels[0].legend()
        save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", nargs="+", type=Path, required=True)
    parser.add_argument("--anytime", nargs="+", type=Path, required=True)
    chosen = parser.parse_args()
    numbers, claims = collect(chosen.plain, chosen.anytime)
    draw(numbers, FOLDER / "quality_tokens.svg")
    write_study(FOLDER, numbers, claims, table)


if __name__ == "__main__":
    main()
