"""Progress bar, throughput and the extra loggers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from tests.stage_runs import StageRun, tiny_settings
from twn_lightning.callbacks import StageProgressBar, Throughput, build_callbacks, build_loggers
from twn_lightning.errors import ConfigError
from twn_lightning.settings import SFTSettings

STAGE = SFTSettings(batch_size=4, chunk_size=4, max_steps=2)


def test_the_bar_shows_the_stages_numbers_and_no_others(tmp_path: Path) -> None:
    bar = StageProgressBar()
    run = StageRun(tiny_settings(STAGE, tmp_path), callbacks=(bar,)).fit()
    shown = bar.get_metrics(run.trainer, run.stage)
    assert list(shown) == ["loss_cot", "loss_nce_generative", "hit@1_generative"]


def test_throughput_counts_the_pairs_of_a_step(tmp_path: Path) -> None:
    run = StageRun(tiny_settings(STAGE, tmp_path), callbacks=(Throughput(2),)).fit()
    (line,) = [line for line in run.run_folder.history() if "throughput/rows_per_second" in line]
    assert line["step"] == 2
    rows = line["throughput/rows_per_second"] * line["throughput/seconds_per_step"]
    assert rows == pytest.approx(STAGE.batch_size)


def test_a_run_has_a_bar_unless_told_not_to(tmp_path: Path) -> None:
    settings = tiny_settings(STAGE, tmp_path)
    assert any(isinstance(callback, StageProgressBar) for callback in build_callbacks(settings))
    assert not any(isinstance(callback, StageProgressBar) for callback in build_callbacks(settings, progress=False))


def test_csv_logger_gets_what_metrics_jsonl_gets(tmp_path: Path) -> None:
    run = StageRun(tiny_settings(STAGE, tmp_path))
    run.settings.logger.name = "csv"
    (logger,) = build_loggers(run.settings, run.run_folder)
    assert isinstance(logger, CSVLogger)
    run.trainer.loggers = [*run.trainer.loggers, logger]
    run.fit()
    (path,) = tmp_path.rglob("csv/**/metrics.csv")
    rows = list(csv.DictReader(path.open()))
    assert any(row["train/loss_cot"] for row in rows)


def test_no_logger_and_an_unknown_one(tmp_path: Path) -> None:
    run = StageRun(tiny_settings(STAGE, tmp_path))
    assert build_loggers(run.settings, run.run_folder) == []
    name: Any = "wanbd"
    run.settings.logger.name = name
    with pytest.raises(ConfigError, match="did you mean 'wandb'"):
        build_loggers(run.settings, run.run_folder)
