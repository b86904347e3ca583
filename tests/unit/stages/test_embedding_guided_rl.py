"""Stage 3: the ratio at the start, what moves and what does not, rewards, and resume to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from tests.stage_runs import InterruptAfter, tiny_settings
from twn_lightning.backbone.loading import load_backbone
from twn_lightning.data.datamodule import TWNDataModule
from twn_lightning.data.sources.nano import NanoSource
from twn_lightning.objectives import format_reward
from twn_lightning.run import RunFolder
from twn_lightning.settings import RLSettings, Settings
from twn_lightning.stages.embedding_guided_rl import EmbeddingGuidedRL
from twn_lightning.stages.rewards import TargetPool, score_completions
from twn_lightning.stages.trainer import build_trainer, fit
from twn_lightning.types import ContrastiveBatch

WELL_FORMED = "<think>a</think><answer>b</answer>"
TRAINER = {"val_every_steps": 2, "checkpoint_every_steps": 2}


def settings_of(folder: Path, **stage: Any) -> Settings:
    """Four prompts with three completions a step."""
    small: dict[str, Any] = {
        "prompts_per_step": 4,
        "completions_per_prompt": 3,
        "max_steps": 3,
        "chunk_size": 5,
        "learning_rate": 1e-2,
        "pool_size": 8,
    }
    return tiny_settings(RLSettings(**{**small, **stage}), folder, data={"max_new_tokens": 6}, trainer=TRAINER)


def stage_of(settings: Settings) -> EmbeddingGuidedRL:
    """A stage on a backbone whose LoRA is not zero, the same one each time."""
    torch.manual_seed(0)
    backbone = load_backbone(settings.model, settings.adapters, settings.interface)
    with torch.no_grad():
        for parameter in (*backbone.adapters.parameters("reasoning"), backbone.queries):
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    folder = RunFolder(settings.paths.run_dir or "")
    return EmbeddingGuidedRL(settings, backbone, folder, TWNDataModule(settings, backbone.processor))


def train(settings: Settings, resume: Path | None = None) -> EmbeddingGuidedRL:
    stage = stage_of(settings)
    fit(build_trainer(settings, stage.run_folder), stage, resume)
    return stage


@pytest.fixture(autouse=True)
def rewarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count every completion as well formed, so that rewards differ within groups."""
    monkeypatch.setattr(
        "twn_lightning.stages.rewards.format_reward", lambda cots, closed_B: torch.ones(len(cots), dtype=torch.float)
    )


def first_batch(stage: EmbeddingGuidedRL) -> ContrastiveBatch:
    return next(iter(stage.train_dataloader()))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_forward_passes_of_policy_and_reference_agree_with_the_decoder(tmp_path: Path, temperature: float) -> None:
    stage = stage_of(settings_of(tmp_path, sampling_temperature=temperature))
    batch = first_batch(stage)
    scored = stage.roll_out(batch, 0)
    cots, sampled_BT = scored.rollout.cots, scored.rollout.log_probs_BT
    assert len(cots) == 12
    mask_BT = cots.mask_BT.bool()
    torch.testing.assert_close(scored.reference_log_probs_BT[mask_BT], sampled_BT[mask_BT], atol=1e-5, rtol=1e-5)
    for chunk in stage.chunks(batch, cots):
        state = stage.read(chunk)
        assert state.cot_logits_BTV is not None
        mask = chunk.cots.mask_BT.bool()
        policy_BT = stage.log_probs(state.cot_logits_BTV, chunk.cots)
        torch.testing.assert_close(policy_BT[mask], chunk.of(sampled_BT)[mask], atol=1e-5, rtol=1e-5)


def test_both_reward_readers_read_the_same_at_the_start(tmp_path: Path) -> None:
    stages = [stage_of(settings_of(tmp_path, reward_reader=reader)) for reader in ("policy", "reference")]
    policy_B, reference_B = (stage.roll_out(first_batch(stage), 0).terms.reward for stage in stages)
    torch.testing.assert_close(policy_B, reference_B, atol=1e-4, rtol=1e-4)
    assert policy_B.view(4, 3).std(1).max() > 0


def test_each_first_update_starts_at_its_sampler_and_the_policy_leaves_the_reference(tmp_path: Path) -> None:
    train(settings_of(tmp_path, updates_per_rollout=1))
    lines = [line for line in RunFolder(tmp_path).history() if "rl/kl" in line]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["rl/ratio"] for line in lines] == pytest.approx([1, 1, 1], abs=1e-5)
    assert lines[0]["rl/kl"] == pytest.approx(0, abs=1e-6)
    assert lines[1]["rl/kl"] > 1e-4


def test_a_second_update_on_the_same_rollout_is_off_policy(tmp_path: Path) -> None:
    train(settings_of(tmp_path, max_steps=1))
    line = next(line for line in RunFolder(tmp_path).history() if "rl/kl" in line)
    assert abs(line["rl/ratio"] - 1) > 1e-4
    assert line["rl/kl"] > 1e-4


def test_only_the_reasoning_adapter_moves(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    before = stage_of(settings).backbone.state_dict()
    stage = train(settings)
    after = stage.backbone.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".reasoning." in name for name in moved)
    assert any(".reasoning_reference." in name for name in before)
    assert not list(stage.run_folder.adapters.rglob("*reference*"))


def test_metrics_and_rollouts_of_a_run(tmp_path: Path) -> None:
    stage = train(settings_of(tmp_path))
    metrics = stage.final_metrics()
    gain = metrics["rl/held_out_gain"]
    assert gain == pytest.approx(metrics["rl/held_out_reward/after"] - metrics["rl/held_out_reward/before"])
    assert metrics["rl/held_out_gain/ci95_low"] <= gain <= metrics["rl/held_out_gain/ci95_high"]
    assert stage.optimizers().param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)  # 3 steps of 2 updates each
    rows = pq.read_table(stage.run_folder.rollouts).to_pylist()
    assert [row["step"] for row in rows] == [1] * 6 + [3] * 6
    assert all(row["tokens"] <= 6 and row["query_text"] and row["positive"] for row in rows)
    line = next(line for line in stage.run_folder.history() if "rl/reward" in line)
    terms = 0.1 * line["rl/reward_format"] + 0.5 * line["rl/reward_rank"] + 0.5 * line["rl/reward_gap"]
    assert line["rl/reward"] == pytest.approx(terms, abs=1e-5)


def test_held_out_rewards_of_every_query_are_kept(tmp_path: Path) -> None:
    """Before the first step, at the interval of two and after the third; their means are the run's metrics."""
    stage = train(settings_of(tmp_path))
    rows = pq.read_table(stage.run_folder.held_out).to_pylist()
    keys = [pair.query.key for pair in stage.data.pairs("val")]
    assert [(row["step"], row["query_key"]) for row in rows] == [(step, key) for step in (0, 2, 3) for key in keys]
    metrics = stage.final_metrics()
    for step, moment in ((0, "before"), (3, "after")):
        chosen = [row for row in rows if row["step"] == step]
        for column, name in (("reward", "rl/held_out_reward"), ("hit_generative", "val/hit@1_generative")):
            mean = sum(row[column] for row in chosen) / len(chosen)
            assert mean == pytest.approx(metrics[f"{name}/{moment}"])
        for row in chosen:
            terms = 0.1 * row["reward_format"] + 0.5 * row["reward_rank"] + 0.5 * row["reward_gap"]
            assert row["reward"] == pytest.approx(terms, abs=1e-5)


def test_a_resumed_run_equals_a_straight_one(tmp_path: Path) -> None:
    """Steps 1 and 5 rank against the same pool: after the interrupt its embeddings can only be the checkpoint's."""
    settings = settings_of(tmp_path / "straight", max_steps=5)
    straight = train(settings)
    settings = settings_of(tmp_path / "resumed", max_steps=5)
    stage = stage_of(settings)
    with pytest.raises(KeyboardInterrupt):
        fit(build_trainer(settings, stage.run_folder, [InterruptAfter(2)]), stage)
    resumed = train(settings, stage.run_folder.last_checkpoint)
    for name, value in straight.backbone.trainable_state().items():
        assert torch.equal(value, resumed.backbone.trainable_state()[name]), name
    assert straight.final_metrics() == resumed.final_metrics()
    for name in ("rollouts", "held_out"):
        tables = [pq.read_table(getattr(s.run_folder, name)) for s in (straight, resumed)]
        assert tables[0].equals(tables[1]), name


def test_malformed_completions_earn_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twn_lightning.stages.rewards.format_reward", format_reward)
    targets_CD = torch.eye(3)
    cots = [WELL_FORMED, WELL_FORMED, WELL_FORMED, "<think>a</think>"]
    closed_B = torch.tensor([True, True, False, True])
    positive_B = torch.zeros(4, dtype=torch.long)
    terms = score_completions(
        targets_CD[[0, 1, 0, 0]],
        targets_CD,
        positive_B,
        torch.arange(3)[None] != positive_B[:, None],
        cots,
        closed_B,
        RLSettings(),
    )
    assert terms.reward[0] == pytest.approx(0.1 + 0.5 + 0.5)
    assert terms.reward[1] == pytest.approx(0.1 + 0.5 / 3 - 0.5, abs=1e-5)
    assert terms.reward[2:].tolist() == [0, 0]


def test_the_pool_leaves_out_the_targets_of_the_batch(tmp_path: Path) -> None:
    stage = stage_of(settings_of(tmp_path))
    source = NanoSource(stage.settings.data)
    corpus = source.candidates("rl", "nano/sum")
    pool = TargetPool(source, 1024, 2, 8, seed=0)
    others = pool.rivals(stage.backbone, "nano/sum", 0, corpus[:3])
    assert len(others) == len(corpus) - 3
    same_content = [replace(item, key=f"other:{item.key}") for item in corpus[:3]]
    assert torch.equal(pool.rivals(stage.backbone, "nano/sum", 1, same_content), others)
    restored = TargetPool(source, 1024, 2, 8, seed=0)
    restored.load_state_dict(pool.state_dict())
    assert torch.equal(restored.rivals(stage.backbone, "nano/sum", 1, corpus[:3]), others)
    with torch.no_grad():
        stage.backbone.queries.neg_()
    assert torch.equal(pool.rivals(stage.backbone, "nano/sum", 1, corpus[:3]), others)
    assert not torch.allclose(pool.rivals(stage.backbone, "nano/sum", 2, corpus[:3]), others)
    assert len(TargetPool(source, 5, 2, 8, seed=0).rivals(stage.backbone, "nano/sum", 0, [])) == 5


def test_rollouts_with_too_few_live_groups_change_nothing(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, min_live_groups=10_000)
    before = [p.clone() for p in stage_of(settings).backbone.adapters.parameters("reasoning")]
    stage = train(settings)
    for parameter, old in zip(stage.backbone.adapters.parameters("reasoning"), before, strict=True):
        assert torch.equal(parameter, old)
    schedule = stage.lr_schedulers()
    assert schedule.last_epoch == settings.stage.max_steps * settings.stage.updates_per_rollout
    assert stage.final_metrics()["rl/held_out_gain"] == 0.0
