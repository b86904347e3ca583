"""Early exit: stop a CoT once the embedding that reads it stands still, on the probes of several seeds.

    python -m experiments.early_exit.collect --plain RUN RUN RUN [--anytime RUN RUN RUN]

Each RUN is a run folder of `twn probe prefixes`, one per training seed, in the same order on both sides, all on the
same queries: of adapters trained on whole CoTs (plain) and, where there are any, of adapters trained on cut CoTs too
(anytime). The exit rule of each seed is chosen on its calibration split. Writes results.json, the figure and the table
of README.md.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.early_exit.figures import draw_quality_tokens
from experiments.studies.prefixes import PrefixRun, read_prefix_runs
from experiments.studies.study import Claim, as_dict, judged, markdown_table, show, write_study
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
TRAINING = {"plain": "Trained on whole CoTs", "anytime": "Trained on cut CoTs too"}
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
    """Always and the gate, with and without early exit, and the gate at the tokens of either early exit."""
    never_leave = [(0.0, 1)] * len(runs)
    found = {
        "always": under(runs, never_leave, gated=False),
        "early exit": under(runs, rules["early exit"], gated=False),
        "gate": under(runs, never_leave, gated=True),
        "gate + early exit": under(runs, rules["gate + early exit"], gated=True),
    }
    return found | {
        f"gate, tokens of {name}": gate_at_equal_tokens(runs, found[name].tokens_SN)
        for name in ("early exit", "gate + early exit")
    }


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
        "stopped_after": {
            "tokens": runs[0].test.cuts_P,
            "quality": np.mean([run.test.hit_NP.mean(axis=0) for run in runs], axis=0),
        },
        "gate_curve": {"token_share": TOKEN_SHARES, "quality": gate_curve(runs)},
    }


def collect(plain_folders: Sequence[Path], anytime_folders: Sequence[Path] = ()) -> tuple[dict[str, Any], list[Claim]]:
    """The numbers and the claims of the study."""
    n_seeds = len(plain_folders)
    if anytime_folders and len(anytime_folders) != n_seeds:
        raise DataError(f"{n_seeds} plain and {len(anytime_folders)} anytime probes must pair up by seed")
    runs = read_prefix_runs([*plain_folders, *anytime_folders])
    arms = {"plain": runs[:n_seeds]} | ({"anytime": runs[n_seeds:]} if anytime_folders else {})
    rules = {
        arm: {"early exit": chosen_rules(found, gated=False), "gate + early exit": chosen_rules(found, gated=True)}
        for arm, found in arms.items()
    }
    systems = {arm: systems_of(found, rules[arm]) for arm, found in arms.items()}
    test = runs[0].test
    numbers = {
        "n_seeds": n_seeds,
        "n_queries": len(test),
        "stride": int(test.cuts_P[1]),
        "quality_loss": QUALITY_LOSS,
        "arms": {arm: arm_numbers(found, rules[arm], systems[arm]) for arm, found in arms.items()},
    }
    claims = [claim for arm in arms for claim in claims_of(arm, systems[arm])]
    if anytime_folders:
        plain_gate = gate_at_equal_tokens(arms["plain"], systems["anytime"]["gate + early exit"].tokens_SN)
        claims += claims_of_cutting(systems["plain"], systems["anytime"], plain_gate)
    return numbers, claims


def minus(id: str, text: str, first: Routed, second: Routed, at_least: float = ABOVE) -> Claim:
    """A claim on the quality of one system minus that of another."""
    n_seeds, n_queries = first.quality_SN.shape
    difference = paired_bootstrap_over_seeds(first.quality_SN, second.quality_SN)
    return judged(id, text, difference, at_least=at_least, n_seeds=n_seeds, n_queries=n_queries)


def claims_of(arm: str, systems: Mapping[str, Routed]) -> list[Claim]:
    """What the study decides on one way of training; the bars are those that were set before it ran."""
    always, early = systems["always"], systems["early exit"]
    n_seeds, n_queries = early.tokens_SN.shape
    return [
        minus(
            f"{arm}_keeps_quality",
            f"{TRAINING[arm]}, early exit loses at most one point to whole CoTs",
            early,
            always,
            -QUALITY_LOSS,
        ),
        judged(
            f"{arm}_saves_tokens",
            f"{TRAINING[arm]}, early exit saves at least a tenth of always' tokens",
            bootstrap_over_seeds(np.divide, early.tokens_SN, always.tokens_SN),
            at_most=0.9,
            unit="percent",
            n_seeds=n_seeds,
            n_queries=n_queries,
        ),
        minus(
            f"{arm}_exit_above_gate",
            f"{TRAINING[arm]}, early exit is above the gate at equal tokens",
            early,
            systems["gate, tokens of early exit"],
        ),
        minus(
            f"{arm}_both_above_gate",
            f"{TRAINING[arm]}, the gate with early exit is above the gate alone at equal tokens",
            systems["gate + early exit"],
            systems["gate, tokens of gate + early exit"],
        ),
    ]


def claims_of_cutting(
    plain: Mapping[str, Routed], anytime: Mapping[str, Routed], plain_gate_at_equal_tokens: Routed
) -> list[Claim]:
    """What the study decides between the two ways of training."""
    return [
        minus(
            "cutting_costs_nothing",
            "Training on cut CoTs costs whole CoTs at most half a point",
            anytime["always"],
            plain["always"],
            -0.005,
        ),
        minus(
            "cutting_above_plain_gate",
            "Trained on cut CoTs too, the gate with early exit is above the gate of plain training at equal tokens",
            anytime["gate + early exit"],
            plain_gate_at_equal_tokens,
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
        f"{arm}, {name}: "
        + ", ".join(f"{tolerance:g} x {patience}" if tolerance else "never" for tolerance, patience in seeds)
        for arm, found in results["arms"].items()
        for name, seeds in found["rules"].items()
    )
    stride = results["stride"]
    stopped = "; ".join(
        f"{arm}: " + ", ".join(f"{100 * quality:.0f}" for quality in found["stopped_after"]["quality"])
        for arm, found in results["arms"].items()
    )
    return "\n\n".join(
        [
            f"{results['n_seeds']} seeds x {results['n_queries']:,} queries; 95 % intervals over seeds and queries; "
            "hit@1 and shares in per cent.",
            markdown_table(
                ["training", "system", "hit@1", "minus always", "tokens a query", "of always'"], rows, text_columns=2
            ),
            f"Rules chosen on calibration, tolerance x patience of each seed: {rules}. A check every {stride} tokens.",
            f"hit@1 with all CoTs stopped after 0, {stride}, {2 * stride}, ... tokens: {stopped}.",
            "![Quality against tokens](quality_tokens.svg)",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", nargs="+", type=Path, required=True)
    parser.add_argument("--anytime", nargs="+", type=Path, default=[])
    chosen = parser.parse_args()
    numbers, claims = collect(chosen.plain, chosen.anytime)
    draw_quality_tokens(numbers, FOLDER / "quality_tokens.svg")
    write_study(FOLDER, numbers, claims, table)


if __name__ == "__main__":
    main()
