"""Recorded prefixes: their ends are the two modes, and what is written comes back."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.tiny_adapters import random_backbone
from twn_lightning.backbone import encoding
from twn_lightning.backbone.decoding import Decoded, decode_cots
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.errors import DataError
from twn_lightning.evaluation import prefix_outcomes
from twn_lightning.evaluation.prefix_outcomes import PrefixOutcomes, cuts_up_to, record_prefixes
from twn_lightning.evaluation.suite import encode_outcomes, evaluate_source
from twn_lightning.gate import RoutingGate
from twn_lightning.settings import (
    EvaluationSettings,
    GateSettings,
)
from twn_lightning.types import Item, Pair

CAP, STRIDE = 7, 3
WORDS = ("one", "two words", "three short words", "and four words more", "five", "a sixth", "seven of them")


class WordSource:
    """Two tasks whose queries are texts and whose candidates are other texts."""

    name = "words"
    tasks = ("words/a", "words/b")

    def candidates(self, split: str, task: str) -> list[Item]:
        return [Item(f"{task}/{i}", "", f"{task[-1]} {word}") for i, word in enumerate(WORDS)]

    def pairs(self, split: str, count: int) -> list[Pair]:
        found = []
        for row in range(min(count, 10)):
            task = self.tasks[row % 2]
            positive = self.candidates(split, task)[row % len(WORDS)]
            query = Item(f"words/{split}/{row}/steps", "Find", f"number {row}")
            found.append(Pair(query, positive, task, positive.key, steps=row))
        return found


@pytest.fixture
def backbone() -> DualLoRABackbone:
    """`tiny` with adapters that are not zero."""
    return random_backbone(0.3)


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model never writes `</answer>`: let the CoTs of every second query count as closed."""

    def decode(*arguments: Any, **options: Any) -> Decoded:
        found = decode_cots(*arguments, **options)
        closed_B = torch.arange(len(found.cots)) % 2 == 0
        found.cots.closed_B = closed_B
        return found

    monkeypatch.setattr(prefix_outcomes, "decode_cots", decode)
    monkeypatch.setattr(encoding, "decode_cots", decode)


def record(backbone: DualLoRABackbone, **options: Any) -> PrefixOutcomes:
    options = {"count": 10, "batch_size": 4, "gate": None} | options
    return record_prefixes(
        backbone, WordSource(), "test", stride=STRIDE, max_new_tokens=CAP, gate_settings=GateSettings(), **options
    )  # fmt: skip


@pytest.mark.usefixtures("closing")
def test_the_first_and_the_last_cut_are_the_two_modes(backbone: DualLoRABackbone) -> None:
    found = record(backbone)
    pairs = WordSource().pairs("test", 10)
    expected = encode_outcomes(
        backbone, WordSource(), "test", pairs, gate=None, gate_settings=GateSettings(), batch_size=4, max_new_tokens=CAP
    )
    assert found.cuts_P.tolist() == [0, 3, 6, 7]
    assert found.hit_NP[:, 0].tolist() == [o.hit_discriminative for o in expected]
    assert found.hit_NP[:, -1].tolist() == [o.hit_generative for o in expected]
    np.testing.assert_allclose(found.loss_NP[:, 0], [o.loss_discriminative for o in expected], atol=1e-4)
    np.testing.assert_allclose(found.loss_NP[:, -1], [o.loss_generative for o in expected], atol=1e-4)
    assert found.tokens_N.tolist() == [o.tokens for o in expected]
    assert [o.malformed for o in expected] == [False, True, False, True] * 2 + [False, True]
    assert np.abs(found.loss_NP[:, 0] - found.loss_NP[:, 2]).max() > 1e-3
    assert found.steps.tolist() == list(range(10))
    assert set(found.kind) == {"steps"}


@pytest.mark.usefixtures("closing")
def test_an_unclosed_cot_falls_back_at_its_end_only(backbone: DualLoRABackbone) -> None:
    found = record(backbone)
    unclosed = np.array([1, 3, 5, 7, 9])
    assert (found.tokens_N == CAP).all()
    np.testing.assert_allclose(found.loss_NP[unclosed, -1], found.loss_NP[unclosed, 0], atol=1e-5)
    assert (np.abs(found.loss_NP[unclosed, 2] - found.loss_NP[unclosed, 0]) > 1e-5).any()
    assert (found.moved_NP[:, 0] == 0).all()
    assert (found.moved_NP[:, 1] > 0).all()


def test_the_suite_leaves_cots_early_where_it_is_told(backbone: DualLoRABackbone) -> None:
    found, whole = (
        evaluate_source(
            backbone,
            WordSource(),
            "test",
            6,
            gate=None,
            threshold=0.5,
            gate_settings=GateSettings(),
            evaluation=EvaluationSettings(exit_tolerance=tolerance, routers=["never", "always"], bootstrap_samples=10),
            max_new_tokens=CAP,
        )
        for tolerance in (1.0, None)
    )
    assert [outcome.tokens for outcome in found.outcomes] == [4] * 6  # the first check is after four tokens
    assert not any(outcome.malformed for outcome in found.outcomes)
    assert [outcome.tokens for outcome in whole.outcomes] == [CAP] * 6


def test_batches_change_nothing(backbone: DualLoRABackbone) -> None:
    whole, parts = record(backbone, batch_size=10), record(backbone, batch_size=3)
    for field in fields(PrefixOutcomes):
        first, second = getattr(whole, field.name), getattr(parts, field.name)
        if first.dtype.kind == "f":
            np.testing.assert_allclose(first, second, atol=1e-4)
        else:
            np.testing.assert_array_equal(first, second)


def test_what_is_written_comes_back(backbone: DualLoRABackbone, tmp_path: Path) -> None:
    found = record(backbone, count=3)
    found.write(tmp_path / "prefixes" / "test.npz")
    again = PrefixOutcomes.read(tmp_path / "prefixes" / "test.npz")
    for field in fields(PrefixOutcomes):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(found, field.name))
    assert [path.name for path in (tmp_path / "prefixes").iterdir()] == ["test.npz"]


def test_the_gate_is_asked_without_deciding_anything(backbone: DualLoRABackbone) -> None:
    gate = RoutingGate(2 * backbone.hidden_size, 8)
    torch.nn.init.normal_(gate.outer.weight)
    found, plain = record(backbone, gate=gate), record(backbone)
    expected = gate(torch.from_numpy(plain.features_NF)).sigmoid().detach()
    np.testing.assert_allclose(found.probability_N, expected, atol=1e-5)
    np.testing.assert_array_equal(found.tokens_N, plain.tokens_N)
    assert np.isnan(plain.probability_N).all()


def test_tokens_spent_and_columns(backbone: DualLoRABackbone) -> None:
    found = replace(record(backbone, count=2), tokens_N=np.array([4, 7]))
    assert found.spent_NP.tolist() == [[0, 3, 4, 4], [0, 3, 6, 7]]
    assert found.column(6) == 2
    with pytest.raises(DataError, match=r"no embedding after 5 tokens was recorded, only after \[0, 3, 6, 7\]"):
        found.column(5)
    assert cuts_up_to(8, 4) == [0, 4, 8]
