"""The benchmarks of vision and training, over shapes that take seconds: equal outputs, and ratios that add up."""

from __future__ import annotations

import json
import os
from unittest import mock

import pytest
import torch

from experiments.benchmarks import fsdp2_stages, pairs, random_qwen3vl, sft_step, train_step, vision
from experiments.benchmarks.pairs import Timing, in_turn, speedup
from experiments.benchmarks.random_qwen3vl import random_model
from twn_lightning.backbone.parameters import SHAPES, LanguageModelShape

SMALL = LanguageModelShape(64, 2, 4, 2, 16, 96, 512, True)


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    monkeypatch.setitem(random_qwen3vl.SIZES, "midsize", SMALL)
    monkeypatch.setenv("OUT", str(tmp_path))


def run(monkeypatch, tmp_path, module, *arguments):
    name = module.__name__.rpartition(".")[2]
    monkeypatch.setattr("sys.argv", [name, *arguments])
    module.main()
    found = json.loads((tmp_path / f"{name}_cpu.json").read_text())
    assert found["command"] == " ".join(["python -m", module.__name__, *arguments])
    return found


def test_vision_outputs_agree(monkeypatch, tmp_path):
    monkeypatch.setattr(vision, "cases", lambda cuda: {"equal": [(4, 4)] * 3, "mixed": [(4, 4), (2, 6), (4, 4)]})
    cases = run(monkeypatch, tmp_path, vision, "--rounds", "1")["cases"]
    for found in cases.values():
        assert found["outputs_agree"]
        assert found["positions_equal"]
        assert found["relative_error"] < 1e-5
        assert found["speedup"]["ratio"] > 0
    assert cases["mixed"]["patches"] == 44


def test_the_training_step_learns_what_the_peer_learns(monkeypatch, tmp_path):
    arguments = ["--rounds", "1", "--rows", "2", "--side", "4", "--cot-tokens", "5", "--no-compile", "--profile"]
    found = run(monkeypatch, tmp_path, train_step, *arguments)
    assert found["outputs_agree"]
    assert found["first_losses"]["ours"] == pytest.approx(found["first_losses"]["transformers"], rel=1e-5)
    ways = found["rows"]["2"]["ours, plain layers"]
    assert ways["ours, plain layers"]["tokens_per_second"] > 0
    assert ways["transformers"]["mfu"] > 0
    assert "aten::mm" in (tmp_path / "profile_ours_plain_layers.txt").read_text()


def test_utilisation_counts_the_decoder_layers_only():
    model, processor = random_model("midsize", "cpu", torch.float32)
    batch = train_step.make_batch(model, processor.eot_id, 2, 4, 5, torch.device("cpu"))
    assert batch.tokens == 2 * (4 + train_step.TEXT_TOKENS + 5)
    assert batch.patches == 2 * 16
    layers = SMALL.parameters - SMALL.vocabulary * SMALL.hidden
    found = train_step.utilisation("midsize", batch, 1000, seconds=2.0, rate=1e6)
    assert found["mfu"] == pytest.approx((4 * layers * batch.tokens + 2 * 1000 * 32) / 2e6)


def test_a_stage_1_step_is_compared_with_reading_again(monkeypatch, tmp_path):
    apart = dict.fromkeys((sft_step.OURS, sft_step.PEER), sft_step.Grown(gib=2.0, seconds=9.0, loss_cot=1.0))
    monkeypatch.setattr(sft_step, "grown", lambda part: apart)
    sizes = ["--batch", "4", "--whole-batch", "3", "--chunk", "2", "--side", "4", "--cot-tokens", "5"]
    found = run(monkeypatch, tmp_path, sft_step, "--size", "midsize", "--rounds", "1", *sizes)
    for part, rows, peer_chunk in ((sft_step.WHOLE, 3, 3), (sft_step.CHUNKED, 4, 2)):
        assert found[part]["outputs_agree"]
        assert (found[part]["batch"], found[part]["peer_chunk"]) == (rows, peer_chunk)
        assert found[part]["ways"]["ours"]["speedup"]["ratio"] > 0
        assert found[part]["ways"]["ours"]["memory_ratio"] == 1
    assert found[sft_step.CHUNKED]["ways"]["ours, caches read again"]["speedup"]["ratio"] > 0


def test_memory_is_measured_in_processes_of_their_own(monkeypatch):
    sizes = ["--whole-batch", "16", "--chunk", "4", "--side", "4", "--cot-tokens", "40"]
    monkeypatch.setattr("sys.argv", ["sft_step", "--size", "midsize", *sizes])
    ours, peer = (sft_step.grown(sft_step.WHOLE)[way] for way in (sft_step.OURS, sft_step.PEER))
    assert ours.gib < peer.gib, "four rows at a time against sixteen"
    assert ours.loss_cot == pytest.approx(peer.loss_cot, rel=1e-3)
    assert min(ours.seconds, peer.seconds) > 0


def test_a_stage_runs_on_one_rank_of_fsdp2(tmp_path):
    with mock.patch.dict(os.environ):  # the process group leaves its address there
        found = fsdp2_stages.run_stage("sft", "midsize", rows=2, cot_tokens=4, folder=tmp_path / "sft")
    assert found["rows_per_second"] > 0
    assert {"reasoning", "embedding", "queries.pt"} <= set(found["exported"])


def test_random_models_have_the_true_shapes():
    with torch.device("meta"):
        tokenizer = random_qwen3vl.tiny_tokenizer()
        config = random_qwen3vl.qwen3vl_config("qwen3vl_4b", tokenizer)
        model = random_qwen3vl.Qwen3VLForConditionalGeneration(config)
    language = sum(p.numel() for p in model.model.language_model.parameters())
    assert language == SHAPES["qwen3vl_4b"].parameters
    assert config.text_config.rope_parameters["mrope_section"] == [24, 20, 20]


def test_a_way_that_fails_leaves_the_others(capsys):
    def fails():
        raise RuntimeError("out of memory")

    timings = in_turn({"good": lambda: None, "bad": fails}, "cpu", rounds=3)
    assert len(timings["good"].seconds) == 3
    assert timings["bad"].record() == {"error": "RuntimeError: out of memory"}
    assert speedup(timings["good"], timings["bad"]) is None


def test_speedups_are_ratios_of_medians():
    found = speedup(Timing([2.0, 4.0, 6.0]), Timing([1.0, 2.0, 3.0]))
    assert found == {"ratio": 2.0, "low": 2.0, "high": 2.0}
    assert pairs.Timing([3.0, 1.0, 2.0]).median == 2.0
