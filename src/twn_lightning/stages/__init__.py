"""The three training stages over one base: `build_stage`, `build_trainer`, then `fit`.

stage = build_stage(settings, backbone, run_folder)
trainer = build_trainer(settings, run_folder, callbacks)
fit(trainer, stage, resume)                        # exports adapters; KeyboardInterrupt on Ctrl-C
stage.summary(), stage.final_metrics()             # before and after; everything for metrics.json
"""

from __future__ import annotations

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.loading import adapters_folder
from twn_lightning.data.datamodule import TWNDataModule
from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.evaluation.encoders.twn import saved_threshold
from twn_lightning.gate import RoutingGate
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings
from twn_lightning.stages.base import TWNStage
from twn_lightning.stages.dual_lora_sft import DualLoRASFT
from twn_lightning.stages.embedding_guided_rl import EmbeddingGuidedRL
from twn_lightning.stages.routing_gate_training import RoutingGateTraining
from twn_lightning.stages.trainer import RunFolderLogger, build_trainer, checkpoint_path, fit

__all__ = [
    "STAGES",
    "DualLoRASFT",
    "EmbeddingGuidedRL",
    "RoutingGateTraining",
    "RunFolderLogger",
    "TWNStage",
    "build_stage",
    "build_trainer",
    "checkpoint_path",
    "fit",
]

STAGES: dict[str, type[TWNStage]] = {
    stage.stage_name: stage for stage in (DualLoRASFT, EmbeddingGuidedRL, RoutingGateTraining)
}


def build_stage(
    settings: Settings,
    backbone: DualLoRABackbone,
    run_folder: RunFolder,
    data: TWNDataModule | None = None,
    gate: RoutingGate | None = None,
) -> TWNStage:
    """The stage that `settings.stage` names.

    Args:
        settings: the run, resolved.
        backbone: with the adapters the stage starts from.
        run_folder: where the run writes.
        data: the run's pairs; by default those of `settings.data`.
        gate: a trained gate to carry along; by default the one beside `adapters.init_from`, where there is one,
            with its threshold.

    Raises:
        ConfigError: an unknown stage.
    """
    name = settings.stage.name
    if name not in STAGES:
        raise ConfigError(f"stage: {unknown_name('stage', name, STAGES)}")
    data = data or TWNDataModule(settings, backbone.processor)
    threshold = settings.gate.threshold
    if gate is None and settings.adapters.init_from and name != "gate":
        folder = adapters_folder(settings.adapters.init_from)
        state = backbone.load_adapters(folder)
        gate = None if state is None else RoutingGate.from_state(state)
        threshold = saved_threshold(folder, threshold)
    stage = STAGES[name](settings, backbone, run_folder, data, gate)
    stage.threshold = threshold
    return stage
