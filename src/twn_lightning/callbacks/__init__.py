"""What watches a run: progress bar, throughput, gradient conflict, and loggers beside metrics.jsonl."""

from __future__ import annotations

from lightning.pytorch import Callback

from twn_lightning.callbacks.gradient_conflict import GradientConflict
from twn_lightning.callbacks.loggers import build_loggers
from twn_lightning.callbacks.progress import StageProgressBar
from twn_lightning.callbacks.throughput import Throughput
from twn_lightning.settings import Settings, SFTSettings

__all__ = ["GradientConflict", "StageProgressBar", "Throughput", "build_callbacks", "build_loggers"]


def build_callbacks(settings: Settings, *, progress: bool = True) -> list[Callback]:
    """The callbacks of a run.

    Args:
        settings: `trainer.log_every_steps` and `stage.conflict_every_steps` are read.
        progress: show a progress bar.
    """
    callbacks: list[Callback] = [Throughput(settings.trainer.log_every_steps)]
    if isinstance(settings.stage, SFTSettings) and settings.stage.conflict_every_steps:
        callbacks.append(GradientConflict(settings.stage.conflict_every_steps))
    if progress:
        callbacks.append(StageProgressBar())
    return callbacks
