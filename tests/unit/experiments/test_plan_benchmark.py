"""The benchmark of `twn plan`: fits that recover rates, memory that is counted, and a run on one small case."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from experiments.benchmarks import plan, plan_cases
from experiments.benchmarks.plan_cases import Case
from twn_lightning.planning import device_named
from twn_lightning.planning.work import Load
from twn_lightning.settings import GateStageSettings, RLSettings, SFTSettings


def test_the_fit_recovers_rates() -> None:
    loads = [Load(1e9, 4), Load(4e9, 4), Load(8e9, 8)]
    seconds = [load.operations / (0.5 * 1e10) + 0.001 * load.layers for load in loads]
    rate = plan.fitted(loads, seconds, rate=1e10)
    assert rate.share == pytest.approx(0.5)
    assert rate.seconds_per_layer == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("share", "per_layer"), [(0.5, -0.001), (2.0, 0.001)], ids=["negative calls", "beyond the matmul rate"]
)
def test_the_fit_stays_possible(share: float, per_layer: float) -> None:
    loads = [Load(1e9, 1), Load(4e9, 2), Load(8e9, 4)]
    seconds = [load.operations / (share * 1e10) + per_layer * load.layers for load in loads]
    rate = plan.fitted(loads, seconds, rate=1e10)
    assert 0 < rate.share <= 1
    assert rate.seconds_per_layer >= 0


def test_peak_bytes_counts_what_is_held_together() -> None:
    def hold() -> None:
        first = torch.ones(2**20)
        second = first + 1
        del first
        second + 1  # as large as the first, which is gone

    assert plan_cases.peak_bytes(hold) == pytest.approx(2 * 4 * 2**20, rel=0.01)


def test_the_cpu_constants_are_those_that_were_measured() -> None:
    measured = json.loads(Path(plan.__file__).with_name("plan.json").read_text())["constants"]
    device = device_named("cpu")
    assert device.matmul_tflops == pytest.approx(measured["matmul_tflops"], rel=0.01)
    assert device.seconds_per_item == pytest.approx(measured["seconds_per_item"], rel=0.01)
    for kind, rate in device.rates.items():
        assert asdict(rate) == pytest.approx(measured["rates"][kind], rel=0.01), kind


@pytest.mark.slow
def test_a_run_predicts_and_measures_every_stage(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    cases = {
        "sft": Case("nano", SFTSettings(batch_size=8, chunk_size=4)),
        "rl": Case("nano", RLSettings(prompts_per_step=4, completions_per_prompt=2, chunk_size=8, pool_size=4)),
        "gate": Case("nano", GateStageSettings(decode_batch_size=50)),
    }
    monkeypatch.setattr(plan, "CASES", cases)
    monkeypatch.setattr(plan, "CALIBRATION_ROWS", (2, 8))
    monkeypatch.setattr("sys.argv", ["plan", "--rounds", "1", "--out", str(tmp_path)])
    threads = torch.get_num_threads()
    plan.main()
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "plan.json").read_text())
    assert list(found["cases"]) == list(cases)
    for case in found["cases"].values():
        assert case["seconds_error"] == pytest.approx(case["seconds_predicted"] / case["seconds_measured"] - 1)
        assert case["seconds_predicted"] > 0
    assert found["cases"]["sft"]["gib_measured"] > 0
    assert set(found["errors"]) == {
        "seconds_error_median",
        "seconds_error_largest",
        "gib_error_median",
        "gib_error_largest",
    }
    assert set(found["constants"]["rates"]) == {"read", "train", "vision", "decode"}
