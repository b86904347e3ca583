"""The last and the best checkpoint of a run, and stop signals that leave a consistent one.

Lightning's ModelCheckpoint warns and looks for saved copies under manual optimisation; this is the part of it we need.
"""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from twn_lightning.run import RunFolder
from twn_lightning.stages.base import TWNStage
from twn_lightning.stopping import Stopped, on_stop_signals
from twn_lightning.strategy import sum_over_ranks, world_size

logger = logging.getLogger(__name__)


class RunCheckpoints(Checkpoint):
    """Writes `last.ckpt` every few steps and after each validation, `best.ckpt` when the monitored value improves.

    The first Ctrl-C, SIGTERM or SIGUSR1 lets the current step finish, saves, and then interrupts: a checkpoint from the
    middle of a step could not be resumed exactly. The second interrupts at once and leaves the last one saved.

    As a `Checkpoint` it comes after all other callbacks, and saves what they have made of a validation.

    Args:
        run_folder: where the checkpoints go.
        every_n_steps: training batches between two `last.ckpt`.
    """

    def __init__(self, run_folder: RunFolder, every_n_steps: int) -> None:
        self.run_folder = run_folder
        self.every_n_steps = every_n_steps
        self.best: float | None = None
        self._received: int | None = None
        self._stopping = False
        self._handlers = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._received, self._stopping = None, False
        self._handlers.enter_context(on_stop_signals(self._on_signal))
        if any(_has_stopped(callback) for callback in trainer.callbacks):
            logger.info("training had stopped early before the run ended: what is left is to finish the run")
            trainer.should_stop = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise Stopped(number)
        self._received = number
        logger.warning("asked to stop: saving a checkpoint when this step is done; press Ctrl-C again to stop at once")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TWNStage)
        done = batch_idx + 1
        interrupted = self._asked_to_stop(pl_module)
        validates_next = done % trainer.val_check_batch == 0 or done == pl_module.total_steps
        if interrupted or (done % self.every_n_steps == 0 and not validates_next):
            trainer.save_checkpoint(self.run_folder.last_checkpoint, weights_only=False)
        self._stopping = interrupted

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._stopping:  # here, and not at the end of the step, so that the step's values are still logged
            raise self._interrupt()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TWNStage)
        if trainer.sanity_checking:
            return
        name, mode = pl_module.monitor
        value = pl_module.after.get(name, math.nan)
        better = self.best is None or (value >= self.best if mode == "max" else value <= self.best)
        if better and not math.isnan(value):
            self.best = value
            trainer.save_checkpoint(self.run_folder.best_checkpoint, weights_only=False)
        trainer.save_checkpoint(self.run_folder.last_checkpoint, weights_only=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TWNStage)
        self._handlers.close()
        if self._asked_to_stop(pl_module):  # in the last step or the last validation: no other stage may follow
            raise self._interrupt()

    def _asked_to_stop(self, stage: TWNStage) -> bool:
        """Whether any rank has received a signal: they see it at different steps, and stopping needs them all."""
        received = self._received is not None
        return bool(sum_over_ranks(float(received), stage.device)) if world_size() > 1 else received

    def _interrupt(self) -> KeyboardInterrupt:
        return KeyboardInterrupt() if self._received is None else Stopped(self._received)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._handlers.close()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


def _has_stopped(callback: Any) -> bool:
    return isinstance(callback, EarlyStopping) and callback.stopping_reason is not EarlyStoppingReason.NOT_STOPPED
