"""`debug=profile` on every stage: five steps, a trace and a table in the run folder, and the table in the output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twn_lightning.cli import main

SMALL = [
    *["adapters.init_from=null", "data.val_pairs=4", "data.gate_pairs=16", "data.calibration_pairs=8"],
    *["data.max_new_tokens=4", "data.max_cot_tokens=10000", "trainer.accelerator=cpu"],
]
STAGES = {
    "sft": ["stage.batch_size=8", "data.rows_per_source_global=4"],
    "rl": ["stage.prompts_per_step=2", "stage.completions_per_prompt=2"],
    "gate": [],
}


@pytest.mark.parametrize("stage", STAGES)
def test_one_word_profiles_a_stage(
    stage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"experiment=nano_{stage}", "debug=profile", "model=tiny", *SMALL, *STAGES[stage]]
    caplog.set_level("INFO", "twn_lightning")
    assert main(["train", *words, f"paths.run_dir={tmp_path / 'run'}"]) == 0, capsys.readouterr().err
    folder = tmp_path / "run" / "profile"
    assert {path.name for path in folder.iterdir()} == {"trace.json.gz", "top.txt"}
    table = (folder / "top.txt").read_text()
    assert "aten::mm" in table
    assert table in caplog.text
    assert str(folder / "trace.json.gz") in caplog.text
    status = json.loads((tmp_path / "run" / "status.json").read_text())["status"]
    assert status == "COMPLETED"
