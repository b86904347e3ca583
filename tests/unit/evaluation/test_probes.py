"""The CoT probe on the random `tiny` backbone, told what to think, and what the probes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.colour_source import ColourSource, cot_of
from tests.support.tiny_adapters import random_backbone
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.encoding import encode
from twn_lightning.errors import DataError
from twn_lightning.evaluation import cot_probe
from twn_lightning.evaluation.cot_probe import CONDITIONS, READING, condition_scores, lenders, probe_cots
from twn_lightning.evaluation.probes import grouped_scores, query_columns, read_columns, write_columns
from twn_lightning.types import EmbeddingMode, Item, Pair


@pytest.fixture(scope="module")
def backbone() -> DualLoRABackbone:
    return random_backbone(0.3)


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
        return probe_cots(backbone, source or ColourSource(), "test", 7, batch_size=batch_size, max_new_tokens=99)

    return run


TEACHERS = [pair.query.cot or "" for pair in ColourSource().pairs("test", 7)]


def embedding(backbone: DualLoRABackbone, query: Item, cot: str) -> torch.Tensor:
    """The plain generative embedding of one query under one CoT."""
    cots = backbone.processor.encode_cots([cot])
    with torch.no_grad():
        state = backbone.reason(backbone.processor([query]), cots)
        return backbone.embed(state, ["generative"]).generative_BD[0]


def test_each_condition_reads_the_cot_it_says(backbone: DualLoRABackbone, probe: Any) -> None:
    """Whatever the batches, a condition's embedding is the plain one of its CoT."""
    columns = probe(TEACHERS).columns
    lender_Q = lenders(ColourSource().pairs("test", 7), np.random.default_rng(0))
    for row, pair in enumerate(ColourSource().pairs("test", 6)):
        other = ColourSource().pairs("test", 7)[lender_Q[row]]
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
    queries = [pair.query for pair in ColourSource().pairs("test", 6)]
    corpus = ColourSource().candidates("test", "colour")
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
    class WithoutTeachers(ColourSource):
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
    pairs = ColourSource().pairs("test", 7)
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
    columns = query_columns(ColourSource().pairs("test", 7)) | {"hit": np.array([1.0, np.nan, *[0.0] * 5])}
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
