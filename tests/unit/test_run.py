"""The run folder: what it writes, what survives a crash, who writes, where it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from twn_lightning.atomic import write_text
from twn_lightning.errors import CheckpointError, ConfigError
from twn_lightning.run import RunFolder, recorded, run_folder_for
from twn_lightning.settings import PathSettings, RLSettings, Settings


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run").create(Settings(), ["seed=1", "name=x"])


def test_create_writes_what_the_contract_names(run: RunFolder) -> None:
    assert {path.name for path in run.path.iterdir()} == {
        "config.yaml", "overrides.txt", "env.json", "status.json", "checkpoints",
    }  # fmt: skip
    assert run.settings() == Settings()
    assert (run.path / "overrides.txt").read_text() == "seed=1\nname=x\n"
    assert run.read_status()["status"] == "RUNNING"
    environment = json.loads((run.path / "env.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["hardware"]["cores"] >= 1
    assert set(environment["git"]) == {"revision", "dirty"}


def test_paths_of_an_evaluation(run: RunFolder) -> None:
    assert run.eval_dir("nano", "key", "nano/read") == run.path / "eval" / "nano" / "key" / "nano" / "read"


def test_log_appends_plain_values(run: RunFolder) -> None:
    run.log(1, {"loss": torch.tensor(0.5), "hit": np.float32(0.25)})
    run.log(2, {"loss": float("nan"), "ranks": [np.int64(1), 2]})
    assert run.history() == [
        {"step": 1, "loss": 0.5, "hit": 0.25},
        {"step": 2, "loss": None, "ranks": [1, 2]},
    ]


def test_history_leaves_out_a_line_cut_off_by_a_crash(run: RunFolder) -> None:
    run.log(1, {"loss": 1.0})
    with run.metrics_log.open("a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in run.history()] == [1]
    run.rewind(1)
    run.log(2, {"loss": 0.5})
    assert [line["step"] for line in run.history()] == [1, 2]


def test_rewind_drops_what_a_resumed_run_logs_again(run: RunFolder) -> None:
    for step in (1, 2, 3, 4):
        run.log(step, {"loss": 1.0 / step})
    run.rewind(2)
    assert [line["step"] for line in run.history()] == [1, 2]


def test_finish(run: RunFolder) -> None:
    run.finish({"val/hit@1": torch.tensor(0.75), "bad": float("inf")})
    assert run.metrics() == {"val/hit@1": 0.75, "bad": None}
    assert run.read_status()["status"] == "COMPLETED"


def test_status_keeps_what_was_said_at_the_start(run: RunFolder) -> None:
    started = run.read_status()["started"]
    run.status("FAILED", "loss is nan")
    assert run.read_status() | {"updated": None} == {
        "status": "FAILED", "error": "loss is nan", "started": started, "resumed_from": None, "updated": None,
    }  # fmt: skip


def test_resuming_keeps_the_metrics(run: RunFolder) -> None:
    run.log(1, {"loss": 1.0})
    RunFolder(run.path).create(Settings(), resumed_from="checkpoints/last.ckpt")
    assert len(run.history()) == 1
    assert run.read_status()["resumed_from"] == "checkpoints/last.ckpt"
    assert (run.path / "overrides.txt").read_text() == "seed=1\nname=x\n"


def test_a_new_run_does_not_mix_with_an_earlier_one(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds an earlier run \(running\)"):
        run.require_new()
    assert RunFolder(tmp_path / "other").require_new().path == tmp_path / "other"


def test_discard_deletes_runs_only(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    RunFolder(tmp_path / "kept").discard()
    run.discard()
    assert (tmp_path / "kept").exists()
    assert not run.path.exists()


@pytest.mark.parametrize(
    ("error", "raised", "state", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, "INTERRUPTED", "twn train --resume"),
        (SystemExit(1), KeyboardInterrupt, "INTERRUPTED", "twn train --resume"),
        (ValueError("bad"), ValueError, "FAILED", "ValueError: bad"),
    ],
)
def test_recorded(run: RunFolder, error: BaseException, raised: type[BaseException], state: str, message: str) -> None:
    with pytest.raises(raised), recorded(run):
        raise error
    status = run.read_status()
    assert status["status"] == state
    assert message in status["error"]


def test_recorded_says_nothing_when_all_is_well(run: RunFolder) -> None:
    with recorded(run):
        pass
    assert run.read_status()["status"] == "RUNNING"


def test_a_failed_write_leaves_the_old_file(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError("no space left on device")

    before = run.config.read_text()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_text(run.config, "half")
    assert run.config.read_text() == before


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    run = RunFolder(tmp_path / "run").create(Settings())
    run.log(1, {"loss": 1.0})
    run.finish({"loss": 1.0})
    assert not run.path.exists()


def test_default_folder_is_stage_name_time(tmp_path: Path) -> None:
    settings = Settings(name="mine", stage=RLSettings(), paths=PathSettings(output_root=str(tmp_path)))
    first = run_folder_for(settings)
    assert first.path.parent == tmp_path / "rl" / "mine"
    first.create(settings)
    assert run_folder_for(settings).path != first.path


def test_given_folder(tmp_path: Path) -> None:
    settings = Settings(paths=PathSettings(run_dir=str(tmp_path / "here")))
    assert run_folder_for(settings).path == tmp_path / "here"


def test_launched_ranks_share_the_first_ones_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(paths=PathSettings(output_root=str(tmp_path)))
    first = run_folder_for(settings).create(settings)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_folder_for(settings).path == first.path
    monkeypatch.delenv("TWN_RUN_DIR")
    with pytest.raises(ConfigError, match=r"set paths\.run_dir"):
        run_folder_for(settings)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).history() == []
    assert RunFolder(tmp_path).metrics() == {}
    with pytest.raises(CheckpointError, match="not a run folder"):
        RunFolder(tmp_path).settings()


def test_config_is_plain_yaml(run: RunFolder) -> None:
    assert yaml.safe_load(run.config.read_text())["stage"]["name"] == "sft"
