"""Trajectories of the three stages' losses, on the packaged nano backbone. They are recorded again by

python -m tests.golden.trajectories
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from twn_lightning.config import load_settings
from twn_lightning.run import RunFolder
from twn_lightning.train import train

FILE = Path(__file__).parent / "trajectories.json"
SHORT = (
    "trainer.accelerator=cpu",
    "trainer.log_every_steps=1",
    "trainer.val_every_steps=1000",
    "data.val_pairs=4",
    "data.test_pairs=4",
    "data.rows_per_source_global=16",
    "data.max_new_tokens=40",
)
STAGES = {
    "sft": (
        "experiment=nano_sft",
        "data.train_pairs=320",
        "stage.batch_size=16",
        "stage.chunk_size=16",
        "stage.schedule=joint",
        "stage.max_steps=20",
    ),
    "gate": (
        "experiment=nano_gate",
        "adapters.init_from=nano",
        "gate.num_negatives=15",
        "data.gate_pairs=64",
        "data.calibration_pairs=16",
        "stage.batch_size=16",
        "stage.max_epochs=5",
        "stage.patience=5",
    ),
    "rl": (
        "experiment=nano_rl",
        "adapters.init_from=nano",
        "data.rl_pairs=32",
        "stage.prompts_per_step=4",
        "stage.completions_per_prompt=2",
        "stage.chunk_size=16",
        "stage.pool_size=32",
        "stage.min_live_groups=1",
        "stage.sampling_temperature=2.0",
        "stage.max_steps=10",
    ),
}
RECORDED = {
    "sft": ("train/loss_cot", "train/loss_nce_discriminative", "train/loss_nce_generative"),
    "gate": ("train/loss_gate",),
    "rl": ("rl/reward", "rl/kl"),
}

Trajectory = dict[str, list[float]]
"""A value a step, by its name in the log."""


def trajectory(stage: str, folder: Path, changes: Sequence[str] = ()) -> Trajectory:
    """Train a stage for a few steps and return what it logged.

    Args:
        stage: sft, gate or rl.
        folder: for the run.
        changes: further overrides.
    """
    train(load_settings([*STAGES[stage], *SHORT, *changes, f"paths.run_dir={folder}"]))
    lines = RunFolder(folder).history()
    return {name: [float(f"{line[name]:.7g}") for line in lines if name in line] for name in RECORDED[stage]}


def main() -> None:
    """Write `trajectories.json`."""
    with tempfile.TemporaryDirectory() as folder:
        found = {stage: trajectory(stage, Path(folder, stage)) for stage in STAGES}
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
