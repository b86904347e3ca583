"""The last and the best checkpoint of a run, and a Ctrl-C that leaves a consistent one.

Lightning's ModelCheckpoint warns and looks for saved copies under manual optimisation; this is the part of it we need.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from twn_lightning.run import RunFolder
from twn_lightning.stages.base import TWNStage
from twn_lightning.strategy import sum_over_ranks, world_size

logger = logging.getLogger(__name__)


class RunCheckpoints(Callback):
    """Writes `last.ckpt` every few steps and after each validation, `best.ckpt` when the monitored value improves.

    The first Ctrl-C lets the current step finish, saves, and then interrupts: a checkpoint from the middle of a step
    could not be resumed exactly. The second interrupts at once and leaves the last one saved.

    Args:
        run_folder: where the checkpoints go.
        every_n_steps: training batches between two `last.ckpt`.
    """

    def __init__(self, run_folder: RunFolder, every_n_steps: int) -> None:
        self.run_folder = run_folder
        self.every_n_steps = every_n_steps
        self.best: float | None = None
        self._interrupted = False
        self._stopping = False
        self._previous_handler: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._interrupted = self._stopping = False
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGINT, self._on_interrupt)

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        logger.warning("interrupted: saving a checkpoint when this step is done; press Ctrl-C again to stop at once")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TWNStage)
        done = batch_idx + 1
        interrupted = self._interrupted
        if world_size() > 1:  # ranks see the signal at different steps, and saving needs them all
            interrupted = bool(sum_over_ranks(float(interrupted), pl_module.device))
        validates_next = done % trainer.val_check_batch == 0 or done == pl_module.total_steps
        if interrupted or (done % self.every_n_steps == 0 and not validates_next):
            trainer.save_checkpoint(self.run_folder.last_checkpoint, weights_only=False)
        self._stopping = interrupted

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._stopping:  # here, and not at the end of the step, so that the step's values are still logged
            raise KeyboardInterrupt

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
        self._restore_handler()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handler()

    def _restore_handler(self) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
