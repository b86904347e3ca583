"""What run folders say of the training behind some adapters: stages, commands, data, and an evaluation's numbers."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from twn_lightning.backbone.loading import adapters_folder
from twn_lightning.errors import DataError
from twn_lightning.run import RunFolder

SUMMARY_FILE = "summary.json"
PAIRS = {"sft": "train_pairs", "gate": "gate_pairs", "rl": "rl_pairs"}
"""Which of the data settings counts a stage's pairs."""


@dataclass(frozen=True)
class StageRecord:
    """One stage that was trained."""

    name: str
    data: str
    """Its sources and the number of pairs."""
    command: str
    """What to type to train it again; paths of the machine are left out."""
    headline: str
    """The stage's own measure before and after it, on validation pairs."""


def stages_of(adapters: Path) -> list[StageRecord]:
    """The stages that led to adapters, first to last, as far as their run folders are still there.

    Args:
        adapters: a run's `adapters` folder; one that belongs to no run has no stages.
    """
    found: list[StageRecord] = []
    seen: set[Path] = set()
    while (run := adapters.resolve().parent) not in seen and (run / "config.yaml").is_file():
        seen.add(run)
        config: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        found.insert(0, _stage(RunFolder(run), config))
        start = config["adapters"].get("init_from")
        if start is None:
            break
        adapters = adapters_folder(start)
    return found


def _stage(run: RunFolder, config: dict[str, Any]) -> StageRecord:
    stage, data = config["stage"]["name"], config["data"]
    sources = [source["source"] for source in data.get("sources") or []] or [data["source"]]
    headline = run.metrics().get("headline") or {}
    return StageRecord(
        name=stage,
        data=f"{', '.join(sources)}, {data[PAIRS[stage]]:,} pairs",
        command=_command(run, stage),
        headline=_before_and_after(headline),
    )


def _before_and_after(headline: dict[str, Any]) -> str:
    values = [headline.get("before"), headline.get("after")]
    if any(value is None for value in values):
        return "not measured"
    return f"{headline['metric']} {values[0]:.3f} -> {values[1]:.3f}"


def _command(run: RunFolder, stage: str) -> str:
    """The overrides that were typed; where files lie on this machine is nobody's business."""
    typed = run.path / "overrides.txt"
    overrides = typed.read_text(encoding="utf-8").splitlines() if typed.is_file() else []
    words = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+").startswith("paths."):
            continue
        words.append(f"{key}=PATH" if "/" in value and key not in ("task", "+task") else override)
    named = any(word.startswith(("stage=", "experiment=")) for word in words)
    return shlex.join(["twn", "train", *([] if named else [f"stage={stage}"]), *words])


def evaluation_of(run: Path, *, required: bool) -> dict[str, Any] | None:
    """The summary of an evaluated run.

    Args:
        run: its folder.
        required: whether it must be one.

    Returns:
        The content of summary.json; None where there is none.

    Raises:
        DataError: it is required and missing, or not JSON.
    """
    path = run / SUMMARY_FILE
    if not path.is_file():
        if required:
            raise DataError(f"{run} holds no {SUMMARY_FILE}: name a run of `twn evaluate`")
        return None
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): evaluate again") from error
    return summary
