"""Early exit on recorded prefixes: hit@1 against CoT tokens for every exit rule, without decoding again.

Shape letters: N queries, P cuts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from twn_lightning.evaluation.prefix_outcomes import PrefixOutcomes

_ROUNDING = 1e-9
"""Means of hits that are equal may differ in the last digits."""


@dataclass(frozen=True)
class ExitOutcomes:
    """What one exit rule did with every query (N,)."""

    hit_N: np.ndarray
    tokens_N: np.ndarray
    left_N: np.ndarray
    """True where the rule ended the CoT."""


def leave_early(
    outcomes: PrefixOutcomes, tolerance: float, patience: int = 1, think_N: np.ndarray | None = None
) -> ExitOutcomes:
    """Apply an exit rule to recorded CoTs; every cut is a check, the cap is none.

    Args:
        outcomes: recorded at the rule's stride.
        tolerance: as in `backbone.early_exit.ExitRule`; 0 never leaves.
        patience: as in `ExitRule`.
        think_N: which queries have a CoT to leave, bool (N,); all of them by default.

    Relations:
        Equals decoding with that `ExitRule`: the tokens after an exit are never read.
    """
    column_N = exit_columns(outcomes, tolerance, patience)
    if think_N is not None:
        column_N = np.where(think_N, column_N, 0)
    rows_N = np.arange(len(outcomes))
    return ExitOutcomes(
        hit_N=outcomes.hit_NP[rows_N, column_N],
        tokens_N=outcomes.spent_NP[rows_N, column_N],
        left_N=(outcomes.cuts_P[column_N] < outcomes.tokens_N) & (column_N > 0),
    )


def exit_columns(outcomes: PrefixOutcomes, tolerance: float, patience: int = 1) -> np.ndarray:
    """The cut at which each query leaves its CoT, or the last one, int (N,)."""
    last = len(outcomes.cuts_P) - 1
    still_N = np.zeros(len(outcomes), dtype=int)
    column_N = np.full(len(outcomes), last)
    for column in range(1, last):
        still_N = np.where(outcomes.moved_NP[:, column] < tolerance, still_N + 1, 0)
        running_N = (outcomes.cuts_P[column] < outcomes.tokens_N) & (column_N == last)
        column_N[running_N & (still_N >= patience)] = column
    return column_N


def cheapest_rule(
    outcomes: PrefixOutcomes, rules: Iterable[tuple[float, int]], quality_loss: float, think_N: np.ndarray | None = None
) -> tuple[float, int]:
    """The rule of fewest tokens whose mean hit is at most `quality_loss` below that of whole CoTs.

    Args:
        outcomes: of a split that the rule is not reported on.
        rules: (tolerance, patience) to choose from, besides (0, 1), which never leaves.
        quality_loss: in hit@1, .01 = one point.
        think_N: as in `leave_early`.
    """
    found = {rule: leave_early(outcomes, *rule, think_N=think_N) for rule in ((0.0, 1), *rules)}
    least = found[0.0, 1].hit_N.mean() - quality_loss - _ROUNDING
    return min((rule for rule in found if found[rule].hit_N.mean() >= least), key=lambda r: found[r].tokens_N.mean())
