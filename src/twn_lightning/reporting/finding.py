"""The report in one sentence, computed from the numbers: it says when adaptive thinking did not pay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twn_lightning.reporting.tables import NO_BREAK, percent

ADAPTIVE_MARGIN = 0.01
"""hit@1 within which adaptive counts as keeping the quality of always thinking."""


def finding(summary: Mapping[str, Any]) -> str:
    """What the evaluation found, in one sentence.

    Args:
        summary: fits summary.schema.json.

    Returns:
        A sentence about adaptive against always and never; about the routers that are there otherwise.
    """
    modes = summary["modes"]
    count = f"{summary['num_queries']:,} queries"
    if not {"never", "always", "adaptive"} <= set(modes):
        scores = ", ".join(f"{name} {percent(score['hit@1'])}" for name, score in modes.items())
        return f"On {count} of {summary['suite']}, hit@1 by router: {scores or 'no router was scored'}."
    adaptive, always, never = modes["adaptive"], modes["always"], modes["never"]
    cost = (
        f"{percent(adaptive['tokens_per_query'] / always['tokens_per_query'], 0)} of the reasoning tokens"
        if always["tokens_per_query"]
        else "no reasoning tokens to save"
    )
    if always["hit@1"] <= never["hit@1"]:
        return (
            f"On {count} of {summary['suite']}, thinking did not help: always thinking scores "
            f"{percent(always['hit@1'])} hit@1 against {percent(never['hit@1'])} without, "
            f"and the gate {percent(adaptive['hit@1'])} with {cost}."
        )
    difference = adaptive["hit@1"] - always["hit@1"]
    interval = _paired_interval(summary)
    if difference >= -ADAPTIVE_MARGIN:
        verb = "keeps the quality of" if difference <= ADAPTIVE_MARGIN else "beats"
        claim = f"thinking only when needed {verb} always thinking"
    else:
        claim = f"thinking only when needed loses {-100 * difference:.1f} points to always thinking"
    return (
        f"On {count} of {summary['suite']}, {claim}: {percent(adaptive['hit@1'])} against {percent(always['hit@1'])} "
        f"hit@1{interval}, with {cost}; without any thinking it is {percent(never['hit@1'])}."
    )


def _paired_interval(summary: Mapping[str, Any]) -> str:
    if "paired" not in summary:
        return ""
    paired = summary["paired"]
    low, high = (f"{100 * bound:+.1f}" for bound in paired["ci95"])
    return f" (paired difference {100 * paired['difference']:+.1f} points, 95{NO_BREAK}% interval {low} to {high})"
