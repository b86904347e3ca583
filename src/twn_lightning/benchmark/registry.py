"""The tasks of a suite as data: one table each, read once, selected by name, meta-task or modality.

`mmeb_v2` is the benchmark's 78 tasks, `mmeb_nano` eleven small ones of the nano world in the same schemas. No two tasks
share a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from twn_lightning.errors import ConfigError, unknown_name

Modality = Literal["image", "video", "visdoc"]
MODALITIES: tuple[Modality, ...] = ("image", "video", "visdoc")
VERSIONS = ("2.0.0", "2.0.1", "2.1")
SUITE = "mmeb_v2"
NANO_SUITE = "mmeb_nano"
TASK_FILES = {SUITE: Path(__file__).with_name("tasks.yaml"), NANO_SUITE: Path(__file__).with_name("nano_tasks.yaml")}
"""The suites, and the table of each."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, where PyYAML was built with it: several times faster, and every process reads the table."""


@dataclass(frozen=True)
class BenchmarkTask:
    """One row of the scoreboard. Field meanings: the head of tasks.yaml."""

    name: str
    modality: Modality
    meta_task: str
    parser: str
    hf_repo: str
    hf_split: str
    metric: str
    num_queries: int
    eval_type: Literal["local", "global"]
    distribution: str
    media: str
    hf_subset: str | None = None
    hf_revision: str | None = None
    """Commit of the data on the hub; None: whatever its main branch holds."""
    num_candidates: int | None = None
    candidates_note: str | None = None
    query_instruction: str | None = None
    target_instruction: str | None = None
    query_instruction_variants: Mapping[str, str] = field(default_factory=dict)
    qwen3_query_instruction: str | None = None
    """The query instruction in the qwen3 protocol; None: the same as in vlm2vec."""
    qwen3_query_instruction_variants: Mapping[str, str] = field(default_factory=dict)
    graded: bool = False
    all_frames: bool = False
    notes: str | None = None
    versions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def at_version(self, version: str) -> BenchmarkTask:
        """This row as it was in a version of the benchmark.

        Raises:
            ConfigError: unknown version.
        """
        if version not in VERSIONS:
            raise ConfigError(unknown_name("benchmark version", version, VERSIONS))
        return replace(self, **self.versions.get(version, {}))


@cache
def all_tasks(suite: str = SUITE) -> tuple[BenchmarkTask, ...]:
    """The tasks of a suite, in scoreboard order, at the newest version.

    Raises:
        ConfigError: unknown suite.
    """
    if suite not in TASK_FILES:
        raise ConfigError(unknown_name("suite", suite, TASK_FILES))
    return tuple(
        BenchmarkTask(**row)
        for row in yaml.load(TASK_FILES[suite].read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 (a safe one)
    )


def meta_tasks(suite: str = SUITE) -> dict[str, list[str]]:
    """Task names of each meta-task of a suite, in scoreboard order."""
    groups: dict[str, list[str]] = {}
    for task in all_tasks(suite):
        groups.setdefault(task.meta_task, []).append(task.name)
    return groups


def get_task(name: str, suite: str | None = None) -> BenchmarkTask:
    """The task of that name, in one suite or in whichever has it.

    Raises:
        ConfigError: unknown name; lists what exists with the nearest match.
    """
    known = {task.name: task for each in ([suite] if suite else TASK_FILES) for task in all_tasks(each)}
    if name not in known:
        raise ConfigError(unknown_name("task", name, known))
    return known[name]


def selections(suite: str = SUITE) -> dict[str, list[str]]:
    """What can be asked for under one name: `all`, a modality, a meta-task or a task, with the tasks it stands for."""
    tasks = all_tasks(suite)
    named: dict[str, list[str]] = {"all": [task.name for task in tasks]}
    for modality in MODALITIES:
        named[modality] = [task.name for task in tasks if task.modality == modality]
    return named | meta_tasks(suite) | {task.name: [task.name] for task in tasks}


def select_tasks(names: Iterable[str], suite: str = SUITE) -> list[BenchmarkTask]:
    """The tasks that names stand for, in scoreboard order, each once.

    Raises:
        ConfigError: names that are no selection, all of them together.
    """
    known = selections(suite)
    asked = list(names)
    problems = [unknown_name("task or group of tasks", name, known) for name in asked if name not in known]
    if problems:
        raise ConfigError(problems)
    wanted = {task for name in asked for task in known[name]}
    return [task for task in all_tasks(suite) if task.name in wanted]
