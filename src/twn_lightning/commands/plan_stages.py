"""Which stages `twn plan` speaks of, and the settings of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

from twn_lightning import config
from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.settings import RLSettings, Settings
from twn_lightning.validation import STAGES

PER_NODE = 8
FAMILY = "qwen3vl_4b"
"""Whose experiments stand in for those of another Qwen3-VL size."""


def settings_of_stages(overrides: Sequence[str]) -> tuple[list[Settings], list[str]]:
    """The settings of every stage that overrides speak of, and what had to be changed in them.

    Args:
        overrides: with the short names `gpus` and `batch`. `experiment=X_sft` also brings `X_rl` and `X_gate`; a model
            without experiments of its own takes those of its family; `stage=` keeps one stage.

    Raises:
        ConfigError: overrides that do not compose, or numbers that do not fit.
    """
    gpus, batch = _number("gpus", overrides), _number("batch", overrides)
    if gpus and gpus > PER_NODE and gpus % PER_NODE:
        whole = gpus // PER_NODE * PER_NODE
        raise ConfigError(f"gpus={gpus}: more than one node takes whole nodes of {PER_NODE}, such as gpus={whole}")
    experiments = _experiments(overrides)
    if batch and "sft" not in experiments:
        raise ConfigError(f"batch={batch} is stage 1's batch, which is not planned here: set stage.KEY instead")
    typed = [o for o in overrides if not o.startswith(("gpus=", "batch=", "experiment=", "stage="))]
    keys = {name: {f"stage.{field.name}" for field in fields(kind)} for name, kind in STAGES.items()}
    planned = set().union(*(keys[stage] for stage in experiments))
    foreign = set().union(*keys.values()) - planned
    lost = [o for o in typed if o.split("=")[0] in foreign]
    if lost:
        raise ConfigError(f"{', '.join(lost)}: no stage that is planned here has it ({', '.join(experiments)})")
    stages, notes = [], []
    for stage, experiment in experiments.items():
        kept = [o for o in typed if o.split("=")[0] not in planned - keys[stage]]
        kept += [f"stage.batch_size={batch}"] if batch and stage == "sft" else []
        settings = config.load_settings([*experiment, *kept])
        if gpus:
            settings, changes = _on_devices(settings, gpus)
            notes += changes
        stages.append(settings)
    return stages, notes


def _number(name: str, overrides: Sequence[str]) -> int | None:
    values = [o.split("=", 1)[1] for o in overrides if o.startswith(f"{name}=")]
    if not values:
        return None
    if not values[-1].isdecimal() or int(values[-1]) < 1:
        raise ConfigError(f"{name}={values[-1]}: expected a whole number of at least 1, such as {name}=64")
    return int(values[-1])


def _experiments(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Stage -> the overrides that choose its experiment."""
    given = dict(o.split("=", 1) for o in overrides if o.startswith(("experiment=", "model=", "stage=")))
    known = config.groups()["experiment"]
    name, model = given.get("experiment"), given.get("model", "nano")
    if given.get("stage", "sft") not in STAGES:
        raise ConfigError(unknown_name("stage", given["stage"], STAGES))
    if name is not None:
        family, _, last = name.rpartition("_")
        if last not in STAGES or name not in known:
            return {config.load_settings([f"experiment={name}"]).stage.name: [f"experiment={name}"]}
    else:
        family = model if model.startswith("qwen3vl") else "nano"
    wanted = [given["stage"]] if "stage" in given else list(STAGES)
    found = {}
    for stage in wanted:
        own = f"{family}_{stage}"
        if own in known:
            found[stage] = [f"experiment={own}"]
        elif family.startswith("qwen3vl"):
            found[stage] = [f"experiment={FAMILY}_{stage}", f"model={family}"]
    return found


def _on_devices(settings: Settings, gpus: int) -> tuple[Settings, list[str]]:
    """The settings on as many devices as their rows can be divided among."""
    key = "prompts_per_step" if isinstance(settings.stage, RLSettings) else "batch_size"
    rows = getattr(settings.stage, key)
    sizes = [n for n in range(1, gpus + 1) if rows % n == 0 and (n <= PER_NODE or n % PER_NODE == 0)]
    used, notes = max(sizes), []
    if used < gpus:
        notes.append(
            f"{settings.stage.name}: stage.{key}={rows} cannot be divided among {gpus} devices, planned on {used}; "
            f"stage.{key}={-(-rows // gpus) * gpus} would use all"
        )
    nodes = max(1, used // PER_NODE)
    strategy = "auto" if settings.trainer.strategy == "single" else settings.trainer.strategy
    trainer = replace(settings.trainer, devices=used // nodes, num_nodes=nodes, strategy=strategy)
    return replace(settings, trainer=trainer), notes
