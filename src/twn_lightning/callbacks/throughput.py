"""Rows and steps a second over the last logging interval, the arithmetic in them, and the memory they took."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from twn_lightning.callbacks.step_work import peak_flops, step_operations
from twn_lightning.planning.shapes import ModelShape
from twn_lightning.stages.base import TWNStage
from twn_lightning.types import ContrastiveBatch


class Throughput(Callback):
    """Logs `throughput/rows_per_second` (pairs, prompts or labelled inputs, over all ranks) and seconds per step.

    Validation is not counted. In stage 1 also `throughput/tflops`, of this rank's model, and, where the device's peak
    is known, `throughput/mfu`: their quotient, the model FLOPs utilisation. On CUDA also the peak memory of this rank
    since the last line, in GB.

    Args:
        every_n_steps: steps between two lines.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._seconds, self._rows, self._steps, self._began = 0.0, 0, 0, 0.0
        self._operations: list[float | None] = []
        self._shape: ModelShape | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TWNStage)
        self._shape = ModelShape.from_config(pl_module.backbone.model.config)

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
        assert isinstance(pl_module, TWNStage)
        assert self._shape is not None
        self._operations.append(step_operations(self._shape, pl_module.settings, batch))
        if (batch_idx + 1) % self.every_n_steps:
            return
        values = {
            "throughput/rows_per_second": self._rows * trainer.world_size / self._seconds,
            "throughput/seconds_per_step": self._seconds / self._steps,
        }
        known = [operations for operations in self._operations if operations is not None]
        if len(known) == self._steps:
            values["throughput/tflops"] = sum(known) / self._seconds / 1e12
            peak = peak_flops(pl_module.device, pl_module.settings)
            if peak is not None:
                values["throughput/mfu"] = sum(known) / self._seconds / peak
        if pl_module.device.type == "cuda":
            values["throughput/peak_memory_gb"] = torch.cuda.max_memory_allocated(pl_module.device) / 1e9
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        pl_module.record(values, batch_idx + 1)
        self._seconds, self._rows, self._steps = 0.0, 0, 0
        self._operations = []
