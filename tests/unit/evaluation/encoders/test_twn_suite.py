"""A suite of TWN's adaptive mode through the cache: every threshold, gate and mode equals an uncached run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.made_tasks import PROTOCOL, made_task
from tests.support.suite_runs import predictions
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.evaluation.adaptive_cache import cached_encoder
from twn_lightning.evaluation.benchmark_suite import SuiteResult, run_suite
from twn_lightning.evaluation.embedding_cache import EmbeddingCache
from twn_lightning.evaluation.encoders.protocol import EncodedItems
from twn_lightning.evaluation.encoders.twn import AdaptiveEncoder
from twn_lightning.gate.routing_gate import RoutingGate
from twn_lightning.types import EmbeddingMode, Item, Side

QUERIES = 12
ADAPTIVE = EmbeddingMode.ADAPTIVE


def above(count: int, backbone: DualLoRABackbone, gate: RoutingGate, items: list[Item]) -> float:
    """A threshold that so many of the items are above."""
    probability_N = AdaptiveEncoder(backbone, gate).decide(items, Side.QUERY).probability_N
    assert probability_N is not None
    return float(np.sort(probability_N).astype(float)[-count - 1 :][:2].mean())


def suite(encoder: AdaptiveEncoder, folder: Path, cache: Path | None, query_mode: str = "adaptive") -> SuiteResult:
    protocol = replace(PROTOCOL, query_mode=query_mode)
    return run_suite(
        encoder,
        [made_task(queries=QUERIES, protocol=protocol)],
        output=folder,
        protocol=protocol,
        chunk_size=5,
        cache=None if cache is None else EmbeddingCache(cache),
        bootstrap_samples=10,
    )


def assert_same(found: SuiteResult, expected: SuiteResult) -> None:
    for name in ("score", "think_rate", "tokens_per_query", "malformed", "digest"):
        assert found.scores["T0"][name] == expected.scores["T0"][name], name
    for mine, other in zip(predictions(found, "T0"), predictions(expected, "T0"), strict=True):
        same: dict[str, Any] = {name: mine[name] for name in ("query", "prediction", "think", "tokens")}
        assert same == {name: other[name] for name in same}
        assert mine["probability"] == pytest.approx(other["probability"], abs=1e-6)


def test_two_thresholds_a_second_gate_and_the_generative_mode(
    backbone: DualLoRABackbone,
    make_gate: Callable[..., RoutingGate],
    closing: list[int],
    tmp_path: Path,
) -> None:
    gate, other = make_gate(), make_gate(seed=1)
    queries = made_task(queries=QUERIES).queries
    high, low, middle = (above(n, backbone, g, queries) for n, g in ((3, gate), (8, gate), (6, other)))
    cases = [
        ("few", AdaptiveEncoder(backbone, gate, high, max_new_tokens=3), "adaptive"),
        ("more", AdaptiveEncoder(backbone, gate, low, max_new_tokens=3), "adaptive"),
        ("all", AdaptiveEncoder(backbone, gate, low, max_new_tokens=3), "generative"),
        ("gate", AdaptiveEncoder(backbone, other, middle, max_new_tokens=3), "adaptive"),
    ]
    decoded, thought = [], []
    for name, encoder, mode in cases:
        closing.clear()
        found = suite(encoder, tmp_path / "cached" / name, tmp_path / "cache", mode)
        decoded.append(sum(closing))
        expected = suite(encoder, tmp_path / "plain" / name, None, mode)
        assert_same(found, expected)
        thought.append(round(found.scores["T0"]["think_rate"] * QUERIES))
    assert thought == [3, 8, QUERIES, 6]
    assert decoded == [3, 8 - 3, QUERIES - 8, 0]


def test_composed_embeddings_equal_adaptive_encoding(
    backbone: DualLoRABackbone,
    make_gate: Callable[..., RoutingGate],
    closing: list[int],
    peer_items: list[Item],
    tmp_path: Path,
) -> None:
    gate = make_gate()

    def through(threshold: float) -> tuple[EncodedItems, EncodedItems]:
        encoder = AdaptiveEncoder(backbone, gate, threshold, max_new_tokens=3)
        cached = cached_encoder(encoder, Side.QUERY, ADAPTIVE, EmbeddingCache(tmp_path))
        found = cached.encode(peer_items)
        cached.flush()
        return found, encoder.encode(peer_items, Side.QUERY, ADAPTIVE)

    for count, atol in ((2, 0.0), (2, 0.0), (5, 1e-6)):
        found, expected = through(above(count, backbone, gate, peer_items))
        for name in ("embedding_ND", "discriminative_ND"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=atol)
        for name in ("think_N", "probability_N", "tokens_N", "malformed_N"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert found.cots == expected.cots
        assert found.think_N is not None
        assert found.think_N.sum() == count
