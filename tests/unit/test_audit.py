"""What `twn audit` finds in a run folder, and what it does not object to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from twn_lightning import cli
from twn_lightning.audit import audit
from twn_lightning.errors import CheckpointError
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings
from twn_lightning.stages.checkpoint_files import RunCheckpointIO


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished run in which nothing was trained."""
    run = RunFolder(tmp_path / "run").create(Settings())
    run.log(1, {"loss": 1.0})
    run.log(2, {"loss": 0.5})
    RunCheckpointIO(run).save_checkpoint({"twn": {"version": 2}, "step": 2}, run.last_checkpoint)
    run.adapters.mkdir()
    (run.adapters / "queries.pt").write_bytes(b"queries")
    folder = run.eval_dir("nano", "key", "read")
    folder.mkdir(parents=True)
    (folder / "predictions.jsonl").write_text('{"query": "a"}\n')
    (folder / "scores.json").write_text('{"score": 0.5}')
    run.finish({"loss": 0.5})
    return run


def test_a_finished_run_is_in_order(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(run.path) == []
    assert cli.main(["audit", str(run.path)]) == 0
    assert capsys.readouterr().out == f"{run.path}: ok (7 checks)\n"


def test_reports_and_loggers_may_add_files(run: RunFolder) -> None:
    (run.path / "report.html").touch()
    (run.path / "wandb").mkdir()
    (run.path / "wandb" / "history").touch()
    assert audit(run.path) == []


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def add_line(path: Path) -> None:
    path.write_text(path.read_text() + '{"step": 1, "loss": 1.0}\n')


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("name", "damage", "problems"),
    [
        ("adapters/queries.pt", flip, {"manifest: adapters/queries.pt has other content"}),
        ("adapters/queries.pt", os.remove, {"manifest: adapters/queries.pt is missing"}),
        ("adapters/extra.pt", Path.touch, {"manifest: adapters/extra.pt was added after"}),
        ("checkpoints/last.ckpt", cut, {"checkpoints: ", "manifest: checkpoints/last.ckpt has"}),
        ("config.yaml", os.remove, {"config: ", "manifest: config.yaml is missing"}),
        (
            "metrics.jsonl",
            add_line,
            {"log: metrics.jsonl, line 3: step 1 comes after step 2", "manifest: metrics.jsonl"},
        ),
        ("metrics.jsonl", cut, {"log: metrics.jsonl, line 2: not one JSON object", "manifest: metrics.jsonl"}),
        ("metrics.json", os.remove, {"status: status.json says COMPLETED, but", "manifest: metrics.json is missing"}),
        ("eval/nano/key/read/scores.json", cut, {"scores: ", "manifest: eval/nano/key/read/scores.json"}),
        ("eval/nano/key/read/predictions.jsonl", os.remove, {"scores: ", "manifest: eval/nano/key/read/predictions"}),
        ("manifest.json", os.remove, {"manifest: "}),
        ("manifest.json", cut, {"manifest: "}),
        ("status.json", cut, {"status: status.json is torn or altered"}),
        ("adapters/.gate_mlp.pt.99.tmp", Path.touch, {"unfinished: "}),
    ],
)
def test_each_damage_is_found_and_named(
    run: RunFolder, name: str, damage: Callable[[Path], None], problems: set[str]
) -> None:
    damage(run.path / name)
    found = [f"{problem.check}: {problem.message}" for problem in audit(run.path)]
    assert len(found) == len(problems)
    for problem in problems:
        assert any(line.startswith(problem) for line in found), found


def test_a_state_that_does_not_exist(run: RunFolder) -> None:
    (run.path / "status.json").write_text('{"status": "DONE"}')
    assert [problem.check for problem in audit(run.path)] == ["status"]


def test_a_run_whose_process_is_gone_is_found_by_its_lock(run: RunFolder) -> None:
    run.status("RUNNING")
    with run.lock():
        assert audit(run.path) == []
    (problem,) = audit(run.path)
    assert problem.check == "status"
    assert f"continue with twn train --resume {run.path}" in problem.message


def test_the_command_fails_and_prints_json(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    flip(run.adapters / "queries.pt")
    assert cli.main(["audit", str(run.path), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert [problem["check"] for problem in printed[str(run.path)]] == ["manifest"]


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a run folder: it has no status\.json"):
        audit(tmp_path)
