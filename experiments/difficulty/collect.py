"""Study 2: discriminative against generative by difficulty; where thinking hurts; what an oracle could still gain.

    python -m experiments.difficulty.collect RUN RUN RUN

Each RUN is a run folder of `twn evaluate`, one per training seed, all on the same queries; a gate is not needed. Writes
results.json, the figures and the tables of README.md.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.difficulty.figures import draw_by_steps, draw_by_task
from experiments.difficulty.modes import (
    BoolArray,
    FloatArray,
    Modes,
    graded_tasks_of,
    levels_of,
    modes_of,
    repeated,
    right_first,
    tasks_of,
)
from experiments.studies.figures import styled
from experiments.studies.runs import SeedEvaluation, groups_of, read_seeds
from experiments.studies.study import Claim, as_dict, judged, markdown_table, save_figure, show, write_study
from experiments.studies.variants import MODES
from twn_lightning.metrics import bootstrap_over_seeds, paired_bootstrap_over_seeds

FOLDER = Path(__file__).parent
WORTH_OF_STEPS, COST_OF_THINKING, HEADROOM = 0.3, 0.01, 0.01
"""Bars of the claims, as shares of the queries."""

_LEGEND = (
    "Helped and hurt: how much quality a CoT adds where it adds and takes where it takes, averaged over all queries; "
    "what it takes is the oracle's headroom over always. Hurt again: of the queries that are hurt in one seed's model, "
    "the share that is also hurt in another's."
)


def mean_of(values_SN: FloatArray) -> dict[str, Any]:
    """Mean over seeds and queries with its interval, as results.json holds it."""
    return as_dict(bootstrap_over_seeds(np.asarray, values_SN))


def numbers_of(modes: Modes, rows_N: BoolArray, tokens_SN: FloatArray) -> dict[str, Any]:
    """Quality of both modes and of the oracle, and what thinking gains and loses, over some of the queries."""
    part = modes.of(rows_N)
    return {
        "num_queries": int(rows_N.sum()),
        "discriminative": mean_of(part.discriminative_SN),
        "generative": mean_of(part.generative_SN),
        "oracle": mean_of(part.oracle_SN),
        "difference": as_dict(paired_bootstrap_over_seeds(part.generative_SN, part.discriminative_SN)),
        "helped": mean_of(part.helped_SN),
        "hurt": mean_of(part.hurt_SN),
        "share_of_all_hurt": float(part.hurt_SN.sum() / max(modes.hurt_SN.sum(), 1e-9)),
        "hurt_again": repeated(part.hurt_SN),
        "tokens_per_query": float(tokens_SN[:, rows_N].mean()),
    }


def graded_numbers(seeds: Sequence[SeedEvaluation]) -> dict[str, Any]:
    """By task with a graded metric and kind of query: that metric, and how often the right candidate comes first."""
    quality = dict(zip(MODES, (modes_of(seeds).discriminative_SN, modes_of(seeds).generative_SN), strict=True))
    first = {mode: np.stack([right_first(seed, mode) for seed in seeds]).astype(np.float64) for mode in MODES}
    return {
        f"{task}, {kind}": {
            "num_queries": int((of_task_N & of_kind_N).sum()),
            "quality": {mode: mean_of(quality[mode][:, of_task_N & of_kind_N]) for mode in MODES},
            "right_first": {mode: mean_of(first[mode][:, of_task_N & of_kind_N]) for mode in MODES},
        }
        for task, of_task_N in graded_tasks_of(seeds[0]).items()
        for kind, of_kind_N in groups_of(seeds[0]).items()
        if (of_task_N & of_kind_N).any()
    }


def claims_of(modes: Modes, seed: SeedEvaluation) -> list[Claim]:
    """What the study decides.

    Args:
        modes: outcomes of all seeds.
        seed: one of them, for the kinds of its queries.
    """
    steps, lookalike = modes.of(seed.outcomes.steps > 0), modes.of(seed.kind_N == "lookalike")
    cases = [
        (
            "steps",
            "Where steps are needed, thinking brings at least 30 points",
            (steps.generative_SN, steps.discriminative_SN, WORTH_OF_STEPS),
        ),
        (
            "lookalike",
            "Where a CoT names only what near-duplicates share, thinking costs at least a point",
            (lookalike.discriminative_SN, lookalike.generative_SN, COST_OF_THINKING),
        ),
        (
            "oracle",
            "The better mode of each query is at least a point above always thinking",
            (modes.oracle_SN, modes.generative_SN, HEADROOM),
        ),
        (
            "other_seeds",
            "The mode that suits a query best in other seeds' models is at least a point above always thinking",
            (modes.chosen_by_other_seeds_SN(), modes.generative_SN, HEADROOM),
        ),
    ]
    return [
        judged(
            id,
            text,
            paired_bootstrap_over_seeds(first_SN, second_SN),
            at_least=bar,
            n_seeds=len(first_SN),
            n_queries=first_SN.shape[1],
        )
        for id, text, (first_SN, second_SN, bar) in cases
        if first_SN.size
    ]


def collect(folders: Sequence[Path]) -> tuple[dict[str, Any], list[Claim]]:
    """The numbers and the claims of the study."""
    seeds = read_seeds(folders)
    modes = modes_of(seeds)
    tokens_SN = np.stack([seed.outcomes.tokens for seed in seeds]).astype(np.float64)
    levels = {"all": np.full(tokens_SN.shape[1], True), **levels_of(seeds[0])}
    results = {
        "n_seeds": len(seeds),
        "n_queries": tokens_SN.shape[1],
        "levels": {name: numbers_of(modes, rows_N, tokens_SN) for name, rows_N in levels.items()},
        "tasks": {name: numbers_of(modes, rows_N, tokens_SN) for name, rows_N in tasks_of(seeds[0]).items()},
        "graded": graded_numbers(seeds),
        "chosen_by_other_seeds": mean_of(modes.chosen_by_other_seeds_SN()),
    }
    return results, claims_of(modes, seeds[0])


def table(results: Mapping[str, Any]) -> str:
    """By steps, then by task, from results.json."""
    parts = [
        f"{results['n_seeds']} seeds x {results['n_queries']:,} queries; 95 % intervals over seeds and queries; all "
        f"but tokens in per cent. {_LEGEND}",
        _outcome_table("difficulty", results["levels"]),
        "![Quality by steps](by_steps.svg)",
        _outcome_table("task", results["tasks"]),
        "![Quality by task](by_task.svg)",
    ]
    if results["graded"]:
        parts += ["Tasks with a graded metric, and how often the right candidate comes first:", _graded_table(results)]
    parts.append(
        "The mode that suits each query best in the other seeds' models, with a CoT where that makes no difference, "
        f"gives {show(results['chosen_by_other_seeds'])} %."
    )
    return "\n\n".join(parts)


def _outcome_table(name: str, groups: Mapping[str, Any]) -> str:
    header = ["queries", *MODES, "difference", "oracle", "helped", "hurt", "of all hurt", "hurt again", "tokens"]
    return markdown_table([name, *header], [_outcome_row(group, row) for group, row in groups.items()])


def _outcome_row(group: str, row: Mapping[str, Any]) -> list[str]:
    return [
        group,
        f"{row['num_queries']:,}",
        *(show(row[mode]) for mode in MODES),
        show(row["difference"], sign="+"),
        *(show(row[part]) for part in ("oracle", "helped", "hurt")),
        f"{100 * row['share_of_all_hurt']:.0f}",
        "" if row["hurt_again"] is None else f"{100 * row['hurt_again']:.0f}",
        f"{row['tokens_per_query']:.1f}",
    ]


def _graded_table(results: Mapping[str, Any]) -> str:
    header = ["queries", *MODES, *(f"right first, {mode}" for mode in MODES)]
    rows = [
        [name, f"{row['num_queries']:,}"]
        + [show(row[part][mode]) for part in ("quality", "right_first") for mode in MODES]
        for name, row in results["graded"].items()
    ]
    return markdown_table(["task and kind", *header], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    results, claims = collect(parser.parse_args().runs)
    with styled():
        save_figure(draw_by_steps(results["levels"]), FOLDER / "by_steps.svg")
        save_figure(draw_by_task(results["tasks"]), FOLDER / "by_task.svg")
    write_study(FOLDER, results, claims, table)


if __name__ == "__main__":
    main()
