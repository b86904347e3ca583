"""A run that is killed, or that a full disk or a signal ends, and is resumed equals one that met nothing, bit for bit.

Two moments of each stage; with TRUST=full, thirty.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.stage_runs import tiny_settings
from tests.trust.faults import Fault, moments, resuming, train_apart
from twn_lightning.audit import audit
from twn_lightning.manifest import file_digest
from twn_lightning.run import RunFolder
from twn_lightning.settings import GateStageSettings, RLSettings, Settings, SFTSettings

MOMENTS = 30 if os.environ.get("TRUST") == "full" else 2
STAGES: dict[str, Any] = {
    "sft": SFTSettings(batch_size=4, chunk_size=4, max_steps=4),
    "gate": GateStageSettings(batch_size=8, max_epochs=3, patience=1),
    "rl": RLSettings(prompts_per_step=1, completions_per_prompt=2, max_steps=4, pool_refresh_steps=2),
}


def settings_of(stage: str, folder: Path) -> Settings:
    data = {"train_pairs": 24, "rl_pairs": 12, "gate_pairs": 16, "calibration_pairs": 8}
    trainer = {"checkpoint_every_steps": 1, "val_every_steps": 2}
    return tiny_settings(STAGES[stage], folder, data=data, trainer=trainer)


def what_it_left(folder: Path) -> dict[str, Any]:
    """Everything of a run that must not depend on how often it was interrupted."""
    run = RunFolder(folder)
    log = [{k: v for k, v in line.items() if not k.startswith("throughput/")} for line in run.history()]
    files = [*run.adapters.rglob("*"), run.rollouts, run.held_out]
    digests = {str(path.relative_to(folder)): file_digest(path) for path in files if path.is_file()}
    return {"log": log, "metrics": run.metrics(), "files": digests}


@pytest.fixture(scope="module", params=STAGES)
def straight(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, int, dict[str, Any]]:
    """A stage, the moments of an undisturbed run of it, and what that run left."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    count = moments(settings_of(request.param, folder))
    assert audit(folder) == []
    left = what_it_left(folder)
    assert left["log"]
    assert left["files"]
    return request.param, count, left


def test_killed_and_resumed_equals_straight(straight: tuple[str, int, dict[str, Any]], tmp_path: Path) -> None:
    stage, count, expected = straight
    for moment in sorted(random.Random(stage).sample(range(1, count), MOMENTS)):
        settings = settings_of(stage, tmp_path / str(moment))
        run = RunFolder(tmp_path / str(moment))
        assert train_apart(settings, Fault("SIGKILL", moment)) == -9
        if run.read_status().get("status") != "COMPLETED":
            assert train_apart(resuming(settings) if run.config.exists() else settings) == 0
        assert what_it_left(run.path) == expected, f"killed at moment {moment} of {count}"
        assert audit(run.path) == []


def test_a_full_disk_fails_loudly_and_the_run_resumes(
    straight: tuple[str, int, dict[str, Any]], tmp_path: Path
) -> None:
    stage, count, expected = straight
    settings = settings_of(stage, tmp_path / "run")
    assert train_apart(settings, Fault("ENOSPC", count // 2)) == 1
    status = RunFolder(tmp_path / "run").read_status()
    assert status["status"] == "FAILED"
    assert "No space left on device" in status["error"]
    assert train_apart(resuming(settings)) == 0
    assert what_it_left(tmp_path / "run") == expected


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_saves_and_says_how_to_go_on(name: str, code: int, tmp_path: Path) -> None:
    settings = settings_of("sft", tmp_path / "run")
    assert train_apart(settings, Fault(name, 12)) == code
    status = RunFolder(tmp_path / "run").read_status()
    assert status["status"] == "INTERRUPTED"
    assert status["error"] == f"continue with: twn train --resume {tmp_path / 'run'}"
    assert train_apart(resuming(settings)) == 0


def test_slurm_takes_the_job_back_and_the_same_command_goes_on(tmp_path: Path) -> None:
    called = tmp_path / "called"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {called}\n')
    scontrol.chmod(0o755)
    job = {"SLURM_JOB_ID": "17", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    settings = settings_of("sft", tmp_path / "run")
    assert train_apart(settings, Fault("SIGUSR1", 12), job) == 138
    assert called.read_text() == "requeue 17\n"
    assert RunFolder(tmp_path / "run").read_status()["status"] == "INTERRUPTED"
    assert train_apart(settings, None, job | {"SLURM_RESTART_COUNT": "1"}) == 0
    assert RunFolder(tmp_path / "run").read_status()["status"] == "COMPLETED"
