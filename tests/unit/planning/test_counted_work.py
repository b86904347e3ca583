"""Counts of operations, calls and bytes, worked out by hand on a model of one layer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from twn_lightning.backbone.parameters import LanguageModelShape, VisionShape
from twn_lightning.planning import ModelShape, model_shape
from twn_lightning.planning.constants import Rate, device_named
from twn_lightning.planning.work import Costs, Load, times, total
from twn_lightning.settings import ModelSettings

LANGUAGE = LanguageModelShape(
    hidden=4,
    layers=1,
    heads=2,
    key_value_heads=1,
    head_dim=2,
    intermediate=8,
    vocabulary=10,
    tied_embeddings=True,
)
VISION = VisionShape(
    depth=1, hidden=2, intermediate=4, patch_values=6, merged=4, positions=3, deepstack=0, out_hidden=4
)
COSTS = Costs(ModelShape(LANGUAGE, VISION), rank=1, weight_bytes=2, value_bytes=2)
# q 4x4, k and v 4x2, o 4x4, gate and up 4x8, down 8x4
LINEARS = 16 + 8 + 8 + 16 + 32 + 32 + 32
LORA = 8 + 6 + 6 + 8 + 12 + 12 + 12


def test_parameters_of_the_layer() -> None:
    assert LANGUAGE.layer_parameters == LINEARS
    assert LANGUAGE.lora_parameters(1) == LORA


def test_reading() -> None:
    load = COSTS.read(tokens=6, columns=3, passes=2, logits=5)["read"]
    attention = 4 * 4 * 3  # queries by keys and weights by values, 4 values each, over 3 columns
    assert load.operations == 6 * (2 * (LINEARS + LORA) + attention) + 5 * 2 * 10 * 4
    assert load.layers == 2


def test_training_is_two_more_passes_for_lora_and_one_for_the_frozen_weights() -> None:
    read = COSTS.read(tokens=6, columns=3, passes=2, logits=5)["read"].operations
    train = COSTS.train(tokens=6, columns=3, passes=2, logits=5)["train"]
    assert train.operations == 2 * read + 2 * 6 * LORA
    assert train.layers == 2


def test_decoding_reads_weights_every_step_and_caches_for_every_token() -> None:
    load = COSTS.decode(rows=3, prompt=10, tokens=4, steps=6, batches=2)["decode"]
    cache_token = 2 * 1 * 2 * 2  # keys and values, one head of two values, two bytes
    assert load.bytes == 2 * 6 * (LINEARS + LORA + 40) * 2 + 12 * (10 + 2) * cache_token
    assert load.layers == 2 * 6


def test_no_images_cost_nothing() -> None:
    assert COSTS.see(visual_tokens=0, passes=3, image_tokens=1)["vision"] == Load()
    assert COSTS.see(visual_tokens=8, passes=3, image_tokens=4)["vision"].layers == 3


def test_sums_and_multiples() -> None:
    one = {"read": Load(1, 2, 3), "train": Load(4, 5, 6)}
    assert total(one, {"read": Load(10, 10, 10)}) == {"read": Load(11, 12, 13), "train": Load(4, 5, 6)}
    assert times(2, one) == {"read": Load(2, 4, 6), "train": Load(8, 10, 12)}


def test_seconds_are_the_slower_of_arithmetic_and_memory_and_the_calls() -> None:
    rates = {"read": Rate(0.5), "decode": Rate(0.5, seconds_per_layer=0.25)}
    device = replace(device_named("h100"), matmul_tflops=2.0, memory_gb_per_second=100, rates=rates)
    seconds = device.seconds({"read": Load(3e12), "decode": Load(1e12, layers=4, bytes=500e9)})
    assert seconds["read"] == pytest.approx(3.0)
    assert seconds["decode"] == pytest.approx(5.0 + 1.0)


def test_checkpointing_slows_training_only() -> None:
    device = device_named("h100")
    work = {"read": Load(1e15), "train": Load(1e15)}
    plain, checkpointed = device.seconds(work), device.seconds(work, checkpointing=True)
    assert checkpointed["read"] == plain["read"]
    assert checkpointed["train"] == pytest.approx(plain["train"] * device.checkpointing)


def test_gathering_is_slower_across_nodes() -> None:
    device = device_named("h100")
    assert device.seconds_to_gather(8e9, 8) == pytest.approx(7e9 / (device.gb_per_second_within_node * 1e9))
    assert device.seconds_to_gather(8e9, 16) > device.seconds_to_gather(8e9, 8)


def test_the_shares_of_the_h100_are_those_of_its_measurements() -> None:
    """The rates in constants.yaml, from the times that its comments name."""
    costs, device = Costs(model_shape(ModelSettings("qwen3vl_4b")), 32, 2, 2), device_named("h100")
    measured = {
        "read": (costs.read(32 * 322, 322, 1), 0.410 - 0.113),
        "vision": (costs.see(32 * 256, 1, 256), 0.113),
        "train": (costs.train(9000, 322, 1), 1.0),
        "decode": (costs.decode(32, 322, 64, 64), 0.642),
    }
    for kind, (work, seconds) in measured.items():
        assert sum(device.seconds(work).values()) == pytest.approx(seconds, rel=0.02), kind
