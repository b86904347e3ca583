"""Sweeps with real processes: Ctrl-C and going on, and the launchers that run jobs elsewhere than in the sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from twn_lightning import cli, config
from twn_lightning.sweep_folder import SweepFolder

LIMIT = (
    "experiment=tiny_smoke",
    "debug=limit",
    "trainer.val_every_steps=100",
    "data.val_pairs=4",
    "data.max_new_tokens=4",
)
TIMEOUT = 600


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "twn_lightning", "train", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def children_of(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_ctrl_c_saves_and_the_sweep_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweep"
    steps = ["stage.max_steps=16", "trainer.checkpoint_every_steps=1"]
    sweep = start(["-m", *LIMIT, *steps, "adapters.reasoning.r=4,-8", f"hydra.sweep.dir={folder}"])
    job = folder / "0"
    deadline = time.monotonic() + TIMEOUT
    while not (job / "checkpoints" / "last.ckpt").exists():
        assert sweep.poll() is None, sweep.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (child,) = children_of(sweep.pid)
    sweep.send_signal(signal.SIGINT)
    printed, _ = sweep.communicate(timeout=TIMEOUT)
    assert sweep.returncode == 130, printed
    assert not Path(f"/proc/{child}").exists()
    assert "press Ctrl-C again to kill" in printed
    assert f"twn train --resume {folder}" in printed
    state = SweepFolder(folder)
    assert state.state() == "INTERRUPTED"
    assert [found.state for found in state.jobs()] == ["INTERRUPTED"], "the second job has not started"
    steps_done = len((job / "metrics.jsonl").read_text().splitlines())

    assert cli.main(["train", "--resume", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "job 0 goes on" in printed
    assert "job 1: exit code 2 before training started: adapters.reasoning.r must be at least 1, not -8" in printed
    assert state.state() == "FAILED"
    first, second = state.jobs()
    assert (first.state, second.state) == ("COMPLETED", "FAILED")
    logged = [line["step"] for line in first.run.history() if "train/loss_cot" in line]
    assert logged == sorted(set(logged))
    assert len(logged) >= steps_done
    assert first.headline() is not None


@pytest.mark.parametrize(("launcher", "ranks"), [("joblib", ["-1", "-2"]), ("submitit_local", ["-1"])])
def test_launchers_run_the_jobs_in_processes_of_their_own(tmp_path: Path, launcher: str, ranks: list[str]) -> None:
    swept = f"adapters.reasoning.r={','.join(ranks)}"
    sweep = config.run_sweep([*LIMIT, swept, f"hydra/launcher={launcher}", f"hydra.sweep.dir={tmp_path}"])
    assert sweep.state() == "FAILED"
    for job, rank in zip(sweep.jobs(), ranks, strict=True):
        assert job.error is not None
        assert job.error.endswith(f"adapters.reasoning.r must be at least 1, not {rank}")
