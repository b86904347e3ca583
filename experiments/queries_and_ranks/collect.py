"""Study 8: how many queries, how they are pooled, and how the total rank is split between the two LoRAs.

    python -m experiments.queries_and_ranks.collect MODEL MODEL MODEL ...

Each MODEL is a folder with the run folders `sft` and `evaluate` of one model; models that differ in their seed alone
are seeds of one variant. Writes results.json, the figure and the tables of README.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.studies.figures import styled
from experiments.studies.study import Claim, save_figure, write_study
from experiments.studies.variant_views import draw_differences, kinds_table, quality_table
from experiments.studies.variants import (
    MODES,
    Comparison,
    judge_comparisons,
    read_variants,
    variant_numbers,
)
from twn_lightning.settings import Settings

FOLDER = Path(__file__).parent
VARIED = (
    "adapters.num_queries",
    "adapters.pooling",
    "adapters.query_attention",
    "adapters.reasoning",
    "adapters.embedding",
)
BASE = "base"
NUM_QUERIES, RANKS = 8, (16, 32)
"""Of the base, whose queries are averaged and see the ones before them."""

HALF_A_POINT = 0.005
_STATEMENTS = {
    "one_query": ("One query loses at most half a point to 8", "K 1", BASE),
    "eight_queries": ("8 queries lose at most half a point to 16", BASE, "K 16"),
    "mean": ("The mean of the queries loses at most half a point to the last one", BASE, "last query"),
    "causal": (
        "Queries that see earlier ones lose at most half a point to queries that see all",
        BASE,
        "bidirectional",
    ),
    "rank_8_40": ("Ranks 16 + 32 lose at most half a point to 8 + 40", BASE, "rank 8 + 40"),
    "rank_24_24": ("Ranks 16 + 32 lose at most half a point to 24 + 24", BASE, "rank 24 + 24"),
    "rank_32_16": ("Ranks 16 + 32 lose at most half a point to 32 + 16", BASE, "rank 32 + 16"),
}
CLAIMS = {
    f"{id}, {mode}": Comparison(f"{text}, {mode}", first, second, mode, -HALF_A_POINT)
    for id, (text, first, second) in _STATEMENTS.items()
    for mode in MODES
}
"""Bars as they were set before the study ran."""


def name_of(settings: Settings) -> str:
    """What the study calls a way of training: what it changes of the base; rank r comes with alpha 2 r."""
    adapters = settings.adapters
    ranks = (adapters.reasoning.r, adapters.embedding.r)
    changes = {
        f"K {adapters.num_queries}": adapters.num_queries != NUM_QUERIES,
        "last query": adapters.pooling == "last",
        "bidirectional": adapters.query_attention == "bidirectional",
        f"rank {ranks[0]} + {ranks[1]}": ranks != RANKS,
    }
    return ", ".join(change for change, made in changes.items() if made) or BASE


def collect(folders: Sequence[Path]) -> tuple[dict[str, Any], list[Claim]]:
    """The numbers and the claims of the study."""
    variants = read_variants(folders, name_of, VARIED)
    return {"variants": variant_numbers(variants, BASE)}, judge_comparisons(CLAIMS, variants)


def table(results: Mapping[str, Any]) -> str:
    """Quality by variant and kind, from results.json."""
    base = results["variants"][BASE]
    return "\n\n".join(
        [
            f"{base['n_seeds']} seeds x {base['n_queries']:,} queries; 95 % intervals over seeds and queries; quality "
            f"(hit@1) in per cent, differences in points. The base has {NUM_QUERIES} queries that see the ones before "
            f"them, their mean as the embedding, and ranks {RANKS[0]} + {RANKS[1]} (reasoning + embedding).",
            quality_table(results["variants"]),
            *(kinds_table(results["variants"], mode) for mode in MODES),
            "![Differences by kind of query](differences.svg)",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    results, claims = collect(parser.parse_args().models)
    with styled():
        save_figure(draw_differences(results["variants"]), FOLDER / "differences.svg")
    write_study(FOLDER, results, claims, table)


if __name__ == "__main__":
    main()
