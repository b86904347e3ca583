"""The gradients of the two losses: they are those of the training step, and measuring them leaves the run as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.stage_runs import StageRun, tiny_settings
from twn_lightning.backbone.adapters import REASONING
from twn_lightning.callbacks import GradientConflict, build_callbacks
from twn_lightning.errors import ConfigError
from twn_lightning.run import RunFolder
from twn_lightning.settings import GateStageSettings, SFTSettings
from twn_lightning.stages.gradient_conflict import LossGradients, conflict_scores, loss_gradients

STAGE = SFTSettings(batch_size=8, chunk_size=3, cot_weight=0.5)
BASELINES = [("kv_joint", "dual"), ("kv_joint", "shared"), ("kv_detached", "shared")]


def measured(run: StageRun) -> LossGradients:
    run.stage.eval()
    return loss_gradients(run.stage, next(iter(run.stage.data.train_dataloader())))


@pytest.mark.parametrize(("interface", "arrangement"), BASELINES)
def test_they_add_up_to_the_gradient_of_the_training_step(interface: str, arrangement: str, build: Any) -> None:
    run = build(STAGE, interface=interface, adapters={"arrangement": arrangement})
    run.stage.eval()
    batch = next(iter(run.stage.data.train_dataloader()))
    found = loss_gradients(run.stage, batch)
    run.stage.manual_backward = torch.Tensor.backward
    run.stage.joint_step(batch)
    trained: dict[int, list[torch.Tensor]] = {}
    for name, parameter in run.backbone.adapters.named_parameters(REASONING).items():
        layer = int(name.split(".layers.")[1].split(".")[0])
        trained.setdefault(layer, []).append(parameter.grad.flatten())
    assert found.cot.keys() == trained.keys()
    for layer, gradients in trained.items():
        together = STAGE.cot_weight * found.cot[layer] + found.contrastive[layer]
        torch.testing.assert_close(together, torch.cat(gradients), rtol=1e-4, atol=1e-6)
    assert found.cosine() is not None


def test_the_cosine_of_a_loss_with_itself_is_1(build: Any) -> None:
    cot = measured(build(STAGE, interface="kv_joint")).cot
    opposite = {layer: -2 * gradient for layer, gradient in cot.items()}
    for layer in (None, *cot):
        assert LossGradients(cot, cot).cosine(layer) == pytest.approx(1)
        assert LossGradients(cot, opposite).cosine(layer) == pytest.approx(-1)


@pytest.mark.parametrize("interface", ["kv_detached", "reencode"])
def test_behind_the_detach_the_contrastive_gradient_is_exactly_0(interface: str, build: Any) -> None:
    found = measured(build(STAGE, interface=interface))
    assert all(not gradient.any() for gradient in found.contrastive.values())
    assert found.cosine() is None
    assert found.values().keys() == {"conflict/norm_cot", "conflict/norm_contrastive"}
    assert found.values()["conflict/norm_contrastive"] == 0
    scores = conflict_scores([found, found])
    assert scores["reaches_shared_weights"] is False
    assert scores["cosine"] is scores["share_negative"] is scores["cosine_of_means"] is None
    assert set(scores["by_layer"].values()) == {None}
    assert scores["norm_cot"] > 0
    assert scores["agreement"]["cot"]["mean"] == pytest.approx(1)


def test_scores_of_hand_made_gradients() -> None:
    """Two layers of one weight each: the losses agree on the first batch and oppose on the other two."""
    one, minus, half = (torch.tensor([value]) for value in (1.0, -1.0, 0.5))
    first = LossGradients({0: one, 1: one}, {0: one, 1: one})
    other = LossGradients({0: one, 1: one}, {0: minus, 1: half})
    scores = conflict_scores([first, other, other])
    apart = -0.5 / (2**0.5 * 1.25**0.5)
    assert scores["cosine"]["mean"] == pytest.approx((1 + 2 * apart) / 3)
    assert scores["share_negative"] == pytest.approx(2 / 3)
    assert scores["by_layer"]["0"]["mean"] == pytest.approx(-1 / 3)
    assert scores["by_layer"]["1"]["mean"] == pytest.approx(1)
    assert scores["cosine_of_means"] == pytest.approx((-1 + 2) / (2**0.5 * 5**0.5))
    assert scores["agreement"]["cot"]["mean"] == pytest.approx(1)
    assert scores["agreement"]["contrastive"]["mean"] == pytest.approx((apart + 1) / 2)
    assert scores["norm_contrastive"] == pytest.approx((2**0.5 + 2 * 1.25**0.5) / 3)


def test_measuring_leaves_no_trace_in_the_run(tmp_path: Any) -> None:
    states, lines = [], []
    for name, every in (("plain", 0), ("measured", 2)):
        stage = SFTSettings(batch_size=4, chunk_size=4, max_steps=4, conflict_every_steps=every)
        settings = tiny_settings(stage, tmp_path / name, interface="kv_joint", adapters={"dropout": 0.5})
        callbacks = tuple(build_callbacks(settings, RunFolder(tmp_path), progress=False))
        run = StageRun(settings, callbacks).fit()
        states.append(run.backbone.trainable_state())
        lines.append([line for line in run.run_folder.history() if "conflict/cosine" in line])
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    assert lines[0] == []
    assert [line["step"] for line in lines[1]] == [1, 2, 4]
    assert all(-1 <= line["conflict/cosine_layer_1"] <= 1 for line in lines[1])


def test_other_stages_have_no_such_callback(tmp_path: Any) -> None:
    settings = tiny_settings(GateStageSettings(), tmp_path)
    callbacks = build_callbacks(settings, RunFolder(tmp_path))
    assert not any(isinstance(callback, GradientConflict) for callback in callbacks)


def test_several_processes_are_refused(build: Any) -> None:
    run = build(STAGE)

    class TwoRanks:
        world_size = 2

    with pytest.raises(ConfigError, match=r"conflict_every_steps=5 .* has 2: set trainer.devices=1"):
        GradientConflict(5).on_fit_start(TwoRanks(), run.stage)
