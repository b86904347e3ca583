"""Stages small enough for unit tests: the random `tiny` backbone on nano pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything

from tests.stage_runs import StageRun, tiny_settings


@pytest.fixture(autouse=True)
def _plain_torch_state() -> Any:
    """Deterministic mode is the trainer's doing; other tests should not inherit it."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def build(tmp_path: Path) -> Any:
    """`build(stage_settings, **sections)` -> a stage that has not been fitted."""

    def make(stage: Any, **sections: Any) -> StageRun:
        seed_everything(0, verbose=False)
        return StageRun(tiny_settings(stage, tmp_path / "run", **sections))

    return make
