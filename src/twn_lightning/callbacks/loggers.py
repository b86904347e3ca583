"""Loggers beside `metrics.jsonl`, which is the truth; each library is imported only when asked for."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger

from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings
from twn_lightning.validation import settings_to_dict


def build_loggers(settings: Settings, run_folder: RunFolder) -> list[Logger]:
    """What `logger.name` asks for, on top of `metrics.jsonl`.

    Raises:
        ConfigError: an unknown name.
    """
    builders = {"none": None, "csv": _csv, "tensorboard": _tensorboard, "wandb": _wandb}
    name = settings.logger.name
    if name not in builders:
        raise ConfigError(f"logger.name: {unknown_name('logger', name, builders)}")
    builder = builders[name]
    return [] if builder is None else [builder(settings, run_folder)]


def _csv(settings: Settings, run_folder: RunFolder) -> Logger:
    return CSVLogger(run_folder.path, name="csv", version="")


def _tensorboard(settings: Settings, run_folder: RunFolder) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(run_folder.path, name="tensorboard", version="")


def _wandb(settings: Settings, run_folder: RunFolder) -> Logger:
    """A wandb run that ends with the run: failed ones are marked so, and the next one starts a new one."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    class RunWandbLogger(WandbLogger):
        def finalize(self, status: str) -> None:
            super().finalize(status)
            wandb.finish(exit_code=0 if status == "success" else 1)

    options: dict[str, Any] = {"mode": settings.logger.mode, "config": settings_to_dict(settings)}
    return RunWandbLogger(
        name=f"{settings.stage.name}/{settings.name}",
        project=settings.logger.project,
        group=settings.logger.group,
        save_dir=run_folder.path,
        **options,
    )
