"""Graded thinking on made outcomes whose best budget the features tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twn_lightning.evaluation.graded_thinking import (
    BudgetOutcomes,
    budget_outcomes,
    choices_at_equal_tokens,
    train_graded_gate,
)
from twn_lightning.evaluation.prefix_outcomes import PrefixOutcomes
from twn_lightning.gate import GradedGate
from twn_lightning.settings import GateStageSettings

SETTINGS = GateStageSettings(batch_size=64, learning_rate=3e-3)


def made(count: int, seed: int) -> PrefixOutcomes:
    """A third of the queries needs no token, a third the first 8, a third all 24; the features say which."""
    rng = np.random.default_rng(seed)
    need = rng.integers(3, size=count)
    features = rng.normal(size=(count, 4)).astype(np.float32)
    features[np.arange(count), need] += 6
    hits = (np.arange(3) >= need[:, None]).astype(float)
    names = np.array([f"q{i}" for i in range(count)])
    return PrefixOutcomes(
        names, names, names, need, np.array([0, 8, 24]), hits, 5 * (1 - hits), np.zeros((count, 3)),
        np.full(count, 24), np.zeros(count), features,
    )  # fmt: skip


def splits(tokens: tuple[int, ...]) -> tuple[BudgetOutcomes, ...]:
    return tuple(budget_outcomes(made(count, seed), tokens) for seed, count in enumerate((600, 200, 400)))


def test_budgets_are_recorded_cuts() -> None:
    found = budget_outcomes(made(5, 0), (0, 24))
    assert found.tokens_NM.tolist() == [[0, 24]] * 5
    assert found.hit_NM.shape == (5, 2)
    hits, tokens = found.under(torch.tensor([0, 1, 1, 0, 1]))
    assert tokens.tolist() == [0, 24, 24, 0, 24]
    assert hits.tolist() == [found.hit_NM[row, choice] for row, choice in enumerate([0, 1, 1, 0, 1])]


def test_three_budgets_cost_less_than_two_where_a_short_cot_is_enough() -> None:
    train, calibration, test = splits((0, 8, 24))
    gate = train_graded_gate(train, calibration, price=0.5, hidden=32, settings=SETTINGS)
    hits, tokens = test.under(gate.choose(test.features_NF))
    assert hits.mean() > 0.95
    assert tokens.mean() == pytest.approx(32 / 3, rel=0.15)

    train, calibration, test = splits((0, 24))
    two_way = train_graded_gate(train, calibration, price=0.5, hidden=32, settings=SETTINGS)
    equal = choices_at_equal_tokens(two_way, test, float(tokens.mean()))
    two_way_hits, two_way_tokens = test.under(equal)
    assert two_way_tokens.mean() == pytest.approx(tokens.mean(), abs=24 / 400)
    assert two_way_hits.mean() < hits.mean() - 0.1


def test_the_price_decides_what_is_worth_it() -> None:
    train, calibration, test = splits((0, 8, 24))
    free, dear = (train_graded_gate(train, calibration, price=p, hidden=32, settings=SETTINGS) for p in (0.5, 8.0))
    assert set(dear.choose(test.features_NF).tolist()) == {0, 1}
    assert set(free.choose(test.features_NF).tolist()) == {0, 1, 2}


def test_training_is_a_function_of_the_seed() -> None:
    train, calibration, test = splits((0, 8, 24))
    options = {"price": 0.5, "hidden": 16, "settings": GateStageSettings(batch_size=64, max_epochs=2)}
    before = torch.rand(1, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    first, again, other = (train_graded_gate(train, calibration, seed=seed, **options) for seed in (3, 3, 4))  # type: ignore[arg-type]
    assert torch.equal(torch.rand(1), before), "training leaves the caller's random numbers alone"
    assert torch.equal(first(test.features_NF), again(test.features_NF))
    assert not torch.equal(first(test.features_NF), other(test.features_NF))


def test_equal_tokens_takes_the_surest_first() -> None:
    gate = GradedGate(2, num_choices=2)
    torch.nn.init.normal_(gate.outer.weight, generator=torch.Generator().manual_seed(0))
    outcomes = BudgetOutcomes(torch.randn(6, 2), np.zeros((6, 2)), torch.zeros(6, 2), torch.tensor([[0, 10]] * 6))
    with torch.no_grad():
        logits = gate(outcomes.features_NF)
    surest = (logits[:, 1] - logits[:, 0]).topk(3).indices
    choice = choices_at_equal_tokens(gate, outcomes, 30 / 6)
    assert sorted(choice.nonzero()[:, 0].tolist()) == sorted(surest.tolist())
    assert choices_at_equal_tokens(gate, outcomes, 0.0).sum() == 0
    assert choices_at_equal_tokens(gate, outcomes, 99.0).sum() == 6
