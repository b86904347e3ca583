"""Gradients do not depend on how a step's rows are accumulated: 1 x 8 = 8 x 1, in fp32, for the losses of every stage.

The contrastive losses through cached representations, the others chunk by chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.stage_runs import StageRun, tiny_settings
from twn_lightning.settings import GateStageSettings, RLSettings, SFTSettings
from twn_lightning.stages.labelled_split import LabelledSplit

ROWS = 8
TOLERANCE = 1e-6
"""Of an element of a gradient, relative to the norm of its group."""
Gradients = dict[str, dict[str, Tensor]]
"""By group and parameter."""


@pytest.fixture(autouse=True)
def _plain_torch_state() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def built(stage: Any, folder: Path, interface: str = "kv_detached") -> StageRun:
    """A stage whose adapters are not zero, so that every trained tensor gets a gradient; without dropout."""
    run = StageRun(tiny_settings(stage, folder, interface=interface))
    torch.manual_seed(0)
    with torch.no_grad():
        for group in ("reasoning", "embedding", "queries"):
            for parameter in run.backbone.group_parameters(group):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    run.stage.eval()
    run.stage.manual_backward = torch.Tensor.backward
    run.stage.apply_gradients = lambda clip_norm: {}
    return run


def gradients_of(run: StageRun, step: Callable[[], Any]) -> Gradients:
    run.stage.zero_grad(set_to_none=True)
    step()
    named: Gradients = {}
    for name, parameter in run.stage.named_parameters():
        if parameter.grad is not None:
            group = next(group for group in ("reasoning", "embedding", "queries", "gate") if group in name)
            named.setdefault(group, {})[name] = parameter.grad.clone()
    return named


def assert_equal(found: Gradients, expected: Gradients) -> None:
    assert found.keys() == expected.keys()
    for group, gradients in expected.items():
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients.values()))
        assert norm > 0
        for name, gradient in gradients.items():
            assert float((found[group][name] - gradient).abs().max()) <= TOLERANCE * norm, name


@pytest.mark.parametrize("interface", ["kv_detached", "kv_joint"])
def test_cot_and_contrastive_losses_of_stage_1(interface: str, tmp_path: Path) -> None:
    found = []
    for chunk_size in (ROWS, 3, 1):
        settings = SFTSettings(batch_size=ROWS, chunk_size=chunk_size)
        run = built(settings, tmp_path / str(chunk_size), interface)
        batch = next(iter(run.stage.data.train_dataloader()))
        found.append(gradients_of(run, lambda run=run, batch=batch: run.stage.joint_step(batch)))
    assert found[0].keys() == {"reasoning", "embedding", "queries"}
    for gradients in found[1:]:
        assert_equal(gradients, found[0])


def test_the_gates_loss_in_stage_2(tmp_path: Path) -> None:
    run = built(GateStageSettings(batch_size=ROWS), tmp_path)
    torch.nn.init.normal_(run.stage.gate.outer.weight)
    features_NF, gained_N = torch.randn(ROWS, 2 * run.backbone.hidden_size), torch.arange(ROWS) % 3 - 1.0
    run.stage._labelled["gate"] = LabelledSplit(
        features_NF, gained_N, torch.zeros(ROWS), torch.zeros(ROWS), torch.ones(ROWS), torch.full((ROWS,), 5)
    )
    rows = list(range(ROWS))
    together = gradients_of(run, lambda: run.stage.train_on(rows, 0))
    run.stage.manual_backward = lambda loss: (loss / ROWS).backward()
    one_by_one = gradients_of(run, lambda: [run.stage.train_on([row], 0) for row in rows])
    assert together.keys() == {"gate"}
    assert_equal(one_by_one, together)


def test_the_grpo_loss_of_stage_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "twn_lightning.stages.rewards.format_reward", lambda cots, closed_B: torch.arange(len(cots)) % 2.0
    )
    completions = 2
    run = built(RLSettings(prompts_per_step=ROWS, completions_per_prompt=completions, pool_size=4), tmp_path)
    batch = next(iter(run.stage.data.train_dataloader()))
    scored = run.stage.roll_out(batch, 0)
    num_tokens = int(scored.rollout.cots.mask_BT.sum())
    assert int(scored.advantages_B.count_nonzero()) == ROWS * completions
    found = []
    for prompts in (ROWS, 3, 1):
        run.stage.stage.chunk_size = prompts * completions
        found.append(gradients_of(run, lambda: run.stage.update(batch, scored, num_tokens)))
    assert found[0].keys() == {"reasoning"}
    for gradients in found[1:]:
        assert_equal(gradients, found[0])
