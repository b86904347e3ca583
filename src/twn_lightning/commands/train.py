"""`twn train`: one stage, or a sweep of runs."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from twn_lightning.commands import parser
from twn_lightning.commands.tables import table_console
from twn_lightning.errors import ConfigError
from twn_lightning.run import is_first_process
from twn_lightning.settings import Settings
from twn_lightning.sweep_folder import SweepFolder
from twn_lightning.validation import read_settings


def main(arguments: list[str]) -> int:
    """Train as the overrides, the file, or the interrupted run say.

    Returns:
        0, or 1 when a job of a sweep failed.

    Raises:
        KeyboardInterrupt: Ctrl-C; what was running is saved and can be resumed.
    """
    options = parser(
        "train",
        "Train one stage: sft, then rl, then gate.",
        """twn train experiment=nano_sft
        twn train stage=gate adapters.init_from=outputs/rl/nano_rl/RUN/adapters gate.price=1.0
        twn train --resume outputs/sft/nano_sft/RUN
        twn train --config config.yaml seed=1         (a resolved file: needs no Hydra)
        twn train experiment=nano_sft sweep=lora_rank
        twn train --multirun experiment=nano_sft adapters.reasoning.r=8,16,32 seed=0,1,2
        twn train --multirun experiment=nano_sft seed=0,1,2,3 hydra/launcher=joblib hydra.launcher.n_jobs=4
        twn train --resume outputs/sweeps/nano_sft/TIME   (a sweep: runs what is missing or failed)""",
    )
    options.add_argument("overrides", nargs="*", help="group=option and key=value")
    origin = options.add_mutually_exclusive_group()
    origin.add_argument("--config", type=Path, metavar="FILE", help="start from a resolved YAML file instead of conf/")
    origin.add_argument("--resume", type=Path, metavar="RUN", help="continue an interrupted run or sweep in its folder")
    origin.add_argument("-m", "--multirun", action="store_true", help="run every combination, one process each")
    chosen = options.parse_intermixed_args(arguments)
    from_conf = chosen.config is None and chosen.resume is None
    if from_conf and (chosen.multirun or _hydra_config().is_sweep(chosen.overrides)):
        return _sweep(chosen.overrides)
    if chosen.resume is not None and SweepFolder(chosen.resume).exists():
        return _sweep(_continued(SweepFolder(chosen.resume), chosen.overrides))
    settings = _settings(chosen)

    from twn_lightning.train import train

    metrics = train(settings, chosen.overrides)
    if not is_first_process():
        return 0
    for name in sorted(name.removesuffix("/after") for name in metrics if name.endswith("/after")):
        print(f"{name:<36}{_number(metrics.get(f'{name}/before'))} -> {_number(metrics[f'{name}/after'])}")
    return 0


def _number(value: float | None) -> str:
    return f"{'none' if value is None else format(value, '.4f'):>10}"


def _settings(chosen: argparse.Namespace) -> Settings:
    if chosen.config is not None:
        return read_settings(chosen.config, chosen.overrides, on_this_machine=True)
    if chosen.resume is not None:
        if not (chosen.resume / "config.yaml").is_file():
            raise ConfigError(f"--resume {chosen.resume}: not a run folder, it has no config.yaml")
        settings = read_settings(chosen.resume / "config.yaml", chosen.overrides, on_this_machine=True)
        return replace(
            settings,
            trainer=replace(settings.trainer, resume=str(chosen.resume)),
            paths=replace(settings.paths, run_dir=str(chosen.resume)),
        )
    return _hydra_config().load_settings(chosen.overrides, on_this_machine=True)


def _hydra_config() -> ModuleType:
    """The module that needs Hydra, imported only where a run does not start from a resolved file."""
    try:
        from twn_lightning import config
    except ModuleNotFoundError as error:
        if error.name not in ("hydra", "omegaconf"):
            raise
        raise ConfigError(
            f"composing conf/ needs {error.name}, which is not installed: pip install 'hydra-core>=1.3.2,<1.4', or run "
            "`twn config ... > config.yaml` on a machine that has it and `twn train --config config.yaml` here"
        ) from error
    return config


def _continued(sweep: SweepFolder, changes: list[str]) -> list[str]:
    """The overrides of an earlier sweep with changes, such as more seeds, in the same folder."""
    keys = {change.split("=", 1)[0] for change in changes}
    kept = [override for override in sweep.read_plan()["overrides"] if override.split("=", 1)[0] not in keys]
    return [*kept, *changes, f"hydra.sweep.dir='{sweep.path.absolute()}'"]


def _sweep(overrides: list[str]) -> int:
    from twn_lightning.reporting.sweep import load_sweep
    from twn_lightning.reporting.sweep_tables import job_table
    from twn_lightning.reporting.tables import print_text_tables

    sweep: SweepFolder = _hydra_config().run_sweep(overrides)
    jobs, state = sweep.jobs(), sweep.state()
    print_text_tables([job_table(load_sweep(sweep.path))], table_console())
    for job in jobs:
        if job.state == "FAILED":
            print(f"job {job.number}: {job.error}  (log: {job.log})")
    completed = sum(job.state == "COMPLETED" for job in jobs)
    total = len(jobs) if state == "COMPLETED" else max(len(jobs), sweep.read_plan()["jobs"])
    print(f"{completed} of {total} jobs completed in {sweep.path}")
    if completed:
        print(f"report: twn report {sweep.path}")
    if state != "COMPLETED":
        print(f"what is missing or failed: twn train --resume {sweep.path}")
    if state == "INTERRUPTED":
        raise KeyboardInterrupt
    return 0 if state == "COMPLETED" else 1
