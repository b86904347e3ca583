"""The CoT probe and the mode matrix: on the random `tiny` backbone, told what to think, and on hand-made embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.encoding import Encoded, encode
from twn_lightning.backbone.loading import load_backbone
from twn_lightning.errors import DataError
from twn_lightning.evaluation import cot_probe, mode_matrix
from twn_lightning.evaluation.cot_probe import CONDITIONS, READING, condition_scores, lenders, probe_cots
from twn_lightning.evaluation.mode_matrix import matrix_scores
from twn_lightning.evaluation.probes import grouped_scores, query_columns, read_columns, write_columns
from twn_lightning.settings import AdapterSettings, InterfaceSettings, LoraSettings, ModelSettings
from twn_lightning.types import EmbeddingMode, Item, Pair, Side

WORDS = ("red", "green", "blue")


class MadeSource:
    """Six queries of one task, two for each of three targets, and one query of a task with a single target."""

    name = "made"
    tasks = ("colour", "lonely")

    def pairs(self, split: str, count: int) -> list[Pair]:
        made = []
        for row in range(6):
            word = WORDS[row % 3]
            kind = ("direct", "steps")[row // 3]
            query = Item(f"made/{row}/{kind}", "Find", f"query {row}", cot=cot_of(f"see {row}", word))
            made.append(Pair(query, Item(word, "", word), "colour", word, steps=row))
        lonely = Item("made/6/lookalike", "Find", "the only one", cot=cot_of("alone", "grey"))
        return [*made, Pair(lonely, Item("grey", "", "grey"), "lonely", "grey", steps=0)][:count]

    def candidates(self, split: str, task: str) -> list[Item]:
        words = WORDS if task == "colour" else ("grey", "black")
        return [Item(word, "", word) for word in words]


def cot_of(thought: str, answer: str) -> str:
    return f"<think>{thought}</think><answer>{answer}</answer>"


@pytest.fixture(scope="module")
def backbone() -> DualLoRABackbone:
    torch.manual_seed(0)
    adapters = AdapterSettings(reasoning=LoraSettings(4, 8), embedding=LoraSettings(4, 8), num_queries=2)
    backbone = load_backbone(ModelSettings(name="tiny"), adapters, InterfaceSettings())
    with torch.no_grad():
        for group in ("reasoning", "embedding"):
            for parameter in backbone.group_parameters(group):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return backbone.eval()


@pytest.fixture
def probe(backbone: DualLoRABackbone, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`probe(texts, source)`: the model "writes" these CoTs, in the order of the queries."""

    def run(texts: Sequence[str], source: Any = None, batch_size: int = 14) -> cot_probe.CotProbe:
        waiting = iter(texts)

        def write(model: DualLoRABackbone, state: Any, **_: Any) -> SimpleNamespace:
            rows = [next(waiting) for _ in range(len(state))]
            ids = [tuple(model.processor.tokenizer(text)["input_ids"]) for text in rows]
            cots = cot_probe.cot_batch(ids, model.processor.pad_id)
            closed = torch.tensor([text.endswith("</answer>") for text in rows])
            return SimpleNamespace(cots=replace(cots, closed_B=closed))

        monkeypatch.setattr(cot_probe, "decode_cots", write)
        return probe_cots(backbone, source or MadeSource(), "test", 7, batch_size=batch_size, max_new_tokens=99)

    return run


TEACHERS = [pair.query.cot or "" for pair in MadeSource().pairs("test", 7)]


def embedding(backbone: DualLoRABackbone, query: Item, cot: str) -> torch.Tensor:
    """The plain generative embedding of one query under one CoT."""
    cots = backbone.processor.encode_cots([cot])
    with torch.no_grad():
        state = backbone.reason(backbone.processor([query]), cots)
        return backbone.embed(state, ["generative"]).generative_BD[0]


def test_each_condition_reads_the_cot_it_says(backbone: DualLoRABackbone, probe: Any) -> None:
    """Whatever the batches, a condition's embedding is the plain one of its CoT."""
    columns = probe(TEACHERS).columns
    lender_Q = lenders(MadeSource().pairs("test", 7), np.random.default_rng(0))
    for row, pair in enumerate(MadeSource().pairs("test", 6)):
        other = MadeSource().pairs("test", 7)[lender_Q[row]]
        texts = {
            "other": other.query.cot,
            "other_answer": cot_of(f"see {row}", other.positive.text),
            "answer_only": cot_of("", pair.positive.text),
            "think_only": cot_of(f"see {row}", ""),
        }
        own = embedding(backbone, pair.query, TEACHERS[row])
        for name, text in texts.items():
            wanted = float(embedding(backbone, pair.query, text) @ own)
            assert columns[f"cosine/{name}"][row] == pytest.approx(wanted, abs=1e-5)
            assert wanted < 1 - 1e-4
            assert columns[f"tokens/{name}"][row] == backbone.processor.count_tokens(text)


def test_the_own_cot_and_none_are_the_two_plain_modes(backbone: DualLoRABackbone, probe: Any) -> None:
    columns = probe(TEACHERS).columns
    queries = [pair.query for pair in MadeSource().pairs("test", 6)]
    corpus = MadeSource().candidates("test", "colour")
    e_CD = encode(backbone, corpus, EmbeddingMode.DISCRIMINATIVE).embedding_ND
    plain = {
        "none": encode(backbone, queries, EmbeddingMode.DISCRIMINATIVE).embedding_ND,
        "own": torch.stack([embedding(backbone, q, cot) for q, cot in zip(queries, TEACHERS, strict=False)]),
    }
    for name, e_QD in plain.items():
        wanted = (e_QD @ e_CD.T).argmax(1) == torch.arange(6) % 3
        assert columns[f"hit/{name}"][:6].tolist() == wanted.double().tolist()
    assert columns["tokens/none"].sum() == 0
    np.testing.assert_allclose(columns["cosine/own"], 1, atol=1e-5)


def test_a_teacher_that_says_the_same_changes_nothing(probe: Any) -> None:
    columns = probe(TEACHERS).columns
    assert columns["unchanged/teacher"].tolist() == [1.0] * 7
    np.testing.assert_allclose(columns["cosine/teacher"], 1, atol=1e-5)
    other_teachers = probe([text.replace("see", "saw") for text in TEACHERS]).columns
    assert other_teachers["unchanged/teacher"].tolist() == [0.0] * 6 + [1.0]


def test_conditions_without_a_cot_are_left_out(probe: Any) -> None:
    class WithoutTeachers(MadeSource):
        def pairs(self, split: str, count: int) -> list[Pair]:
            return [replace(p, query=replace(p.query, cot=None)) for p in super().pairs(split, count)]

    result = probe(TEACHERS, WithoutTeachers())
    assert np.isnan(result.columns["hit/teacher"]).all()
    assert np.isnan(result.columns["hit/other"]).tolist() == [False] * 6 + [True]  # nobody to borrow from
    scores = result.scores()
    assert list(scores["all"]) == [name for name in CONDITIONS if name != "teacher"]
    assert scores["all"]["other"]["queries"] == 6
    assert scores["all"]["own"]["queries"] == 7
    assert "other" not in scores["by_task"]["lonely"]


def test_malformed_and_unclosed_cots_are_counted_not_probed(probe: Any) -> None:
    texts = [*TEACHERS[:5], "<think>no answer</think>", "<think>never closed"]
    result = probe(texts)
    assert len(result.columns["task"]) == 5
    assert result.scores()["queries"] == 7
    assert result.scores()["malformed_cot_rate"] == pytest.approx(2 / 7)
    with pytest.raises(DataError, match="none of the 7 generated CoTs is well formed"):
        probe(["nonsense"] * 7)


def test_batches_do_not_change_the_result(probe: Any) -> None:
    small, large = probe(TEACHERS, batch_size=3).columns, probe(TEACHERS, batch_size=100).columns
    for name in READING:
        np.testing.assert_allclose(small[f"cosine/{name}"], large[f"cosine/{name}"], atol=1e-5)


def test_lenders_have_another_target_of_the_same_task() -> None:
    pairs = MadeSource().pairs("test", 7)
    found = lenders(pairs, np.random.default_rng(3))
    assert found[-1] == -1
    assert all(pairs[j].target_hash != pair.target_hash for pair, j in zip(pairs[:6], found, strict=False))
    assert (found[:6] < 6).all()


def test_differences_are_paired_over_the_queries_that_have_the_condition() -> None:
    values = ("hit", "cosine", "tokens", "unchanged")
    columns = {f"{value}/{name}": np.ones(3) for name in CONDITIONS for value in values}
    columns |= {f"follows/{name}": np.zeros(3) for name in ("other", "other_answer")}
    columns["cosine_of_two_queries"] = np.full(3, 0.25)
    columns["hit/own"] = np.array([1.0, 0.0, 0.0])
    columns["hit/other"] = np.array([0.0, 0.0, np.nan])
    scores = condition_scores(columns)
    assert scores["other"]["hit@1"]["mean"] == 0
    assert scores["other"]["minus_own"]["mean"] == pytest.approx(-0.5)
    assert scores["none"]["minus_own"]["mean"] == pytest.approx(2 / 3)
    assert scores["other"]["cosine_of_two_queries"] == 0.25


def test_groups_and_files_keep_every_query(tmp_path: Path) -> None:
    columns = query_columns(MadeSource().pairs("test", 7)) | {"hit": np.array([1.0, np.nan, *[0.0] * 5])}
    scores = grouped_scores(columns, lambda some: {"count": len(some["hit"])})
    assert scores["all"] == {"count": 7}
    assert scores["by_kind"] == {"direct": {"count": 3}, "lookalike": {"count": 1}, "steps": {"count": 3}}
    assert scores["by_steps"] == {"0": {"count": 2}, "1-3": {"count": 3}, "4+": {"count": 2}}
    assert scores["by_task"] == {"colour": {"count": 6}, "lonely": {"count": 1}}
    write_columns(columns, tmp_path / "deep" / "columns.parquet")
    back = read_columns(tmp_path / "deep" / "columns.parquet")
    assert back.keys() == columns.keys()
    for name, values in columns.items():
        np.testing.assert_array_equal(back[name], values)


# --- the mode matrix -------------------------------------------------------------------------------------------------


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


def test_each_cell_pairs_its_two_modes(backbone: DualLoRABackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates swap red and green when they think; the second and third query need to think to be right."""
    sides = {
        "query": made_encoding([RED, RED, RED], [RED, GREEN, BLUE], [0.1, 0.9, 0.2]),
        "candidate": made_encoding([RED, GREEN, BLUE], [GREEN, RED, BLUE], [0.1, 0.1, 0.9]),
    }
    monkeypatch.setattr(
        mode_matrix, "encode", lambda _, items, **options: sides["query" if items[0].key[0] == "m" else "candidate"]
    )
    result = mode_matrix.mode_matrix(
        backbone, MadeSource(), "test", 3, gate=None, threshold=0.5, batch_size=8, max_new_tokens=4
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
    candidates = result.scores()["candidates"]["colour"]
    assert candidates == {
        "candidates": 3,
        "tokens": 4.0,
        "malformed_cot_rate": pytest.approx(1 / 3),
        "think_rate": pytest.approx(1 / 3),
    }
    scores = matrix_scores(result.columns)
    assert scores["think_rate"] == pytest.approx(1 / 3)
    assert scores["generative/generative"]["minus_discriminative"]["mean"] == 0
    assert scores["generative/discriminative"]["minus_discriminative"]["mean"] == pytest.approx(2 / 3)


def test_without_a_gate_there_is_no_adaptive_mode(backbone: DualLoRABackbone) -> None:
    """`tiny` never closes a CoT, so generative falls back to discriminative on both sides."""
    result = mode_matrix.mode_matrix(
        backbone, MadeSource(), "test", 7, gate=None, threshold=0.5, batch_size=4, max_new_tokens=3
    )
    hits = [values for name, values in result.columns.items() if name.startswith("hit/")]
    assert len(hits) == 4
    assert all((values == hits[0]).all() for values in hits)
    assert result.candidates["lonely"]["malformed_cot_rate"] == 1
    queries = [pair.query for pair in MadeSource().pairs("test", 6)]
    e_QD = encode(backbone, queries, EmbeddingMode.DISCRIMINATIVE).embedding_ND
    e_CD = encode(backbone, MadeSource().candidates("test", "colour"), EmbeddingMode.DISCRIMINATIVE).embedding_ND
    wanted = ((e_QD @ e_CD.T).argmax(1) == torch.arange(6) % 3).double()
    assert hits[0][:6].tolist() == wanted.tolist()


def test_a_gate_that_knows_sides_is_told_them(backbone: DualLoRABackbone) -> None:
    from twn_lightning.gate import RoutingGate

    gate = RoutingGate(2 * backbone.hidden_size, 8, use_side=True)
    with torch.no_grad():
        gate.outer.weight.fill_(1.0)
        assert gate.side is not None
        gate.side.weight[list(Side).index(Side.QUERY)] = 50.0
        gate.side.weight[list(Side).index(Side.CANDIDATE)] = -50.0
    result = mode_matrix.mode_matrix(
        backbone, MadeSource(), "test", 7, gate=gate, threshold=0.5, batch_size=4, max_new_tokens=3
    )
    assert result.columns["think"].tolist() == [1.0] * 7
    assert result.candidates["colour"]["think_rate"] == 0
