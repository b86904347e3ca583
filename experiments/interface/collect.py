"""Study 1: detached, joint or re-encoded; the adapter that reads the prompt; one LoRA or two.

    python -m experiments.interface.collect MODEL MODEL MODEL ...

Each MODEL is a folder with the run folders `sft` and `evaluate` of one model; models that differ in their seed alone
are seeds of one variant. Writes results.json, the figures and the tables of README.md.

Shape letters: S training seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.interface.gradients import draw_cosines, gradient_claims, gradient_numbers, gradient_table
from experiments.studies.figures import styled
from experiments.studies.study import Claim, as_dict, judged, markdown_table, save_figure, show, write_study
from experiments.studies.variant_views import draw_differences, kinds_table, quality_table
from experiments.studies.variants import (
    MODES,
    Comparison,
    Variant,
    judge_comparisons,
    read_variants,
    variant_numbers,
)
from twn_lightning.metrics import bootstrap_over_seeds, paired_bootstrap_over_seeds
from twn_lightning.settings import Settings

FOLDER = Path(__file__).parent
VARIED = ("interface.name", "adapters.arrangement", "adapters.prefix")

DETACHED, JOINT, REENCODE = "kv_detached", "kv_joint", "reencode"
PREFIX_NONE, PREFIX_EMBEDDING = "kv_detached, prefix none", "kv_detached, prefix embedding"
SHARED, SHARED_JOINT = "one LoRA, kv_detached", "one LoRA, kv_joint"

HALF_A_POINT, ABOVE = 0.005, 1e-9
LOSS_COT, ANSWERS = "train/loss_cot", "val/answer_accuracy"

CLAIMS = {
    "detached_not_below": Comparison(
        "Detaching the cache costs at most half a point of generative quality",
        DETACHED,
        JOINT,
        "generative",
        -HALF_A_POINT,
    ),
    "detached_above": Comparison("Detaching the cache raises generative quality", DETACHED, JOINT, "generative", ABOVE),
    "detached_discriminative": Comparison(
        "Detaching the cache costs at most half a point of discriminative quality",
        DETACHED,
        JOINT,
        "discriminative",
        -HALF_A_POINT,
    ),
    "reader_against_writer": Comparison(
        "Reading a cache that it cannot change costs the embedder at most half a point of discriminative quality, "
        "against writing it (prefix embedding)",
        DETACHED,
        PREFIX_EMBEDDING,
        "discriminative",
        -HALF_A_POINT,
    ),
    "reader_against_reencode": Comparison(
        "Reading a cache that it cannot change costs the embedder at most half a point of discriminative quality, "
        "against reading the input again",
        DETACHED,
        REENCODE,
        "discriminative",
        -HALF_A_POINT,
    ),
    "reencode_generative": Comparison(
        "Reading a cache that it cannot change costs the embedder at most half a point of generative quality, "
        "against reading the input again",
        DETACHED,
        REENCODE,
        "generative",
        -HALF_A_POINT,
    ),
    "prefix_none": Comparison(
        "A reasoner that reads the prompt with its own adapter costs at most half a point of discriminative quality, "
        "against the bare backbone",
        DETACHED,
        PREFIX_NONE,
        "discriminative",
        -HALF_A_POINT,
    ),
    "two_generative": Comparison(
        "Two LoRAs lose at most half a point of generative quality to one of their total rank",
        DETACHED,
        SHARED,
        "generative",
        -HALF_A_POINT,
    ),
    "two_discriminative": Comparison(
        "Two LoRAs lose at most half a point of discriminative quality to one of their total rank",
        DETACHED,
        SHARED,
        "discriminative",
        -HALF_A_POINT,
    ),
    "shared_detached_above": Comparison(
        "With one LoRA for both passes, detaching the cache raises generative quality",
        SHARED,
        SHARED_JOINT,
        "generative",
        ABOVE,
    ),
}
"""Bars as they were set before the study ran."""


def name_of(settings: Settings) -> str:
    """What the study calls a way of training: the interface, and what else is not the method's own."""
    name: str = settings.interface.name
    if settings.adapters.arrangement == "shared":
        name = f"one LoRA, {name}"
    if settings.adapters.prefix != "reasoning":
        name = f"{name}, prefix {settings.adapters.prefix}"
    return name


def training_numbers(variant: Variant) -> dict[str, Any]:
    """How well the CoTs were learned: the loss at the end, and the right answers on the validation split."""
    return {
        "loss_cot": as_dict(bootstrap_over_seeds(np.asarray, variant.late_mean(LOSS_COT))),
        "answer_accuracy": as_dict(bootstrap_over_seeds(np.asarray, variant.metric(ANSWERS))),
        "tokens_per_query": variant.tokens_per_query(),
    }


def cot_claims(variants: Mapping[str, Variant]) -> list[Claim]:
    """Whether the contrastive loss harms the CoT where it reaches the reasoner; intervals over seeds."""
    if JOINT not in variants:
        return []
    detached, joint = variants[DETACHED], variants[JOINT]
    n_seeds, num_val = detached.size[0], detached.settings[0].data.val_pairs
    return [
        judged(
            "cot_loss",
            "Detaching the cache lowers the CoT loss at the end of training",
            paired_bootstrap_over_seeds(detached.late_mean(LOSS_COT), joint.late_mean(LOSS_COT)),
            at_most=-ABOVE,
            unit="number",
            n_seeds=n_seeds,
            n_queries=num_val,
        ),
        judged(
            "cot_answers",
            "Detaching the cache costs at most half a point of the CoTs' right answers",
            paired_bootstrap_over_seeds(detached.metric(ANSWERS), joint.metric(ANSWERS)),
            at_least=-HALF_A_POINT,
            n_seeds=n_seeds,
            n_queries=num_val,
        ),
    ]


def collect(folders: Sequence[Path]) -> tuple[dict[str, Any], list[Claim]]:
    """The numbers and the claims of the study."""
    variants = read_variants(folders, name_of, VARIED)
    numbers = variant_numbers(variants, DETACHED)
    measured = {name: gradient_numbers(variants[name].trainings) for name in numbers}
    gradients = {name: found for name, found in measured.items() if found is not None}
    claims = judge_comparisons(CLAIMS, variants) + cot_claims(variants) + gradient_claims(gradients)
    results = {
        "variants": numbers,
        "training": {name: training_numbers(variants[name]) for name in numbers},
        "gradients": gradients,
    }
    return results, claims


def table(results: Mapping[str, Any]) -> str:
    """Quality by variant and kind, the CoTs, and the gradients, from results.json."""
    base = next(iter(results["variants"].values()))
    cots = [
        [name, show(row["loss_cot"], 1, 4), show(row["answer_accuracy"]), f"{row['tokens_per_query']:.1f}"]
        for name, row in results["training"].items()
    ]
    parts = [
        f"{base['n_seeds']} seeds x {base['n_queries']:,} queries; 95 % intervals over seeds and queries; quality "
        "(hit@1) in per cent, differences in points.",
        quality_table(results["variants"]),
        *(kinds_table(results["variants"], mode) for mode in MODES),
        "![Differences by kind of query](differences.svg)",
        markdown_table(["variant", "CoT loss at the end", "right answers, validation, %", "tokens a query"], cots),
    ]
    if results["gradients"]:
        parts += [gradient_table(results["gradients"]), "![Cosine of the gradients](cosines.svg)"]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    results, claims = collect(parser.parse_args().models)
    with styled():
        save_figure(draw_differences(results["variants"]), FOLDER / "differences.svg")
        if results["gradients"]:
            save_figure(draw_cosines(results["gradients"]), FOLDER / "cosines.svg")
    write_study(FOLDER, results, claims, table)


if __name__ == "__main__":
    main()
