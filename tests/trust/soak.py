"""Does training and evaluating in one process for long use ever more memory?

    python -m tests.trust.soak --minutes 30

Trains a few steps of each stage on nano and evaluates, again and again, and samples this process's resident memory. The
slope after a warm-up must be below 1 MB a minute, its 95 % interval included. Exit code 1 where it is not.

Garbage is collected after each round: when Python would do so by itself moves memory by more than a small leak does.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

from tests.stage_runs import tiny_settings
from tests.trust.memory import MemorySamples, memory_slope
from tests.trust.records import record
from twn_lightning.evaluate import evaluate
from twn_lightning.run import RunFolder
from twn_lightning.settings import AdapterSettings, GateStageSettings, ModelSettings, RLSettings, Settings, SFTSettings
from twn_lightning.train import train

BAR_MB_PER_MINUTE = 1.0
WARM_UP = 0.2
"""Share of the time before samples count: caches of fixed size fill, and the allocator finds its level."""


def one_cycle(folder: Path, seed: int) -> None:
    """A few steps of each stage, from the packaged adapters on, and an evaluation of what they leave.

    Args:
        folder: of the runs; new.
        seed: of the runs.
    """
    stages: dict[str, Any] = {
        "sft": SFTSettings(batch_size=16, chunk_size=8, max_steps=6),
        "rl": RLSettings(prompts_per_step=4, completions_per_prompt=4, max_steps=3, pool_size=32),
        "gate": GateStageSettings(batch_size=16, max_epochs=2),
    }
    adapters = "nano"
    for name, stage in stages.items():
        settings = _settings(stage, folder / name, adapters, seed)
        train(settings)
        adapters = str(folder / name / "adapters")
    settings = _settings(SFTSettings(), folder / "evaluate", adapters, seed)
    evaluate(settings, RunFolder(folder / "evaluate").create(settings))


def _settings(stage: Any, folder: Path, adapters: str, seed: int) -> Settings:
    settings = tiny_settings(stage, folder, data={"max_new_tokens": 64, "test_pairs": 32, "val_pairs": 8})
    return replace(settings, model=ModelSettings(), adapters=AdapterSettings(init_from=adapters), seed=seed)


def soak(minutes: float, cycle: Callable[[Path, int], None] = one_cycle, every_seconds: float = 2.0) -> dict[str, Any]:
    """Run cycles for a time and measure.

    Args:
        minutes: in all, with the warm-up; the last cycle is finished.
        cycle: the work; gets a new folder, deleted afterwards, and the cycle's number.
        every_seconds: between two samples.

    Returns:
        minutes; after the warm-up, minutes, cycles and samples; the slope in MB a minute with its 95 % interval, the
        bar and whether it is met; memory at the first and at the last sample.

    Raises:
        ValueError: too short for a slope.
    """
    began = time.monotonic()
    cycles = 0
    with MemorySamples(every_seconds) as samples, tempfile.TemporaryDirectory(prefix="twn-soak-") as parent:
        for number in count():
            cycle(Path(parent) / str(number), number)
            shutil.rmtree(Path(parent) / str(number), ignore_errors=True)
            gc.collect()
            elapsed = (time.monotonic() - began) / 60
            cycles += elapsed > WARM_UP * minutes
            if elapsed >= minutes:
                break
        minutes_S, megabytes_S = samples.arrays()
    counted = minutes_S >= began / 60 + WARM_UP * minutes
    minutes_S, megabytes_S = minutes_S[counted], megabytes_S[counted]
    slope = memory_slope(minutes_S, megabytes_S)
    return {
        "minutes": minutes,
        "measured_minutes": round(float(minutes_S[-1] - minutes_S[0]), 2),
        "cycles": cycles,
        "samples": len(minutes_S),
        "mb_per_minute": round(slope.mean, 4),
        "ci95": [round(slope.low, 4), round(slope.high, 4)],
        "bar": BAR_MB_PER_MINUTE,
        "met": slope.high < BAR_MB_PER_MINUTE,
        "first_mb": round(float(megabytes_S[0]), 1),
        "last_mb": round(float(megabytes_S[-1]), 1),
    }


def main(arguments: list[str]) -> int:
    """Soak, print the result and record it.

    Returns:
        1 where the memory grows by more than the bar, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="in all (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    result = soak(chosen.minutes)
    print(json.dumps(result, indent=2))
    record("soak", result)
    return int(not result["met"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
