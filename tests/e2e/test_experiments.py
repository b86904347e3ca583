"""Every shipped experiment runs a few steps on `tiny`, with its own interface, adapters and schedule."""

from __future__ import annotations

from pathlib import Path

import pytest

from twn_lightning.config import groups, load_settings
from twn_lightning.run import RunFolder
from twn_lightning.train import train

SHRUNK = {
    "sft": ["stage.batch_size=8", "stage.chunk_size=8", "stage.max_steps=2"],
    "rl": [
        "stage.prompts_per_step=2",
        "stage.completions_per_prompt=2",
        "stage.max_steps=2",
        "stage.chunk_size=4",
        "stage.min_live_groups=1",
    ],
    "gate": ["stage.batch_size=8", "stage.max_epochs=2"],
}
TINY = [
    "data=nano",
    *["model.name=tiny", "model.path=null", "model.dtype=float32", "model.quantization=none", "model.attention=auto"],
    *["adapters.init_from=null", "adapters.reasoning.r=4", "adapters.embedding.r=4", "adapters.num_queries=2"],
    *["data.train_pairs=32", "data.rl_pairs=16", "data.gate_pairs=16", "data.calibration_pairs=8"],
    *["data.val_pairs=4", "data.max_new_tokens=4", "data.max_cot_tokens=10000", "data.rows_per_source_global=4"],
    *["trainer.accelerator=cpu", "trainer.devices=1", "trainer.strategy=auto", "trainer.precision=32-true"],
    *["trainer.val_every_steps=100", "trainer.log_every_steps=1", "trainer.checkpoint_every_steps=100"],
]


@pytest.mark.parametrize("name", groups()["experiment"])
def test_experiment_trains_on_tiny(name: str, tmp_path: Path) -> None:
    stage = load_settings([f"experiment={name}"]).stage
    shrunk = list(SHRUNK[stage.name])
    if getattr(stage, "schedule", "") == "two_phase":
        shrunk += ["stage.embedding_steps=2", "stage.embedding_batch_size=8", "stage.stored_pairs=16"]
    run_dir = tmp_path / "run"
    settings = load_settings([f"experiment={name}", *TINY, *shrunk, f"paths.run_dir={run_dir}"])

    metrics = train(settings)

    run = RunFolder(run_dir)
    assert run.read_status()["status"] == "COMPLETED"
    assert metrics["headline"]["metric"] in metrics
    assert {line["step"] for line in run.history()} >= {0, 1}
    assert (run.adapters / "twn_config.json").is_file()
