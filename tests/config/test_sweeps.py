"""Sweeps: one child process a job, each in plain mode with its own folder; repeated, only what is missing runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from twn_lightning import cli, config, sweep_job
from twn_lightning.errors import ConfigError
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings
from twn_lightning.sweep_folder import SweepFolder


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the children would run. Each leaves a finished run whose score is its rank, except one whose seed is 13."""
    started: list[list[str]] = []

    def child(command: list[str], output_file: Path, stop_file: Path, environment: Mapping[str, str], held: int) -> int:
        started.append(command)
        if "seed=13" in command:
            output_file.write_text("warming up\ntwn: seed 13 brings bad luck\n")
            return 2
        rank = float(value_in(command, "adapters.reasoning.r", "0"))
        run = RunFolder(value_in(command, "paths.run_dir").strip("'")).create(Settings())
        run.finish({"headline": {"metric": "hit", "before": 0.0, "after": rank}, "hit": rank})
        return 0

    monkeypatch.setattr(sweep_job, "run_child", child)
    return started


def value_in(command: list[str], key: str, default: str = "") -> str:
    return next((word.split("=", 1)[1] for word in command if word.startswith(f"{key}=")), default)


def states(sweep: SweepFolder) -> list[str]:
    return [job.state for job in sweep.jobs()]


def test_one_child_a_job(commands: list[list[str]], tmp_path: Path) -> None:
    sweep = config.run_sweep(["experiment=tiny_smoke", "seed=0,1", f"paths.output_root={tmp_path}"])
    assert states(sweep) == ["COMPLETED", "COMPLETED"]
    assert sweep.state() == "COMPLETED"
    assert sweep.path.is_relative_to(tmp_path / "sweeps" / "tiny_smoke")
    for seed, command in enumerate(commands):
        assert command[1:4] == ["-m", "twn_lightning", "train"]
        assert f"seed={seed}" in command
        assert value_in(command, "paths.run_dir") == f"'{sweep.path / str(seed)}'"
        assert "--multirun" not in command
        assert not any(word.startswith(("hydra.", "sweep=")) for word in command)


def test_presets_need_no_multirun(commands: list[list[str]], tmp_path: Path) -> None:
    overrides = ["experiment=nano_joint", "sweep=interface", f"hydra.sweep.dir={tmp_path}"]
    assert cli.main(["train", *overrides]) == 0
    interfaces = ["kv_detached", "kv_joint", "reencode"]
    assert [value_in(command, "interface") for command in commands] == interfaces
    assert yaml.safe_load((tmp_path / "sweep.yaml").read_text()) == {
        "command": "twn train --multirun experiment=nano_joint sweep=interface",
        "overrides": ["experiment=nano_joint", "sweep=interface"],
        "axes": {"interface": interfaces},
        "jobs": 3,
    }
    status = yaml.safe_load((tmp_path / "status.json").read_text())
    assert status == {"status": "COMPLETED", "planned": 3, "jobs": {"completed": 3}}


def test_a_typed_value_wins_over_the_preset(commands: list[list[str]], tmp_path: Path) -> None:
    overrides = ["experiment=nano_joint", "sweep=interface", "interface=reencode", f"paths.output_root={tmp_path}"]
    sweep = config.run_sweep(overrides)
    assert [value_in(command, "interface") for command in commands] == ["reencode"]
    assert sweep.read_plan()["axes"] == {}
    assert sweep.state() == "COMPLETED"


def test_ranks_and_scales_move_together(commands: list[list[str]], tmp_path: Path) -> None:
    overrides = ["experiment=nano_sft", "sweep=lora_rank", "adapters.reasoning={r:4,alpha:8}"]
    config.run_sweep([*overrides, f"paths.output_root={tmp_path}"])
    assert len(commands) == 2
    for command in commands:
        settings = config.load_settings(command[4:])
        assert settings.adapters.reasoning.alpha == 2 * settings.adapters.reasoning.r
        assert settings.adapters.embedding.alpha == 2 * settings.adapters.embedding.r


def test_a_job_that_fails_leaves_the_others_and_runs_again(
    commands: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["experiment=tiny_smoke", "seed=13,2", f"hydra.sweep.dir={tmp_path}"]
    assert cli.main(["train", "--multirun", *overrides]) == 1
    assert len(commands) == 2
    printed = capsys.readouterr().out
    assert "job 0: exit code 2 before training started: seed 13 brings bad luck" in printed
    assert "1 of 2 jobs completed" in printed
    assert f"twn train --resume {tmp_path}" in printed
    commands.clear()
    assert cli.main(["train", "--resume", str(tmp_path)]) == 1
    assert [value_in(command, "seed") for command in commands] == ["13"]


def test_a_sweep_grows(commands: list[list[str]], tmp_path: Path) -> None:
    overrides = ["experiment=tiny_smoke", "adapters.reasoning.r=4,8", "seed=1"]
    config.run_sweep([*overrides, f"hydra.sweep.dir={tmp_path}"])
    commands.clear()
    assert cli.main(["train", "--resume", str(tmp_path), "seed=1,2"]) == 0
    assert [(value_in(c, "adapters.reasoning.r"), value_in(c, "seed")) for c in commands] == [("4", "2"), ("8", "2")]
    sweep = SweepFolder(tmp_path)
    assert [list(job.values.values())[1:] for job in sweep.jobs()] == [["4", "1"], ["8", "1"], ["4", "2"], ["8", "2"]]
    assert sweep.read_plan()["overrides"] == [*overrides[:2], "seed=1,2"]


def test_an_optimising_sweeper_finds_the_maximum_and_repeats_its_trials(
    commands: list[list[str]], tmp_path: Path
) -> None:
    overrides = ["experiment=tiny_smoke", "adapters.reasoning.r=range(1,65)", "hydra/sweeper=optuna"]
    overrides += [f"hydra.sweep.dir={tmp_path}", "hydra.sweeper.n_trials=4"]
    sweep = config.run_sweep(overrides)
    tried = [int(value_in(command, "adapters.reasoning.r")) for command in commands]
    assert sweep.state() == "COMPLETED"
    best = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    assert best["best_value"] == max(tried)
    commands.clear()
    sweep.jobs()[1].run.status("FAILED", "the node went away")
    config.run_sweep(overrides)
    assert [int(value_in(command, "adapters.reasoning.r")) for command in commands] == [tried[1]]


def test_a_sweeper_whose_jobs_all_fail_says_so(
    commands: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["experiment=tiny_smoke", "seed=13", "sweep=learning_rates", "hydra.sweeper.n_trials=2"]
    assert cli.main(["train", *overrides, f"hydra.sweep.dir={tmp_path}"]) == 1
    for command in commands:
        assert 0.0002 <= float(value_in(command, "stage.learning_rate")) <= 0.02
    printed = capsys.readouterr()
    assert "0 of 2 jobs completed" in printed.out
    assert "the sweep ended early" in printed.err


@pytest.mark.parametrize("override", ["stage.lr=1,2", "model=nano,nanoo", "sweep=lora"])
def test_names_are_checked_before_the_first_job(commands: list[list[str]], override: str) -> None:
    with pytest.raises(ConfigError, match="unknown"):
        config.run_sweep([override])
    assert commands == []


@pytest.mark.parametrize(
    ("launcher", "sweeper", "threads"),
    [
        ({"_target_": "a.BasicLauncher"}, {"max_batch_size": None}, None),
        ({"_target_": "a.JoblibLauncher", "n_jobs": 2}, {"max_batch_size": None}, 4),
        ({"_target_": "a.JoblibLauncher", "n_jobs": -1}, {"max_batch_size": None}, 1),
        ({"_target_": "a.JoblibLauncher", "n_jobs": 8}, {"n_jobs": 3}, 2),
        ({"_target_": "a.LocalLauncher"}, {"max_batch_size": 4}, 2),
        ({"_target_": "a.LocalLauncher"}, {"max_batch_size": None}, 1),
        ({"_target_": "a.SlurmLauncher"}, {"max_batch_size": None}, None),
    ],
)
def test_jobs_at_once_share_the_cores(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    launcher: dict[str, object],
    sweeper: dict[str, object],
    threads: int | None,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    sweep = SweepFolder(tmp_path).plan([], {}, 10)
    assert config._threads(OmegaConf.create({"launcher": launcher, "sweeper": sweeper}), sweep) == threads


@pytest.mark.parametrize("override", ["hydra/launcher=moon", "hydra.sweeper.n_trials=3", "seed=interval(0,1)"])
def test_hydra_says_what_it_cannot_do(commands: list[list[str]], tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError):
        config.run_sweep(["experiment=tiny_smoke", override, f"hydra.sweep.dir={tmp_path}"])
    assert commands == []
