"""Made models of stage 1, trained in several ways with two seeds each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tests.support.study_runs import WITH_COT, decisions, write_model
from twn_lightning.settings import AdapterSettings, DataSettings, InterfaceSettings, ModelSettings, Settings

COUNT = 300
SEEDS = (0, 1)
DUAL = AdapterSettings()
BETTER = {kind: rate + 0.05 for kind, rate in WITH_COT.items()}
"""Quality with a CoT, five points above that of the other variants."""

Interface = Literal["kv_detached", "kv_joint", "reencode"]


def trained(
    interface: Interface = "kv_detached", adapters: AdapterSettings = DUAL, seed: int = 0, model: str = "nano"
) -> Settings:
    """Settings of a training."""
    return Settings(
        seed=seed,
        model=ModelSettings(name=model),
        adapters=adapters,
        interface=InterfaceSettings(name=interface),
        data=DataSettings(source="mmeb_nano"),
    )


def with_seeds(folder: Path, write: Callable[[Path, int], Path]) -> list[Path]:
    """What `write` makes of a folder and a seed, for both seeds."""
    return [write(folder / str(seed), seed) for seed in SEEDS]


def interface_models(root: Path, model: str = "nano") -> list[Path]:
    """Detached caches with two adapters give the best embeddings with a CoT and the best CoTs; all others are alike."""
    shared = replace(DUAL, arrangement="shared")
    others: dict[str, tuple[Interface, AdapterSettings]] = {
        "joint": ("kv_joint", DUAL),
        "reencode": ("reencode", DUAL),
        "none": ("kv_detached", replace(DUAL, prefix="none")),
        "shared": ("kv_detached", shared),
        "shared_joint": ("kv_joint", shared),
    }

    def best(folder: Path, seed: int) -> Path:
        settings = trained(seed=seed, model=model)
        return write_model(folder, settings, decisions(seed, COUNT, with_cot=BETTER), accuracy=0.95)

    folders = with_seeds(root / "detached", best)
    for name, (interface, adapters) in others.items():
        for seed in SEEDS:
            settings = trained(interface, adapters, seed, model)
            folders.append(write_model(root / name / str(seed), settings, decisions(seed, COUNT), accuracy=0.9))
    return folders


def is_rectangular(markdown: str) -> bool:
    """Whether every table has as many cells in each line, and there is one."""
    tables = [part for part in markdown.split("\n\n") if part.startswith("|")]
    return bool(tables) and all(len({line.count("|") for line in part.splitlines()}) == 1 for part in tables)
