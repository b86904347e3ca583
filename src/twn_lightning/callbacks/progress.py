"""A progress bar with the numbers that matter for the stage, and no others."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from twn_lightning.stages.base import TWNStage


class StageProgressBar(TQDMProgressBar):
    """Lightning's bar, named after the stage, with its `progress_values`."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        assert isinstance(pl_module, TWNStage)
        found = trainer.callback_metrics
        return {
            name.rpartition("/")[2]: f"{float(found[name]):.3f}" for name in pl_module.progress_values if name in found
        }

    def init_sanity_tqdm(self) -> Any:
        bar = super().init_sanity_tqdm()
        bar.set_description("before training")
        return bar

    def on_train_epoch_start(self, trainer: Trainer, *arguments: Any) -> None:
        super().on_train_epoch_start(trainer, *arguments)
        stage = trainer.lightning_module
        assert isinstance(stage, TWNStage)
        self.train_progress_bar.set_description(stage.stage_name)
