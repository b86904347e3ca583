"""Sweeps: one child process a job, each in plain mode with its own folder, and its objective read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from twn_lightning import cli, config
from twn_lightning.errors import ConfigError
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the children would run. Each leaves a finished run, except one whose seed is 13."""
    started: list[list[str]] = []

    def child(command: list[str]) -> int:
        started.append(command)
        if "seed=13" in command:
            return 2
        run = RunFolder(folder_of(command)).create(Settings())
        run.finish({"headline": {"metric": "hit", "before": 0.0, "after": 0.5}})
        return 0

    monkeypatch.setattr(config, "_run_child", child)
    return started


def folder_of(command: list[str]) -> str:
    return next(word for word in command if word.startswith("paths.run_dir=")).split("=", 1)[1].strip("'")


def test_one_child_a_job(commands: list[list[str]], tmp_path: Path) -> None:
    runs = config.run_sweep(["experiment=tiny_smoke", "seed=0,1", f"paths.output_root={tmp_path}"])
    assert [run.read_status()["status"] for run in runs] == ["COMPLETED", "COMPLETED"]
    assert [str(run.path) for run in runs] == [folder_of(command) for command in commands]
    assert all(run.path.is_relative_to(tmp_path / "sweeps" / "tiny_smoke") for run in runs)
    for seed, command in enumerate(commands):
        assert command[1:4] == ["-m", "twn_lightning", "train"]
        assert f"seed={seed}" in command
        assert "--multirun" not in command
        assert not any(word.startswith(("hydra.", "sweep=")) for word in command)


def test_presets_need_no_multirun(commands: list[list[str]], tmp_path: Path) -> None:
    assert cli.main(["train", "experiment=nano_joint", "sweep=interface", f"paths.output_root={tmp_path}"]) == 0
    chosen = [word for command in commands for word in command if word.startswith("interface=")]
    assert chosen == ["interface=kv_detached", "interface=kv_joint", "interface=reencode"]


def test_ranks_and_scales_move_together(commands: list[list[str]], tmp_path: Path) -> None:
    config.run_sweep(["experiment=nano_sft", "sweep=lora_rank", f"paths.output_root={tmp_path}"])
    assert len(commands) == 6
    for command in commands:
        settings = config.load_settings(command[4:])
        assert settings.adapters.reasoning.alpha == 2 * settings.adapters.reasoning.r
        assert settings.adapters.embedding.alpha == 2 * settings.adapters.embedding.r


def test_a_job_that_fails_leaves_the_others(
    commands: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["experiment=tiny_smoke", "seed=13,2", f"paths.output_root={tmp_path}"]
    assert cli.main(["train", "--multirun", *overrides]) == 1
    printed = capsys.readouterr().out
    assert "FAILED" in printed
    assert "exit code 2" in printed
    assert "1 of 2 jobs completed" in printed


def test_the_objective_is_read_back(monkeypatch: pytest.MonkeyPatch, commands: list[list[str]], tmp_path: Path) -> None:
    returned: list[Any] = []
    job = config._sweep_job
    monkeypatch.setattr(config, "_sweep_job", lambda cfg: returned.append(job(cfg)))
    config.run_sweep(["experiment=tiny_smoke", "seed=5,13", f"paths.output_root={tmp_path}"])
    assert returned == [0.5, None]


@pytest.mark.parametrize("override", ["stage.lr=1,2", "model=nano,nanoo", "sweep=lora"])
def test_names_are_checked_before_the_first_job(commands: list[list[str]], override: str) -> None:
    with pytest.raises(ConfigError, match="unknown"):
        config.run_sweep([override])
    assert commands == []
