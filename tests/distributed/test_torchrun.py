"""`torchrun -m twn_lightning train`: the processes that it starts train one run together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twn_lightning.run import RunFolder

OVERRIDES = (
    "experiment=tiny_smoke",
    "trainer=torchrun",
    "trainer.accelerator=cpu",
    "trainer.strategy=ddp",
    "trainer.val_every_steps=2",
    "stage.max_steps=2",
    "data.val_pairs=2",
    "data.max_new_tokens=2",
)


def test_two_processes_of_torchrun_train_one_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "twn_lightning", "train", *OVERRIDES, f"paths.run_dir={tmp_path / 'run'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("val/hit@1_generative") == 1
    run = RunFolder(tmp_path / "run")
    assert run.read_status()["status"] == "COMPLETED"
    assert run.settings().trainer.devices == 2
    assert [line["step"] for line in run.history() if "train/loss_cot" in line] == [1, 2]
    assert (run.adapters / "queries.pt").is_file()
