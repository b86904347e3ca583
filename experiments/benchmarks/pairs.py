"""Times of several ways to do the same work, taken in turn in one process, and the file a benchmark leaves."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from twn_lightning.environment import describe_environment
from twn_lightning.metrics.statistics import bootstrap_mean


@dataclass
class Timing:
    """Seconds of each round, and the most memory one round held."""

    seconds: list[float] = field(default_factory=list)
    peak_memory_gib: float | None = None
    error: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def record(self) -> dict[str, Any]:
        if self.error:
            return {"error": self.error}
        return {
            "median_seconds": self.median,
            "seconds": [round(value, 6) for value in self.seconds],
            "peak_memory_gib": self.peak_memory_gib,
        }


def in_turn(
    ways: dict[str, Callable[[], Any]], device: torch.device | str, *, rounds: int = 5, warmups: int | None = None
) -> dict[str, Timing]:
    """Time every way once a round, so that drifts of the machine meet all of them.

    Args:
        ways: name -> a call that does the work. One that raises is left out from then on, with its error.
        device: synchronised before the clock is read, where it is a GPU.
        rounds: that count.
        warmups: before them, that do not; by default one, and two on a GPU, which may compile.
    """
    cuda = torch.device(device).type == "cuda"
    if warmups is None:
        warmups = 2 if cuda else 1
    timings = {name: Timing() for name in ways}
    for round_ in range(warmups + rounds):
        for name, way in ways.items():
            timing = timings[name]
            if timing.error:
                continue
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            try:
                way()
            except Exception as error:  # one way must not take the others' results with it
                traceback.print_exc()
                timing.error = f"{type(error).__name__}: {str(error)[:500]}"
                if cuda:
                    torch.cuda.empty_cache()
                continue
            if cuda:
                torch.cuda.synchronize()
            if round_ >= warmups:
                timing.seconds.append(time.perf_counter() - began)
                if cuda:
                    timing.peak_memory_gib = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return timings


def speedup(peer: Timing, ours: Timing) -> dict[str, float] | None:
    """How many times faster `ours` is: the ratio of medians, and a 95 % bootstrap interval of the rounds' ratios."""
    if peer.error or ours.error:
        return None
    ratios = [theirs / own for theirs, own in zip(peer.seconds, ours.seconds, strict=True)]
    interval = bootstrap_mean(ratios)
    return {"ratio": peer.median / ours.median, "low": interval.low, "high": interval.high}


def write_result(name: str, result: dict[str, Any], out: str | None = None) -> Path:
    """Write `<name>.json` with the environment it was measured in.

    Args:
        name: of the benchmark.
        result: what it measured.
        out: the folder; by default the variable OUT, else this one.
    """
    folder = Path(out or os.environ.get("OUT") or Path(__file__).parent)
    folder.mkdir(parents=True, exist_ok=True)
    environment = describe_environment()
    command = " ".join(["python -m", f"experiments.benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    record = {
        "command": command,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": environment["versions"],
        "hardware": environment["hardware"],
        "revision": environment["git"]["revision"],
        **result,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return path
