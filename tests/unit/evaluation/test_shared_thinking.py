"""How CoTs are shared out among ranks: batches of one size, and shares of like loads."""

from __future__ import annotations

import numpy as np
import pytest

from twn_lightning.evaluation.shared_thinking import balanced_shares, equal_batches


@pytest.mark.parametrize(
    ("rows", "ranks", "sizes"),
    [(0, 4, []), (3, 4, [1, 1, 1]), (45, 4, [12, 11, 11, 11]), (500, 6, [28] * 14 + [27] * 4), (33, 1, [17, 16])],
)
def test_batches_are_of_one_size_and_equally_many_for_each_rank(rows: int, ranks: int, sizes: list[int]) -> None:
    batches = equal_batches(range(rows), ranks)
    assert [len(batch) for batch in batches] == sizes
    assert [row for batch in batches for row in batch] == list(range(rows))


def test_every_load_has_one_owner_and_the_largest_are_spread() -> None:
    shares = balanced_shares([5, 1, 7, 3, 2, 6], 3)
    assert shares == [[2, 1], [5, 4], [0, 3]]
    assert balanced_shares([1.0], 3) == [[0], [], []]


def test_no_share_exceeds_the_bound_of_longest_first() -> None:
    """Graham 1969: at most 4/3 - 1/(3 m) of the optimum, which is at least the mean and the largest load."""
    loads = np.random.default_rng(0).exponential(size=60)
    totals = [loads[share].sum() for share in balanced_shares(loads, 4)]
    assert sum(totals) == pytest.approx(loads.sum())
    assert max(totals) <= (4 / 3 - 1 / 12) * max(loads.sum() / 4, loads.max())
