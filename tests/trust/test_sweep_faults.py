"""A sweep whose parent is killed, or a job with it: going on runs what is unfinished and ends with the same table."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.trust.faults import FULL, HANG_SECONDS
from tests.trust.outcomes import assert_same, injected
from twn_lightning.manifest import file_digest
from twn_lightning.sweep_folder import SweepFolder

RANKS = (2, 4)
SHORT = (
    "experiment=tiny_smoke",
    "debug=limit",
    "stage.max_steps=8",
    "trainer.checkpoint_every_steps=1",
    "trainer.val_every_steps=100",
    "data.val_pairs=4",
    "data.max_new_tokens=4",
)


def start(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "twn_lightning", "train", *arguments]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


def sweep_into(folder: Path) -> subprocess.Popen[bytes]:
    return start("-m", *SHORT, f"adapters.reasoning.r={','.join(map(str, RANKS))}", f"hydra.sweep.dir={folder}")


def table_of(folder: Path) -> dict[int, Any]:
    """What the sweep's table is made of, and the adapters."""
    jobs = SweepFolder(folder).jobs()
    files = {job.number: sorted(path for path in job.run.adapters.rglob("*") if path.is_file()) for job in jobs}
    return {
        job.number: {
            "values": job.values,
            "state": job.state,
            "metrics": job.run.metrics(),
            "adapters": [file_digest(path) for path in files[job.number]],
        }
        for job in jobs
    }


def children_of(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_what_is_unfinished(tmp_path: Path) -> None:
    straight = tmp_path / "straight"
    assert sweep_into(straight).wait(HANG_SECONDS) == 0
    expected = table_of(straight)
    draw = random.Random("sweep")
    for number, with_its_job in enumerate([True, False] * (3 if FULL else 1)):
        folder, step = tmp_path / str(number), draw.randint(1, 8)
        second = folder / "1"
        with injected("SIGKILL of parent and job" if with_its_job else "SIGKILL of the parent", "sweep", number):
            sweep = sweep_into(folder)
            log = second / "metrics.jsonl"
            wait_for(lambda log=log, step=step: log.exists() and log.read_text().count("train/loss_cot") >= step)
            (job,) = children_of(sweep.pid)
            first_ended = (folder / "0" / "metrics.json").stat().st_mtime_ns
            sweep.kill()
            sweep.wait()
            if with_its_job:
                os.killpg(job, signal.SIGKILL)
            wait_for(lambda job=job: not Path(f"/proc/{job}").exists())  # without its parent it goes on to its end
            assert start("--resume", str(folder)).wait(HANG_SECONDS) == 0
            assert_same(table_of(folder), expected, f"killed after step {step} of the second job")
            assert (folder / "0" / "metrics.json").stat().st_mtime_ns == first_ended
            assert SweepFolder(folder).state() == "COMPLETED"
