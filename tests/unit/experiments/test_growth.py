"""Growth: slopes of known laws, memory of a known size, and a run over sizes that take seconds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks import growth, random_qwen3vl
from experiments.benchmarks.growth import Series, exponent, grown_mib, measure_ranks, slope
from twn_lightning.backbone.parameters import LanguageModelShape

SMALL = LanguageModelShape(64, 2, 4, 2, 16, 96, 512, True)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_slope_is_the_power(power: float) -> None:
    sizes = (1, 2, 4, 8)
    assert slope(sizes, [3.0 * size**power for size in sizes]) == pytest.approx(power, abs=1e-9)


def test_the_exponent_is_the_mean_of_the_rounds() -> None:
    found = exponent((1, 2), [[1.0, 2.0], [1.0, 4.0]], bar=1.2)
    assert found["exponent"] == pytest.approx(1.5)
    assert 1 - 1e-9 <= found["low"] <= 1.5 <= found["high"] <= 2 + 1e-9


@pytest.mark.parametrize("mib", [32, 64])
def test_memory_is_what_a_call_holds_at_the_most(mib: int) -> None:
    def call() -> None:
        for _ in range(3):  # freed before the next one
            np.ones(mib * 2**20 // 8)

    call()  # what it frees must not hide the growth
    assert grown_mib(call) == pytest.approx(mib, abs=2)


def small_series(folder: str) -> list[Series]:
    read, write = growth.reader_and_writer()
    return [
        Series("pairs", "steps", (2, 4), growth.training_steps(folder)),
        Series("prompt tokens", "reading", (8, 64), read),
        Series("CoT tokens", "writing", (2, 12), write),
        Series("candidates", "scoring", (200, 400), growth.ranking),
        Series("documents", "searching", (200, 400), growth.search),
    ]


def test_every_series_is_measured_and_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(random_qwen3vl.SIZES, "midsize", SMALL)
    monkeypatch.setattr(growth, "all_series", small_series)
    monkeypatch.setattr(growth, "grown_mib", lambda call: call() is None or 1.0)
    monkeypatch.setattr(growth, "measure_ranks", lambda: {"sizes": (1, 2)})
    monkeypatch.setattr("sys.argv", ["growth", "--rounds", "1", "--out", str(tmp_path)])
    growth.main()
    series = json.loads((tmp_path / "growth_cpu.json").read_text())["series"]
    assert set(series) == {"pairs", "prompt tokens", "CoT tokens", "candidates", "documents", "ranks"}
    assert series["CoT tokens"]["time"]["exponent"] > 0.3, "twelve tokens take longer than two"
    assert "CoT tokens" in (tmp_path / "growth.svg").read_text()


def test_ranks_are_compared_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(command: list[str], **options: Any) -> SimpleNamespace:
        ranks, folder = int(command[-2]), Path(command[-1])
        folder.mkdir(parents=True)
        lines = [
            {"throughput/rows_per_second": 1.0, "throughput/seconds_per_step": seconds / ranks}
            for seconds in (90.0, 90.0, 4.0, 4.0)
        ]
        loss = {"train/loss_cot": 2.0 + ranks * 1e-7}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line | loss) + "\n" for line in lines))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(growth.subprocess, "run", train)
    found = measure_ranks()
    assert found["seconds"] == [[4.0, 2.0], [4.0, 2.0]]
    assert found["time"]["exponent"] == pytest.approx(-1)
    assert found["loss_difference"] == pytest.approx(1e-7)
