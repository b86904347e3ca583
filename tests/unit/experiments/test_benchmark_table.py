"""Rows of the table of speed: each result's numbers, bars and verdicts, as its benchmark writes them."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.benchmarks.table import Row, read_rows, rows_of

SPEEDUP = {"ratio": 2.0, "low": 1.5, "high": 2.5}
SAME = {"tokens_equal": True, "log_prob_difference": 0.0}


def verdicts(name: str, result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    return [(row.case, row.measured, row.bar_text, row.verdict) for row in rows_of(name, result)]


def think(**outputs: float) -> dict[str, Any]:
    return {
        "model": "midsize",
        "dtype": "torch.float32",
        "rows": 4,
        "tokens": 8,
        "outputs": {"tokens_as_generate": 1.0, "least_cosine_to_one_pass": 1.0, **outputs},
        "adaptive_encode": {"speedup": SPEEDUP, "speedup_merged": SPEEDUP, "bar": 3.0},
        "embed_after_think": {"speedup": SPEEDUP, "bar": 2.0},
    }


def test_think() -> None:
    found = rows_of("think", think())
    adaptive = ("adaptive_encode", False)
    assert [(row.benchmark, row.met) for row in found] == [adaptive, adaptive, ("embed_after_think", True)]
    assert found[0].measured == "2.00 x [1.50, 2.50]"
    case = "midsize, 4 prompts, CoTs of 8 tokens"
    assert [row.case for row in found] == [case, f"{case}, merged copy", case]


@pytest.mark.parametrize(
    ("dtype", "outputs", "agree"),
    [
        ("torch.float32", {"tokens_as_generate": 0.9}, False),
        ("torch.float32", {"least_cosine_to_one_pass": 0.99}, False),
        ("torch.bfloat16", {"tokens_as_generate": 0.9, "least_cosine_to_one_pass": 0.99}, True),
        ("torch.bfloat16", {"least_cosine_to_one_pass": 0.9}, False),
        ("torch.float32", {}, True),
    ],
)
def test_outputs_must_agree_as_far_as_their_precision_goes(dtype: str, outputs: dict[str, float], agree: bool) -> None:
    assert {row.agree for row in rows_of("think", {**think(**outputs), "dtype": dtype})} == {agree}


def decode(bars: dict[str, Any], **changes: Any) -> dict[str, Any]:
    ways = ("ours, unmerged", "ours, merged copy")
    return {
        "model": "midsize",
        "rows": 8,
        "bars": {"log_prob_drift_mean": 0.02, **bars},
        "small_equality": {"fused": SAME, "merged": SAME},
        "outputs": {"fused": {"log_prob_drift_mean": 0.01}},
        "rates": {way: {"tokens_per_second": 3000.0, "rounds": [2900.0, 3100.0]} for way in ways},
        "times_generate": dict.fromkeys(ways, SPEEDUP),
        **changes,
    }


def test_decode_on_a_cpu_is_a_ratio() -> None:
    nano = {"rows": 64, "times_generate": dict.fromkeys(("ours, unmerged", "ours, merged copy"), SPEEDUP)}
    nano["rates"] = decode({})["rates"]
    found = verdicts("decode", decode({"times_generate": 1.5}, nano=nano))
    assert [case for case, *_ in found] == [
        "nano, 64 prompts, unmerged",
        "nano, 64 prompts, merged copy",
        "midsize, 8 prompts, unmerged",
        "midsize, 8 prompts, merged copy",
    ]
    assert {rest for _, *rest in map(tuple, found) for rest in [tuple(rest)]} == {
        ("2.00 x [1.50, 2.50]", ">= 1.5 x", "yes")
    }


def test_decode_on_a_gpu_is_a_rate() -> None:
    bars = {"tokens_per_second": {"ours, unmerged": 2600.0, "ours, merged copy": 4000.0}}
    found = verdicts("decode", decode(bars))
    assert [(bar, met) for _, _, bar, met in found] == [(">= 2,600 tokens/s", "yes"), (">= 4,000 tokens/s", "no")]
    assert found[0][1].startswith("3,000 tokens/s [2,")


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": {"fused": {"log_prob_drift_mean": 0.03}}},
        {"small_equality": {"fused": SAME, "merged": {**SAME, "tokens_equal": False}}},
        {"small_equality": {"error": "no room"}},
    ],
)
def test_decoding_that_drifts_is_wrong(changes: dict[str, Any]) -> None:
    found = verdicts("decode", decode({"times_generate": 1.5}, **changes))
    assert {verdict for *_, verdict in found} == {"wrong: outputs differ"}


def test_vision() -> None:
    good = {"speedup": SPEEDUP, "bar": 1.0, "outputs_agree": True}
    cases = {"64 x 64": good, "24 mixed": {**good, "bar": None}, "broken": {"error": "no room"}}
    assert verdicts("vision", {"model": "midsize", "cases": cases}) == [
        ("midsize, 64 x 64 patches", "2.00 x [1.50, 2.50]", ">= 1 x", "yes"),
        ("midsize, 24 mixed images", "2.00 x [1.50, 2.50]", "none here", ""),
    ]


def test_sft_step() -> None:
    ours = {"speedup": SPEEDUP, "memory_ratio": 0.6}
    part = {"batch": 8, "outputs_agree": True, "ways": {"ours": ours}}
    result = {
        "model": "nano",
        "bars": {"memory_without_grad_cache": 0.5, "speedup_over_grad_cache": 1.5, "memory_with_grad_cache": 1.2},
        "without cached representations": part,
        "with cached representations": part,
    }
    assert verdicts("sft_step", result) == [
        ("nano, 8 pairs, peer without cached gradients: memory", "0.60 x", "<= 0.5 x", "no"),
        ("nano, 8 pairs, peer with cached gradients: items/s", "2.00 x [1.50, 2.50]", ">= 1.5 x", "yes"),
        ("nano, 8 pairs, peer with cached gradients: memory", "0.60 x", "<= 1.2 x", "yes"),
    ]


def test_train_step_shows_the_ways_that_ran() -> None:
    ways = {"ours, plain layers": {"ours, plain layers": {"mfu": 0.312}}, "ours, compiled": {"transformers": {}}}
    result = {"model": "qwen3vl_4b", "bar_mfu": 0.3, "outputs_agree": True, "rows": {"8": ways}}
    assert verdicts("train_step", result) == [("qwen3vl_4b, 8 rows, plain layers", "31.20 % MFU", ">= 30 % MFU", "yes")]


def test_latency() -> None:
    found = {
        "queries": 40,
        "think_rate": 0.4,
        "outputs": {"cots_as_generate": 1.0},
        "speedup": SPEEDUP,
        "speedup_p95": SPEEDUP,
    }
    rows = rows_of("latency", {"easy": 0.6, "bar": 3.0, "nano": found})
    assert [(row.case, row.met) for row in rows] == [
        ("nano, 40 queries, 40% think: p50", False),
        ("nano, 40 queries, 40% think: p95", None),
    ]
    found["outputs"] = {"cots_as_generate": 0.9}
    assert not any(row.agree for row in rows_of("latency", {"bar": 3.0, "nano": found}))


def test_one_ratio_for_a_whole_benchmark() -> None:
    result = {"speedup": SPEEDUP, "bar": 2.0, "outputs_agree": True, "model": "nano", "queries": 1100}
    result |= {"prompts": 4, "completions_per_prompt": 8, "tokens": 32}
    result |= {"workers": 2, "step_seconds": 0.5, "loading_seconds": 1.0, "bound_here": 3.0}
    for name, case in (
        ("suite", "nano, 1,100 queries"),
        ("grpo_step", "nano, 4 prompts x 8 completions of 32 tokens"),
        ("loader", "2 workers, a step of 0.5 times loading a batch (at most 3 x here)"),
    ):
        assert verdicts(name, result) == [(case, "2.00 x [1.50, 2.50]", ">= 2 x", "yes")]
        assert not any(row.agree for row in rows_of(name, {**result, "outputs_agree": False}))


def test_growth_is_an_exponent_below_a_bar() -> None:
    exponent = {"exponent": 1.0, "low": 0.9, "high": 1.1, "bar": 1.15}
    pairs = {"work": "a step", "sizes": [32, 64], "time": exponent, "memory": {**exponent, "exponent": 1.3}}
    ranks = {"work": "a step", "sizes": [1, 2], "time": exponent, "loss_difference": 1.0}
    assert verdicts("growth", {"series": {"pairs": pairs, "ranks": ranks}}) == [
        ("time of a step (32, 64)", "1.00 [0.90, 1.10]", "<= 1.15", "yes"),
        ("memory of a step (32, 64)", "1.30 [0.90, 1.10]", "<= 1.15", "no"),
        ("time of a step (1, 2)", "1.00 [0.90, 1.10]", "<= 1.15", "wrong: outputs differ"),
    ]


def test_a_stage_that_failed_has_no_row() -> None:
    stages = {"sft": {"rows_per_second": 12.0, "peak_memory_gb": 41.0}, "rl": {"error": "no room"}}
    assert rows_of("fsdp2_stages", {"model": "qwen3vl_4b", "stages": stages}) == [
        Row("fsdp2_stages", "qwen3vl_4b, stage sft, one rank, 41 GB", 12.0, unit="rows/s")
    ]


def test_no_result_is_not_an_empty_one(tmp_path: Any) -> None:
    assert read_rows("think", "cpu", tmp_path) is None
