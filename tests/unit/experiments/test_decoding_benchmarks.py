"""The benchmarks of decoding, over a shape that takes seconds: what they time is the same work, with equal outputs."""

from __future__ import annotations

import json
import time

import pytest
import torch

from experiments.benchmarks import decode, decoders, random_qwen3vl, think
from experiments.benchmarks.pairs import Timing
from twn_lightning.backbone.parameters import LanguageModelShape

SMALL = LanguageModelShape(64, 2, 4, 2, 16, 96, 512, True)


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    monkeypatch.setitem(random_qwen3vl.SIZES, "midsize", SMALL)
    monkeypatch.setattr(decoders, "VISUAL_SIDE", 4)
    monkeypatch.setattr(decoders, "TEXT_TOKENS", 6)
    monkeypatch.setenv("OUT", str(tmp_path))


def test_decode_compares_ways_that_write_the_same(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["decode", "--rows", "3", "--tokens", "5", "--rounds", "1"])
    decode.main()
    result = json.loads((tmp_path / "decode_cpu.json").read_text())
    small = result["small_equality"]
    assert small["plain_as_generate"]
    assert small["sampled_tokens_equal"]
    for way in ("fused", "merged"):
        assert small[way]["tokens_equal"]
        assert small[way]["repeatable"]
        assert small[way]["log_prob_difference"] < 1e-5
    for found in result["outputs"].values():
        assert found["tokens_as_generate"] == 1
        assert found["log_prob_drift_mean"] < 1e-5
    assert result["nano"]["mean_length"] < result["nano"]["longest"]
    ways = {"ours, unmerged", "ours, merged copy", "ours, plain", decode.PEER, f"{decode.PEER}, merged"}
    assert set(result["rates"]) == ways
    assert result["times_generate"][decode.PEER]["ratio"] == 1
    assert "x generate" in capsys.readouterr().out


def test_a_rate_leaves_out_the_reading_of_the_prompts():
    bench = decode.Benchmark(decoders.build_decoders("midsize", torch.device("cpu"), torch.float32, 2), 5)
    bench.after_first[decode.PEER] = [99.0, 8.0]  # the first is a warm-up
    seconds = {"ours, unmerged": 1.0, decode.READING: 3.0, decode.PEER: 10.0}
    rates = bench.rates({name: Timing([value]) for name, value in seconds.items()})
    assert rates == {
        "ours, unmerged": {
            "tokens_per_second": 10.0,
            "rounds": [10.0],
            "with_reading": 2.5,
            "milliseconds_per_step": 200.0,
        },
        decode.PEER: {
            "tokens_per_second": 1.0,
            "rounds": [1.0],
            "with_reading": 1.0,
            "milliseconds_per_step": 2000.0,
        },
    }
    assert decode.times_generate(rates)["ours, unmerged"] == {"ratio": 10.0, "low": 10.0, "high": 10.0}


def test_the_clock_of_generate_starts_at_the_first_token():
    found = decoders.build_decoders("midsize", torch.device("cpu"), torch.float32, 2, merged_peer=False)
    began = time.perf_counter()
    several, one = decoders.peer_generate(found, 6), decoders.peer_generate(found, 1)
    assert 0 < one.seconds_after_first < several.seconds_after_first < time.perf_counter() - began
    assert torch.equal(several.ids_BT[:, :1], one.ids_BT)


def test_a_part_that_fails_leaves_the_others(capsys):
    results = {"done": 1}

    def fails():
        raise ValueError("no room")

    decode.attempt(results, "broken", fails)
    assert results == {"done": 1, "broken": {"error": "ValueError: no room"}}


def test_think_compares_adaptive_with_always(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["think", "--rows", "4", "--tokens", "5", "--rounds", "1"])
    think.main()
    result = json.loads((tmp_path / "think_cpu.json").read_text())
    assert result["outputs"]["tokens_as_generate"] == 1
    assert result["outputs"]["least_cosine_to_one_pass"] > 1 - 1e-5
    assert result["adaptive_encode"]["speedup"]["ratio"] > 0
    assert set(result["items_per_second"]) == set(result["timings"])
