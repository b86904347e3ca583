"""The configurations that `plan.py` predicts, and how their steps are measured on one CPU thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from experiments.benchmarks.random_qwen3vl import random_model
from experiments.benchmarks.sft_step import StepAlone, make_batch, step
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.loading import load_backbone
from twn_lightning.data.datamodule import TWNDataModule
from twn_lightning.planning import Items, items_of
from twn_lightning.run import RunFolder
from twn_lightning.settings import DataSettings, GateStageSettings, ModelSettings, RLSettings, Settings, SFTSettings
from twn_lightning.stages import DualLoRASFT, EmbeddingGuidedRL, RoutingGateTraining
from twn_lightning.types import ContrastiveBatch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """One configuration that is predicted and measured."""

    model: str
    stage: SFTSettings | GateStageSettings | RLSettings
    side: int = 0
    """Patches along an image's side, where the model is random."""
    cot_tokens: int = 0

    @property
    def settings(self) -> Settings:
        data = DataSettings(
            train_pairs=1500,
            rl_pairs=200,
            gate_pairs=160,
            calibration_pairs=40,
            hard_negatives=0,
            rows_per_source_global=4,
        )
        settings = Settings(stage=self.stage, model=ModelSettings(self.model), data=data)
        settings.trainer.accelerator = "cpu"
        return settings


CASES = {
    "sft, batch 128 in chunks of 32": Case("nano", SFTSettings(batch_size=128, chunk_size=32)),
    "sft, batch 256 at once": Case("nano", SFTSettings(batch_size=256, chunk_size=256)),
    "sft, micro, batch 64": Case("micro", SFTSettings(batch_size=64, chunk_size=64)),
    "sft, mid-size, batch 8, CoTs of 64": Case(
        "midsize", SFTSettings(batch_size=8, chunk_size=4), side=16, cot_tokens=64
    ),
    "rl, 8 prompts x 8": Case("nano", RLSettings(prompts_per_step=8, chunk_size=32, pool_size=64)),
    "rl, micro, 4 prompts x 4": Case(
        "micro", RLSettings(prompts_per_step=4, completions_per_prompt=4, chunk_size=16, pool_size=32)
    ),
    "gate, 200 labels": Case("nano", GateStageSettings(decode_batch_size=64)),
    "gate, micro, 200 labels": Case("micro", GateStageSettings(decode_batch_size=100)),
}


def cpu_seconds(call: Callable[[], Any], rounds: int) -> list[float]:
    """Seconds of this process in each round, after one that does not count."""
    call()
    found = []
    for _ in range(rounds):
        began = time.process_time()
        call()
        found.append(time.process_time() - began)
    return found


def matmul_rate(size: int = 1024) -> float:
    """Operations a second of a large square product, the best of several."""
    first, second = torch.randn(2, size, size)
    return 2 * size**3 / min(cpu_seconds(lambda: first @ second, 10))


def build_backbone(case: Case) -> DualLoRABackbone:
    """The packaged backbone with its adapters, or random weights."""
    settings = case.settings
    if case.model == "midsize":
        model, processor = random_model("midsize", CPU, torch.float32)
        return DualLoRABackbone(model, processor, settings.adapters, settings.interface, "midsize")
    return load_backbone(settings.model, replace(settings.adapters, init_from=case.model), settings.interface, CPU)


def first_batch(case: Case, backbone: DualLoRABackbone) -> ContrastiveBatch:
    """A batch of the stage."""
    stage = case.stage
    if case.model == "midsize":
        assert isinstance(stage, SFTSettings)
        return make_batch(backbone, stage.batch_size, case.side, case.cot_tokens)
    batch: ContrastiveBatch = next(iter(TWNDataModule(case.settings, backbone.processor).train_dataloader()))
    return batch


def items_in(batch: ContrastiveBatch, tokens: float, longest: float) -> Items:
    """Lengths of a batch, prompts as they are padded.

    Args:
        batch: what the stage reads.
        tokens: mean length of its CoTs.
        longest: length of its longest.
    """
    visual = [float((side.mm_token_type_ids_BL > 0).sum()) / len(side) for side in (batch.queries, batch.candidates)]
    widths = [side.input_ids_BL.shape[1] for side in (batch.queries, batch.candidates)]
    candidates = len(batch.candidates) / len(batch.queries)
    return replace(
        items_of(ModelSettings("nano")),
        text_tokens=widths[0] - visual[0],
        visual_tokens=visual[0],
        candidate_text_tokens=candidates * widths[1] - visual[1] * candidates,
        candidate_visual_tokens=visual[1] * candidates,
        cot_tokens=tokens,
        longest_cot=longest / tokens,
    )


class RLAlone(EmbeddingGuidedRL):
    """Stage 3 without a Trainer."""

    optimizer: torch.optim.Optimizer

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward()

    def apply_gradients(self, clip_norm: float) -> dict[str, float]:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {}


@dataclass
class Measured:
    """One configuration."""

    shape: Any
    """The transformers configuration of its model."""
    items: Items
    """Lengths of what was read."""
    seconds: list[float]
    """Of each step, or of all labels."""
    peak_bytes: int | None = None
    """That torch's allocator held at most in a step of stage 1, besides what it held before."""


def measure(case: Case, folder: str, rounds: int) -> Measured:
    """Run one configuration.

    Args:
        case: what is run.
        folder: for the run folder.
        rounds: that count.
    """
    backbone, settings = build_backbone(case), case.settings
    config = backbone.model.config
    if isinstance(case.stage, SFTSettings):
        batch = first_batch(case, backbone)
        assert batch.query_cots is not None
        lengths = batch.query_cots.lengths_B.float()
        run = sft_call(case, backbone, batch, folder)
        seconds = cpu_seconds(run, rounds)
        return Measured(config, items_in(batch, float(lengths.mean()), float(lengths.max())), seconds, peak_bytes(run))
    data = TWNDataModule(settings, backbone.processor)
    written: list[Tensor] = []
    if isinstance(case.stage, RLSettings):
        batch = first_batch(case, backbone)
        stage = RLAlone(settings, backbone, RunFolder(folder), data).eval()
        stage.optimizer = torch.optim.AdamW(backbone.group_parameters("reasoning"), lr=0.0)
        seconds = cpu_seconds(partial(rl_step, stage, batch, written), rounds)
    else:
        batch = first_batch(replace(case, stage=SFTSettings(batch_size=64)), backbone)
        labels = RoutingGateTraining(settings, backbone, RunFolder(folder), data)
        seconds = cpu_seconds(partial(label_all, labels, written), rounds)
    lengths = torch.stack([part.float() for part in written])
    size = case.stage.decode_batch_size if isinstance(case.stage, GateStageSettings) else lengths.shape[1]
    longest = statistics.mean(float(part.max()) for row in lengths for part in row.split(size))
    return Measured(config, items_in(batch, float(lengths.mean()), longest), seconds)


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most that torch's allocator for the CPU holds during a call, besides what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def sft_call(case: Case, backbone: DualLoRABackbone, batch: ContrastiveBatch, folder: str) -> Callable[[], Any]:
    """One step of stage 1 with AdamW."""
    data: Any = None  # the batch is there already
    stage = StepAlone(case.settings, backbone, RunFolder(folder), data)
    trained = [p for group in DualLoRASFT.trained_groups for p in backbone.group_parameters(group)]
    return partial(step, stage, torch.optim.AdamW(trained, lr=0.0), batch)


def rl_step(stage: RLAlone, batch: ContrastiveBatch, written: list[Tensor]) -> None:
    """A rollout and its updates, with the pool encoded again."""
    stage.pool._entries.clear()
    scored = stage.roll_out(batch, 0)
    written.append(scored.rollout.cots.lengths_B)
    for _ in range(stage.stage.updates_per_rollout):
        stage.update(batch, scored, int(scored.rollout.cots.mask_BT.sum()))


def label_all(stage: RoutingGateTraining, written: list[Tensor]) -> None:
    """Outcomes of both splits."""
    written.append(torch.cat([stage.label(split).tokens_N for split in ("gate", "calibration")]))
