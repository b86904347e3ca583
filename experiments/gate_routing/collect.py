"""Study 3: the gate against never, always, random, heuristics and the oracle, on the evaluations of several seeds.

    python -m experiments.gate_routing.collect RUN RUN RUN

Each RUN is a run folder of `twn evaluate` or `twn nano-suite`, one per training seed, all on the same queries. Writes
results.json, the figures and the table of README.md.

Shape letters: S training seeds, N queries, D draws of a random router.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.gate_routing.figures import draw_figures
from experiments.studies.runs import SeedEvaluation, groups_of, read_seeds
from experiments.studies.study import Claim, as_dict, judged, markdown_table, show, write_study
from twn_lightning.gate import ROUTERS, route
from twn_lightning.metrics import (
    Interval,
    bootstrap_over_seeds,
    calibration,
    gate_scores,
    paired_bootstrap_over_seeds,
    quality_token_curve,
)

FOLDER = Path(__file__).parent
TOKEN_SHARES = np.linspace(0, 1, 41)
"""Where the mean curve is read off, as shares of always' tokens."""

CLAIMS: dict[str, tuple[str, dict[str, Any]]] = {
    "above_never": ("The gate is at or above never thinking", {"at_least": 0.0}),
    "not_below_always": ("The gate loses at most half a point to always thinking", {"at_least": -0.005}),
    "half_the_tokens": ("The gate spends at most half of always' tokens", {"at_most": 0.5, "unit": "percent"}),
    "above_random": ("At equal think rate the gate is above random, intervals apart", {"at_least": 0.0}),
    "above_margin": ("At equal think rate the gate is above the top-1 margin", {"at_least": 0.0}),
    "above_query_length": ("At equal think rate the gate is above query length", {"at_least": 0.0}),
    "oracle_gain": (
        "The gate recovers at least 60 % of the oracle's gain over the better of never and always",
        {"at_least": 0.6, "unit": "percent"},
    ),
    "think_rate, lookalike": (
        "Where thinking can only hurt, the gate thinks on at most 10 %",
        {"at_most": 0.1, "unit": "percent"},
    ),
    "think_rate, 4 and more steps": (
        "Where 4 and more steps are needed, the gate thinks on at least 90 %",
        {"at_least": 0.9, "unit": "percent"},
    ),
}
"""Id -> statement and bar, as they were set before the study ran."""

FloatArray = NDArray[np.float64]


class Routed(NamedTuple):
    """One router on every seed and query, (S, N) each, means over draws."""

    quality_SN: FloatArray
    tokens_SN: FloatArray
    think_SN: FloatArray


def routed(seeds: Sequence[SeedEvaluation], router: str) -> Routed:
    """Quality, tokens and think rate of every query of every seed under a router."""
    quality, tokens, think = [], [], []
    for seed in seeds:
        outcomes = seed.outcomes
        think_DN = route(router, outcomes, threshold=seed.threshold)
        quality.append(np.where(think_DN, outcomes.hit_generative, outcomes.hit_discriminative).mean(0))
        tokens.append((think_DN * outcomes.tokens).mean(0))
        think.append(think_DN.mean(0))
    return Routed(np.stack(quality), np.stack(tokens), np.stack(think))


def recovered_gain(adaptive: FloatArray, never: FloatArray, always: FloatArray, oracle: FloatArray) -> FloatArray:
    """Share of the oracle's gain over the better of never and always that the gate gets."""
    better = np.maximum(never, always)
    return (adaptive - better) / np.maximum(oracle - better, 1e-9)


def mean_of(values_SN: FloatArray) -> Interval:
    """Mean over seeds and queries with its interval."""
    return bootstrap_over_seeds(np.asarray, values_SN)


def router_numbers(by_router: Mapping[str, Routed]) -> dict[str, Any]:
    """Quality, cost and paired difference of adaptive to every router."""
    always, adaptive = by_router["always"], by_router["adaptive"]
    return {
        name: {
            "quality": as_dict(mean_of(scored.quality_SN)),
            "adaptive_minus": as_dict(paired_bootstrap_over_seeds(adaptive.quality_SN, scored.quality_SN)),
            "tokens_per_query": as_dict(mean_of(scored.tokens_SN)),
            "token_share": as_dict(bootstrap_over_seeds(np.divide, scored.tokens_SN, always.tokens_SN)),
            "think_rate": as_dict(mean_of(scored.think_SN)),
        }
        for name, scored in by_router.items()
    }


def group_numbers(seeds: Sequence[SeedEvaluation], by_router: Mapping[str, Routed]) -> dict[str, Any]:
    """Quality of never, always and adaptive, and the think rate, by kind of query."""
    return {
        name: {
            "num_queries": int(rows_N.sum()),
            "think_rate": as_dict(mean_of(by_router["adaptive"].think_SN[:, rows_N])),
            **{
                router: as_dict(mean_of(by_router[router].quality_SN[:, rows_N]))
                for router in ("never", "always", "adaptive", "oracle")
            },
        }
        for name, rows_N in groups_of(seeds[0]).items()
    }


def oracle_parts(seeds: Sequence[SeedEvaluation], by_router: Mapping[str, Routed]) -> dict[str, Any]:
    """Where the oracle's gain over always comes from, as shares of all queries: the parts add up to it."""
    gain_SN = by_router["oracle"].quality_SN - by_router["always"].quality_SN
    return {name: as_dict(mean_of(gain_SN * rows_N)) for name, rows_N in groups_of(seeds[0]).items()}


def mean_curve(seeds: Sequence[SeedEvaluation]) -> FloatArray:
    """Quality of the gate at `TOKEN_SHARES` of always' tokens, over all thresholds, mean of the seeds."""
    curves = []
    for seed in seeds:
        o = seed.outcomes
        curve = quality_token_curve(o.probability, o.hit_discriminative, o.hit_generative, o.tokens)
        curves.append(np.interp(TOKEN_SHARES, curve.tokens_per_query / curve.tokens_per_query[-1], curve.quality))
    return np.mean(curves, axis=0)


def gate_numbers(seeds: Sequence[SeedEvaluation]) -> dict[str, Any]:
    """AUROC and ECE against the hard label, means over seeds, and the reliability table of all seeds together."""
    scores = []
    for seed in seeds:
        o = seed.outcomes
        scores.append(gate_scores(o.probability, o.gain > 0, o.hit_discriminative, o.hit_generative))
    probability = np.concatenate([seed.outcomes.probability for seed in seeds])
    paid = np.concatenate([seed.outcomes.gain > 0 for seed in seeds])
    return {
        **{name: float(np.mean([score[name] for score in scores])) for name in ("auroc", "ece", "auroc_one_right")},
        "reliability": [
            {"mean_probability": part.mean_probability, "share_paid": part.share_positive, "count": part.count}
            for part in calibration(probability, paid).bins
            if part.count
        ],
    }


def claims_of(by_router: Mapping[str, Routed], groups: Mapping[str, Any], size: tuple[int, int]) -> list[Claim]:
    """What the study decides."""
    quality = {name: scored.quality_SN for name, scored in by_router.items()}
    over = {name: paired_bootstrap_over_seeds(quality["adaptive"], quality[name]) for name in quality}
    adaptive, random = mean_of(quality["adaptive"]), mean_of(quality["random"])
    intervals = {
        "above_never": over["never"],
        "not_below_always": over["always"],
        "half_the_tokens": bootstrap_over_seeds(
            np.divide, by_router["adaptive"].tokens_SN, by_router["always"].tokens_SN
        ),
        "above_random": Interval(over["random"].mean, adaptive.low - random.high, adaptive.high - random.low),
        "above_margin": over["margin"],
        "above_query_length": over["query_length"],
        "oracle_gain": bootstrap_over_seeds(
            recovered_gain, *(quality[name] for name in ("adaptive", "never", "always", "oracle"))
        ),
    }
    counts = dict.fromkeys(intervals, size[1])
    for name, group in groups.items():
        intervals[f"think_rate, {name}"] = Interval(group["think_rate"]["mean"], *group["think_rate"]["ci95"])
        counts[f"think_rate, {name}"] = group["num_queries"]
    return [
        judged(id, text, intervals[id], n_seeds=size[0], n_queries=counts[id], **bar)
        for id, (text, bar) in CLAIMS.items()
        if id in intervals
    ]


def table(results: Mapping[str, Any]) -> str:
    """Router by router, and kind by kind, from results.json."""
    routers = [
        [
            name.replace("_", " "),
            show(row["quality"]),
            show(row["adaptive_minus"], sign="+"),
            f"{row['tokens_per_query']['mean']:.1f}",
            show(row["token_share"]),
            show(row["think_rate"]),
        ]
        for name, row in results["routers"].items()
    ]
    kinds = [
        [name, f"{row['num_queries']:,}", show(row["think_rate"])]
        + [show(row[router]) for router in ("never", "always", "adaptive", "oracle")]
        for name, row in results["kinds"].items()
    ]
    gate = results["gate"]
    return "\n\n".join(
        [
            f"{results['n_seeds']} seeds x {results['n_queries']:,} queries; 95 % intervals over seeds and queries; "
            "quality (each task's own metric) and shares in per cent.",
            markdown_table(
                ["router", "quality", "adaptive minus it", "tokens a query", "of always'", "think rate"], routers
            ),
            markdown_table(["kind", "queries", "think rate", "never", "always", "adaptive", "oracle"], kinds),
            f"Gate, mean of seeds: AUROC {gate['auroc']:.3f}, where one mode is right {gate['auroc_one_right']:.3f}; "
            f"expected calibration error {gate['ece']:.3f}. Share of the oracle's gain recovered: "
            f"{show(results['recovered_gain'])} %. The oracle's gain over always, in points of all queries: "
            + ", ".join(f"{show(part)} from {name}" for name, part in results["oracle_over_always"].items())
            + ".",
            "![Quality against tokens](quality_tokens.svg) ![Think rate by kind](think_rate.svg) "
            "![Reliability](reliability.svg)",
        ]
    )


def collect(folders: Sequence[Path]) -> tuple[dict[str, Any], list[Claim]]:
    """The numbers and the claims of the study."""
    seeds = read_seeds(folders)
    by_router = {name: routed(seeds, name) for name in ROUTERS}
    groups = group_numbers(seeds, by_router)
    size = (len(seeds), len(seeds[0].outcomes))
    claims = claims_of(by_router, groups, size)
    gain = next(claim for claim in claims if claim.id == "oracle_gain")
    numbers = {
        "n_seeds": size[0],
        "n_queries": size[1],
        "routers": router_numbers(by_router),
        "kinds": groups,
        "oracle_over_always": oracle_parts(seeds, by_router),
        "recovered_gain": {"mean": gain.estimate, "ci95": list(gain.ci95)},
        "gate": gate_numbers(seeds),
        "curve": {"token_share": TOKEN_SHARES, "quality": mean_curve(seeds)},
    }
    return numbers, claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    numbers, claims = collect(parser.parse_args().runs)
    draw_figures(numbers, FOLDER)
    write_study(FOLDER, numbers, claims, table)


if __name__ == "__main__":
    main()
