"""Distillation in stage 1: it moves the embedder alone, in both schedules, and weight 0 leaves training as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from twn_lightning.objectives import contrastive
from twn_lightning.settings import SFTSettings


def gradients(run: Any) -> dict[str, torch.Tensor]:
    """Of one joint step, before any optimizer step."""
    run.stage.manual_backward = torch.Tensor.backward
    run.stage.eval()
    run.stage.joint_step(next(iter(run.stage.data.train_dataloader())))
    return {name: p.grad.clone() for name, p in run.stage.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("prefix", ["reasoning", "none", "embedding"])
def test_its_gradient_reaches_the_embedder_and_never_the_reasoner(prefix: str, build: Any) -> None:
    with_term, without = (
        build(SFTSettings(batch_size=8, chunk_size=8, cot_weight=0.0, distill_weight=w), adapters={"prefix": prefix})
        for w in (1.0, 0.0)
    )
    found, plain = gradients(with_term), gradients(without)
    reasoner = {id(p) for p in with_term.backbone.group_parameters("reasoning")}
    named = [(name, id(p) in reasoner) for name, p in with_term.stage.named_parameters() if p.requires_grad]
    assert not any(found[name].any() for name, reasons in named if reasons and name in found)
    assert max(float((found[name] - plain[name]).abs().max()) for name, reasons in named if not reasons) > 1e-5


def test_chunks_give_the_gradients_of_the_whole_batch(build: Any) -> None:
    whole, chunked = (
        gradients(build(SFTSettings(batch_size=8, chunk_size=size, distill_weight=2.0))) for size in (8, 3)
    )
    for name, gradient in whole.items():
        torch.testing.assert_close(chunked[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("schedule", ["joint", "two_phase"])
def test_training_differs_by_the_weight_alone(schedule: str, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(weight: float) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        run = build(
            SFTSettings(
                schedule=schedule,  # type: ignore[arg-type]
                batch_size=4,
                max_steps=2,
                embedding_steps=2,
                embedding_batch_size=4,
                stored_pairs=12,
                distill_weight=weight,
            )
        ).fit()
        history = run.run_folder.history()
        run.run_folder.metrics_log.unlink()
        return run.backbone.trainable_state(), history

    distilled, history = train(1.0)
    assert all(line["train/loss_distillation"] > 0 for line in history if "train/loss_nce_generative" in line)
    plain, _ = train(0.0)
    monkeypatch.setattr(contrastive, "similarity_distillation", lambda *args, **options: torch.tensor(torch.nan))
    untouched, history = train(0.0)
    assert not any("train/loss_distillation" in line for line in history)
    for name, value in plain.items():
        assert torch.equal(untouched[name], value), f"weight 0 changed {name}"
        if name.startswith("reasoning."):
            assert torch.equal(distilled[name], value), f"distillation changed {name}"
    assert not torch.equal(distilled["queries"], plain["queries"])
