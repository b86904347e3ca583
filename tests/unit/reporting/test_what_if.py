"""Decisions under another threshold or price agree with the routers and labels they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.reporting.conftest import make_decisions
from twn_lightning.reporting.decisions import VERDICTS, read_decisions
from twn_lightning.reporting.what_if import at_threshold, gain_at_price, net_gain_curve, threshold_table

TABLE = make_decisions(400)
DECISIONS = read_decisions(TABLE)


def test_the_ends_are_never_and_always() -> None:
    never, always = at_threshold(DECISIONS, 1.0), at_threshold(DECISIONS, -1.0)
    assert (never.quality, never.tokens_per_query) == (DECISIONS.hit_discriminative_N.mean(), 0.0)
    assert (always.quality, always.tokens_per_query) == (
        DECISIONS.hit_generative_N.mean(),
        pytest.approx(DECISIONS.tokens_N.mean()),
    )
    assert sum(never.verdicts.values()) == sum(always.verdicts.values()) == len(DECISIONS)
    assert never.verdicts["helped"] == always.verdicts["missed"] == 0
    assert never.verdicts["missed"] == always.verdicts["helped"] > 0


def test_the_own_threshold_gives_the_own_decisions() -> None:
    point = at_threshold(DECISIONS, 0.5)
    assert point.quality == DECISIONS.hit_adaptive_N.mean()
    assert point.think_rate == DECISIONS.think_N.mean()
    verdicts = DECISIONS.verdicts()
    assert point.verdicts == {name: int(np.sum(verdicts == name)) for name in VERDICTS}


def test_the_own_price_gives_the_own_gain() -> None:
    np.testing.assert_allclose(gain_at_price(TABLE, 0.5), DECISIONS.gain_N, atol=1e-5)


def test_a_price_is_what_an_average_cot_costs() -> None:
    free, dear = gain_at_price(TABLE, 0.0), gain_at_price(TABLE, 2.0)
    assert (free - dear).mean() == pytest.approx(2.0, abs=1e-5)
    assert np.corrcoef(free - dear, DECISIONS.tokens_N)[0, 1] == pytest.approx(1.0, abs=1e-5)


def test_a_higher_price_moves_the_best_threshold_up() -> None:
    best = []
    for price in (0.0, 1.0, 5.0):
        curve = net_gain_curve(DECISIONS, gain_at_price(TABLE, price))
        assert curve.quality[0] == 0
        best.append(curve.threshold[curve.quality.argmax()])
    assert best[0] < best[1] < best[2]


def test_a_row_for_each_threshold() -> None:
    table = threshold_table([at_threshold(DECISIONS, threshold) for threshold in (0.2, 0.8)])
    assert [row[0] for row in table.rows] == ["0.200", "0.800"]
    assert all(len(row) == len(table.header) for row in table.rows)
