"""The demo against its bars, from its run folder.

    python -m experiments.demo.collect outputs/demo

Writes results.json (the demo's summary.json with the claims) and the table of README.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.studies.runs import read_seed
from experiments.studies.study import Claim, judged, markdown_table, number_of, write_study
from twn_lightning.gate import route
from twn_lightning.metrics import Interval, bootstrap_mean, bootstrap_over_seeds, paired_bootstrap_difference

FOLDER = Path(__file__).parent


def claims_of(evaluation: Path) -> list[Claim]:
    """What the demo's evaluation decides."""
    seed = read_seed(evaluation)
    o = seed.outcomes
    think = {name: route(name, o, threshold=seed.threshold) for name in ("adaptive", "random", "oracle")}
    hits = {name: np.where(rows, o.hit_generative, o.hit_discriminative).mean(0) for name, rows in think.items()}
    tokens = {name: (rows * o.tokens).mean(0)[None] for name, rows in think.items()} | {"always": o.tokens[None]}
    adaptive, random = bootstrap_mean(hits["adaptive"]), bootstrap_mean(hits["random"])
    many = o.steps >= 2
    gained = paired_bootstrap_difference(o.hit_generative[many], o.hit_discriminative[many])
    apart = Interval(adaptive.mean - random.mean, adaptive.low - random.high, adaptive.high - random.low)
    kept = paired_bootstrap_difference(hits["adaptive"], o.hit_generative)
    share, ratio = (bootstrap_over_seeds(np.divide, tokens["adaptive"], tokens[name]) for name in ("always", "oracle"))
    size = {"n_seeds": 1, "n_queries": len(o)}
    return [
        judged(
            "thinking_helps",
            "From 2 steps on, a CoT brings at least 30 points of hit@1",
            gained,
            at_least=0.3,
            n_seeds=1,
            n_queries=int(many.sum()),
        ),
        judged("keeps_quality", "The gate loses at most one point to always thinking", kept, at_least=-0.01, **size),
        judged("tokens", "The gate spends at most 60 % of always' tokens", share, at_most=0.6, unit="percent", **size),
        judged(
            "oracle_tokens",
            "The gate spends at most 1.3 times the oracle's tokens",
            ratio,
            at_most=1.3,
            unit="number",
            **size,
        ),
        judged("random", "At equal think rate the gate is above random, intervals apart", apart, at_least=0.0, **size),
    ]


def table(results: Mapping[str, Any]) -> str:
    """The claims and the gate's AUROC, from results.json."""
    rows = [[claim["claim"], claim["verdict"], number_of(claim)] for claim in results["claims"]]
    gate, stages = results["gate"], results["stages"]
    seconds = ", ".join(f"{name} {stage['seconds']:.0f} s" for name, stage in stages.items())
    return "\n\n".join(
        [
            markdown_table(["claim", "verdict", "number [95 % interval]"], rows, text_columns=2),
            f"Gate: AUROC {gate['auroc']:.3f}, expected calibration error {gate['ece']:.3f} against the hard label. "
            f"{results['num_queries']:,} queries; stages: {seconds}.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    write_study(FOLDER, summary, claims_of(run / "evaluate"), table)


if __name__ == "__main__":
    main()
