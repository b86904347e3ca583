"""Plain dictionaries to `Settings` and back, with every problem reported together.

Two kinds of problem: a value that does not fit its field (here), and fields that do not fit each other (`rules`).
Neither needs Hydra: this is how a resolved `config.yaml` starts a run on a machine without it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from twn_lightning import rules
from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.foreign_keys import here_called
from twn_lightning.redaction import secret_kind
from twn_lightning.settings import EvaluationSettings, GateStageSettings, RLSettings, Settings, SFTSettings

Section = TypeVar("Section")
STAGES = {"sft": SFTSettings, "gate": GateStageSettings, "rl": RLSettings}


@dataclasses.dataclass(frozen=True)
class RetiredKey:
    """A key of earlier releases: only its default was ever used, and the code now does just that."""

    default: Any
    means: str
    """What every run does now, as the end of a sentence."""

    def problem(self, path: str, value: Any) -> str:
        """What to do about another value."""
        return (
            f"{path} is no longer a key: {self.means}, as its default {self.default!r} said, and {value!r} asks for "
            "something else. Remove it"
        )


RETIRED_KEYS: dict[tuple[type, str], RetiredKey] = {
    (RLSettings, "weight_decay"): RetiredKey(0.0, "stage rl trains without weight decay"),
    (EvaluationSettings, "random_draws"): RetiredKey(20, "the random routers are means of 20 draws"),
}
"""By section and name. A config.yaml that holds the default loads, without the key."""


def settings_from_dict(values: Mapping[str, Any], *, on_this_machine: bool = False) -> Settings:
    """Check a nested dictionary against the settings and build them. A missing key takes its default.

    Args:
        values: sections by name, as in a resolved `config.yaml`.
        on_this_machine: also check what the run would need here: devices and optional packages.

    Returns:
        The settings.

    Raises:
        ConfigError: listing every unknown key, every value of the wrong type or range, every contradiction.
    """
    reader = _Reader()
    settings = reader.dataclass(Settings, values, "")
    found = rules.problems(settings)
    if on_this_machine:
        found += rules.machine_problems(settings)
    contradictions = [p.message for p in found if not reader.unreadable.intersection(p.keys)]
    problems = [*reader.problems, *contradictions, *secret_problems(settings)]
    if problems:
        raise ConfigError(problems)
    return settings


def section_from_dict(kind: type[Section], values: Any, key: str) -> Section:
    """One section of the settings, such as a saved encoder's adapters, checked on its own.

    Args:
        kind: its dataclass.
        values: by name; what is missing takes its default.
        key: its name among the settings.

    Raises:
        ConfigError: unknown keys, values of the wrong type or out of range.
    """
    reader = _Reader()
    section: Section = reader.dataclass(kind, values, key)
    whole: dict[str, Any] = {key: section}
    ranges = rules.out_of_range(dataclasses.replace(Settings(), **whole))
    problems = [*reader.problems, *(p.message for p in ranges if p.keys[0].startswith(f"{key}."))]
    if problems:
        raise ConfigError(problems)
    return section


def secret_problems(settings: Settings) -> list[str]:
    """The keys whose values hold secrets: run folders and loggers keep the whole configuration, for others to read."""
    return [
        f"{key} holds {what}, which every run would write into its config.yaml: put it into the environment instead, "
        "such as HF_TOKEN for the hub or WANDB_API_KEY for wandb"
        for key, value in flatten(settings_to_dict(settings)).items()
        if (what := secret_kind(str(value)))
    ]


def settings_to_dict(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, ready for YAML; the inverse of `settings_from_dict`."""
    return dataclasses.asdict(settings)


def read_settings(path: Path, overrides: Sequence[str] = (), *, on_this_machine: bool = False) -> Settings:
    """Settings from a resolved YAML file.

    Args:
        path: the file, such as a run folder's config.yaml.
        overrides: `key=value`; values are read as YAML. Groups and grids need Hydra.
        on_this_machine: as in `settings_from_dict`.

    Raises:
        ConfigError: the file is missing, is not YAML, is not a mapping, or does not validate.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file. A run folder holds its own as config.yaml.") from error
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, not a mapping of sections (stage, model, ...).")
    for override in overrides:
        _assign(values, override)
    return settings_from_dict(values, on_this_machine=on_this_machine)


def _assign(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {}) if isinstance(values, dict) else {}
    if not equals or not isinstance(values, dict):
        raise ConfigError(f"cannot read the override {override!r}: expected key=value, with a key of the file")
    try:
        values[name] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot read the value of the override {override!r} as YAML") from error


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested dictionary by dotted key; lists are leaves."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            leaves.update(flatten(value, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


class _Reader:
    """Walks values and dataclasses together. A bad value is noted and the default kept, so that the walk goes on."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.unreadable: set[str] = set()

    def note(self, key: str, message: str) -> None:
        self.problems.append(message)
        self.unreadable.add(key)

    def dataclass(self, cls: type, values: Any, key: str) -> Any:
        if not isinstance(values, Mapping):
            self.note(key, f"{key or 'the configuration'} must be a mapping of keys, not {values!r}")
            return cls()
        hints = get_type_hints(cls)
        known = {f.name for f in dataclasses.fields(cls)}
        built: dict[str, Any] = {}
        for name, value in values.items():
            path = f"{key}.{name}" if key else str(name)
            retired = None if name in known else RETIRED_KEYS.get((cls, name))
            if retired is not None:
                if value != retired.default:
                    self.note(path, retired.problem(path, value))
            elif name not in known:
                there = [f"{key}.{n}" if key else n for n in known]
                self.note(path, unknown_name("key", path, there) + here_called(path))
            elif path == "stage":
                built[name] = self.stage(value)
            elif get_origin(hints[name]) is list and dataclasses.is_dataclass(get_args(hints[name])[0]):
                built[name] = self.list_of(get_args(hints[name])[0], value, path)
            elif dataclasses.is_dataclass(hints[name]):
                built[name] = self.dataclass(hints[name], value, path)
            else:
                ok, converted = _convert(hints[name], value)
                if ok:
                    built[name] = converted
                else:
                    self.note(
                        path, f"{path} must be {_describe(hints[name])}, not {value!r}{_nearest(hints[name], value)}"
                    )
        return cls(**built)

    def list_of(self, cls: type, values: Any, key: str) -> list[Any]:
        if not isinstance(values, (list, tuple)):
            self.note(key, f"{key} must be a list of mappings, not {values!r}")
            return []
        return [self.dataclass(cls, value, f"{key}[{index}]") for index, value in enumerate(values)]

    def stage(self, values: Any) -> Any:
        name = values.get("name", "sft") if isinstance(values, Mapping) else values
        if name not in STAGES:
            self.note("stage", unknown_name("stage.name", str(name), STAGES))
            return SFTSettings()
        return self.dataclass(STAGES[name], values, "stage")


def _convert(hint: Any, value: Any) -> tuple[bool, Any]:
    """Whether a value fits a type, and the value as that type."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return type(None) in get_args(hint), None
        return next((r for r in (_convert(h, value) for h in get_args(hint)) if r[0]), (False, value))
    if origin is Literal:
        return value in get_args(hint), value
    if origin is list:
        if not isinstance(value, (list, tuple)):
            return False, value
        results = [_convert(get_args(hint)[0], v) for v in value]
        return all(ok for ok, _ in results), [v for _, v in results]
    if hint is float:
        return _as_float(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    return isinstance(value, hint), value


def _as_float(value: Any) -> tuple[bool, Any]:
    """YAML 1.1 reads `1e-4` as text, so numbers as text are numbers here. NaN and infinity are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return False, value
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return False, value
    return math.isfinite(number), number


def _nearest(hint: Any, value: Any) -> str:
    """A question that names the choice nearest to a wrong one; empty where nothing is near."""
    choices = [
        str(choice) for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal for choice in get_args(kind)
    ]
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    return f": did you mean {near[0]!r}?" if near else ""


def _describe(hint: Any) -> str:
    """A type in words: `one of dual, shared`, `a whole number or null`."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(h) for h in get_args(hint))
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if origin is list:
        return f"a list, each {_describe(get_args(hint)[0])}"
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    return words[hint]
