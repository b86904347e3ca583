"""What the three stages share: flags, optimizer groups, refusals, and the numbers of a non-finite loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stage_runs import StageRun, tiny_settings
from twn_lightning.backbone.layout import read_config
from twn_lightning.errors import CheckpointError, NumericalError
from twn_lightning.settings import GateStageSettings, RLSettings, SFTSettings
from twn_lightning.stages.checkpoint_content import random_state, restore_random_state
from twn_lightning.stages.optim import Group, build_optimizer, warmup_cosine

SFT = SFTSettings(batch_size=4, chunk_size=4, max_steps=1)
GATE = GateStageSettings(batch_size=16, max_epochs=1)
RL = RLSettings(prompts_per_step=2, completions_per_prompt=2, max_steps=1)


@pytest.mark.parametrize(
    ("stage", "trained"),
    [(SFT, {"reasoning", "embedding", "queries"}), (GATE, {"gate"}), (RL, {"reasoning"})],
    ids=["sft", "gate", "rl"],
)
def test_exactly_the_stages_parameters_require_grad(stage: Any, trained: set[str], build: Any) -> None:
    run = build(stage)
    expected = {id(p) for group in trained - {"gate"} for p in run.backbone.group_parameters(group)} | {
        id(p) for p in (run.stage.gate.parameters() if "gate" in trained else ())
    }
    flagged = {id(p) for p in run.stage.parameters() if p.requires_grad}
    assert expected
    assert flagged == expected


def test_one_optimizer_with_named_groups_and_no_decay_on_queries(build: Any) -> None:
    run = build(SFT)
    optimizer = run.stage.configure_optimizers()["optimizer"]
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert list(groups) == ["reasoning", "embedding", "queries"]
    assert groups["queries"]["weight_decay"] == 0
    assert groups["queries"]["initial_lr"] == SFT.query_learning_rate
    assert groups["embedding"]["initial_lr"] == SFT.learning_rate


def test_shared_arrangement_has_no_empty_group(build: Any) -> None:
    run = build(SFT, adapters={"arrangement": "shared"})
    optimizer = run.stage.configure_optimizers()["optimizer"]
    assert [group["name"] for group in optimizer.param_groups] == ["reasoning", "queries"]


def test_a_gate_is_carried_along_with_its_threshold(build: Any, tmp_path: Path) -> None:
    gated = build(GATE)
    gated.stage.threshold = 0.31
    gated.stage.export()
    start = {"init_from": str(gated.run_folder.adapters)}
    later = StageRun(tiny_settings(RL, tmp_path / "later", adapters=start))
    later.stage.export()
    assert read_config(later.run_folder.adapters)["gate_threshold"] == 0.31
    state = later.backbone.load_adapters(later.run_folder.adapters)
    assert all(torch.equal(value, gated.stage.gate.state_dict()[name]) for name, value in state.items())


def test_a_checkpoint_of_another_stage_says_what_to_do(build: Any, tmp_path: Path) -> None:
    build(SFT).fit()
    other = StageRun(tiny_settings(GATE, tmp_path / "gate"))
    with pytest.raises(CheckpointError, match=r"belongs to stage 'sft', this run is stage 'gate'.*adapters\.init_from"):
        other.fit(resume=tmp_path / "run")


def test_a_checkpoint_of_another_backbone_says_which(build: Any, tmp_path: Path) -> None:
    build(SFT).fit()
    other = build(SFT)
    other.backbone.digest = "0" * 64
    with pytest.raises(CheckpointError, match=r"trained on backbone 'tiny'.*'tiny' \(digest 000000000000\)"):
        other.fit(resume=tmp_path / "run")


def test_a_foreign_checkpoint_is_refused(build: Any, tmp_path: Path) -> None:
    run = build(SFT).fit()
    checkpoint = run.last_checkpoint()
    del checkpoint["twn"]
    torch.save(checkpoint, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="not a checkpoint that this package can resume"):
        build(SFT).fit(resume=tmp_path / "foreign.ckpt")


def test_a_nan_loss_names_stage_step_and_learning_rate(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = build(SFTSettings(batch_size=4, chunk_size=4, max_steps=3))
    plain, calls = run.stage.cot_loss, []

    def breaks_in_the_second_step(*arguments: Any) -> torch.Tensor:
        calls.append(None)
        return plain(*arguments) * (math.nan if len(calls) == 2 else 1.0)

    monkeypatch.setattr(run.stage, "cot_loss", breaks_in_the_second_step)
    with pytest.raises(NumericalError, match=r"stage sft, step 2: .*loss is nan.*stage\.learning_rate=0\.002"):
        run.fit()


def test_adapters_are_exported_and_load_again(build: Any, tmp_path: Path) -> None:
    run = build(SFT).fit()
    assert read_config(run.run_folder.adapters)["stage"] == "sft"
    fresh = build(SFT)
    fresh.backbone.load_adapters(run.run_folder.adapters)
    best = torch.load(run.run_folder.best_checkpoint, weights_only=True)["state_dict"]
    for name, value in fresh.backbone.trainable_state().items():
        assert torch.equal(value, best[f"backbone.{name}"]), name


def test_the_stage_reports_before_and_after(build: Any) -> None:
    run = build(SFT).fit()
    metrics = run.stage.final_metrics()
    assert run.stage.summary()["metric"] == "val/hit@1_generative"
    assert metrics["val/hit@1_generative/before"] == run.stage.before["val/hit@1_generative"]
    steps = [line["step"] for line in run.run_folder.history() if "val/hit@1_generative" in line]
    assert steps == [0, 1]


def test_schedule_warms_up_then_falls_to_zero() -> None:
    factors = [warmup_cosine(step, steps=100, warmup_ratio=0.1) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1.0
    assert factors[99] < 1e-3
    assert factors[100] == 0.0
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_groups_follow_their_own_schedule() -> None:
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer, scheduler = build_optimizer(
        [Group("first", [first], 1.0, 0.0, steps=4), Group("second", [second], 1.0, 0.0, steps=4, start=4)], 0.0
    )
    rates = []
    for _ in range(8):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert [rate[1] for rate in rates[:4]] == [0, 0, 0, 0]
    assert [rate[0] for rate in rates[:4]] == [rate[1] for rate in rates[4:]]


def test_random_states_survive_a_round_trip() -> None:
    state = random_state()
    expected = torch.rand(3)
    torch.manual_seed(99)
    restore_random_state(state)
    assert torch.equal(torch.rand(3), expected)
