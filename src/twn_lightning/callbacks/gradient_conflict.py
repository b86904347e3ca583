"""The cosine between the gradients of stage 1's two losses, while it trains."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from twn_lightning.errors import ConfigError
from twn_lightning.stages.dual_lora_sft import DualLoRASFT
from twn_lightning.stages.gradient_conflict import loss_gradients
from twn_lightning.types import ContrastiveBatch


class GradientConflict(Callback):
    """Logs `conflict/cosine`, in all and by layer, and both norms, before the update of the first and each n-th step.

    Measuring costs one more step and changes nothing: the run goes on as it would have.

    Args:
        every_n_steps: steps between two measurements.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be measured.

        Raises:
            ConfigError: several processes, of which each has the gradients of its own rows only.
        """
        if trainer.world_size > 1:
            raise ConfigError(
                f"stage.conflict_every_steps={self.every_n_steps} measures the gradients of one process, and this run "
                f"has {trainer.world_size}: set trainer.devices=1, or stage.conflict_every_steps=0"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        due = batch_idx == 0 or (batch_idx + 1) % self.every_n_steps == 0
        if due and isinstance(pl_module, DualLoRASFT) and isinstance(batch, ContrastiveBatch):
            pl_module.record(loss_gradients(pl_module, batch).values(), batch_idx + 1)
