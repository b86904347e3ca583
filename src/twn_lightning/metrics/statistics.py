"""Seeded bootstrap intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_VALUES_AT_ONCE = 4_000_000
"""Bounds the resampled matrix to 32 MB."""


class Interval(NamedTuple):
    """An estimate with the ends of its percentile-bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: ArrayLike, *, samples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of per-query values with a percentile-bootstrap interval over queries.

    Args:
        values: One value per query (N,).
        samples: Bootstrap resamples.
        level: Coverage, in (0, 1).
        seed: Of the resampling; equal seeds and sizes resample the same queries.

    Returns:
        `Interval`.

    Raises:
        ValueError: On an empty or non-finite input, or a level or sample count out of range.
    """
    values_N = _checked(values, "values")
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"samples={samples} must be at least 1 and level={level} inside (0, 1).")
    rng = np.random.default_rng(seed)
    per_block = max(1, _VALUES_AT_ONCE // len(values_N))
    means = [
        values_N[rng.integers(len(values_N), size=(min(per_block, samples - start), len(values_N)))].mean(1)
        for start in range(0, samples, per_block)
    ]
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(values_N.mean()), float(low), float(high))


def paired_bootstrap_difference(
    first: ArrayLike, second: ArrayLike, *, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Mean of `first - second` over the same queries, resampling queries, not systems.

    Args:
        first: One value per query (N,).
        second: The other system's values for the same queries in the same order (N,).
        samples: Bootstrap resamples.
        level: Coverage, in (0, 1).
        seed: Of the resampling.

    Returns:
        `Interval`; the difference is credible where `low` and `high` have one sign.

    Raises:
        ValueError: When the lengths differ, and as `bootstrap_mean`.
    """
    first_N, second_N = _checked(first, "first"), _checked(second, "second")
    if len(first_N) != len(second_N):
        raise ValueError(f"a paired difference needs the same queries: got {len(first_N)} and {len(second_N)} values.")
    return bootstrap_mean(first_N - second_N, samples=samples, level=level, seed=seed)


def _checked(values: ArrayLike, name: str) -> NDArray[np.float64]:
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or values_N.size == 0:
        raise ValueError(f"{name} must be a non-empty (N,) array, got shape {values_N.shape}.")
    if not np.isfinite(values_N).all():
        raise ValueError(f"{name}: {int((~np.isfinite(values_N)).sum())} of {len(values_N)} entries are NaN or Inf.")
    return values_N
