"""The mode matrix: on hand-made embeddings, and on the random `tiny` backbone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tests.support.colour_source import ColourSource
from tests.support.tiny_adapters import random_backbone
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.encoding import Encoded, encode
from twn_lightning.evaluation import mode_matrix
from twn_lightning.evaluation.mode_matrix import matrix_scores, side_modes
from twn_lightning.gate import RoutingGate
from twn_lightning.types import EmbeddingMode, Item, Side

MODES = tuple(mode.value for mode in EmbeddingMode)


@pytest.fixture(scope="module")
def backbone() -> DualLoRABackbone:
    return random_backbone(0.3)


def made_encoding(discriminative: list[list[float]], generative: list[list[float]], think: list[float]) -> Encoded:
    count = len(think)
    e_g = torch.tensor(generative)
    return Encoded(
        discriminative_ND=torch.tensor(discriminative),
        generative_ND=e_g,
        embedding_ND=e_g,
        think_N=torch.ones(count, dtype=torch.bool),
        probability_N=torch.tensor(think),
        cot_texts=["a CoT"] * count,
        tokens_N=torch.full((count,), 4),
        malformed_N=torch.arange(count) == 0,
        prompt_tokens_N=torch.full((count,), 9),
        features_NF=torch.zeros(count, 2),
    )


RED, GREEN, BLUE = torch.eye(3).tolist()


class Captioned(ColourSource):
    """Candidates that are too long to be labels, so that they may think; and of the second task one label."""

    def candidates(self, split: str, task: str) -> list[Item]:
        words = super().candidates(split, task)
        kept = words[:1] if task == "lonely" else []
        return kept + [replace(item, text=" ".join([item.text] * 9)) for item in words[len(kept) :]]


def test_each_cell_pairs_its_two_modes(backbone: DualLoRABackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates swap red and green when they think; the second and third query need to think to be right."""
    sides = {
        "query": made_encoding([RED, RED, RED], [RED, GREEN, BLUE], [0.1, 0.9, 0.2]),
        "candidate": made_encoding([RED, GREEN, BLUE], [GREEN, RED, BLUE], [0.1, 0.1, 0.9]),
    }
    monkeypatch.setattr(
        mode_matrix, "encode", lambda _, items, **options: sides["query" if items[0].key[0] == "m" else "candidate"]
    )
    gate = RoutingGate(2 * backbone.hidden_size, 8)
    result = mode_matrix.mode_matrix(
        backbone, Captioned(), "test", 3, gate=gate, threshold=0.5, batch_size=8, max_new_tokens=4
    )
    hits = {name: values.tolist() for name, values in result.columns.items() if name.startswith("hit/")}
    assert hits == {
        "hit/discriminative/discriminative": [1, 0, 0],
        "hit/discriminative/generative": [0, 1, 0],
        "hit/discriminative/adaptive": [1, 0, 0],
        "hit/generative/discriminative": [1, 1, 1],
        "hit/generative/generative": [0, 0, 1],
        "hit/generative/adaptive": [1, 1, 1],
        "hit/adaptive/discriminative": [1, 1, 0],
        "hit/adaptive/generative": [0, 0, 0],
        "hit/adaptive/adaptive": [1, 1, 0],
    }
    scores = result.scores()
    assert scores["gate_trained_on"] == "query"
    assert scores["candidates"]["colour"] == {
        "candidates": 3,
        "tokens": 4.0,
        "malformed_cot_rate": pytest.approx(1 / 3),
        "think_rate": pytest.approx(1 / 3),
    }
    assert scores["all"]["think_rate"] == pytest.approx(1 / 3)
    assert scores["all"]["generative/generative"]["minus_discriminative"]["mean"] == 0
    assert scores["all"]["generative/discriminative"]["minus_discriminative"]["mean"] == pytest.approx(2 / 3)


def test_tokens_of_candidates_are_paid_once_for_the_index() -> None:
    """Six tokens a CoT on either side; the gate lets a third of the queries and half of the candidates think."""
    columns = {"think": np.array([1.0, 0.0, 0.0])}
    for mode, share in {"discriminative": 0.0, "generative": 1.0, "adaptive": 0.5}.items():
        columns[f"tokens/{mode}"] = 6 * (columns["think"] if mode == "adaptive" else np.full(3, share))
        columns[f"candidate_tokens/{mode}"] = np.full(3, 6 * share)
    columns |= {f"hit/{mode}/{other}": np.ones(3) for mode in MODES for other in MODES}
    scores = matrix_scores(columns)
    costs = {cell: list(scores[cell]["tokens_at_reuse"].values()) for cell in scores if "/" in cell}
    assert costs["discriminative/discriminative"] == [0, 0, 0]
    assert costs["generative/discriminative"] == [6, 6, 6]
    assert costs["generative/generative"] == pytest.approx([12, 6.6, 6.06])
    assert costs["adaptive/adaptive"] == pytest.approx([5, 2.3, 2.03])
    joint = scores["adaptive/adaptive"]
    assert (joint["tokens_per_query"], joint["tokens_per_candidate"]) == (2, 3)


def test_candidates_that_are_labels_never_think(backbone: DualLoRABackbone) -> None:
    """They keep their place in the corpus and their discriminative embedding; a gate that would think is not heard."""
    gate = RoutingGate(2 * backbone.hidden_size, 8)
    with torch.no_grad():
        gate.outer.bias.fill_(9.0)
    result = mode_matrix.mode_matrix(
        backbone, Captioned(), "test", 7, gate=gate, threshold=0.5, batch_size=4, max_new_tokens=3
    )
    assert result.candidates["colour"]["think_rate"] == 1
    assert result.candidates["colour"]["tokens"] == 3
    assert result.candidates["lonely"]["think_rate"] == 0.5
    assert result.columns["candidate_tokens/adaptive"].tolist() == [3.0] * 6 + [1.5]
    items = Captioned().candidates("test", "lonely")
    found = side_modes(items, [False, True], partial(encode, backbone, max_new_tokens=3), 0.5)
    plain = encode(backbone, items, EmbeddingMode.DISCRIMINATIVE).embedding_ND
    assert found.tokens_N["generative"].tolist() == [0, 3]
    assert "adaptive" not in found.embeddings_ND
    for e_ND in found.embeddings_ND.values():  # `tiny` never closes a CoT, so every mode falls back
        torch.testing.assert_close(e_ND, plain, rtol=0, atol=1e-5)


def test_without_a_gate_there_is_no_adaptive_mode(backbone: DualLoRABackbone) -> None:
    """`tiny` never closes a CoT, so generative falls back to discriminative on both sides."""
    result = mode_matrix.mode_matrix(
        backbone, Captioned(), "test", 7, gate=None, threshold=0.5, batch_size=4, max_new_tokens=3
    )
    hits = [values for name, values in result.columns.items() if name.startswith("hit/")]
    assert len(hits) == 4
    assert all((values == hits[0]).all() for values in hits)
    assert result.gate_trained_on is None
    assert result.candidates["colour"]["malformed_cot_rate"] == 1
    queries = [pair.query for pair in ColourSource().pairs("test", 6)]
    e_QD = encode(backbone, queries, EmbeddingMode.DISCRIMINATIVE).embedding_ND
    e_CD = encode(backbone, Captioned().candidates("test", "colour"), EmbeddingMode.DISCRIMINATIVE).embedding_ND
    wanted = ((e_QD @ e_CD.T).argmax(1) == torch.arange(6) % 3).double()
    assert hits[0][:6].tolist() == wanted.tolist()


def test_a_gate_that_knows_sides_is_told_them(backbone: DualLoRABackbone) -> None:
    gate = RoutingGate(2 * backbone.hidden_size, 8, use_side=True)
    with torch.no_grad():
        gate.outer.weight.fill_(1.0)
        assert gate.side is not None
        gate.side.weight[list(Side).index(Side.QUERY)] = 50.0
        gate.side.weight[list(Side).index(Side.CANDIDATE)] = -50.0
    result = mode_matrix.mode_matrix(
        backbone, Captioned(), "test", 7, gate=gate, threshold=0.5, batch_size=4, max_new_tokens=3
    )
    assert result.gate_trained_on == "both"
    assert result.columns["think"].tolist() == [1.0] * 7
    assert result.candidates["colour"]["think_rate"] == 0
