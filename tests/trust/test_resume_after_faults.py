"""A training run that meets a fault and is resumed equals one that met nothing, bit for bit.

A random moment of each stage and of some kinds; with TRUST=full thirty, and of every kind.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer

from tests.stage_runs import tiny_settings
from tests.trust.faults import (
    DISK_FULL,
    FULL,
    Fault,
    chosen_moments,
    count_moments,
    resuming,
    run_apart,
    training,
)
from tests.trust.outcomes import assert_same, injected
from twn_lightning.atomic import write_text
from twn_lightning.audit import audit
from twn_lightning.manifest import file_digest
from twn_lightning.run import RunFolder
from twn_lightning.settings import GateStageSettings, RLSettings, Settings, SFTSettings
from twn_lightning.stages.checkpoints import RunCheckpoints
from twn_lightning.stopping import Stopped
from twn_lightning.train import train
from twn_lightning.validation import settings_to_dict

STAGES: dict[str, Any] = {
    "sft": SFTSettings(batch_size=4, chunk_size=4, max_steps=4),
    "gate": GateStageSettings(batch_size=8, max_epochs=3, patience=1),
    "rl": RLSettings(prompts_per_step=1, completions_per_prompt=2, max_steps=4, pool_refresh_steps=2),
}
IN_CI = {
    "sft": ("SIGKILL", "SIGTERM", DISK_FULL),
    "gate": ("SIGKILL", "SIGINT", DISK_FULL),
    "rl": ("SIGKILL", "SIGUSR1", DISK_FULL),
}
EXIT_CODES = {"SIGKILL": (-9,), "SIGTERM": (143, -15), "SIGINT": (130,), "SIGUSR1": (138, -10), DISK_FULL: (2,)}
"""The negative ones: nothing handles the signal before the run has begun and after it has ended."""
Straight = Callable[[str], tuple[int, dict[str, Any]]]
CASES = [(stage, kind) for stage in STAGES for kind in EXIT_CODES if FULL or kind in IN_CI[stage]]

TRAIN_EACH = """
import sys
from pathlib import Path
from twn_lightning.train import train
from twn_lightning.validation import read_settings

for path in sys.argv[1:]:
    train(read_settings(Path(path)))
"""


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


def go_on(settings: Settings) -> None:
    """Bring an interrupted run to its end, as its user would."""
    run = RunFolder(settings.paths.run_dir or "")
    if run.read_status().get("status") != "COMPLETED":
        assert run_apart(training(resuming(settings) if run.config.exists() else settings)) == 0


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """The moments of an undisturbed run of a stage, and what it left; each stage is run once."""

    @cache
    def run(stage: str) -> tuple[int, dict[str, Any]]:
        folder = tmp_path_factory.mktemp(stage) / "run"
        count = count_moments(training(settings_of(stage, folder)))
        assert audit(folder) == []
        left = what_it_left(folder)
        assert left["log"]
        assert left["files"]
        return count, left

    return run


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs in a new interpreter that orders sets otherwise, one folder a stage."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for stage in STAGES:
        write_text(folder / f"{stage}.yaml", yaml.safe_dump(settings_to_dict(settings_of(stage, folder / stage))))
    files = [str(path) for path in folder.glob("*.yaml")]
    variables = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", TRAIN_EACH, *files], check=True, env=variables, cwd=folder)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_command_again_gives_the_same_bytes(stage: str, straight: Straight, elsewhere: Path) -> None:
    _, expected = straight(stage)
    assert_same(what_it_left(elsewhere / stage), expected, "in another process")


@pytest.mark.parametrize(("stage", "kind"), CASES)
def test_interrupted_and_resumed_equals_straight(stage: str, kind: str, straight: Straight, tmp_path: Path) -> None:
    count, expected = straight(stage)
    for number, moment in enumerate(chosen_moments(count, f"{stage} {kind}")):
        settings = settings_of(stage, tmp_path / str(number))
        run = RunFolder(tmp_path / str(number))
        with injected(kind, stage, number):
            code = run_apart(training(settings), Fault(kind, moment))
            status = run.read_status()
            ended = code == 0 and status["status"] == "COMPLETED"  # while its very last file was written
            assert ended or code in EXIT_CODES[kind]
            if kind == DISK_FULL and status.get("status") == "FAILED":
                assert "could not be written: No space left on device" in status["error"]
            go_on(settings)
            assert_same(what_it_left(run.path), expected, f"{kind} at moment {moment} of {count}")
            assert audit(run.path) == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_torn_checkpoint_gives_way_to_the_one_before(stage: str, straight: Straight, tmp_path: Path) -> None:
    count, expected = straight(stage)
    for number, moment in enumerate(chosen_moments(count, f"{stage} torn")):
        settings = settings_of(stage, tmp_path / str(number))
        run = RunFolder(tmp_path / str(number))
        late = count // 2 + moment // 2  # two checkpoints are there by then
        assert run_apart(training(settings), Fault("SIGKILL", late)) == -9
        assert run.previous_checkpoint.exists()
        with injected("torn checkpoint", stage, number):
            size = run.last_checkpoint.stat().st_size
            kept = random.Random(moment).randrange(size)
            content = run.last_checkpoint.read_bytes()[:kept]
            run.last_checkpoint.unlink()  # it may share its content with the one before
            run.last_checkpoint.write_bytes(content)
            go_on(settings)
            assert_same(what_it_left(run.path), expected, f"cut to {kept} of {size} bytes, killed at moment {late}")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_saves_and_says_how_to_go_on(name: str, code: int, tmp_path: Path) -> None:
    settings = settings_of("sft", tmp_path / "run")
    assert run_apart(training(settings), Fault(name, 12)) == code
    status = RunFolder(tmp_path / "run").read_status()
    assert status["status"] == "INTERRUPTED"
    assert status["error"] == f"continue with: twn train --resume {tmp_path / 'run'}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_behind_the_last_step_stops_what_would_follow(
    stage: str, straight: Straight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(stage, tmp_path / "run")
    end = RunCheckpoints.on_train_end

    def with_a_signal(self: RunCheckpoints, trainer: Trainer, module: LightningModule) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        end(self, trainer, module)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes that it is compared with
    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoints, "on_train_end", with_a_signal)
        with pytest.raises(Stopped):
            train(settings)
    torch.set_num_threads(threads)
    assert RunFolder(tmp_path / "run").read_status()["status"] == "INTERRUPTED"
    go_on(settings)
    assert_same(what_it_left(tmp_path / "run"), straight(stage)[1], "stopped behind the last step")


def test_slurm_takes_the_job_back_and_the_same_command_goes_on(tmp_path: Path) -> None:
    called = tmp_path / "called"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {called}\n')
    scontrol.chmod(0o755)
    job = {"SLURM_JOB_ID": "17", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    settings = settings_of("sft", tmp_path / "run")
    with injected("SLURM requeue", "sft"):
        assert run_apart(training(settings, job), Fault("SIGUSR1", 12)) == 138
        assert called.read_text() == "requeue 17\n"
        assert RunFolder(tmp_path / "run").read_status()["status"] == "INTERRUPTED"
        assert run_apart(training(settings, job | {"SLURM_RESTART_COUNT": "1"})) == 0
        assert RunFolder(tmp_path / "run").read_status()["status"] == "COMPLETED"
