"""What watches a run: checks, progress bar, throughput, gradient conflict, profile, loggers beside metrics.jsonl."""

from __future__ import annotations

from lightning.pytorch import Callback

from twn_lightning.callbacks.evaluation_log import log_evaluation
from twn_lightning.callbacks.gradient_conflict import GradientConflict
from twn_lightning.callbacks.loggers import build_loggers, open_loggers
from twn_lightning.callbacks.profile import ProfileSteps
from twn_lightning.callbacks.progress import StageProgressBar
from twn_lightning.callbacks.run_checks import RunChecks
from twn_lightning.callbacks.throughput import Throughput
from twn_lightning.callbacks.wandb_tables import WandbTables, log_result
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings, SFTSettings

__all__ = [
    "GradientConflict",
    "ProfileSteps",
    "RunChecks",
    "StageProgressBar",
    "Throughput",
    "WandbTables",
    "build_callbacks",
    "build_loggers",
    "log_evaluation",
    "log_result",
    "open_loggers",
]


def build_callbacks(settings: Settings, run_folder: RunFolder, *, progress: bool = True) -> list[Callback]:
    """The callbacks of a run.

    Args:
        settings: `trainer.log_every_steps`, `trainer.profile_steps`, `stage.conflict_every_steps` and `logger.name`
            are read.
        run_folder: gets the profile.
        progress: show a progress bar.
    """
    callbacks: list[Callback] = [RunChecks(), Throughput(settings.trainer.log_every_steps)]
    if isinstance(settings.stage, SFTSettings) and settings.stage.conflict_every_steps:
        callbacks.append(GradientConflict(settings.stage.conflict_every_steps))
    if settings.logger.name == "wandb":
        callbacks.append(WandbTables(run_folder))
    if settings.trainer.profile_steps:
        callbacks.append(ProfileSteps(run_folder, settings.trainer.profile_steps))
    if progress:
        callbacks.append(StageProgressBar())
    return callbacks
