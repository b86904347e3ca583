"""The gate's rivals: every way to decide which queries think, evaluated on outcomes recorded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from twn_lightning.errors import ConfigError, unknown_name

BoolArray = NDArray[np.bool_]
Router = Callable[["Outcomes", float, int, np.random.Generator], BoolArray]


@dataclass
class Outcomes:
    """What both modes did with each of N queries: arrays of one length, whatever was decided."""

    hit_discriminative: NDArray[np.float64]
    """Quality without a CoT, in [0, 1]: 1 where the positive is at rank 1 and else 0, or a graded metric."""
    hit_generative: NDArray[np.float64]
    tokens: NDArray[np.int64]
    """CoT tokens if the query thinks."""
    probability: NDArray[np.float64]
    """The gate's."""
    margin: NDArray[np.float64]
    """Top-1 minus top-2 discriminative similarity."""
    query_length: NDArray[np.int64]
    gain: NDArray[np.float64]
    steps: NDArray[np.int64]
    """True number of reasoning steps, -1 where unknown."""
    task: NDArray[np.str_]

    def __post_init__(self) -> None:
        for field in fields(self):
            setattr(self, field.name, np.asarray(getattr(self, field.name)))
        lengths = {field.name: getattr(self, field.name).shape for field in fields(self)}
        if len(set(lengths.values())) != 1 or len(self.tokens.shape) != 1 or self.tokens.size == 0:
            raise ValueError(f"outcomes need one value per query everywhere, at least one query; got shapes {lengths}.")
        for name in ("hit_discriminative", "hit_generative", "tokens", "probability", "margin", "gain"):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"outcomes: {name} contains NaN or Inf.")

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, rows: NDArray[np.int64] | BoolArray) -> Outcomes:
        """The same outcomes for some queries."""
        return Outcomes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True)
class RouterScore:
    """Quality and cost of one router, over queries (and draws, for random ones)."""

    router: str
    hit_at_1: float
    tokens_per_query: float
    think_rate: float
    ci95: tuple[float, float]
    """Of `hit_at_1`, over queries."""
    hits: NDArray[np.float64]
    """Per query (N,), mean over draws: for paired comparisons."""


def route(
    name: str,
    outcomes: Outcomes,
    *,
    threshold: float = 0.5,
    draws: int = 20,
    rng: np.random.Generator | None = None,
) -> BoolArray:
    """Decide which queries think.

    The heuristics and the random routers spend what the gate spends at `threshold`: `random`, `margin` and
    `query_length` think on as many queries as it, `random_equal_tokens` generates (nearly) as many tokens.

    Args:
        name: One of `ROUTERS`.
        outcomes: Recorded outcomes of N queries.
        threshold: The gate thinks iff probability > threshold.
        draws: Independent draws of the random routers.
        rng: Of the random routers, and of ties in the heuristics; None seeds with 0.

    Returns:
        Decisions, bool (draws, N) for the random routers, (1, N) for the others.

    Raises:
        ConfigError: On an unknown name; lists what exists, with the nearest match.
    """
    if name not in ROUTERS:
        raise ConfigError(unknown_name("router", name, ROUTERS))
    return ROUTERS[name](outcomes, threshold, draws, np.random.default_rng(0) if rng is None else rng)


def evaluate_router(
    name: str,
    outcomes: Outcomes,
    *,
    interval: Callable[[NDArray[np.float64]], tuple[float, float, float]],
    threshold: float = 0.5,
    draws: int = 20,
    rng: np.random.Generator | None = None,
) -> RouterScore:
    """Score one router on recorded outcomes.

    Args:
        name: One of `ROUTERS`.
        outcomes: Recorded outcomes of N queries.
        interval: Per-query hits -> (mean, low, high) at 95 %; `metrics.bootstrap_mean` is one.
        threshold: The gate's.
        draws: Of the random routers.
        rng: Of the random routers.

    Returns:
        `RouterScore`.

    Raises:
        ConfigError: As `route`.
    """
    think_RN = route(name, outcomes, threshold=threshold, draws=draws, rng=rng)
    hits_N = np.where(think_RN, outcomes.hit_generative, outcomes.hit_discriminative).mean(0)
    mean, low, high = interval(hits_N)
    return RouterScore(
        router=name,
        hit_at_1=float(mean),
        tokens_per_query=float((think_RN * outcomes.tokens).mean()),
        think_rate=float(think_RN.mean()),
        ci95=(float(low), float(high)),
        hits=hits_N,
    )


def _never(outcomes: Outcomes, threshold: float, draws: int, rng: np.random.Generator) -> BoolArray:
    return np.zeros((1, len(outcomes)), dtype=bool)


def _always(outcomes: Outcomes, threshold: float, draws: int, rng: np.random.Generator) -> BoolArray:
    return np.ones((1, len(outcomes)), dtype=bool)


def _adaptive(outcomes: Outcomes, threshold: float, draws: int, rng: np.random.Generator) -> BoolArray:
    return (outcomes.probability > threshold)[None, :]


def _oracle(outcomes: Outcomes, threshold: float, draws: int, rng: np.random.Generator) -> BoolArray:
    return (outcomes.hit_generative > outcomes.hit_discriminative)[None, :]


def _random(outcomes: Outcomes, threshold: float, draws: int, rng: np.random.Generator) -> BoolArray:
    count = int((outcomes.probability > threshold).sum())
    return np.stack([_first(rng.permutation(len(outcomes)), count) for _ in range(draws)])


def _random_equal_tokens(outcomes: Outcomes, threshold: float, draws: int, rng: np.random.Generator) -> BoolArray:
    budget = int(outcomes.tokens[outcomes.probability > threshold].sum())
    decisions = []
    for _ in range(draws):
        order_N = rng.permutation(len(outcomes))
        spent_N = np.concatenate([[0], np.cumsum(outcomes.tokens[order_N])])
        decisions.append(_first(order_N, int(np.abs(spent_N - budget).argmin())))
    return np.stack(decisions)


def _margin(outcomes: Outcomes, threshold: float, draws: int, rng: np.random.Generator) -> BoolArray:
    """The queries whose discriminative top-1 is least clear think."""
    return _lowest(outcomes.margin, outcomes, threshold, rng)


def _query_length(outcomes: Outcomes, threshold: float, draws: int, rng: np.random.Generator) -> BoolArray:
    """The longest queries think."""
    return _lowest(-outcomes.query_length, outcomes, threshold, rng)


ROUTERS: dict[str, Router] = {
    "never": _never,
    "always": _always,
    "adaptive": _adaptive,
    "random": _random,
    "random_equal_tokens": _random_equal_tokens,
    "margin": _margin,
    "query_length": _query_length,
    "oracle": _oracle,
}


def _lowest(
    key_N: NDArray[np.float64] | NDArray[np.int64], outcomes: Outcomes, threshold: float, rng: np.random.Generator
) -> BoolArray:
    """As many queries as the gate thinks on, those of the lowest key; ties are drawn, not taken in file order."""
    count = int((outcomes.probability > threshold).sum())
    return _first(np.lexsort((rng.random(len(key_N)), key_N)), count)[None, :]


def _first(order_N: NDArray[np.int64], count: int) -> BoolArray:
    think_N = np.zeros(len(order_N), dtype=bool)
    think_N[order_N[:count]] = True
    return think_N
