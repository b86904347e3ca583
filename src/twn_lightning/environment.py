"""What a run ran on: git revision, versions, hardware. Written beside every run, printed by `twn doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from twn_lightning.launch import available_cores
from twn_lightning.redaction import redact_command

CORE_PACKAGES = (
    "twn_lightning", "torch", "lightning", "transformers", "peft", "hydra-core", "omegaconf", "torchmetrics", "wandb",
    "numpy", "pillow", "safetensors", "huggingface-hub", "pyarrow", "matplotlib",
)  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """Everything about this process that a number may depend on, as plain values without secrets."""
    return {
        "command": redact_command(sys.argv),
        "git": git_state(),
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in CORE_PACKAGES}},
        "hardware": hardware(),
    }


@lru_cache
def version_of(package: str) -> str | None:
    """The installed version, None where the package is absent. Imports nothing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, Any]:
    """Revision of the checkout this package runs from, and whether it has changes; nulls for an installed wheel."""
    folder = Path(__file__).parent
    revision = _git(folder, "rev-parse", "HEAD")
    if revision is None or _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"revision": None, "dirty": None}
    return {"revision": revision, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True, encoding="utf-8"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def hardware() -> dict[str, Any]:
    """Processor, memory and accelerators."""
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "platform": platform.platform(),
        "processor": _processor_name(),
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "cuda": torch.version.cuda,
        "devices": [
            {
                "name": torch.cuda.get_device_name(index),
                "memory_gib": round(torch.cuda.get_device_properties(index).total_memory / 2**30, 1),
            }
            for index in range(cuda)
        ],
    }


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
