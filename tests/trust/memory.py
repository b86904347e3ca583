"""Resident memory of this process over time: samples of it, and the slope of a line through them.

Shape letter: S samples.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType

import numpy as np

from twn_lightning.metrics import Interval

BATCHES = 10
STUDENT_T = 2.306
"""97.5 % quantile of Student's distribution with BATCHES - 2 degrees of freedom."""


def resident_megabytes() -> float:
    """What this process holds in memory now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class MemorySamples:
    """Samples of resident memory, taken in a thread while a `with` block runs.

    Args:
        every_seconds: between two samples.
    """

    def __init__(self, every_seconds: float) -> None:
        self._every = every_seconds
        self._samples: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> MemorySamples:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(self._every):
            self._samples.append((time.monotonic(), resident_megabytes()))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Minutes (S,) and megabytes (S,), float64, of the samples so far."""
        samples_S2 = np.array(self._samples, dtype=float).reshape(-1, 2)
        return samples_S2[:, 0] / 60, samples_S2[:, 1]


def memory_slope(minutes_S: np.ndarray, megabytes_S: np.ndarray) -> Interval:
    """Megabytes a minute: a line through the means of equal stretches of time, with its 95 % interval.

    Neighbouring samples are alike, so an interval from single samples would be far too narrow. The means of ten
    stretches, each long beside what repeats in the work, are nearly independent (the method of batch means).

    Args:
        minutes_S: when each sample was taken, evenly spaced.
        megabytes_S: the samples.

    Raises:
        ValueError: fewer samples than two a stretch.
    """
    samples = len(minutes_S)
    if samples < 2 * BATCHES:
        raise ValueError(f"{samples} samples are too few for a slope with an interval: run for longer, or sample more")
    used = samples // BATCHES * BATCHES
    x, y = (values[-used:].reshape(BATCHES, -1).mean(1) for values in (minutes_S, megabytes_S))
    x = x - x.mean()
    slope = float(x @ (y - y.mean()) / (x @ x))
    residual = y - y.mean() - slope * x
    half = STUDENT_T * float(np.sqrt(residual @ residual / (BATCHES - 2) / (x @ x)))
    return Interval(slope, slope - half, slope + half)
