"""Hydra, and the only file that knows it: overrides to settings, the reference config, and sweeps.

A sweep runs each job as one child process in plain mode. In this process a multi-device strategy, which launches its
ranks with the same command line, would launch the whole sweep again on each of them.
"""

from __future__ import annotations

import difflib
import re
import subprocess
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
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings
from twn_lightning.validation import STAGES, flatten, settings_from_dict, settings_to_dict

ROOT_CONFIG = "train"
REFERENCE_FILE = "reference.yaml"


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
        settings = settings_from_dict(_compose(usable), on_this_machine=on_this_machine)
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


def _compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved train config as plain values."""
    _store_tasks(conf_dir())
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = hydra.compose(ROOT_CONFIG, list(overrides))
        values = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    assert isinstance(values, dict)
    return values


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
    known = _compose([c for c in choices if "," not in c])
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
        return f"unknown key {key!r}{hint} {where}: {', '.join(siblings) or 'none'}"
    return None


def reference_text() -> str:
    """Every key of the train config with its default and its comment, flat: what conf/reference.yaml holds."""
    lines = [
        "# Every key of the train config with its default: key, value, and what it means.",
        "# Generated from conf/ by `make reference`; a test compares. To change one: twn train stage.batch_size=64",
    ]
    shared = _reference_section([], exclude="stage")
    lines += ["", "# every stage", *shared]
    for stage in STAGES:
        lines += ["", f"# stage={stage}", *_reference_section([f"stage={stage}"], only="stage")]
    return "\n".join(lines) + "\n"


def write_reference() -> Path:
    """Write conf/reference.yaml again."""
    path = conf_dir() / REFERENCE_FILE
    path.write_text(reference_text(), encoding="utf-8")
    return path


def _reference_section(overrides: list[str], *, only: str | None = None, exclude: str | None = None) -> list[str]:
    composed = _compose(overrides)
    comments = key_comments(conf_dir() / f"{ROOT_CONFIG}.yaml")
    for group, option in _default_options(overrides).items():
        found = key_comments(conf_dir() / group / f"{option}.yaml")
        comments.update({f"{group}.{key}": text for key, text in found.items()})
    lines = []
    for key, value in flatten(composed).items():
        section = key.split(".")[0]
        if section != exclude and (only is None or section == only):
            written = yaml.safe_dump(value, default_flow_style=True, width=1000).splitlines()[0]
            lines += [f"# {comments.get(key, '')}".rstrip(), f"{key}: {written}"]
    return lines


def _default_options(overrides: Sequence[str]) -> dict[str, str]:
    """The option of each group that the defaults list chooses, and the overrides change."""
    defaults = yaml.safe_load((conf_dir() / f"{ROOT_CONFIG}.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = {group: option for entry in defaults if isinstance(entry, dict) for group, option in entry.items()}
    chosen.update(dict(override.split("=", 1) for override in overrides))
    return {group: option for group, option in chosen.items() if option is not None and " " not in group}


def key_comments(path: Path) -> dict[str, str]:
    """The comment directly above each key of a YAML file, by dotted key; empty where there is none."""
    comments: dict[str, str] = {}
    pending: list[str] = []
    parents: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            pending.append(stripped.lstrip("# "))
        elif key := re.match(r"( *)(\w+):", line):
            indent = len(key[1])
            parents = [(i, k) for i, k in parents if i < indent] + [(indent, key[2])]
            comments[".".join(k for _, k in parents)] = " ".join(pending)
            pending = []
        else:
            pending = []
    return comments


def is_sweep(overrides: Iterable[str]) -> bool:
    """Whether the overrides choose a sweep preset, which needs no --multirun."""
    return any(o.startswith("sweep=") and o != "sweep=null" for o in overrides)


def run_sweep(overrides: Sequence[str]) -> list[RunFolder]:
    """Run every job of a sweep, one child process each.

    Args:
        overrides: as typed; comma-separated values, or a `sweep=` preset, span the grid. A launcher or sweeper plugin
            is chosen with `hydra/launcher=` and `hydra/sweeper=`.

    Returns:
        The run folders, in the order of the jobs; their status tells which failed.

    Raises:
        ConfigError: problems in the overrides' names.
    """
    problems, usable = _check_overrides(overrides)
    if problems:
        raise ConfigError(problems)
    base = _compose([o for o in usable if "," not in o and not o.startswith("hydra")])
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(base["paths"]["output_root"], "sweeps", base["name"], stamp).absolute()
    typed = sys.argv
    sys.argv = [typed[0], "--multirun", *usable, f"hydra.sweep.dir='{folder}'"]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=ROOT_CONFIG)(_sweep_job)()
    finally:
        sys.argv = typed
    return [RunFolder(path.parent) for path in sorted(folder.glob("*/status.json"), key=lambda p: int(p.parent.name))]


def _sweep_job(config: DictConfig) -> float | None:
    """One job: a child in plain mode. An optimising sweeper gets the stage's headline metric from its metrics.json."""
    job = HydraConfig.get()
    run = RunFolder(job.runtime.output_dir)
    changes = [o for o in job.overrides.task if not o.startswith("sweep=")]
    print(f"== job {job.job.num}: {job.job.override_dirname or 'defaults'} -> {run.path}", flush=True)
    command = [sys.executable, "-m", "twn_lightning", "train", *changes, f"paths.run_dir='{run.path}'"]
    code = _run_child(command)
    if code and run.read_status().get("status") not in ("FAILED", "INTERRUPTED"):
        run.status("FAILED", f"the job ended with exit code {code} before it started training")
    return run.metrics().get("headline", {}).get("after")


def _run_child(command: list[str]) -> int:
    return subprocess.run(command, check=False).returncode
