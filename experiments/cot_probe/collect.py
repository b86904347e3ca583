"""Study 6: does the CoT matter? The probes of several training seeds, on the same queries.

    python -m experiments.cot_probe.collect RUN RUN RUN

Each RUN is a run folder of `twn probe cot`, one per training seed. Writes results.json, the figure and the table of
README.md.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.probes import ProbedSeeds, read_probes
from experiments.studies.study import Claim, as_dict, judged, markdown_table, save_figure, show, write_study
from twn_lightning.evaluation.cot_probe import BORROWING, CONDITIONS
from twn_lightning.metrics import bootstrap_over_seeds, paired_bootstrap_over_seeds
from twn_lightning.probe import COT_PROBE_FILE

FOLDER = Path(__file__).parent
ONE_POINT = 0.01
NAMES = {
    "own": "its own",
    "none": "none (discriminative)",
    "shuffled": "its own, words shuffled",
    "other": "another query's",
    "other_answer": "its own reasoning, another's answer",
    "answer_only": "its own answer, no reasoning",
    "think_only": "its own reasoning, no answer",
    "teacher": "the true one",
}
CLAIMS = {
    "none": "A query's own CoT is worth at least a point of hit@1 over no CoT",
    "other": "Another query's CoT costs at least a point: the embedding reads what the CoT says",
    "shuffled": "Shuffling the words costs at least a point: their order matters",
    "answer_only": "Without its reasoning the answer loses at least a point",
    "think_only": "Without its answer the reasoning loses at least a point",
    "other_answer": "Another query's answer behind the own reasoning costs at least a point",
}


def condition_numbers(seeds: ProbedSeeds, rows_N: np.ndarray) -> dict[str, Any]:
    """Every condition over the queries of a group that have it in all seeds."""
    found = {}
    for name in CONDITIONS:
        has_N = rows_N & np.isfinite(seeds.values(f"hit/{name}")).all(0)
        if not has_N.any():
            continue
        hit_SN, own_SN = seeds.values(f"hit/{name}")[:, has_N], seeds.values("hit/own")[:, has_N]
        found[name] = {
            "num_queries": int(has_N.sum()),
            "hit@1": as_dict(bootstrap_over_seeds(np.asarray, hit_SN)),
            "minus_own": as_dict(paired_bootstrap_over_seeds(hit_SN, own_SN)),
            "cosine_to_own": float(seeds.values(f"cosine/{name}")[:, has_N].mean()),
            "tokens": float(seeds.values(f"tokens/{name}")[:, has_N].mean()),
            "unchanged": float(seeds.values(f"unchanged/{name}")[:, has_N].mean()),
        }
        if name in BORROWING:
            found[name]["follows"] = as_dict(
                bootstrap_over_seeds(np.asarray, seeds.values(f"follows/{name}")[:, has_N])
            )
    return found


def claims_of(seeds: ProbedSeeds) -> list[Claim]:
    """What the own CoT is worth over each other condition, over all queries."""
    own_SN = seeds.values("hit/own")
    claims = []
    for name, text in CLAIMS.items():
        hit_SN = seeds.values(f"hit/{name}")
        has_N = np.isfinite(hit_SN).all(0)
        worth = paired_bootstrap_over_seeds(own_SN[:, has_N], hit_SN[:, has_N])
        claims.append(
            judged(
                f"own_minus_{name}", text, worth, at_least=ONE_POINT, n_seeds=len(own_SN), n_queries=int(has_N.sum())
            )
        )
    return claims


def table(results: Mapping[str, Any]) -> str:
    """All queries by condition, then hit@1 by kind of query, from results.json."""
    overall = results["groups"]["all"]
    rows = [
        [
            NAMES[name],
            show(row["hit@1"]),
            show(row["minus_own"], sign="+"),
            f"{row['cosine_to_own']:.3f}",
            f"{row['tokens']:.1f}",
            show(row["follows"]) if "follows" in row else "",
        ]
        for name, row in overall.items()
    ]
    kinds = [name for name in results["groups"] if name != "all"]
    by_kind = [
        [NAMES[name], *(show(results["groups"][kind][name]["hit@1"]) for kind in kinds)]
        for name in overall
        if all(name in results["groups"][kind] for kind in kinds)
    ]
    return "\n\n".join(
        [
            f"{results['n_seeds']} seeds x {results['n_queries']:,} queries whose own CoT is well formed in every seed "
            f"({100 * results['shared']:.1f} % of a seed's); 95 % intervals over seeds and queries, in per cent. "
            f"Two queries' own embeddings have a cosine of {results['cosine_of_two_queries']:.3f} on average.",
            markdown_table(["CoT", "hit@1", "minus own", "cosine to own", "tokens", "finds the other's target"], rows),
            markdown_table(["CoT, hit@1", *kinds], by_kind),
        ]
    )


def draw(results: Mapping[str, Any]) -> Figure:
    """hit@1 of every condition, a group of bars per kind of query."""
    kinds = [name for name in results["groups"] if name != "all"] or ["all"]
    names = [name for name in NAMES if all(name in results["groups"][kind] for kind in kinds)]
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(kinds)
    for number, kind in enumerate(kinds):
        values = [results["groups"][kind][name]["hit@1"] for name in names]
        means = np.array([value["mean"] for value in values])
        ends = np.array([value["ci95"] for value in values])
        places = np.arange(len(names)) + (number - (len(kinds) - 1) / 2) * width
        errors = np.maximum(0, [means - ends[:, 0], ends[:, 1] - means])
        axes.bar(places, means, width, yerr=errors, label=kind, error_kw={"linewidth": 0.8})
    axes.set_xticks(range(len(names)), [NAMES[name].replace(", ", ",\n") for name in names], rotation=30, ha="right")
    axes.set_ylabel("hit@1")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, ncols=len(kinds), loc="upper center", bbox_to_anchor=(0.5, 1.15))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    seeds = read_probes(parser.parse_args().runs, COT_PROBE_FILE)
    between_SN = seeds.values("cosine_of_two_queries")
    results = {
        "n_seeds": seeds.size[0],
        "n_queries": seeds.size[1],
        "shared": seeds.shared,
        "malformed_cot_rate": [metrics["malformed_cot_rate"] for metrics in seeds.metrics],
        "cosine_of_two_queries": float(np.nanmean(between_SN)),
        "groups": {name: condition_numbers(seeds, rows_N) for name, rows_N in seeds.groups().items()},
    }
    write_study(FOLDER, results, claims_of(seeds), table)
    save_figure(draw(results), FOLDER / "conditions.svg")


if __name__ == "__main__":
    main()
