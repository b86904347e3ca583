from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from twn_lightning.errors import ConfigError
from twn_lightning.gate import ROUTERS, Outcomes, evaluate_router, route
from twn_lightning.metrics import bootstrap_mean, oracle_gap

INTERVAL = partial(bootstrap_mean, samples=200)


@pytest.fixture
def outcomes() -> Outcomes:
    """Half of the queries need no thinking; a good but imperfect gate."""
    rng = np.random.default_rng(0)
    steps = np.repeat([0, 3], 200)
    tokens = rng.integers(10, 30, 400)
    probability = np.clip(0.8 * (steps > 0) + rng.normal(0.1, 0.15, 400), 0, 1)
    return Outcomes(
        hit_discriminative=(rng.random(400) < np.where(steps == 0, 0.95, 0.1)).astype(float),
        hit_generative=(rng.random(400) < 0.95).astype(float),
        tokens=tokens,
        probability=probability,
        margin=rng.random(400),
        query_length=rng.integers(5, 9, 400),
        gain=np.zeros(400),
        steps=steps,
        task=np.repeat(["nano/read", "nano/follow"], 200),
    )


def test_never_and_always_are_the_two_modes(outcomes: Outcomes) -> None:
    never, always = (evaluate_router(name, outcomes, interval=INTERVAL) for name in ("never", "always"))
    assert (never.hit_at_1, never.tokens_per_query, never.think_rate) == (outcomes.hit_discriminative.mean(), 0, 0)
    assert always.hit_at_1 == outcomes.hit_generative.mean()
    assert always.tokens_per_query == outcomes.tokens.mean()
    assert always.think_rate == 1


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_adaptive_thinks_above_the_threshold(outcomes: Outcomes, threshold: float) -> None:
    outcomes.probability[0] = threshold  # at it is not above it
    think = route("adaptive", outcomes, threshold=threshold)
    assert (think == (outcomes.probability > threshold)).all()
    score = evaluate_router("adaptive", outcomes, threshold=threshold, interval=INTERVAL)
    hits = np.where(think[0], outcomes.hit_generative, outcomes.hit_discriminative)
    assert (score.hits == hits).all()
    assert score.tokens_per_query == pytest.approx(outcomes.tokens[think[0]].sum() / 400)


def test_oracle_thinks_only_where_thinking_is_what_makes_the_hit(outcomes: Outcomes) -> None:
    think = route("oracle", outcomes)[0]
    assert (think == ((outcomes.hit_generative == 1) & (outcomes.hit_discriminative == 0))).all()
    score = evaluate_router("oracle", outcomes, interval=INTERVAL)
    assert oracle_gap(score.hits, outcomes.hit_discriminative, outcomes.hit_generative) == 0


def test_oracle_of_a_graded_metric_thinks_where_it_gets_better(outcomes: Outcomes) -> None:
    graded = replace(
        outcomes,
        hit_discriminative=np.tile([0.6, 0.6, 0.6, 0.0], 100),
        hit_generative=np.tile([0.7, 0.6, 0.5, 0.4], 100),
    )
    assert route("oracle", graded)[0].tolist() == [True, False, False, True] * 100


@pytest.mark.parametrize("name", ["never", "always", "adaptive", "random", "margin", "query_length"])
def test_no_router_beats_the_oracle(outcomes: Outcomes, name: str) -> None:
    oracle = evaluate_router("oracle", outcomes, interval=INTERVAL).hit_at_1
    assert evaluate_router(name, outcomes, interval=INTERVAL).hit_at_1 <= oracle


@pytest.mark.parametrize("name", ["random", "margin", "query_length"])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 1.0])
def test_heuristics_think_as_often_as_the_gate(outcomes: Outcomes, name: str, threshold: float) -> None:
    count = (outcomes.probability > threshold).sum()
    assert (route(name, outcomes, threshold=threshold, draws=5).sum(1) == count).all()


def test_random_at_equal_tokens_spends_what_the_gate_spends(outcomes: Outcomes) -> None:
    outcomes.tokens = np.where(outcomes.steps > 0, 60, 20)  # the gate's queries are the long ones
    budget = outcomes.tokens[outcomes.probability > 0.5].sum()
    think = route("random_equal_tokens", outcomes, draws=8)
    spent = (think * outcomes.tokens).sum(1)
    assert (np.abs(spent - budget) <= 30).all()
    assert think.sum(1).mean() > (outcomes.probability > 0.5).sum() * 1.1, "at equal tokens it thinks more often"


def test_random_draws_differ_and_follow_the_generator(outcomes: Outcomes) -> None:
    first, again, other = (route("random", outcomes, draws=3, rng=np.random.default_rng(s)) for s in (1, 1, 2))
    assert first.shape == (3, 400)
    assert (first == again).all()
    assert (first != other).any()
    assert (first[0] != first[1]).any()


def test_random_scores_near_the_mixture_of_the_modes(outcomes: Outcomes) -> None:
    score = evaluate_router("random", outcomes, draws=400, interval=INTERVAL)
    rate = (outcomes.probability > 0.5).mean()
    mixture = rate * outcomes.hit_generative.mean() + (1 - rate) * outcomes.hit_discriminative.mean()
    assert score.hit_at_1 == pytest.approx(mixture, abs=0.005)
    assert score.ci95[0] < score.hit_at_1 < score.ci95[1]
    assert evaluate_router("adaptive", outcomes, interval=INTERVAL).ci95[0] > score.ci95[1]


def test_margin_takes_the_least_clear_and_length_the_longest(outcomes: Outcomes) -> None:
    think = route("margin", outcomes)[0]
    assert outcomes.margin[think].max() <= outcomes.margin[~think].min()
    think = route("query_length", outcomes)[0]
    assert outcomes.query_length[think].min() >= outcomes.query_length[~think].max()


def test_ties_of_a_heuristic_are_not_broken_by_file_order(outcomes: Outcomes) -> None:
    outcomes.query_length = np.full(400, 7)
    think = route("query_length", outcomes)[0]
    assert 0.3 < think[:200].sum() / think.sum() < 0.7


def test_an_unknown_router_names_the_nearest_and_what_exists(outcomes: Outcomes) -> None:
    with pytest.raises(ConfigError, match="unknown router 'adaptve': did you mean 'adaptive'") as error:
        route("adaptve", outcomes)
    assert all(name in str(error.value) for name in ROUTERS)


def test_select_keeps_rows_together(outcomes: Outcomes) -> None:
    part = outcomes.select(outcomes.steps == 3)
    assert len(part) == 200
    assert set(part.task) == {"nano/follow"}
    assert (part.tokens == outcomes.tokens[200:]).all()


def test_outcomes_of_unequal_length_or_with_nan_are_refused(outcomes: Outcomes) -> None:
    fields = vars(outcomes)
    with pytest.raises(ValueError, match="one value per query"):
        Outcomes(**{**fields, "tokens": np.zeros(3)})
    with pytest.raises(ValueError, match="probability contains NaN"):
        Outcomes(**{**fields, "probability": np.full(400, np.nan)})
