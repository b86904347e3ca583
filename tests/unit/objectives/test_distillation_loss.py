"""Distilling e_g into e_d: what it equals, whom its gradient reaches, and that weight 0 changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twn_lightning.errors import ConfigError
from twn_lightning.objectives import combined_contrastive, contrastive, similarity_distillation
from twn_lightning.types import EmbeddingOutput

ROWS, TAU = torch.arange(4), 0.1


def unit(rows: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


QUERIES, CANDIDATES = EmbeddingOutput(unit(4, 0), unit(4, 1)), EmbeddingOutput(unit(4, 2))


def test_a_student_that_is_the_teacher_has_nothing_to_learn() -> None:
    student, teacher, candidates = unit(4, 0), unit(4, 1), unit(6, 2)
    assert similarity_distillation(teacher, teacher, candidates, temperature=TAU) == pytest.approx(0.0, abs=1e-6)
    assert similarity_distillation(student, teacher, candidates, temperature=TAU) > 0.1


def test_a_student_of_zeros_is_behind_by_what_the_teacher_knows() -> None:
    teacher, candidates = unit(4, 1), unit(6, 2)
    loss = similarity_distillation(torch.zeros(4, 8), teacher, candidates, temperature=TAU)
    probability = (teacher @ candidates.T / TAU).softmax(-1)
    entropy = -(probability * probability.log()).sum(-1).mean()
    assert loss == pytest.approx(math.log(6) - float(entropy), rel=1e-5)


def test_only_the_student_learns() -> None:
    student, teacher, candidates = (unit(4, seed).requires_grad_() for seed in range(3))
    similarity_distillation(student, teacher, candidates, temperature=TAU).backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert candidates.grad is None


def test_a_step_down_brings_the_student_nearer() -> None:
    student, teacher, candidates = unit(4, 0).requires_grad_(), unit(4, 1), unit(6, 2)
    before = similarity_distillation(student, teacher, candidates, temperature=TAU)
    before.backward()
    assert student.grad is not None
    after = similarity_distillation(student.detach() - 0.01 * student.grad, teacher, candidates, temperature=TAU)
    assert after < before


def test_the_weight_adds_the_term_and_nothing_else() -> None:
    plain = combined_contrastive(QUERIES, CANDIDATES, ROWS, ROWS, ROWS, temperature=TAU)
    distilled = combined_contrastive(QUERIES, CANDIDATES, ROWS, ROWS, ROWS, temperature=TAU, distill_weight=0.7)
    term = similarity_distillation(
        QUERIES.discriminative_BD, QUERIES.generative_BD, CANDIDATES.discriminative_BD, temperature=TAU
    )
    assert torch.equal(distilled.loss, plain.loss + 0.7 * term)
    assert torch.equal(distilled.distillation, term)


def test_without_a_weight_the_term_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "similarity_distillation", lambda *a, **k: pytest.fail("computed"))
    output = combined_contrastive(QUERIES, CANDIDATES, ROWS, ROWS, ROWS, temperature=TAU)
    assert output.distillation is None


def test_bad_input_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"stage\.distill_weight = 1\.0 .* data\.think_sides=query"):
        combined_contrastive(
            replace(QUERIES, generative_BD=None), EmbeddingOutput(unit(4, 2), unit(4, 3)), ROWS, ROWS, ROWS,
            temperature=TAU, cross_query_generative=0.0, distill_weight=1.0,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"student \(4, 8\) and teacher \(3, 8\) must agree"):
        similarity_distillation(unit(4, 0), unit(3, 0), unit(4, 0), temperature=TAU)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        similarity_distillation(unit(4, 0), unit(4, 0), unit(4, 0), temperature=0)
