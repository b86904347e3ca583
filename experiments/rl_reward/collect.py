"""Study 5, embedding-guided RL: reward terms, pool, groups, KL; what it does to hit@1, CoTs and the gate.

    python -m experiments.rl_reward.collect --short RUN... --full RUN... \\
        --before RUN... --old-gate RUN... --refit RUN...

--short and --full are run folders of stage 3 (or folders that hold them) from a stage 1 with a short CoT phase, all
variants, and from a full one; the others are run folders of `twn evaluate`, one per seed in the same order: the short
stage 1 with its gate, the base variant of RL with that gate, and with one trained after it. Writes results.json, the
figure and the table of README.md.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.rl_reward.figure import draw
from experiments.rl_reward.gates import ARMS, MODES, gate_claims, gate_numbers, read_arms
from experiments.rl_reward.runs import BASE, METRICS, MOMENTS, Variant, read_variants
from experiments.studies.study import Claim, as_dict, judged, markdown_table, show, write_study
from twn_lightning.errors import DataError
from twn_lightning.metrics import bootstrap_over_seeds, paired_bootstrap_over_seeds
from twn_lightning.run import RunFolder

FOLDER = Path(__file__).parent
ABOVE = 1e-9
"""A difference of exactly 0 is not above."""

VARIANTS = {
    "gap_weight=0.0": "rank alone",
    "rank_weight=0.0": "gap alone",
    "rank_weight=0.0, gap_weight=0.0": "format alone",
    "reward_combination=product": "rank x gap",
    "pool_size=1": "pool of 1",
    "pool_size=64": "pool of 64",
    "prompts_per_step=128, completions_per_prompt=4, min_live_groups=16": "groups of 4",
    "prompts_per_step=32, completions_per_prompt=16, min_live_groups=4": "groups of 16",
    "kl=0.0": "no KL",
    "kl=0.2": "KL 0.2",
    "reward_reader=reference": "frozen reader",
}
"""What a variant changes -> how tables call it."""

AGAINST_BASE = {
    "rank alone": ("Rank and gap together teach more than rank alone", ABOVE),
    "gap alone": ("Rank and gap together teach more than the gap alone", ABOVE),
    "rank x gap": ("The sum of rank and gap teaches more than their product", ABOVE),
    "pool of 1": ("Ranking against the whole corpus teaches more than against the batch", ABOVE),
    "groups of 4": ("Groups of 8 lose at most half a point to groups of 4, at equal completions", -0.005),
    "groups of 16": ("Groups of 8 lose at most half a point to groups of 16, at equal completions", -0.005),
    "no KL": ("The KL of 0.04 costs at most half a point", -0.005),
    "frozen reader": ("Rewards read from the policy's own caches teach more than those from frozen ones", ABOVE),
}
"""Variant -> statement on base minus variant in generative hit@1 after RL, and its bar; set before the study ran."""


HEADER = [
    "variant",
    "reward",
    "change",
    "generative hit@1",
    "change",
    "discriminative hit@1, change",
    "CoT tokens",
    "malformed, %",
    "KL",
    "groups that differ, %",
]


def variant_numbers(variant: Variant, base: Variant) -> dict[str, Any]:
    """Every metric before and after with the paired change, and the difference to the base after RL."""
    after = {metric: variant.values("after", metric) for metric in METRICS}
    return {
        "metrics": {
            metric: {
                "before": float(variant.values("before", metric).mean()),
                "after": float(after[metric].mean()),
                "change": as_dict(paired_bootstrap_over_seeds(after[metric], variant.values("before", metric))),
                "minus_base": as_dict(paired_bootstrap_over_seeds(after[metric], base.values("after", metric))),
            }
            for metric in METRICS
        },
        "seeds": {
            str(run.seed): float((run.values["after", "reward"] - run.values["before", "reward"]).mean())
            for run in variant.runs
        },
        "kl": float(np.mean([run.kl for run in variant.runs])),
        "live_share": float(np.mean([run.live_share for run in variant.runs])),
    }


def by_steps(variant: Variant) -> dict[str, Any]:
    """Generative hit@1 before and after, by how many steps a query takes."""
    steps_N = variant.runs[0].steps_N
    groups = {"0": steps_N == 0, "1 to 3": (steps_N >= 1) & (steps_N <= 3), "4 and more": steps_N >= 4}
    before, after = (variant.values(moment, "hit_generative") for moment in ("before", "after"))
    return {
        name: {
            "num_queries": int(rows_N.sum()),
            "before": float(before[:, rows_N].mean()),
            "after": float(after[:, rows_N].mean()),
            "change": as_dict(paired_bootstrap_over_seeds(after[:, rows_N], before[:, rows_N])),
        }
        for name, rows_N in groups.items()
        if rows_N.any()
    }


def change_claims(short: Variant, full: Variant) -> list[Claim]:
    """What the base variant does, from either stage 1."""

    def change(variant: Variant, metric: str) -> Any:
        return paired_bootstrap_over_seeds(variant.values("after", metric), variant.values("before", metric))

    size = {"n_seeds": len(short.runs), "n_queries": len(short.runs[0].key_N)}
    longer = bootstrap_over_seeds(np.divide, *(short.values(moment, "tokens") for moment in ("after", "before")))
    return [
        judged(
            "reward_rises",
            "From a stage 1 that leaves errors, RL raises the held-out reward",
            change(short, "reward"),
            at_least=ABOVE,
            unit="number",
            **size,
        ),
        judged(
            "generative_rises",
            "From a stage 1 that leaves errors, RL raises generative hit@1 by at least a point",
            change(short, "hit_generative"),
            at_least=0.01,
            **size,
        ),
        judged(
            "discriminative_keeps",
            "RL costs at most half a point of discriminative hit@1, though it moves the caches that are read",
            change(short, "hit_discriminative"),
            at_least=-0.005,
            **size,
        ),
        judged(
            "cots_keep_their_length",
            "RL makes CoTs at most 5 % longer",
            longer,
            at_most=1.05,
            unit="percent",
            **size,
        ),
        judged(
            "full_rises",
            "From a full stage 1, RL still raises generative hit@1",
            change(full, "hit_generative"),
            at_least=ABOVE,
            n_seeds=len(full.runs),
            n_queries=len(full.runs[0].key_N),
        ),
    ]


def variant_claims(variants: Mapping[str, Variant]) -> list[Claim]:
    """The base against what it could have been."""
    base = variants[BASE]
    return [
        judged(
            f"base against {name}",
            statement,
            paired_bootstrap_over_seeds(
                base.values("after", "hit_generative"), variants[name].values("after", "hit_generative")
            ),
            at_least=bar,
            n_seeds=len(base.runs),
            n_queries=len(base.runs[0].key_N),
        )
        for name, (statement, bar) in AGAINST_BASE.items()
        if name in variants
    ]


def named_variants(folders: Sequence[Path]) -> dict[str, Variant]:
    """The variants under the names of tables, in their order.

    Raises:
        DataError: a variant that this study does not know; and as `read_variants`.
    """
    found = read_variants(folders)
    unknown = set(found) - {BASE, *VARIANTS}
    if unknown:
        raise DataError(f"unknown variants {sorted(unknown)}: the study compares {[BASE, *VARIANTS]}.")
    return {VARIANTS.get(change, BASE): found[change] for change in (BASE, *VARIANTS) if change in found}


def collect(
    short: Sequence[Path], full: Sequence[Path], evaluations: Mapping[str, Sequence[Path]]
) -> tuple[dict[str, Any], list[Claim]]:
    """The numbers and the claims of the study.

    Args:
        short: runs of stage 3 of every variant, from stage 1 with a short CoT phase.
        full: runs of the base variant, from a full stage 1.
        evaluations: one per seed under each of `gates.ARMS`.
    """
    variants, full_base = named_variants(short), named_variants(full)[BASE]
    base = variants[BASE]
    arms = read_arms(evaluations)
    numbers = {
        "n_seeds": len(base.runs),
        "n_queries": len(base.runs[0].key_N),
        "n_test_queries": len(arms[ARMS[0]][0].key_N),
        "variants": {name: variant_numbers(variant, base) for name, variant in variants.items()},
        "full": variant_numbers(full_base, full_base),
        "by_steps": {"short": by_steps(base), "full": by_steps(full_base)},
        "gates": gate_numbers(arms),
    }
    return numbers, [*change_claims(base, full_base), *variant_claims(variants), *gate_claims(arms)]


def table(results: Mapping[str, Any]) -> str:
    """Variant by variant, by steps, and gate by gate, from results.json."""
    rows = [*results["variants"].items(), ("base, from a full stage 1", results["full"])]
    steps = [
        [
            f"{start}, {name}",
            f"{row['num_queries']:,}",
            *(f"{100 * row[moment]:.1f}" for moment in MOMENTS),
            show(row["change"], sign="+"),
        ]
        for start, groups in results["by_steps"].items()
        for name, row in groups.items()
    ]
    gates = [
        [name, *(show(row[mode]) for mode in MODES), show(row["think_rate"]), show(row["token_share"])]
        for name, row in results["gates"].items()
    ]
    return "\n\n".join(
        [
            f"{results['n_seeds']} seeds x {results['n_queries']:,} validation queries, greedy CoTs, everything "
            "encoded anew; 95 % intervals over seeds and queries; hit@1 in per cent, the reward as the base has it.",
            markdown_table(HEADER, [_variant_row(name, row) for name, row in rows]),
            "Generative hit@1 of the base variant by the steps that a query takes:",
            markdown_table(["stage 1, steps", "queries", "before", "after", "change"], steps),
            f"The gate on {results['n_test_queries']:,} test queries, quality (hit@1, NDCG@5 of pages) in per cent:",
            markdown_table(["gate", *MODES, "think rate", "of always' tokens"], gates),
            "![Change by variant](variants.svg)",
        ]
    )


def _variant_row(name: str, row: Mapping[str, Any]) -> list[str]:
    metrics = row["metrics"]
    reward, hit, tokens = (metrics[metric] for metric in ("reward", "hit_generative", "tokens"))
    return [
        name,
        f"{reward['before']:.3f} -> {reward['after']:.3f}",
        show(reward["change"], scale=1, digits=3, sign="+"),
        f"{100 * hit['before']:.1f} -> {100 * hit['after']:.1f}",
        show(hit["change"], sign="+"),
        show(metrics["hit_discriminative"]["change"], sign="+"),
        f"{tokens['before']:.1f} -> {tokens['after']:.1f}",
        f"{100 * metrics['malformed']['before']:.1f} -> {100 * metrics['malformed']['after']:.1f}",
        f"{row['kl']:.3f}",
        f"{100 * row['live_share']:.0f}",
    ]


def rl_folders(paths: Sequence[Path]) -> list[Path]:
    """The run folders of stage 3 in or below the paths."""
    return sorted({found.parent for path in paths for found in path.rglob(RunFolder(path).held_out.name)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--short", "--full", "--before", "--old-gate", "--refit"):
        parser.add_argument(option, nargs="+", type=Path, required=True)
    chosen = parser.parse_args()
    evaluations = dict(zip(ARMS, (chosen.before, chosen.old_gate, chosen.refit), strict=True))
    numbers, claims = collect(rl_folders(chosen.short), rl_folders(chosen.full), evaluations)
    draw(numbers, FOLDER / "variants.svg")
    write_study(FOLDER, numbers, claims, table)


if __name__ == "__main__":
    main()
