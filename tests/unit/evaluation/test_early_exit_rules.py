"""Exit rules on recorded prefixes, by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from twn_lightning.evaluation.early_exit import cheapest_rule, leave_early
from twn_lightning.evaluation.prefix_outcomes import PrefixOutcomes


def outcomes() -> PrefixOutcomes:
    """Three queries of 10, 6 and 4 tokens, cut every 2; each column has a hit of its own to be recognised by."""
    moved = np.array(
        [
            [0, 0.5, 0.1, 0.1, 0.6, 0.1],
            [0, 0.1, 0.5, 0.1, 0.0, 0.0],
            [0, 0.5, 0.5, 0.0, 0.0, 0.0],
        ]
    )
    hits = np.tile(np.arange(6.0), (3, 1))
    names = np.array(["a", "b", "c"])
    return PrefixOutcomes(
        names, names, names, np.zeros(3), np.array([0, 2, 4, 6, 8, 10]), hits, hits, moved, np.array([10, 6, 4]),
        np.zeros(3), np.zeros((3, 2)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tolerance", "patience", "columns", "tokens", "left"),
    [
        (0.0, 1, [5, 5, 5], [10, 6, 4], [False, False, False]),
        (0.2, 1, [2, 1, 5], [4, 2, 4], [True, True, False]),
        (0.2, 2, [3, 5, 5], [6, 6, 4], [True, False, False]),
        (0.2, 3, [5, 5, 5], [10, 6, 4], [False, False, False]),
        (1.0, 1, [1, 1, 1], [2, 2, 2], [True, True, True]),
    ],
)
def test_a_rule_leaves_where_the_embedding_stood_still(
    tolerance: float, patience: int, columns: list[int], tokens: list[int], left: list[bool]
) -> None:
    found = leave_early(outcomes(), tolerance, patience)
    assert found.hit_N.tolist() == columns
    assert found.tokens_N.tolist() == tokens
    assert found.left_N.tolist() == left


def test_a_wider_tolerance_never_spends_more() -> None:
    rng = np.random.default_rng(0)
    recorded = outcomes()
    recorded.moved_NP = np.concatenate([np.zeros((3, 1)), rng.random((3, 5))], axis=1)
    spent = [leave_early(recorded, tolerance).tokens_N for tolerance in np.linspace(0, 1, 20)]
    assert all((later <= earlier).all() for earlier, later in pairwise(spent))


def test_only_queries_that_think_have_a_cot_to_leave() -> None:
    found = leave_early(outcomes(), 0.2, think_N=np.array([True, False, True]))
    assert found.hit_N.tolist() == [2, 0, 5]
    assert found.tokens_N.tolist() == [4, 0, 4]
    assert found.left_N.tolist() == [True, False, False]


def test_the_cheapest_rule_keeps_to_the_loss() -> None:
    rules = [(0.2, 1), (0.2, 2), (1.0, 1)]  # mean hits 8/3, 13/3 and 1 against 5; tokens 10/3, 14/3 and 2 against 20/3
    chosen = [cheapest_rule(outcomes(), rules, loss) for loss in (0.1, 0.7, 2.5, 4.1)]
    assert chosen == [(0.0, 1), (0.2, 2), (0.2, 1), (1.0, 1)]
    assert cheapest_rule(outcomes(), rules, 0.1, think_N=np.zeros(3, dtype=bool)) == (0.0, 1)
