"""Short runs of the stages on the random `tiny` backbone, for the tests of several folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from lightning.pytorch import Callback

from twn_lightning.backbone.loading import load_backbone
from twn_lightning.run import RunFolder
from twn_lightning.settings import (
    AdapterSettings,
    DataSettings,
    InterfaceSettings,
    LoraSettings,
    ModelSettings,
    PathSettings,
    Settings,
    TrainerSettings,
)
from twn_lightning.stages import build_stage, build_trainer, fit


def tiny_settings(stage: Any, run_dir: Path, *, interface: str = "kv_detached", **sections: Any) -> Settings:
    """A run of a few steps; `adapters`, `data` and `trainer` take keywords of their sections."""
    adapters = {"reasoning": LoraSettings(4, 8), "embedding": LoraSettings(4, 8), "num_queries": 4}
    data = {
        "train_pairs": 48,
        "rl_pairs": 24,
        "gate_pairs": 48,
        "calibration_pairs": 16,
        "val_pairs": 4,
        "test_pairs": 4,
        "max_new_tokens": 4,
        "max_cot_tokens": 10_000,
        "rows_per_source_global": 4,
    }
    trainer = {
        "accelerator": "cpu",
        "val_every_steps": 100,
        "log_every_steps": 1,
        "checkpoint_every_steps": 100,
    }
    return Settings(
        stage=stage,
        model=ModelSettings(name="tiny"),
        interface=InterfaceSettings(interface),  # type: ignore[arg-type]
        adapters=AdapterSettings(**{**adapters, **sections.get("adapters", {})}),
        data=DataSettings(**{**data, **sections.get("data", {})}),
        trainer=TrainerSettings(**{**trainer, **sections.get("trainer", {})}),
        paths=PathSettings(run_dir=str(run_dir)),
    )


class StageRun:
    """A stage with its trainer, from settings."""

    def __init__(self, settings: Settings, callbacks: tuple[Callback, ...] = ()) -> None:
        seed_everything(settings.seed, verbose=False)
        self.settings = settings
        self.run_folder = RunFolder(settings.paths.run_dir or "")
        self.run_folder.create(settings)
        self.backbone = load_backbone(settings.model, settings.adapters, settings.interface)
        self.stage = build_stage(settings, self.backbone, self.run_folder)
        self.trainer = build_trainer(settings, self.run_folder, callbacks)

    def fit(self, resume: Any = None) -> StageRun:
        fit(self.trainer, self.stage, resume)
        return self

    def last_checkpoint(self) -> dict[str, Any]:
        found: dict[str, Any] = torch.load(self.run_folder.last_checkpoint, weights_only=True)
        return found


class InterruptAfter(Callback):
    """Presses Ctrl-C during one step."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.steps:
            import signal

            signal.raise_signal(signal.SIGINT)
