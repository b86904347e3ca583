"""Outcomes against hand-made embeddings; the suite on nano; adaptive encoding = the composed outcomes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.encoding import Encoded, encode
from twn_lightning.backbone.loading import load_backbone
from twn_lightning.data.sources.nano import NanoSource
from twn_lightning.errors import DataError
from twn_lightning.evaluation import Evaluation, evaluate_source, task_outcomes
from twn_lightning.gate import RoutingGate
from twn_lightning.run import RunFolder
from twn_lightning.settings import (
    AdapterSettings,
    DataSettings,
    EvaluationSettings,
    GateSettings,
    InterfaceSettings,
    ModelSettings,
)
from twn_lightning.types import EmbeddingMode, Item, Pair

CANDIDATES = [Item(f"c{i}", "", name) for i, name in enumerate(("red", "green", "blue"))]


def encoded(discriminative: list[list[float]], generative: list[list[float]]) -> Encoded:
    count = len(discriminative)
    e_d, e_g = torch.tensor(discriminative), torch.tensor(generative)
    return Encoded(
        discriminative_ND=e_d,
        generative_ND=e_g,
        embedding_ND=e_g,
        think_N=torch.ones(count, dtype=torch.bool),
        probability_N=torch.full((count,), 0.7),
        cot_texts=["a CoT"] * count,
        tokens_N=torch.full((count,), 5),
        malformed_N=torch.zeros(count, dtype=torch.bool),
        prompt_tokens_N=torch.full((count,), 9),
        features_NF=torch.zeros(count, 2),
    )


def pair(key: str, positive: Item) -> Pair:
    return Pair(Item(key, "", key), positive, "task", positive.key)


def test_outcomes_of_hand_made_embeddings() -> None:
    pairs = [pair("q0", CANDIDATES[0]), pair("q1", CANDIDATES[2])]
    wrong_then_right = encoded([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0], [0.6, 0.0, 0.8]])
    first, second = task_outcomes(
        pairs, wrong_then_right, CANDIDATES, torch.eye(3), label_temperature=0.05, num_negatives=1023
    )
    # q0 without CoT: green is best and blue ties with the positive, which counts against it.
    assert (first.rank_discriminative, first.rank_generative) == (3, 1)
    assert first.top1_discriminative.text == "green"
    assert first.margin == pytest.approx(1.0)
    assert first.loss_discriminative == pytest.approx(np.log(3), abs=1e-5)  # capped at chance
    assert first.loss_generative == pytest.approx(np.log1p(2 * np.exp(-20)), abs=1e-6)
    assert (second.rank_discriminative, second.rank_generative) == (1, 1)
    assert second.loss_generative == pytest.approx(np.log(1 + np.exp(-4) + np.exp(-16)), abs=1e-5)


def test_a_positive_outside_the_corpus_is_named() -> None:
    with pytest.raises(DataError, match="'q0' of task: its positive 'missing'"):
        task_outcomes(
            [pair("q0", Item("missing", "", "?"))],
            encoded([[1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]]),
            CANDIDATES,
            torch.eye(3),
            label_temperature=0.05,
            num_negatives=8,
        )


@pytest.fixture(scope="module")
def backbone() -> DualLoRABackbone:
    torch.manual_seed(0)
    return load_backbone(ModelSettings(), AdapterSettings(num_queries=2), InterfaceSettings()).eval()


@pytest.fixture(scope="module")
def gate(backbone: DualLoRABackbone) -> RoutingGate:
    torch.manual_seed(1)
    gate = RoutingGate(2 * backbone.hidden_size, 8)
    torch.nn.init.normal_(gate.outer.weight)
    items = [p.query for p in NanoSource(DataSettings()).pairs("gate", 24)]
    gate.standardise_from(encode(backbone, items, EmbeddingMode.DISCRIMINATIVE).features_NF)
    return gate.eval()


@pytest.fixture(scope="module")
def evaluation(backbone: DualLoRABackbone, gate: RoutingGate) -> Evaluation:
    return evaluate_source(
        backbone,
        NanoSource(DataSettings()),
        "test",
        24,
        gate=gate,
        threshold=0.5,
        gate_settings=GateSettings(),
        evaluation=EvaluationSettings(batch_size=10, bootstrap_samples=50),
        max_new_tokens=48,
    )


def test_every_router_is_scored_on_the_same_outcomes(evaluation: Evaluation) -> None:
    scores = evaluation.router_scores
    assert set(scores) == set(EvaluationSettings().routers)
    assert scores["never"].tokens_per_query == 0
    assert scores["always"].tokens_per_query == np.mean([o.tokens for o in evaluation.outcomes])
    assert scores["oracle"].hit_at_1 >= max(scores[name].hit_at_1 for name in ("never", "always", "adaptive"))
    assert 0 < evaluation.think_N.mean() < 1
    assert scores["random"].think_rate == pytest.approx(evaluation.think_N.mean())


def test_adaptive_encoding_equals_the_composed_outcomes(
    backbone: DualLoRABackbone, gate: RoutingGate, evaluation: Evaluation
) -> None:
    """Decoding only the rows that think gives what the suite composes from decoding all of them."""
    items = [o.pair.query for o in evaluation.outcomes]
    both = encode(backbone, items, EmbeddingMode.GENERATIVE, gate=gate, max_new_tokens=48, batch_size=10)
    adaptive = encode(backbone, items, EmbeddingMode.ADAPTIVE, gate=gate, max_new_tokens=48, batch_size=7)
    think = torch.from_numpy(evaluation.think_N)
    assert torch.equal(adaptive.think_N, think)
    wanted = torch.where(think[:, None], both.embedding_ND, both.discriminative_ND)
    torch.testing.assert_close(adaptive.embedding_ND, wanted, rtol=0, atol=2e-5)
    assert (wanted - both.discriminative_ND).abs().max() > 1e-3  # a CoT that closed makes a difference
    assert int(adaptive.tokens_N.sum()) == int(both.tokens_N[think].sum())


def test_written_files_agree_with_each_other(evaluation: Evaluation, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    evaluation.write(run, "key")
    table = pq.read_table(run.gate_decisions)
    assert table.num_rows == 24
    assert any(png is not None for png in table.column("image_png").to_pylist())
    total, hits = 0, 0.0
    for path in sorted((tmp_path / "eval" / "nano" / "key").glob("*/scores.json")):
        scores = json.loads(path.read_text())
        total += scores["num_queries"]
        hits += scores["hit@1"]["always"] * scores["num_queries"]
        assert len((path.parent / "predictions.jsonl").read_text().splitlines()) == scores["num_queries"]
    assert total == 24
    assert hits / 24 == pytest.approx(evaluation.router_scores["always"].hit_at_1)


def test_an_empty_split_is_an_error_that_names_it(backbone: DualLoRABackbone) -> None:
    with pytest.raises(DataError, match="source 'nano', split 'test': no queries"):
        evaluate_source(
            backbone,
            NanoSource(DataSettings()),
            "test",
            0,
            gate=None,
            threshold=0.5,
            gate_settings=GateSettings(),
            evaluation=EvaluationSettings(),
            max_new_tokens=4,
        )
