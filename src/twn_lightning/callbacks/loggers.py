"""Loggers beside `metrics.jsonl`, which is the truth; each library is imported only when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.loggers import CSVLogger, Logger

from twn_lightning.callbacks.wandb_logger import RunWandbLogger
from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.run import RunFolder, is_first_process
from twn_lightning.settings import Settings


def build_loggers(settings: Settings, run_folder: RunFolder, kind: str | None = None) -> list[Logger]:
    """What `logger.name` asks for, on top of `metrics.jsonl`; of several processes the first logs.

    Args:
        settings: `logger` is read.
        run_folder: gets the files.
        kind: what runs, for wandb; the stage's name by default.

    Raises:
        ConfigError: an unknown name; wandb online without an account.
    """
    builders = {"none": None, "csv": _csv, "tensorboard": _tensorboard, "wandb": RunWandbLogger}
    name = settings.logger.name
    if name not in builders:
        raise ConfigError(f"logger.name: {unknown_name('logger', name, builders)}")
    builder = builders[name]
    if builder is None or not is_first_process():
        return []
    return [builder(settings, run_folder, kind or settings.stage.name)]


@contextmanager
def open_loggers(settings: Settings, run_folder: RunFolder, kind: str | None = None) -> Iterator[list[Logger]]:
    """`build_loggers` for the work inside, which may log before, during and after Lightning's fit."""
    loggers, failed = build_loggers(settings, run_folder, kind), True
    try:
        yield loggers
        failed = False
    finally:
        for logger in loggers:
            if isinstance(logger, RunWandbLogger):
                logger.end(failed)
            else:
                logger.finalize("failed" if failed else "success")


def _csv(settings: Settings, run_folder: RunFolder, kind: str) -> Logger:
    return CSVLogger(run_folder.path, name="csv")  # its next version after a resume: one version is overwritten


def _tensorboard(settings: Settings, run_folder: RunFolder, kind: str) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(run_folder.path, name="tensorboard", version="")
