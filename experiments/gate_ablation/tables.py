"""The tables of the study's README, from results.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.studies.study import markdown_table, show


def table(results: Mapping[str, Any]) -> str:
    """Features, label rules and prices, and tasks left out."""
    return "\n\n".join(
        [
            f"{results['n_seeds']} training seeds x {results['n_queries']:,} queries, {results['n_gates']} gates each; "
            "95 % intervals over training seeds and queries; hit@1 and shares in per cent, differences in points. "
            + _references(results["references"]),
            "**Features** (hard label, price .5). *Area*: hit@1, mean over evenly spaced token budgets. *Calibrated*: "
            "the threshold chosen on the calibration split for half of always' tokens.",
            _features(results["features"]),
            "**Label and price** (hidden state and e_d; AUROC and calibration error against the hard label of the same "
            "price). *Default, moved*: the gate of the hard label and price .5, its threshold set to spend the same.",
            _labels(results["labels"]),
            "**Unseen tasks** (a gate trained and stopped without them). All columns of hit@1 spend the tokens that "
            "the gate that saw the tasks spends on them. *Own threshold*: the one that was calibrated without them, "
            "for half of always' tokens.",
            _transfer(results),
            "![Quality against tokens](quality_tokens.svg) ![Unseen tasks](transfer.svg)",
        ]
    )


def _references(found: Mapping[str, Any]) -> str:
    return (
        f"Never {show(found['never'])}, always {show(found['always'])}, random at half of its tokens "
        f"{show(found['random'])}, oracle {show(found['oracle'])} with {show(found['oracle_token_share'])} of the "
        "tokens."
    )


def _features(features: Mapping[str, Any]) -> str:
    header = ["features", "AUROC", "one mode right", "ECE", "at half of the tokens", "minus default", "area"]
    rows = [
        [
            name,
            f"{row['auroc']:.3f}",
            f"{row['auroc_one_right']:.3f}",
            f"{row['ece']:.3f}" if "ece" in row else "",
            show(row["budget"]),
            show(row["budget_minus_default"], sign="+"),
            show(row["area"]),
            show(row["area_minus_default"], sign="+"),
            show(row["calibrated"]),
            show(row["calibrated_token_share"]),
        ]
        for name, row in features.items()
    ]
    return markdown_table([*header, "minus default", "calibrated", "of always' tokens"], rows)


def _labels(labels: list[Mapping[str, Any]]) -> str:
    header = ["label", "price", "AUROC", "ECE", "at half of the tokens", "minus default", "area minus default"]
    rows = [
        [
            row["label"],
            f"{row['price']:g}",
            f"{row['auroc']:.3f}",
            f"{row['ece']:.3f}",
            show(row["budget"]),
            show(row["budget_minus_default"], sign="+"),
            show(row["area_minus_default"], sign="+"),
            show(row["fixed"]),
            show(row["fixed_token_share"]),
            show(row["fixed_minus_moved_default"], sign="+"),
            " / ".join(f"{100 * rate['mean']:.1f}" for rate in row["think_rate"].values()),
        ]
        for row in labels
    ]
    at_fixed = ["at threshold .5", "of always' tokens", "minus default, moved", "thinks: no steps / steps"]
    return markdown_table([*header, *at_fixed], rows)


def _transfer(results: Mapping[str, Any]) -> str:
    header = ["left out", "queries", "AUROC seen / unseen", "tokens of always'", "never", "always", "random", "margin"]
    rows = [
        [
            name,
            f"{row['num_queries']:,}",
            f"{row['auroc_seen']:.3f} / {row['auroc_unseen']:.3f}",
            f"{100 * row['token_share']['mean']:.1f}",
            *(f"{100 * row[router]['mean']:.1f}" for router in ("never", "always", "random", "margin")),
            f"{100 * row['seen']['mean']:.1f}",
            f"{100 * row['unseen']['mean']:.1f}",
            show(row["unseen_minus_seen"], sign="+"),
            show(row["area_minus_seen"], sign="+"),
            show(row["calibrated_minus_seen"], sign="+"),
            f"{100 * row['calibrated_token_share']['mean']:.1f}",
        ]
        for name, row in [*results["transfer"].items(), ("each meta-task once", results["transfer_pooled"])]
    ]
    gates = ["seen", "unseen", "unseen minus seen", "area, unseen minus seen"]
    own = ["own threshold, minus seen", "its tokens of always'"]
    return markdown_table([*header, *gates, *own], rows)
