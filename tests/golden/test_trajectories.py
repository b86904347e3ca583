"""Training follows its recorded trajectories: within a tolerance, and not always to one side of them.

A tolerance alone would pass a drift that is small but systematic, such as that of a slightly wrong learning rate.
Rounding that differs from CPU to CPU moves losses to either side, so the mean residual must be within its standard
error of zero. README.md has what TOLERANCE and ROUNDING rest on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.trajectories import FILE, STAGES, trajectory

TOLERANCE = 1e-3
"""Largest residual of a step, relative to the recorded value's mean magnitude."""
ROUNDING = 3e-5
"""A mean residual, relative to the same, up to which rounding alone can lie to one side."""
STANDARD_ERRORS = 3.0


def problem(found: list[float], recorded: list[float]) -> str | None:
    """What is wrong with the residuals of a trajectory, if anything."""
    if len(found) != len(recorded):
        return f"{len(found)} steps instead of {len(recorded)}"
    residual_T = (np.array(found) - np.array(recorded)) / np.abs(recorded).mean()
    worst = float(np.abs(residual_T).max())
    if not worst <= TOLERANCE:
        return f"off by up to {worst:.2g} of the recorded mean, more than {TOLERANCE}"
    mean, error = float(residual_T.mean()), float(residual_T.std(ddof=1)) / math.sqrt(len(residual_T))
    if abs(mean) > max(STANDARD_ERRORS * error, ROUNDING):
        return f"to one side: the mean residual is {mean:.2g} of the recorded mean, its standard error {error:.2g}"
    return None


@pytest.fixture(autouse=True)
def _plain_torch_state() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("stage", STAGES)
def test_training_follows_its_recorded_trajectory(stage: str, tmp_path: Path) -> None:
    recorded = json.loads(FILE.read_text())[stage]
    found = trajectory(stage, tmp_path / "run")
    assert found.keys() == recorded.keys()
    problems = {name: problem(found[name], values) for name, values in recorded.items()}
    assert not any(problems.values()), problems


def test_a_slightly_wrong_learning_rate_is_noticed(tmp_path: Path) -> None:
    (recorded,) = json.loads(FILE.read_text())["gate"].values()
    (found,) = trajectory("gate", tmp_path / "run", ["stage.learning_rate=1.001e-3"]).values()
    assert "to one side" in (problem(found, recorded) or "")


def test_residuals_must_be_small_and_of_no_side() -> None:
    recorded = np.linspace(3.0, 1.0, 20)
    noise_T = np.random.default_rng(0).normal(0, 2e-4, 20)
    noise_T -= noise_T.mean()
    assert problem(list(recorded + noise_T), list(recorded)) is None
    assert "to one side" in (problem(list(recorded + noise_T + 3e-4), list(recorded)) or "")
    assert "off by up to" in (problem(list(recorded + 1e-2), list(recorded)) or "")
    assert "19 steps" in (problem(list(recorded[:19]), list(recorded)) or "")
    assert "off by" in (problem([*recorded[:19], math.nan], list(recorded)) or "")
