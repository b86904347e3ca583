"""The benchmarks of whole systems at their smallest: an RL step, loading, latency, a suite. Outputs are the peers'."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.benchmarks import decoders, grpo_step, latency, loader, random_qwen3vl, suite
from twn_lightning.backbone.parameters import LanguageModelShape

SMALL = LanguageModelShape(64, 2, 4, 2, 16, 96, 512, True)


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    monkeypatch.setitem(random_qwen3vl.SIZES, "midsize", SMALL)
    monkeypatch.setattr(decoders, "VISUAL_SIDE", 4)
    monkeypatch.setattr(decoders, "TEXT_TOKENS", 6)
    monkeypatch.setenv("OUT", str(tmp_path))


def run(monkeypatch, tmp_path, module, *arguments):
    name = module.__name__.rpartition(".")[2]
    monkeypatch.setattr("sys.argv", [name, *arguments])
    module.main()
    return json.loads((tmp_path / f"{name}_cpu.json").read_text())


def test_a_step_of_rl_has_the_gradients_of_trl(monkeypatch, tmp_path):
    sizes = ["--prompts", "2", "--completions", "3", "--tokens", "4", "--rounds", "1"]
    found = run(monkeypatch, tmp_path, grpo_step, *sizes)
    assert found["outputs_agree"]
    assert found["first_gradients"]["relative_difference"] < 1e-5
    assert {len(timing["seconds"]) for timing in found["timings"].values()} == {1}
    assert found["speedup"]["ratio"] > 0


def test_gradients_are_compared_whichever_way_they_differ():
    own = {"a": np.array([3.0]), "b": np.array([4.0])}
    ours, theirs = ({n: torch.tensor(v * k) for n, v in own.items()} for k in (1.0, -1.0))
    assert grpo_step.compared(ours, theirs) == pytest.approx({"relative_difference": 2.0, "cosine": -1.0})


def test_workers_load_what_one_process_loads(monkeypatch, tmp_path):
    sizes = ["--batches", "3", "--batch-size", "3", "--pairs", "6", "--frames", "12", "--rounds", "1"]
    found = run(monkeypatch, tmp_path, loader, *sizes, "--workers", "1")
    assert found["outputs_agree"]
    assert found["bound"] == 1.5
    assert found["bound_here"] == pytest.approx(1.5 / max(0.5, 1 / found["loading_gain"]))
    assert found["step_seconds"] == pytest.approx(found["loading_seconds"] / 2)
    assert all(0 < share < 1 for share in found["waiting_share"].values())


def test_a_consumer_gets_the_same_batches_every_round(tmp_path):
    loader.make_corpus(tmp_path, pairs=6, frames=12)
    consumer = loader.Consumer(loader.build_loader(tmp_path, 6, 2, 3, workers=0))
    shown = list(consumer.batches())
    assert len(shown) == 2
    assert any(batch.queries.pixel_values_videos is not None for batch in shown)
    assert any(batch.queries.pixel_values is not None for batch in shown)
    assert any(batch.candidates.pixel_values is not None for batch in shown)
    assert consumer.digest() == consumer.digest()


def test_latency_thinks_only_where_the_gate_says_so(monkeypatch, tmp_path):
    sizes = ["--queries", "5", "--easy", "0.6", "--rounds", "1", "--tokens", "4", "--side", "2"]
    found = run(monkeypatch, tmp_path, latency, *sizes)
    for model in ("nano", "midsize"):
        assert found[model]["outputs"]["cots_as_generate"] == 1
        assert found[model]["think_rate"] == 0.4
        assert found[model]["speedup"]["ratio"] > 0
        assert len(found[model]["timings"][latency.OURS]["seconds"]) == 5


def test_percentiles_are_over_queries():
    latencies = {latency.OURS: np.array([1.0, 1.0, 4.0]), latency.PEER: np.array([3.0, 6.0, 8.0])}
    found = latency.percentile_ratio(latencies, 50)
    assert found["ratio"] == 6.0
    assert found["low"] <= 6.0 <= found["high"]
    split = latency.summary(latencies[latency.OURS], np.array([False, False, True]))
    assert (split["p50"], split["median_thinking"], split["median_not_thinking"]) == (1000, 4000, 1000)
    assert latency.summary(np.array([1.0]), np.array([False]))["median_thinking"] is None


def test_a_warm_suite_has_the_scores_of_a_cold_one(monkeypatch, tmp_path):
    found = run(monkeypatch, tmp_path, suite, "--queries", "22", "--rounds", "1")
    assert found["outputs_agree"]
    assert set(found["scores"]["routers"]) >= {"never", "always", "adaptive"}
    assert found["items_from_cache"]["warm"] > found["items_from_cache"]["cold"]


def test_other_scores_do_not_agree():
    scores = {"tasks": {"a": 1.0}}
    others = SimpleNamespace(
        scores={suite.COLD: [scores], suite.WARM: [{"tasks": {"a": 0.5}}]}, reused={suite.COLD: 0, suite.WARM: 9}
    )
    assert not suite.Suite.outputs_agree(others)
    others.scores[suite.WARM] = [scores]
    assert suite.Suite.outputs_agree(others)
