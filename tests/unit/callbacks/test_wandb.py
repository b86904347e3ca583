"""wandb offline: what runs log, in files that `wandb sync` reads; resumed runs; the dashboard's names; no account."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stage_runs import InterruptAfter, tiny_settings
from tests.support.tiny_adapters import save_undecided_adapters
from tests.support.wandb_file import OfflineRun, offline_runs
from twn_lightning import cli
from twn_lightning.benchmark.registry import meta_tasks
from twn_lightning.callbacks import step_work
from twn_lightning.callbacks.wandb_logger import SECTIONS, wandb_name
from twn_lightning.callbacks.wandb_tables import MAX_ROWS
from twn_lightning.errors import ConfigError
from twn_lightning.interop.wandb_dashboard import build_workspace, dashboard_names, workspace_json
from twn_lightning.run import RunFolder
from twn_lightning.settings import GateStageSettings, LoggerSettings, RLSettings, Settings, SFTSettings
from twn_lightning.train import train

SFT = SFTSettings(batch_size=4, chunk_size=4, max_steps=4, conflict_every_steps=2)
RL = RLSettings(prompts_per_step=2, completions_per_prompt=2, max_steps=1, pool_size=4, min_live_groups=0)
STAGES: dict[str, Any] = {"sft": SFT, "gate": GateStageSettings(batch_size=16, max_epochs=1), "rl": RL}


def settings_of(stage: Any, run_dir: Path, **trainer: Any) -> Settings:
    """With both losses reaching the reasoner: only then do their gradients have a cosine."""
    sizes = {"gate_pairs": 16, "calibration_pairs": 8}
    settings = tiny_settings(stage, run_dir, interface="kv_joint", data=sizes, trainer=trainer)
    return replace(settings, logger=LoggerSettings(name="wandb"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder of each stage and of an evaluation, all in one process, on a device of a known speed."""
    root = tmp_path_factory.mktemp("wandb")
    folders = {name: root / name for name in (*STAGES, "evaluate")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twn_lightning.callbacks.throughput.peak_flops", lambda device, settings: 1e12)
        for name, stage in STAGES.items():
            train(settings_of(stage, folders[name]))
    arguments = [
        "evaluate", "task=mmeb_nano/all", "model=tiny", f"adapters.init_from={save_undecided_adapters(root / 'made')}",
        "data.max_new_tokens=4", "data.test_pairs=22", "evaluation.bootstrap_samples=20", "logger=wandb",
        f"paths.output_root={root}", f"paths.run_dir={folders['evaluate']}", f"task.cache_root={root / 'cache'}",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    return folders


@pytest.fixture(scope="module")
def logged(runs: dict[str, Path]) -> dict[str, OfflineRun]:
    found = {}
    for name, folder in runs.items():
        (found[name],) = offline_runs(folder)
    return found


def test_the_history_is_that_of_metrics_jsonl(runs: dict[str, Path], logged: dict[str, OfflineRun]) -> None:
    for name in STAGES:
        expected: dict[int, dict[str, float]] = {}
        for line in RunFolder(runs[name]).history():
            step = expected.setdefault(line.pop("step"), {})
            step |= {wandb_name(key): value for key, value in line.items()}
        history = {row["_step"]: row for row in logged[name].history}
        assert history.keys() == expected.keys()
        for step, row in history.items():
            values = {key: value for key, value in expected[step].items() if value is not None}
            assert {key: row[key] for key in values} == pytest.approx(values)


def test_offline_runs_are_complete(runs: dict[str, Path], logged: dict[str, OfflineRun]) -> None:
    for name, run in logged.items():
        assert run.exit_code == 0
        assert run.run_id == (runs[name] / "wandb" / "run_id.txt").read_text()
        assert run.config["model"]["name"] == "tiny"
        for path in run.staged:
            assert path.stat().st_size > 0
            assert runs[name] in path.parents, "pictures are kept with the run"
    assert len(logged["evaluate"].staged) > 3, "pictures besides the three tables"
    assert logged["sft"].summary["val/hit@1_generative/before"] >= 0
    assert len({run.run_id for run in logged.values()}) == len(logged)


def test_names_have_one_of_five_first_words(logged: dict[str, OfflineRun]) -> None:
    for run in logged.values():
        own = {name.split("/")[0] for name in run.names if "/" in name}
        assert own <= {"train", "val", "gate", "rl", "eval"}
    assert wandb_name("lr/embedding") == "train/lr/embedding"
    assert wandb_name("rl/reward") == "rl/reward"
    sft = logged["sft"].names
    assert all(any(name.startswith(section) for name in sft) for section in SECTIONS.values())


def test_the_dashboard_shows_nothing_that_runs_do_not_log(logged: dict[str, OfflineRun]) -> None:
    names = set().union(*(run.names for run in logged.values()))
    assert dashboard_names() - names == set()


def test_the_dashboard_covers_every_meta_task(capsys: pytest.CaptureFixture[str]) -> None:
    for task in meta_tasks("mmeb_nano"):
        assert {f"eval/{task}/think_rate", f"eval/{task}/score"} <= dashboard_names()
    assert cli.main(["dashboard", "team", "--project", "mine", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["entity"], printed["project"]) == ("team", "mine")
    text = json.dumps(workspace_json(build_workspace("team", "mine")))
    assert all(json.dumps(name.rpartition("summary:")[2])[1:-1] in text for name in dashboard_names())


def test_tables_of_decisions_and_rollouts(runs: dict[str, Path], logged: dict[str, OfflineRun]) -> None:
    def table(run: str, name: str) -> dict[str, Any]:
        (path,) = runs[run].glob(f"wandb/offline-run-*/files/media/table/{name}_*.table.json")
        found: dict[str, Any] = json.loads(path.read_text())
        assert 0 < len(found["data"]) <= MAX_ROWS
        return found

    for run, count in (("evaluate", 22), ("gate", 8)):
        decisions = table(run, "gate/decisions")
        assert len(decisions["data"]) == count
        rows = [dict(zip(decisions["columns"], row, strict=True)) for row in decisions["data"]]
        assert {row["verdict"] for row in rows} <= {"helped", "hurt", "wasted", "missed", "skipped"}
        assert any(row["image"] is not None for row in rows)
        assert all(0 < row["probability"] < 1 and row["query_text"] for row in rows)
        threshold = logged[run].summary.get("gate/threshold", 0.5)
        assert all(row["think"] == (row["probability"] > threshold) for row in rows)
    rollouts = table("rl", "rl/rollouts")
    assert len(rollouts["data"]) == 4
    assert {"cot", "reward", "reward_rank", "advantage"} <= set(rollouts["columns"])
    assert table("evaluate", "gate/calibration")["columns"][:2] == ["low", "high"]
    assert table("evaluate", "eval/quality_tokens")["data"][0][-1] == 0, "the curve begins with never thinking"


def test_a_resumed_run_continues_its_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(replace(SFT, conflict_every_steps=0), tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("twn_lightning.train.build_callbacks", lambda *_, **__: [InterruptAfter(3)])
        with pytest.raises(KeyboardInterrupt):
            train(settings)
    train(replace(settings, trainer=replace(settings.trainer, resume=str(tmp_path / "run"))))
    first, second = offline_runs(tmp_path / "run")
    assert first.run_id == second.run_id
    assert (first.exit_code, second.exit_code) == (1, 0)
    steps = [row["_step"] for run in (first, second) for row in run.history if "train/loss_cot" in row]
    assert steps == [1, 2, 3, 4]


def test_a_run_from_a_checkpoint_links_to_its_origin(
    runs: dict[str, Path], logged: dict[str, OfflineRun], tmp_path: Path
) -> None:
    checkpoint = str(RunFolder(runs["sft"]).last_checkpoint)
    longer = replace(SFT, max_steps=5, conflict_every_steps=0)
    train(settings_of(longer, tmp_path / "new", resume=checkpoint))
    (new,) = offline_runs(tmp_path / "new")
    assert new.config["continues_wandb_run"] == logged["sft"].run_id
    assert new.run_id != logged["sft"].run_id


def test_online_without_an_account_is_refused_and_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    settings = settings_of(SFT, tmp_path / "run")
    settings.logger.mode = "online"
    with pytest.raises(ConfigError, match=r"set logger\.mode=offline"):
        train(settings)
    assert RunFolder(tmp_path / "run").read_status()["status"] == "FAILED"


def test_disabled_leaves_no_run_behind(tmp_path: Path) -> None:
    settings = settings_of(replace(SFT, max_steps=1, conflict_every_steps=0), tmp_path / "run")
    settings.logger.mode = "disabled"
    train(settings)
    assert offline_runs(tmp_path / "run") == []
    assert RunFolder(tmp_path / "run").read_status()["status"] == "COMPLETED"


def test_a_new_user_is_asked_for_nothing(tmp_path: Path) -> None:
    """A home without files, no variables of wandb, a closed standard input: the default mode is offline."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"HOME": str(home), "NETRC": str(home / "netrc")}
    command = [
        sys.executable, "-m", "twn_lightning", "train", "experiment=tiny_smoke", "stage.max_steps=1", "logger=wandb",
        f"paths.run_dir={tmp_path / 'run'}",
    ]  # fmt: skip

    def run_quietly(command: list[str]) -> str:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert "wandb.ai" not in run_quietly(command)
    (run,) = offline_runs(tmp_path / "run")
    assert run.exit_code == 0
    assert run.history
    folder = next((tmp_path / "run" / "wandb").glob("offline-run-*"))
    wandb = str(Path(sys.executable).with_name("wandb"))
    assert "Would sync 1 run" in run_quietly([wandb, "sync", "--dry-run", str(folder)])


def test_the_peak_is_that_of_the_named_card(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, device = Settings(), torch.device("cuda")
    card = "NVIDIA H100 80GB HBM3"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: card)
    assert step_work.peak_flops(device, settings) == 989e12
    card = "NVIDIA H100 PCIe"
    assert step_work.peak_flops(device, settings) == 756e12
    card = "Something new"
    assert step_work.peak_flops(device, settings) is None
    assert step_work.peak_flops(torch.device("cpu"), settings) is None
    card = "NVIDIA H100 80GB HBM3"
    settings.trainer.precision = "32-true"
    assert step_work.peak_flops(device, settings) is None
