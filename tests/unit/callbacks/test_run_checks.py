"""The checks of a training run: each fault is injected and found, and a sound run reports nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from tests.stage_runs import StageRun, tiny_settings
from twn_lightning import checks
from twn_lightning.callbacks import RunChecks
from twn_lightning.callbacks import run_checks as module
from twn_lightning.callbacks.run_checks import LossWatch, check_language
from twn_lightning.data.datamodule import ResumableLoader, TWNDataModule
from twn_lightning.errors import CheckError
from twn_lightning.settings import GateStageSettings, RLSettings, SFTSettings
from twn_lightning.stages.cot_language import LETTERS, PERPLEXITY, REPETITIVE, language_values, perplexity_values
from twn_lightning.stages.labelled_split import ShuffledRows

SFT = SFTSettings(batch_size=4, chunk_size=4, max_steps=4)
RL = RLSettings(prompts_per_step=2, completions_per_prompt=2, chunk_size=4, max_steps=2, pool_size=4)
GATE = GateStageSettings(batch_size=16, max_epochs=2)


@pytest.fixture(autouse=True)
def _plain_torch_state() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Name and message of every warning; errors are raised as they are."""
    found: list[tuple[str, str]] = []
    report = checks.report

    def noted(name: str, problem: str, *error: Any) -> None:
        if checks.CHECKS[name].severity == "error":
            report(name, problem, *error)
        found.append((name, problem))

    monkeypatch.setattr(checks, "report", noted)
    return found


def run_of(stage: Any, folder: Path, *callbacks: Callback, **sections: Any) -> StageRun:
    return StageRun(tiny_settings(stage, folder, **sections), (RunChecks(), *callbacks))


@pytest.mark.parametrize("stage", [SFT, RL, GATE], ids=["sft", "rl", "gate"])
def test_a_sound_run_reports_no_fault(stage: Any, tmp_path: Path, reported: list[tuple[str, str]]) -> None:
    run_of(stage, tmp_path).fit()
    # The random backbone writes on until the cap, and its texts resemble each other.
    assert {name for name, _ in reported} <= {"unclosed_cots"}


def test_both_phases_of_stage_1_report_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: list[tuple[str, str]]
) -> None:
    monkeypatch.setattr(module, "GRADIENT_PATIENCE", 4)
    two_phase = replace(SFT, schedule="two_phase", embedding_steps=4, stored_pairs=8, embedding_batch_size=4)
    run_of(two_phase, tmp_path).fit()
    assert {name for name, _ in reported} <= {"unclosed_cots"}


class Frozen(Callback):
    """Takes the gradients of some tensors away, as a cut graph would."""

    def __init__(self, part: str) -> None:
        self.part = part

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad and self.part in name:
                parameter.register_hook(torch.zeros_like)


@pytest.mark.parametrize("part", ["lora_B.embedding", "layers.0.mlp.up_proj.lora_A.reasoning"])
def test_an_adapter_without_gradient_ends_the_run(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRADIENT_PATIENCE", 3)
    with pytest.raises(CheckError, match=rf"of group '{part.rpartition('.')[2]}' had no gradient in 3 updates"):
        run_of(SFT, tmp_path, Frozen(part)).fit()


def test_without_its_check_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRADIENT_PATIENCE", 3)
    monkeypatch.setenv("TWN_CHECKS", "-adapter_gradients")
    run = run_of(SFT, tmp_path, Frozen("lora_B.embedding")).fit()
    assert run.trainer.global_step == 4


class Spiking:
    """Multiplies the losses of some steps as they are logged."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def values(self) -> Iterator[dict[str, float]]:
        generator = torch.Generator().manual_seed(0)
        for step in range(60):
            noise = 0.1 * float(torch.randn((), generator=generator))
            factor = 4.0 if step in self.steps else 1.0
            yield {"train/loss_cot": factor * (2.0 - 0.02 * step + noise), "lr/reasoning": 1000.0 * step}


@pytest.mark.parametrize("step", [25, 59])
def test_a_loss_spike_is_reported_with_its_step(step: int, reported: list[tuple[str, str]]) -> None:
    watch = LossWatch()
    for number, values in enumerate(Spiking(step - 1, step).values()):
        watch.check(values, number)
    ((name, message),) = reported
    assert name == "loss_spike"
    assert message.startswith(f"step {step}: train/loss_cot is")


def test_a_source_with_losses_of_its_own_is_no_spike(reported: list[tuple[str, str]]) -> None:
    watch = LossWatch()
    for number, values in enumerate(Spiking(49, 50).values()):
        watch.check(values, number, "easy")
        if number % 7 == 3:
            watch.check({"train/loss_cot": 30.0}, number, "rare and hard")
    ((_, message),) = reported
    assert message.startswith("step 50: train/loss_cot is")
    assert "steps on easy is" in message


@pytest.mark.parametrize("hard_batches", [(), (30, 40, 42)])
def test_a_falling_loss_and_single_hard_batches_are_no_spike(
    hard_batches: tuple[int, ...], reported: list[tuple[str, str]]
) -> None:
    watch = LossWatch()
    for number, values in enumerate(Spiking(*hard_batches).values()):
        watch.check(values, number)
    assert reported == []


@pytest.mark.parametrize(
    ("order", "origin"), [([0, 0, 1, 2], "batch 2 .* those of batch 1"), ([0, 2, 3, 1], "batch 2 .* those of batch 3")]
)
def test_repeated_and_dropped_batches_end_the_run(
    order: Sequence[int], origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = ResumableLoader.__iter__

    def shuffled(self: ResumableLoader) -> Iterator[Any]:
        batches = list(straight(self))
        yield from (batches[i] for i in order)

    monkeypatch.setattr(ResumableLoader, "__iter__", shuffled)
    with pytest.raises(CheckError, match=origin):
        run_of(SFT, tmp_path).fit()


def test_repeated_rows_of_the_gate_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = ShuffledRows.__iter__

    def repeating(self: ShuffledRows) -> Iterator[list[int]]:
        first, *others = straight(self)
        yield from (first, first, *others[1:])

    monkeypatch.setattr(ShuffledRows, "__iter__", repeating)
    with pytest.raises(CheckError, match=r"batch 2 does not hold the 16 rows .* those of batch 1 \(16 rows\)"):
        run_of(GATE, tmp_path).fit()


def test_a_loader_that_ends_early_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = ResumableLoader.__iter__

    def short(self: ResumableLoader) -> Iterator[Any]:
        yield from islice(straight(self), 2)

    monkeypatch.setattr(ResumableLoader, "__iter__", short)
    with pytest.raises(CheckError, match="ended after 2 of 4 batches"):
        run_of(SFT, tmp_path).fit()


def test_held_out_pairs_in_the_training_split_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: list[tuple[str, str]]
) -> None:
    straight = TWNDataModule.pairs

    def leaky(self: TWNDataModule, split: Any) -> Sequence[Any]:
        pairs = list(straight(self, split))
        tested = self.source.pairs("test", self.data.test_pairs)[:3]
        leaked = [replace(pair, query=replace(pair.query, key="twin")) for pair in tested]
        return [*pairs, *leaked] if split == "train" else pairs

    monkeypatch.setattr(TWNDataModule, "pairs", leaky)
    run_of(replace(SFT, max_steps=1), tmp_path).fit()
    (message,) = [message for name, message in reported if name == "duplicates"]
    assert message.startswith("3 of 8 held-out pairs are training pairs too")
    assert "(in training: 'twin')" in message


def test_the_language_of_cots_is_measured() -> None:
    passage = "the green seven is next to the red nine "
    values = language_values([passage * 5, "a b c"])
    assert values == {REPETITIVE: 0.5, LETTERS: 1.0}
    assert language_values(["ab 字字 12", ""])[LETTERS] == 0.5
    assert language_values(["12"])[LETTERS] == 1.0


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ({REPETITIVE: 0.4, LETTERS: 1.0, PERPLEXITY: 2.0}, "40 % of them repeat a passage"),
        ({REPETITIVE: 0.0, LETTERS: 0.7, PERPLEXITY: 2.0}, "Latin letters went from 100 to 70 %"),
        ({REPETITIVE: 0.0, LETTERS: 1.0, PERPLEXITY: 9.0}, "perplexity on them went from 2.0 to 9.0"),
    ],
)
def test_decaying_language_is_reported(after: dict[str, float], expected: str, reported: list[tuple[str, str]]) -> None:
    before = {REPETITIVE: 0.0, LETTERS: 1.0, PERPLEXITY: 2.0}
    check_language(before, {**before, PERPLEXITY: 5.0})
    assert reported == []
    check_language(before, after)
    ((name, message),) = reported
    assert name == "cot_language"
    assert expected in message


def test_perplexity_is_the_backbones_whatever_the_adapter(tmp_path: Path) -> None:
    run = run_of(RL, tmp_path)
    pairs = run.stage.data.pairs("val")
    cots = ["<think>a</think><answer>b</answer>", "cut off", "<answer>c</answer>", "<answer>d</answer>"]
    (before,) = perplexity_values(run.backbone, pairs, cots).values()
    with torch.no_grad():
        for parameter in run.backbone.group_parameters("reasoning"):
            parameter.add_(1.0)
    assert perplexity_values(run.backbone, pairs, cots) == {PERPLEXITY: pytest.approx(before)}
    assert before > 1
    assert perplexity_values(run.backbone, pairs, ["cut off"] * 4) == {}
