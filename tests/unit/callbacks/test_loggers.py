"""CSV and TensorBoard beside metrics.jsonl, also over a resume; what an evaluation gives to any logger."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.stage_runs import InterruptAfter, tiny_settings
from twn_lightning.benchmark.aggregate import aggregate
from twn_lightning.benchmark.registry import all_tasks
from twn_lightning.callbacks import log_evaluation
from twn_lightning.callbacks.evaluation_log import evaluation_values
from twn_lightning.run import RunFolder
from twn_lightning.settings import LoggerSettings, Settings, SFTSettings
from twn_lightning.train import train

STAGE = SFTSettings(batch_size=4, chunk_size=4, max_steps=4)
PART = {"never": 0.2, "always": 0.6, "adaptive": 0.5, "think_rate": 0.25}
SUMMARY = {
    "modes": {
        "never": {"hit@1": 0.2, "tokens_per_query": 0.0},
        "adaptive": {"hit@1": 0.5, "tokens_per_query": 7.0},
    },
    "think_rate": 0.25,
    "malformed_cot_rate": 0.0,
    "gate": {"auroc": None, "ece": 0.1},
}


def interrupted_and_resumed(run_dir: Path, logger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(tiny_settings(STAGE, run_dir), logger=LoggerSettings(name=logger))  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr("twn_lightning.train.build_callbacks", lambda *_, **__: [InterruptAfter(3)])
        with pytest.raises(KeyboardInterrupt):
            train(settings)
    train(replace(settings, trainer=replace(settings.trainer, resume=str(run_dir))))


def losses(run_dir: Path) -> dict[int, float]:
    """By step, from metrics.jsonl."""
    lines = RunFolder(run_dir).history()
    return {line["step"]: line["train/loss_cot"] for line in lines if "train/loss_cot" in line}


def test_csv_files_hold_the_whole_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_and_resumed(tmp_path, "csv", monkeypatch)
    found = {}
    for path in sorted(tmp_path.glob("csv/version_*/metrics.csv")):
        with path.open() as file:
            found |= {
                int(row["step"]): float(row["train/loss_cot"]) for row in csv.DictReader(file) if row["train/loss_cot"]
            }
    assert found == pytest.approx(losses(tmp_path))
    assert set(found) == {1, 2, 3, 4}


def test_tensorboard_events_hold_the_whole_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_and_resumed(tmp_path, "tensorboard", monkeypatch)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {event.step: event.value for event in events.Scalars("train/loss_cot")}
    assert found == pytest.approx(losses(tmp_path))
    assert set(found) == {1, 2, 3, 4}


def test_tasks_are_grouped_by_meta_task() -> None:
    by_task = {
        "mmeb_nano/NanoCLS": PART,
        "mmeb_nano/NanoT2I": PART,
        "mmeb_nano/NanoI2T": {**PART, "adaptive": 0.7, "think_rate": 0.75},
    }
    values = evaluation_values(None, {**SUMMARY, "by_task": by_task})
    assert values["eval/I-CLS/adaptive"] == 0.5
    assert values["eval/I-RET/adaptive"] == pytest.approx(0.6)
    assert values["eval/I-RET/think_rate"] == 0.5
    assert (values["eval/all/never"], values["eval/all/tokens_per_query"]) == (0.2, 7.0)
    assert values["gate/ece"] == 0.1
    assert "gate/auroc" not in values, "unknown"
    own = evaluation_values(None, {**SUMMARY, "by_task": {"nano/read": PART}})
    assert own["eval/read/think_rate"] == 0.25


def test_a_suite_s_means_go_to_the_logger(tmp_path: Path) -> None:
    scores = {task.name: 0.5 for task in all_tasks()}
    missing = all_tasks()[0]
    del scores[missing.name]
    settings = Settings(logger=LoggerSettings(name="csv"))
    log_evaluation(settings, RunFolder(tmp_path), means=aggregate(scores))
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["eval/ViDoRe-V1/score"]) == 0.5
    assert not {f"eval/{missing.meta_task}/score", "eval/all/score"} & set(row), "a task of theirs is missing"
