"""Lightning's Trainer for a stage, and the one way to run it."""

from __future__ import annotations

import logging
import re
import signal
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment

from twn_lightning.errors import CheckpointError
from twn_lightning.launch import started_together
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings
from twn_lightning.stages.base import TWNStage
from twn_lightning.stages.checkpoint_files import RunCheckpointIO, read_checkpoint
from twn_lightning.stages.checkpoints import RunCheckpoints
from twn_lightning.strategy import AdapterFSDP2Strategy, build_strategy, resolve_accelerator

Precision = Literal["32-true", "bf16-mixed", "bf16-true"]


class RunFolderLogger(Logger):
    """Writes what stages log to `metrics.jsonl`, numbered by the training batches that are done."""

    def __init__(self, run_folder: RunFolder) -> None:
        super().__init__()
        self.run_folder = run_folder

    @property
    def name(self) -> str:
        return "run_folder"

    @property
    def version(self) -> str:
        return self.run_folder.path.name

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.run_folder.log(step or 0, metrics)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run folder's config.yaml has them."""


_EXPECTED = (
    "in eval mode at the start of training",  # the frozen backbone
    "It is recommended to use `self.log",  # every rank logs the same values
    "is smaller than the logging interval",
    "does not have many workers",
)


def _quieten_lightning() -> None:
    """Leave out what Lightning says of devices and tips, and warnings that do not apply here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message=f".*{re.escape(message)}.*")


def build_trainer(
    settings: Settings,
    run_folder: RunFolder,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> Trainer:
    """The Trainer for any of the three stages.

    A run is one epoch of known length, so a checkpoint at any step is a position in it. Validation runs before the
    first step too (Lightning's sanity check, over everything), which gives every stage its "before".

    Args:
        settings: `trainer` is read.
        run_folder: gets metrics and checkpoints.
        callbacks: besides the checkpoints.
        loggers: besides `metrics.jsonl`.

    Raises:
        ConfigError: devices that are not there.
    """
    _quieten_lightning()
    trainer = settings.trainer
    accelerator = resolve_accelerator(trainer)
    strategy = build_strategy(trainer)
    precision: Any = trainer.precision
    if precision == "auto":
        # FSDP2 brings its own mixed precision, with fp32 adapters.
        mixed = accelerator == "cuda" and not isinstance(strategy, AdapterFSDP2Strategy)
        precision = "bf16-mixed" if mixed else "32-true"
    return Trainer(
        accelerator=accelerator,
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        strategy=strategy,
        # Named, since Lightning would take every process of a SLURM job for a task of srun.
        plugins=[
            TorchElasticEnvironment() if started_together() else LightningEnvironment(),
            RunCheckpointIO(run_folder),
        ],
        precision=precision,
        deterministic=trainer.deterministic,
        max_epochs=1,
        val_check_interval=trainer.val_every_steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=-1,
        log_every_n_steps=trainer.log_every_steps,
        logger=[RunFolderLogger(run_folder), *loggers],
        callbacks=[RunCheckpoints(run_folder, trainer.checkpoint_every_steps), *callbacks],
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
        default_root_dir=run_folder.path,
    )


def fit(trainer: Trainer, stage: TWNStage, resume: str | Path | None = None) -> None:
    """Train a stage, from the start or from a checkpoint, and export its adapters.

    Args:
        trainer: from `build_trainer`.
        stage: from `build_stage`.
        resume: a checkpoint file, or a run folder (its last checkpoint).

    Raises:
        KeyboardInterrupt: Ctrl-C, or another stop signal; the run folder holds a checkpoint to resume from.
        CheckpointError: `resume` is missing, damaged, or belongs to another stage or backbone.
        NumericalError: a loss or gradient that is not finite.
    """
    path = None if resume is None else checkpoint_path(resume)
    seed_everything(stage.settings.seed, verbose=False)
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(stage, ckpt_path=path, weights_only=True if path else None)
    except SystemExit as exit_code:  # what Lightning makes of an interrupt, with SIGINT ignored from then on
        if isinstance(exit_code.__context__, KeyboardInterrupt):
            raise exit_code.__context__ from None
        raise
    finally:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, handler)
    export_adapters(stage)


def export_adapters(stage: TWNStage) -> None:
    """Write the stage's adapters from the weights it exports: the best checkpoint's, or the last ones."""
    best = stage.run_folder.best_checkpoint
    if stage.exports == "best" and best.exists():
        checkpoint = read_checkpoint(best)
        stage.load_state_dict(checkpoint["state_dict"])
        stage.after = checkpoint["twn"]["after"]
        stage.threshold = checkpoint["twn"]["threshold"]
    stage.finish()
    stage.export()


def checkpoint_path(resume: str | Path) -> Path:
    """The checkpoint file that a run folder or a path means.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(resume).expanduser()
    if path.is_dir():
        path = RunFolder(path).last_checkpoint
    if not path.is_file():
        raise CheckpointError(
            f"trainer.resume={resume}: there is no checkpoint at {path}. Give a run folder with checkpoints/last.ckpt, "
            "or a .ckpt file; set trainer.resume=null to start afresh"
        )
    return path
