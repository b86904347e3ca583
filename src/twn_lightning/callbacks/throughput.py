"""Rows and steps a second over the last logging interval, and the memory they took."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from twn_lightning.stages.base import TWNStage
from twn_lightning.types import ContrastiveBatch


class Throughput(Callback):
    """Logs `throughput/rows_per_second` (pairs, prompts or labelled inputs, over all ranks) and seconds per step.

    Validation is not counted. On CUDA also the peak memory of this rank since the last line, in GB.

    Args:
        every_n_steps: steps between two lines.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._seconds, self._rows, self._steps, self._began = 0.0, 0, 0, 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._seconds += time.perf_counter() - self._began
        self._rows += len(batch.queries) if isinstance(batch, ContrastiveBatch) else len(batch)
        self._steps += 1
        if (batch_idx + 1) % self.every_n_steps:
            return
        values = {
            "throughput/rows_per_second": self._rows * trainer.world_size / self._seconds,
            "throughput/seconds_per_step": self._seconds / self._steps,
        }
        if pl_module.device.type == "cuda":
            values["throughput/peak_memory_gb"] = torch.cuda.max_memory_allocated(pl_module.device) / 1e9
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        assert isinstance(pl_module, TWNStage)
        pl_module.record(values, batch_idx + 1)
        self._seconds, self._rows, self._steps = 0.0, 0, 0
