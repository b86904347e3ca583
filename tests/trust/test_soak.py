"""The soak's own instruments: a planted leak is found, its absence too, and the interval covers what it should."""

from __future__ import annotations

import gc
import mmap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.trust.memory import memory_slope, resident_megabytes
from tests.trust.soak import BAR_MB_PER_MINUTE, one_cycle, soak


def autocorrelated(rng: np.random.Generator, count: int, correlation: float) -> np.ndarray:
    """Noise of which neighbours are alike, as samples of memory are."""
    noise = rng.normal(size=count + 200)
    for row in range(1, len(noise)):
        noise[row] += correlation * noise[row - 1]
    return noise[200:]


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_interval_covers_the_true_slope(correlation: float) -> None:
    rng = np.random.default_rng(0)
    minutes_S = np.linspace(0, 24, 720)
    covered = 0
    for _ in range(200):
        slope = memory_slope(minutes_S, 500 + 0.3 * minutes_S + autocorrelated(rng, 720, correlation))
        covered += slope.low <= 0.3 <= slope.high
    assert 0.9 * 200 <= covered <= 0.985 * 200


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="19 samples are too few"):
        memory_slope(np.arange(19.0), np.zeros(19))


def fresh_bytes(size: int) -> np.ndarray:
    """Resident bytes from the kernel: an allocator may hand out what earlier tests gave back, which grows nothing."""
    held = np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
    held[:] = 1
    return held


def test_resident_memory_is_that_of_the_process() -> None:
    before = resident_megabytes()
    held = fresh_bytes(50_000_000)
    assert 40 < resident_megabytes() - before < 60, f"{held.nbytes} bytes were taken"


@pytest.fixture
def few_objects() -> Iterator[None]:
    """Garbage collection leaves out what earlier tests have made, which could take a second a round."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("few_objects")
def test_a_planted_leak_is_measured() -> None:
    """A megabyte a cycle; the same work without it grows by a fiftieth of that at most."""
    slope = {}
    for leak in (0, 1_000_000):
        kept: list[np.ndarray] = []
        result = soak(0.1, partial(leaking, kept, leak), every_seconds=0.05)
        slope[leak] = result["mb_per_minute"]
        grew = result["last_mb"] - result["first_mb"]
        assert result["cycles"] > 10
        assert result["ci95"][0] <= slope[leak] <= result["ci95"][1]
    assert slope[1_000_000] == pytest.approx(grew / result["measured_minutes"], rel=0.3)
    assert abs(slope[0]) < slope[1_000_000] / 50
    assert not result["met"]


def leaking(kept: list[np.ndarray], leak: int, folder: Path, number: int) -> None:
    """A moment of work that keeps so many bytes."""
    np.ones(5_000_000, dtype=np.uint8)
    if leak:
        kept.append(fresh_bytes(leak))
    time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("leak", [0, 10_000_000])
def test_a_leak_among_the_real_work_is_found(leak: int) -> None:
    """Ten megabytes a cycle: some fifty a minute."""
    kept: list[np.ndarray] = []

    def cycle(folder: Path, number: int) -> None:
        one_cycle(folder, number)
        if leak:
            kept.append(fresh_bytes(leak))

    low, high = soak(2.0, cycle, every_seconds=0.5)["ci95"]
    if leak:
        assert low > BAR_MB_PER_MINUTE
    else:
        assert low < BAR_MB_PER_MINUTE
    assert high > low
