"""One stage from settings to a finished run folder. Needs neither Hydra nor OmegaConf nor wandb:

python -m twn_lightning.train outputs/sft/nano_sft/<time>/config.yaml seed=1
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything

from twn_lightning.backbone.loading import load_backbone
from twn_lightning.callbacks import build_callbacks, log_result, open_loggers
from twn_lightning.checks import recording
from twn_lightning.data.datamodule import naming_lost_workers
from twn_lightning.errors import CheckpointError, ConfigError
from twn_lightning.launch import adopt_srun, check_processes, local_rank
from twn_lightning.messages import configure_logging, exit_code
from twn_lightning.run import RunFolder, is_first_process, recorded, run_folder_for
from twn_lightning.settings import Settings, TrainerSettings
from twn_lightning.stages import build_stage, build_trainer, fit
from twn_lightning.stopping import Stopped, requeue, was_requeued
from twn_lightning.strategy import leave_processes, naming_lost_ranks
from twn_lightning.validation import read_settings

log = logging.getLogger(__name__)


def train(settings: Settings, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run one stage and leave its run folder: config, metrics, checkpoints, adapters, status.

    Args:
        settings: the resolved settings.
        overrides: what was typed, for the record.

    Returns:
        The final metrics, as in metrics.json; `headline` holds the stage's own one before and after.

    Raises:
        TWNError: something the user can put right; the run is marked FAILED.
        KeyboardInterrupt: the run is marked INTERRUPTED and can be resumed. After SIGUSR1 inside a SLURM job, the job
            goes back into the queue.
    """
    check_processes(settings.trainer.devices, settings.trainer.num_nodes)
    settings, checkpoint, in_place = resumed(settings)
    run = run_folder_for(settings)
    try:
        with run.lock():
            if not in_place:
                run.require_new()
            elif checkpoint is None:
                run.rewind(-1)
            run.create(settings, overrides, resumed_from=str(checkpoint) if checkpoint else None)
            metrics = _train(settings, run, checkpoint)
    except Stopped as stopped:
        if stopped.signal is signal.SIGUSR1 and is_first_process():
            requeue()
        raise
    leave_processes()
    return metrics


def _train(settings: Settings, run: RunFolder, checkpoint: Path | None) -> dict[str, Any]:
    with (
        recorded(run),
        recording(run),
        naming_lost_ranks(),
        naming_lost_workers(settings.data.num_workers),
        open_loggers(settings, run) as loggers,
    ):
        seed_everything(settings.seed, workers=True, verbose=False)
        backbone = load_backbone(settings.model, settings.adapters, settings.interface, device_for(settings.trainer))
        stage = build_stage(settings, backbone, run)
        callbacks = build_callbacks(settings, run, progress=sys.stdout.isatty())
        trainer = build_trainer(settings, run, callbacks, loggers)
        fit(trainer, stage, checkpoint)
        metrics = {**stage.final_metrics(), "headline": stage.summary()}
        log_result(loggers, stage)
        run.finish(metrics)
    return metrics


def resumed(settings: Settings) -> tuple[Settings, Path | None, bool]:
    """What `trainer.resume` means: a run folder goes on in place, a checkpoint starts a new folder from it.

    A job that SLURM starts again goes on in its run folder too, where `paths.run_dir` names one that holds its run.

    Returns:
        The settings with their run folder; the checkpoint, None where there is nothing to load (no resume, or a run
        interrupted before its first checkpoint, which starts again); whether an earlier run's folder is continued.

    Raises:
        CheckpointError: no such folder or file, a run of another stage, or one that is completed.
    """
    resume, run_dir = settings.trainer.resume, settings.paths.run_dir
    if resume is None and run_dir is not None and was_requeued():
        resume = run_dir if RunFolder(Path(run_dir).expanduser()).read_status() else None
    if resume is None:
        return settings, None, False
    path = Path(resume).expanduser()
    if path.suffix == ".ckpt":
        if not path.is_file():
            raise CheckpointError(f"trainer.resume={path}: there is no such checkpoint.")
        return settings, path, False
    run = RunFolder(path)
    earlier = run.settings().stage.name
    if earlier != settings.stage.name:
        raise CheckpointError(
            f"trainer.resume={path} is a run of stage {earlier}, this one is stage {settings.stage.name}: continue it "
            f"with stage={earlier}, or start this stage from its adapters with adapters.init_from={run.adapters}"
        )
    if run.read_status().get("status") == "COMPLETED":
        raise CheckpointError(
            f"trainer.resume={path} is completed: there is nothing to continue. To train on from its weights start a "
            f"new run with adapters.init_from={run.adapters}"
        )
    run_dir = run_dir or str(path)
    settings = replace(settings, paths=replace(settings.paths, run_dir=run_dir))
    if not run.last_checkpoint.is_file():
        log.warning("%s has no checkpoint yet: the run starts again from its first step", path)
    checkpoint = run.last_checkpoint if run.last_checkpoint.is_file() else None
    return settings, checkpoint, Path(run_dir).expanduser().resolve() == path.resolve()


def device_for(trainer: TrainerSettings) -> torch.device:
    """Where this process loads the backbone."""
    if trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank())


def main() -> None:
    """`python -m twn_lightning.train CONFIG [key=value ...]`."""
    adopt_srun()
    configure_logging()
    if len(sys.argv) < 2:
        raise ConfigError("usage: python -m twn_lightning.train CONFIG [key=value ...]")
    overrides = sys.argv[2:]
    train(read_settings(Path(sys.argv[1]), overrides, on_this_machine=True), overrides)


if __name__ == "__main__":
    sys.exit(exit_code(main))
