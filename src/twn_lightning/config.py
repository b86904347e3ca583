"""Hydra, and the only file that knows it: overrides to settings, and sweeps.

A sweep runs each job as one child process in plain mode. In this process a multi-device strategy, which launches its
ranks with the same command line, would launch the whole sweep again on each of them.
"""

from __future__ import annotations

import difflib
import math
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from twn_lightning.benchmark.registry import NANO_SUITE, TASK_FILES, selections
from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.foreign_keys import here_called
from twn_lightning.launch import available_cores
from twn_lightning.redaction import redact_command, secret_kind
from twn_lightning.settings import Settings
from twn_lightning.sweep_folder import SweepFolder
from twn_lightning.sweep_job import StopOnSignal, in_sweep_process, run_job
from twn_lightning.validation import flatten, settings_from_dict, settings_to_dict

ROOT_CONFIG = "train"


def conf_dir() -> Path:
    """Where the config groups are: in the installed package, else in the repository.

    Raises:
        ConfigError: in neither.
    """
    packaged = Path(__file__).parent / "conf"
    repository = Path(__file__).parents[2] / "conf"
    for folder in (packaged, repository):
        if (folder / f"{ROOT_CONFIG}.yaml").is_file():
            return folder
    raise ConfigError(f"no config folder: neither {packaged} nor {repository} holds {ROOT_CONFIG}.yaml. Install again.")


def groups() -> dict[str, list[str]]:
    """The config groups and the options of each: files, and the generated ones of MMEB-V2 and MMEB-nano."""
    folders = sorted(folder for folder in conf_dir().iterdir() if folder.is_dir())
    options = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}
    options["task"] += [f"{suite}/{name}" for suite in TASK_FILES for name in selections(suite)]
    return options


def load_settings(overrides: Sequence[str] = (), *, on_this_machine: bool = False) -> Settings:
    """Compose `conf/train.yaml` with overrides and check the result.

    Args:
        overrides: `group=option` and `key=value`, as typed.
        on_this_machine: also check that devices and packages are there.

    Returns:
        The resolved settings.

    Raises:
        ConfigError: every problem of the overrides and of the values together.
    """
    problems, usable = _check_overrides(overrides)
    try:
        settings = settings_from_dict(compose(usable), on_this_machine=on_this_machine)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return settings


def resolved_yaml(settings: Settings) -> str:
    """The settings as the YAML of a run folder's config.yaml."""
    return yaml.safe_dump(settings_to_dict(settings), sort_keys=False, allow_unicode=True)


@cache
def _store_tasks(folder: Path) -> None:
    """Give Hydra `task=<suite>/<name>` for everything that can be asked for: `conf/task/nano.yaml` with other names."""
    plain = yaml.safe_load((folder / "task" / "nano.yaml").read_text(encoding="utf-8"))
    for suite in TASK_FILES:
        own = {"suite": suite} | ({"protocol": "nano"} if suite == NANO_SUITE else {})
        for name in selections(suite):
            ConfigStore.instance().store(f"{name}.yaml", plain | own | {"names": [name]}, group=f"task/{suite}")


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved train config as plain values.

    Raises:
        ConfigError: Hydra cannot compose it; the values themselves are not checked.
    """
    config = _composed(overrides)
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    assert isinstance(values, dict)
    return values


def _composed(overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """The train config, its interpolations not resolved yet; with Hydra's own section on request."""
    _store_tasks(conf_dir())
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra.compose(ROOT_CONFIG, list(overrides), return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(" ".join(str(error).split())) from error


def _check_overrides(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split overrides into problems with their names and those that Hydra can compose."""
    problems: list[str] = []
    choices: list[str] = []
    values: list[tuple[str, str]] = []
    options = groups()
    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            problems.append(f"cannot read the override {text!r}: expected key=value or group=option ({reason})")
            continue
        name = override.key_or_group
        if name in options and not override.is_delete():
            unknown = [o for o in _options_chosen(override) if o not in options[name]]
            problems += [unknown_name(f"option of {name}", option, options[name]) for option in unknown]
            choices += [] if unknown else [text]
        else:
            values.append((name, text))
    known = compose([c for c in choices if "," not in c])
    for name, text in values:
        problem = None if name.startswith("hydra") or text.startswith("+") else _unknown_key(name, known)
        problems += [problem] if problem else []
        choices += [] if problem else [text]
    return problems, choices


def _options_chosen(override: Override) -> list[str]:
    value = override.value()
    if isinstance(value, ChoiceSweep):
        value = value.list
    elif not isinstance(value, list):
        value = [value]
    return [str(getattr(option, "text", option)) for option in value if option is not None]


def _unknown_key(key: str, known: dict[str, Any]) -> str | None:
    """What is wrong with the name of a key, None where it exists."""
    node: Any = known
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, dict) and part in node:
            node = node[part]
            continue
        section = ".".join(parts[:depth])
        siblings = sorted(node) if isinstance(node, dict) else []
        siblings += [] if section else [group for group in groups() if group not in siblings]
        same_name = [leaf for leaf in flatten(known) if leaf.rsplit(".", 1)[-1] == parts[-1]]
        alike = [f"{section}.{s}".lstrip(".") for s in difflib.get_close_matches(part, siblings, n=1)]
        hint = "".join(f": did you mean {near!r}?" for near in (alike or same_name)[:1]) or "."
        where = f"The keys of {section}" if section else "The sections and groups"
        return f"unknown key {key!r}{hint} {where}: {', '.join(siblings) or 'none'}{here_called(key)}"
    return None


def is_sweep(overrides: Iterable[str]) -> bool:
    """Whether the overrides choose a sweep preset, which needs no --multirun."""
    return any(o.startswith("sweep=") and o != "sweep=null" for o in overrides)


def run_sweep(overrides: Sequence[str]) -> SweepFolder:
    """Run every job of a sweep that is not completed yet, one child process each.

    Args:
        overrides: as typed; comma-separated values, or a `sweep=` preset, span the grid. A launcher or sweeper plugin
            is chosen with `hydra/launcher=` and `hydra/sweeper=`, the folder with `hydra.sweep.dir=`. In the folder of
            an earlier sweep only what is missing runs.

    Returns:
        The sweep folder; its status and its jobs tell what failed, or that Ctrl-C ended it.

    Raises:
        ConfigError: problems in the overrides, or a plugin that is not installed; no job has run.
    """
    problems, usable = _check_overrides(overrides)
    shown = redact_command(overrides)
    problems += [
        f"the override {hidden!r} holds {what}, which the sweep would write into its folder: put it into the "
        "environment instead"
        for hidden, override in zip(shown, overrides, strict=True)
        if (what := secret_kind(override))
    ]
    if problems:
        raise ConfigError(problems)
    sweep, defaults = _plan_sweep(overrides, usable)
    typed, early = sys.argv, True
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what went wrong; otherwise it prints it and ends the process
    sys.argv = [typed[0], "--multirun", *defaults, *usable, f"hydra.sweep.dir='{sweep.path}'"]
    try:
        with StopOnSignal(sweep):
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=ROOT_CONFIG)(_sweep_job)()
        early = False
    except HydraException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    except KeyboardInterrupt:
        sweep.stop_file.touch()
    except Exception as error:  # of a plugin: a worker died, or no trial of an optimisation has a result
        if not sweep.stop_file.exists():
            print(f"twn: the sweep ended early: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.argv = typed
        sweep.finish(early=early)
    return sweep


_OPTUNA_DEFAULTS = (
    "hydra.sweeper.direction=maximize",  # every stage's headline metric is better when higher
    "hydra.sweeper.max_failure_rate=1.0",  # a failed job does not end the sweep
    "hydra.sweeper.sampler.seed=0",  # a sweep that goes on draws the same trials again and finds them completed
    "hydra.sweeper.n_jobs=1",  # how many trials are drawn before the first result is in
)


def _plan_sweep(typed: Sequence[str], usable: Sequence[str]) -> tuple[SweepFolder, Sequence[str]]:
    """Write sweep.yaml into the folder named in the overrides, else into a new one; and defaults of the sweeper."""
    parser = OverridesParser.create()
    fixed = [o for o in usable if not parser.parse_override(o).is_sweep_override()]
    try:
        composed = _composed(fixed, with_hydra=True)
    except ConfigError as error:
        extra = (
            "The extra `sweep` has joblib and submitit, `optuna` the sweeper: pip install 'twn_lightning[sweep,optuna]'"
        )
        raise ConfigError(f"{error} {extra}" if "Could not find 'hydra/" in str(error) else error.problems) from error
    if any(o.startswith("hydra.sweep.dir=") for o in usable):
        folder = Path(composed.hydra.sweep.dir)
    else:
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        folder = Path(composed.paths.output_root, "sweeps", composed.name, stamp)
    sweeper = composed.hydra.sweeper
    presets = [f"{key}={values}" for key, values in (sweeper.get("params") or {}).items()]
    axes: dict[str, list[str]] = {}
    for override in parser.parse_overrides([*presets, *(o for o in usable if not o.startswith("hydra"))]):
        axes.pop(override.key_or_group, None)
        if override.is_discrete_sweep():
            axes[override.key_or_group] = list(override.sweep_string_iterator())
        elif override.is_sweep_override():
            axes[override.key_or_group] = [override.get_value_string()]
    jobs = sweeper.get("n_trials") or math.prod(map(len, axes.values()))
    kept = [o for o in typed if not o.startswith("hydra.sweep.dir=")]
    sweep = SweepFolder(folder.expanduser().absolute()).plan(kept, axes, jobs)
    return sweep, _OPTUNA_DEFAULTS if "optuna" in sweeper._target_ else ()


def _sweep_job(config: DictConfig) -> float | None:
    """One job, wherever the launcher runs it. An optimising sweeper gets the stage's headline metric."""
    chosen = HydraConfig.get()
    sweep = SweepFolder(chosen.sweep.dir)
    in_charge = in_sweep_process()
    changes = [o for o in chosen.overrides.task if not o.startswith("sweep=")]
    job = run_job(sweep, chosen.job.num, changes, _threads(chosen, sweep))
    if in_charge and sweep.stop_file.exists():
        raise KeyboardInterrupt
    _, value = job.headline() or (None, None)
    return value


def _threads(chosen: DictConfig, sweep: SweepFolder) -> int | None:
    """A job's share of the cores where a launcher runs several at once on this machine; None where it has them all."""
    name = chosen.launcher._target_.rpartition(".")[2]
    if name not in ("JoblibLauncher", "LocalLauncher"):
        return None
    at_once = [sweep.read_plan()["jobs"]]
    at_once += [n for key in ("max_batch_size", "n_jobs") if (n := chosen.sweeper.get(key))]
    if name == "JoblibLauncher":
        workers = chosen.launcher.n_jobs
        at_once.append(workers if workers > 0 else max(1, available_cores() + 1 + workers))
    return max(1, available_cores() // min(at_once))
